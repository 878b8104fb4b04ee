"""Probes: people stay on one side, the leak where they do not, intervals over people, and what is refused."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.base import BaseEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score
from sklearn.model_selection import StratifiedGroupKFold

from fa_utils.privacy.perceptron import _batches, seeded
from fa_utils.privacy.probes import (
    PAPER_PROBES,
    PROBES,
    GenderMLP,
    Predictions,
    accuracy_difference,
    accuracy_interval,
    balanced_subset,
    cross_validate,
    halves_by_identity,
    mlp_predictions,
    train_mlp,
)


def people(n: int, images: int, *, told: float, seed: int = 0, dim: int = 12, spread: float = 0.2):
    """Unit templates that cluster around people; the first number tells the label as far as ``told`` goes."""
    rng = np.random.default_rng(seed)
    identity = np.repeat(np.arange(n) * 7 + 3, images)
    label = rng.permutation(n) % 2
    centers = rng.normal(size=(n, dim))
    centers[:, 0] += told * (2 * label - 1)
    features = np.repeat(centers, images, 0) + spread * rng.normal(size=(n * images, dim))
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    return features, np.repeat(label, images), identity


class Spy(BaseEstimator):
    """Predicts 0 and remembers what it was trained on and asked."""

    seen: list = []

    def fit(self, x, y):
        self.seen.append([x, y, None])
        return self

    def predict(self, x):
        self.seen[-1][2] = x
        return np.zeros(len(x), dtype=int)


@pytest.fixture
def spy():
    Spy.seen = []
    return {"spy": lambda seed: Spy()}


# ---------------------------------------------------------------- setting A


def test_mlp_shapes_and_predictions():
    mlp = seeded(lambda: GenderMLP(8, hidden=16), 1)
    features = torch.randn(20, 8, generator=torch.Generator().manual_seed(0))
    assert mlp(features).shape == (20, 1) and mlp.hidden(features).shape == (20, 16)
    by_hand = F.leaky_relu(features @ mlp.inner.weight.T + mlp.inner.bias, 0.01)
    torch.testing.assert_close(mlp.hidden(features), by_hand)
    torch.testing.assert_close(mlp(features), by_hand @ mlp.outer.weight.T + mlp.outer.bias)
    expected = [int(logit > 0) for logit in mlp(features)[:, 0]]
    found = mlp_predictions(mlp, features.numpy())
    assert found.dtype == np.int64 and found.tolist() == expected and len(set(expected)) == 2
    assert GenderMLP(8).hidden(features).shape == (20, 512)


def test_mlp_training_is_adam_on_the_binary_cross_entropy():
    features, labels, _ = people(30, 3, told=1.0)
    rows, targets = torch.tensor(features, dtype=torch.float32), torch.tensor(labels).float()[:, None]
    ours = train_mlp(features, labels, iterations=20, batch=16, hidden=10, seed=3)
    theirs = seeded(lambda: GenderMLP(12, hidden=10), 3)
    adam = torch.optim.Adam(theirs.parameters(), lr=1e-3)
    for batch in _batches(90, 20, 16, 3):
        adam.zero_grad()
        F.binary_cross_entropy_with_logits(theirs(rows[batch]), targets[batch]).backward()
        adam.step()
    for one, other in zip(ours.parameters(), theirs.parameters()):
        torch.testing.assert_close(one, other.detach(), atol=2e-6, rtol=0)
    assert not ours.training and not any(weight.requires_grad for weight in ours.parameters())


def test_mlp_learns_what_holds_for_others():
    features, labels, identity = people(200, 3, told=1.5)
    train, test = halves_by_identity(identity, labels)
    mlp = train_mlp(features[train], labels[train], iterations=200, hidden=64)
    assert np.mean(mlp_predictions(mlp, features[test]) == labels[test]) > 0.85


def test_halves_share_nobody_and_hold_both_labels():
    _, labels, identity = people(41, 3, told=0)
    order = np.random.default_rng(1).permutation(len(labels))
    labels, identity = labels[order], identity[order]
    one, two = halves_by_identity(identity, labels, seed=2)
    assert sorted([*one, *two]) == list(range(len(labels)))
    assert not set(identity[one]) & set(identity[two])
    for label in (0, 1):
        sizes = [len(set(identity[half][labels[half] == label])) for half in (one, two)]
        assert abs(sizes[0] - sizes[1]) <= 1
    assert np.array_equal(one, halves_by_identity(identity, labels, seed=2)[0])
    assert not np.array_equal(one, halves_by_identity(identity, labels, seed=3)[0])


def test_halves_of_a_label_that_changes_within_people():
    identity = np.repeat(np.arange(10), 4)
    labels = np.tile([0, 0, 0, 1], 10)
    assert all(set(labels[half]) == {0, 1} for half in halves_by_identity(identity, labels))


def test_halves_need_two_people_of_a_label():
    with pytest.raises(ValueError, match="got 3 people of label 0 and 1 people of label 1"):
        halves_by_identity([1, 2, 3, 4, 4], [0, 0, 0, 1, 1])


# ---------------------------------------------------------------- the balanced subset


def test_subset_is_balanced_and_asks_everyone_first():
    # Label 0: people 0 to 9 with 5 images; label 1: 20 (7 images), 21 and 22 (1 image each), 23 (4).
    identity = np.r_[np.repeat(np.arange(10), 5), np.repeat([20, 21, 22, 23], [7, 1, 1, 4])]
    labels = (identity >= 20).astype(int)
    rows = balanced_subset(labels, identity, 16, seed=1)
    assert len(set(rows)) == 16 and np.array_equal(rows, np.sort(rows))
    assert np.bincount(labels[rows]).tolist() == [8, 8]
    assert len(set(identity[rows][:8])) == 8
    assert np.unique(identity[rows][8:], return_counts=True)[1].tolist() == [3, 1, 1, 3]
    assert np.array_equal(rows, balanced_subset(labels, identity, 16, seed=1))
    assert not np.array_equal(rows, balanced_subset(labels, identity, 16, seed=2))


@pytest.mark.parametrize("size, message", [
    (3, "even number"),
    (0, "even number"),
    (8, "need 4 of either label; there are 5 of 0 and 3 of 1"),
])
def test_subset_refuses(size, message):
    with pytest.raises(ValueError, match=message):
        balanced_subset([0, 1, 0, 1, 0, 1, 0, 0], np.arange(8), size)


# ---------------------------------------------------------------- folds


def test_grouped_folds_share_nobody_and_predict_each_row_once(spy):
    features, labels, identity = people(30, 4, told=0)
    done = cross_validate(features, labels, identity, probes=spy, folds=5)
    assert len(Spy.seen) == 5
    owner = {tuple(row): person for row, person in zip(features, identity)}
    asked = []
    for train, _, test in Spy.seen:
        assert not {owner[tuple(row)] for row in train} & {owner[tuple(row)] for row in test}
        asked += map(tuple, test)
    assert sorted(asked) == sorted(map(tuple, features))
    assert np.array_equal(done.correct["spy"], labels == 0)


def test_ungrouped_folds_leak_people():
    """The label is a coin thrown once a person: nothing to learn but the people themselves."""
    features, labels, identity = people(60, 5, told=0, spread=0.1)
    leaking = cross_validate(features, labels, identity, probes=["rbf_svm"], grouped=False)
    honest = cross_validate(features, labels, identity, probes=["rbf_svm"])
    assert leaking.accuracy() > 0.9
    assert accuracy_interval(honest).low < 0.5 < accuracy_interval(honest).high < 0.8


def test_paper_probes_agree_with_scikit_learn_and_workers_change_nothing():
    features, labels, identity = people(90, 3, told=0.8)
    done = cross_validate(features, labels, identity)
    assert tuple(done.correct) == PAPER_PROBES and not set(PAPER_PROBES) - set(PROBES)
    right = np.zeros(len(labels), bool)
    for train, test in StratifiedGroupKFold(3, shuffle=True, random_state=0).split(features, labels, identity):
        right[test] = LogisticRegression().fit(features[train], labels[train]).predict(features[test]) == labels[test]
    assert np.mean(done.correct["logistic"] == right) > 0.99
    again = cross_validate(torch.tensor(features), torch.tensor(labels), identity, workers=2)
    assert all(np.array_equal(done.correct[name], again.correct[name]) for name in PAPER_PROBES)
    moved = cross_validate(features, labels, identity, seed=1)
    assert not np.array_equal(moved.per_image(), done.per_image())


@pytest.mark.parametrize("name", ["rbf_svm", "boosting", "mlp"])
def test_curved_probes_find_what_lines_cannot(name):
    rng = np.random.default_rng(0)
    features, identity = rng.normal(size=(900, 3)), np.arange(900)
    labels = (features[:, 0] * features[:, 1] > 0).astype(int)
    flat, curved = (cross_validate(features, labels, identity, probes=probe) for probe in (["logistic"], [name]))
    assert flat.accuracy() < 0.65 and curved.accuracy() > 0.75


# ---------------------------------------------------------------- further training rows


def test_extra_rows_of_held_out_people_are_never_used(spy):
    features, labels, identity = people(12, 3, told=0, seed=1)
    clean = features + 100.0
    strangers = np.full((2, 12), 500.0)
    extra = (np.r_[clean, strangers], np.r_[labels, 0, 1], np.r_[identity, -1, -2])
    cross_validate(features, labels, identity, probes=spy, extra=extra)
    owner = {tuple(row): person for row, person in zip(np.r_[features, clean], np.r_[identity, identity])}
    truth = {tuple(row): label for row, label in zip(np.r_[features, clean], np.r_[labels, labels])}
    for train, answers, test in Spy.seen:
        held_out = {owner[tuple(row)] for row in test}
        trained = [owner[tuple(row)] for row in train]  # a stranger would be a KeyError
        assert not held_out & set(trained)
        assert len(train) == 2 * (36 - len(test)) and np.sum(train[:, 0] > 50) == len(train) / 2
        assert answers.tolist() == [truth[tuple(row)] for row in train]


def test_extra_rows_help():
    features, labels, identity = people(120, 2, told=1.5)
    noisy = features + 0.8 * np.random.default_rng(5).normal(size=features.shape)
    alone = cross_validate(noisy, labels, identity, probes=["logistic"])
    helped = cross_validate(noisy, labels, identity, probes=["logistic"], extra=(features, labels, identity))
    assert not np.array_equal(alone.per_image(), helped.per_image())
    assert accuracy_difference(helped, alone).estimate > 0


# ---------------------------------------------------------------- accuracy and how sure


@pytest.fixture
def predictions():
    rng = np.random.default_rng(2)
    identity = np.repeat(np.arange(50), 6)
    labels = (identity % 5 == 0).astype(int)
    easy = np.repeat(rng.random(50), 6)
    correct = {name: rng.random(300) < np.where(labels, 0.4 * easy, easy) for name in ("a", "b")}
    return Predictions(labels, identity, correct)


def test_accuracy_is_the_mean_over_probes(predictions):
    a, b, labels = predictions.correct["a"], predictions.correct["b"], predictions.labels
    assert predictions.accuracy() == pytest.approx((a.mean() + b.mean()) / 2)
    guesses = [np.where(right, labels, 1 - labels) for right in (a, b)]
    expected = np.mean([balanced_accuracy_score(labels, guess) for guess in guesses])
    assert predictions.accuracy(balanced=True) == pytest.approx(expected)
    np.testing.assert_allclose(predictions.per_image(), (a.astype(float) + b) / 2)


@pytest.mark.parametrize("balanced", [False, True])
def test_interval_draws_people(predictions, balanced):
    interval = accuracy_interval(predictions, balanced=balanced, n_resamples=2000)
    assert interval.estimate == predictions.accuracy(balanced)
    rng, found = np.random.default_rng(9), []
    for _ in range(1500):
        rows = np.concatenate([np.arange(6) + 6 * person for person in rng.integers(0, 50, 50)])
        right = {name: right[rows] for name, right in predictions.correct.items()}
        drawn = Predictions(predictions.labels[rows], predictions.identity[rows], right)
        found.append(drawn.accuracy(balanced))
    np.testing.assert_allclose(interval[1:], np.quantile(found, [0.025, 0.975]), atol=0.02)
    alone = Predictions(predictions.labels, np.arange(300), predictions.correct)
    images = accuracy_interval(alone, balanced=balanced)
    assert interval.high - interval.low > 1.2 * (images.high - images.low)


def test_paired_difference_is_narrower_than_two_intervals(predictions):
    rng = np.random.default_rng(0)
    worse = {name: right & (rng.random(300) < 0.9) for name, right in predictions.correct.items()}
    other = Predictions(predictions.labels, predictions.identity, worse)
    for balanced in (False, True):
        gap = accuracy_difference(predictions, other, balanced=balanced)
        assert gap.estimate == pytest.approx(predictions.accuracy(balanced) - other.accuracy(balanced))
        assert 0 < gap.low < gap.estimate < gap.high
        single = accuracy_interval(predictions, balanced=balanced)
        assert gap.high - gap.low < 0.7 * (single.high - single.low)
    assert accuracy_difference(predictions, predictions) == (0, 0, 0)


@pytest.mark.parametrize("value", [True, False])
def test_perfect_probes_leave_some_doubt(value):
    identity = np.repeat(np.arange(10), 3)
    interval = accuracy_interval(Predictions(identity % 2, identity, {"a": np.full(30, value)}))
    assert interval.estimate == value and interval.high - interval.low == pytest.approx(0.2775, abs=1e-3)  # Wilson, 10 people


# ---------------------------------------------------------------- what is refused


GOOD = people(6, 2, told=1.0)


@pytest.mark.parametrize("change, message", [
    ({"features": np.where(np.arange(12)[:, None] == 7, np.nan, GOOD[0])}, "1 of 12 rows: 7"),
    ({"features": np.ones((0, 3)), "labels": [], "identity": []}, "at least one row"),
    ({"labels": np.full(12, 3)}, r"found 3 \(12 rows\)"),
    ({"labels": GOOD[1][:5]}, r"labels must have the shape \(12,\)"),
    ({"identity": GOOD[2][:5]}, r"identity must have the shape \(12,\)"),
    ({"folds": 4}, "folds = 4.*got 3 people of label 0 and 3 people of label 1"),
    ({"folds": 1}, "folds = 1"),
    ({"probes": ["svm"]}, r"unknown probes \['svm'\]; there are logistic, linear_svm"),
    ({"probes": []}, "no probe"),
    ({"extra": GOOD, "grouped": False}, "need grouped folds"),
    ({"extra": (GOOD[0][:, :5], *GOOD[1:])}, "12 columns as the features have, got 5"),
    ({"extra": (GOOD[0], GOOD[1] + 1, GOOD[2])}, "extra labels must be 0 and 1"),
    ({"extra": (*GOOD[:2], GOOD[2] + 1000)}, "none of the extra rows would be used"),
])
def test_cross_validation_refuses(change, message):
    options = {"features": GOOD[0], "labels": GOOD[1], "identity": GOOD[2], **change}
    with pytest.raises(ValueError, match=message):
        cross_validate(**options)


def test_intervals_refuse(predictions):
    one = Predictions(np.array([0, 1]), np.array([4, 4]), {"a": np.array([True, False])})
    with pytest.raises(ValueError, match="at least two people"):
        accuracy_interval(one)
    with pytest.raises(ValueError, match="n_resamples = 10"):
        accuracy_interval(predictions, n_resamples=10)
    with pytest.raises(ValueError, match="same rows"):
        accuracy_difference(predictions, Predictions(1 - predictions.labels, predictions.identity, predictions.correct))
