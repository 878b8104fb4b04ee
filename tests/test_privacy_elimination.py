"""IVE and Multi-IVE: what tells most goes first, what is locked stays, and lengths are as said."""

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from sklearn.preprocessing import StandardScaler, normalize

from fa_utils.privacy.elimination import fit_ive, fit_multi_ive
from fa_utils.privacy.probes import cross_validate

PLANTED = [7, 2]  # the columns that tell the label, the plainer one first


@pytest.fixture(scope="module")
def planted():
    """400 templates of 12 numbers, none of length one, two of them telling."""
    rng = np.random.default_rng(4)
    labels = rng.integers(0, 2, 400)
    features = 3 + rng.normal(size=(400, 12)) * np.linspace(0.5, 2, 12)
    features[:, 7] += 5 * labels
    features[:, 2] += 1.5 * labels
    return features, labels


@pytest.fixture(scope="module")
def ive(planted):
    return fit_ive(*planted, steps=4, per_step=2)


@pytest.fixture(scope="module")
def multi(planted):
    return fit_multi_ive(*planted, rounds=4, per_round=2, locked=3)


def test_ive_removes_the_planted_columns_first(planted, ive):
    assert ive.eliminated[:2].tolist() == PLANTED
    assert len(set(ive.eliminated)) == 8 and ive.max_steps == 4 and ive.dim == 12
    one_each = fit_ive(*planted, steps=2, per_step=1)
    assert one_each.eliminated.tolist() == PLANTED


def test_ive_returns_the_remaining_standardized_columns(planted, ive):
    features, _ = planted
    standardized = (features - features.mean(0)) / features.std(0)
    np.testing.assert_allclose(ive.transform(features, 0), standardized, atol=1e-9)
    rest = np.setdiff1d(np.arange(12), ive.eliminated[:6])
    np.testing.assert_allclose(ive.transform(features, 3), standardized[:, rest], atol=1e-9)


def test_statistics_are_those_of_the_training_database(planted, ive):
    features, _ = planted
    other = torch.tensor(features[:5] + 100)
    np.testing.assert_allclose(ive.transform(other, 0), (features[:5] + 100 - features.mean(0)) / features.std(0), atol=1e-9)


def test_elimination_takes_the_label_out(planted, ive):
    features, labels = planted
    accuracy = [
        cross_validate(ive.transform(features, steps), labels, np.arange(400), probes=["logistic"]).accuracy() for steps in (0, 1)
    ]
    assert accuracy[0] > 0.95 and accuracy[1] < 0.6


def test_multi_ive_keeps_the_length_and_the_locked_components(planted, multi):
    features, _ = planted
    assert set(multi.eliminated) <= set(range(3, 12)) and len(set(multi.eliminated)) == 8
    standardized = StandardScaler().fit_transform(normalize(features))
    reference = PCA(svd_solver="full").fit(standardized)
    clean = reference.transform(standardized)
    for steps in range(5):
        out = multi.transform(features, steps)
        assert out.shape == features.shape
        gone = multi.eliminated[: 2 * steps]
        kept = np.setdiff1d(np.arange(12), gone)
        found = reference.transform(out)
        np.testing.assert_allclose(found[:, gone], 0, atol=1e-9)
        np.testing.assert_allclose(found[:, kept], clean[:, kept], atol=1e-9)
    np.testing.assert_allclose(multi.transform(features, 0), standardized, atol=1e-9)


def test_multi_ive_removes_the_component_that_tells():
    """The label moves templates along the direction of the least variance, hence the last component."""
    rng = np.random.default_rng(0)
    turn = np.linalg.qr(rng.normal(size=(8, 8)))[0]
    labels = np.arange(600) % 2
    hidden = rng.normal(size=(600, 8)) * np.r_[np.linspace(1.0, 0.6, 7), 0.05]
    hidden[:, 7] += 0.2 * (labels - 0.5)
    features = hidden @ turn
    done = fit_multi_ive(features, labels, rounds=2, per_round=1, locked=0)
    pca = PCA().fit(StandardScaler().fit_transform(normalize(features)))
    parts = pca.transform(StandardScaler().fit_transform(normalize(features)))
    correlation = [abs(np.corrcoef(part, labels)[0, 1]) for part in parts.T]
    assert done.eliminated[0] == np.argmax(correlation) == 7
    locked = fit_multi_ive(features, labels, rounds=1, per_round=1, locked=7)
    assert locked.eliminated.tolist() == [7]


def test_length_of_the_input_does_not_matter_to_multi_ive(planted, multi):
    features, _ = planted
    np.testing.assert_allclose(multi.transform(features * 4, 2), multi.transform(features, 2), atol=1e-9)


def test_seed_decides_and_workers_do_not(planted):
    for fit, steps in ((fit_ive, {"steps": 3, "per_step": 3}), (fit_multi_ive, {"rounds": 3, "per_round": 3, "locked": 2})):
        one, two, other = (fit(*planted, **steps, seed=seed, workers=workers) for seed, workers in ((1, 1), (1, 2), (2, 1)))
        assert np.array_equal(one.eliminated, two.eliminated)
        assert not np.array_equal(one.eliminated, other.eliminated)


def test_published_numbers_fit_512_columns():
    """20 x 5 of IVE leave 412; 169 rounds of 3 and 5 locked components are all of 512, and one more is too many."""
    features, labels = np.random.default_rng(0).normal(size=(520, 512)), np.arange(520) % 2
    assert len(fit_ive(features, labels, trees=1).eliminated) == 100
    done = fit_multi_ive(features, labels, trees=1)
    assert sorted(done.eliminated) == list(range(5, 512)) and done.max_steps == 169
    with pytest.raises(ValueError, match="rounds = 170 with 3 each would eliminate 510 of 512 columns, 5 of which have"):
        fit_multi_ive(features, labels, rounds=170)


GOOD = (np.random.default_rng(1).normal(size=(30, 8)), np.arange(30) % 2)
HOLED = np.where(np.arange(30)[:, None] == 4, np.inf, GOOD[0])


@pytest.mark.parametrize("fit, args, options, message", [
    (fit_ive, GOOD, {}, "steps = 20 with 5 each would eliminate 100 of 8 columns, 1 of which has to stay: at most steps = 1"),
    (fit_ive, GOOD, {"steps": 8, "per_step": 1}, "at most steps = 7"),
    (fit_multi_ive, GOOD, {}, "at most rounds = 1"),
    (fit_multi_ive, GOOD, {"rounds": 1, "locked": 9}, "at most rounds = 0"),
    (fit_multi_ive, GOOD, {"rounds": 8, "per_round": 1, "locked": 0}, "at most rounds = 7"),
    (fit_multi_ive, GOOD, {"rounds": 1, "locked": -1}, "locked = -1"),
    (fit_multi_ive, (GOOD[0][:6], GOOD[1][:6]), {"rounds": 1}, "8 principal components need at least as many rows, got 6"),
    (fit_ive, GOOD, {"steps": 0}, "steps = 0"),
    (fit_ive, GOOD, {"steps": 1, "trees": 0}, "trees = 0"),
    (fit_ive, (HOLED, GOOD[1]), {"steps": 1}, "1 of 30 rows: 4"),
    (fit_multi_ive, (GOOD[0], np.ones(30)), {"rounds": 1}, r"both present: found 1.0 \(30 rows\)"),
    (fit_ive, (GOOD[0], GOOD[1][:9]), {"steps": 1}, r"shape \(30,\)"),
    (fit_ive, (np.ones((0, 8)), []), {"steps": 1}, "at least one row"),
])
def test_fitting_refuses(fit, args, options, message):
    with pytest.raises(ValueError, match=message):
        fit(*args, **options)


@pytest.mark.parametrize("steps", [-1, 5])
def test_transform_refuses(ive, multi, planted, steps):
    for done in (ive, multi):
        with pytest.raises(ValueError, match=f"steps = {steps}: from 0 to 4"):
            done.transform(planted[0], steps)
        with pytest.raises(ValueError, match="12 columns as those of the training had, got 11"):
            done.transform(planted[0][:, :11], 1)
