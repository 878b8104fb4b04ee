"""Metrics against brute force, scikit-learn and scipy, and the input that they refuse."""

import numpy as np
import pytest
import torch
from scipy.optimize import brentq
from scipy.stats import binomtest
from sklearn import metrics as reference

from fa_utils import metrics


@pytest.fixture
def rng():
    return np.random.default_rng(7)


@pytest.fixture
def gallery(rng):
    """300 pictures of 40 people, unsorted, unequal numbers each."""
    identity = rng.integers(0, 40, 300) * 3
    return rng.normal(size=(300, 8)) + 0.5 * rng.normal(size=(200, 8))[identity], identity


@pytest.fixture
def scored(rng):
    same = rng.random(1000) < 0.4
    return np.where(same, 0.6, 0.1) + 0.25 * rng.normal(size=1000), same


def impostor_scores(embeddings, identity):
    scores = [metrics.pair_similarity(embeddings[[i]], embeddings[[j]])[0]
              for i in range(len(identity)) for j in range(i) if identity[i] != identity[j]]
    return np.array(scores)


# ---------------------------------------------------------------- similarities and thresholds


def test_pair_similarity_is_the_cosine(rng):
    a, b = rng.normal(size=(6, 5)), rng.normal(size=(6, 5))
    unit_a, unit_b = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (a, b))
    expected = 1 - 0.5 * np.sum((unit_a - unit_b) ** 2, axis=1)
    np.testing.assert_allclose(metrics.pair_similarity(torch.tensor(a), b), expected, atol=1e-12)
    assert metrics.pair_similarity(a, a).max() <= 1


@pytest.mark.parametrize("a, message", [
    (np.zeros((2, 3)), "length zero, in row 0"),
    (np.full((2, 3), np.nan), "NaN"),
    (np.zeros((0, 3)), "at least one"),
    (np.ones((3, 3)), "same shape"),
    (np.ones(3), "2 dimension"),
])
def test_pair_similarity_refuses(a, message):
    with pytest.raises(ValueError, match=message):
        metrics.pair_similarity(a, np.ones((2, 3)))


@pytest.mark.parametrize("block", [1, 7, 64, 1000])
def test_impostor_thresholds_reach_the_far_exactly(gallery, block):
    """Invariant 11: the FAR recomputed on the impostors is the requested one within 1/n, and never above."""
    embeddings, identity = gallery
    scores = impostor_scores(embeddings, identity)
    fars = (0.3, 1e-2, 1e-3, 1e-4)
    thresholds = metrics.impostor_thresholds(embeddings, identity, fars, block=block)
    assert list(thresholds) == list(fars)
    for far, threshold in thresholds.items():
        # One pair sits on the threshold, and sums of products differ in the last bit.
        accepted = np.sum(scores > threshold + 1e-12)
        assert accepted == int(far * len(scores))
        assert 0 <= far - accepted / len(scores) < 1 / len(scores)
    assert sorted(thresholds.values()) == list(thresholds.values())


def test_mated_pairs_never_count(rng):
    embeddings = rng.normal(size=(60, 4))
    identity = np.repeat(np.arange(30), 2)
    embeddings[1::2] = embeddings[::2]  # every mated pair scores 1
    assert metrics.impostor_thresholds(embeddings, identity, [1e-2])[1e-2] < 0.999


def test_tied_impostors_are_all_refused():
    embeddings = np.array([[1.0, 0]] * 20 + [[0, 1.0]])
    thresholds = metrics.impostor_thresholds(embeddings, np.arange(21), [0.1])
    assert thresholds[0.1] == 1.0  # 190 pairs tie at 1: accepting more than 21 of them would exceed the FAR


def test_unresolvable_far_is_refused(gallery):
    with pytest.raises(ValueError, match="FAR of 1e-06 cannot be resolved.* at least 1000000 are needed"):
        metrics.impostor_thresholds(*gallery, [1e-2, 1e-6])
    with pytest.raises(ValueError, match="FAR of 0.001 cannot be resolved with 999"):
        metrics.pairs_threshold(np.arange(999.0), np.zeros(999, bool), 1e-3)


@pytest.mark.parametrize("far, n, accepted",
                         [(1e-3, 1000, 1), (1e-3, 3000, 3), (0.29, 100, 29), (1e-2, 199, 1)])
def test_pairs_threshold_accepts_the_floor(far, n, accepted):
    scores = np.random.default_rng(n).permutation(n + 5).astype(float)
    same = np.arange(n + 5) < 5
    assert np.sum(scores[~same] > metrics.pairs_threshold(scores, same, far)) == accepted


@pytest.mark.parametrize("embeddings, identity, fars, message", [
    (np.ones((4, 2)), np.zeros(4), [0.5], "single identity"),
    (np.ones((4, 2)), np.zeros(3), [0.5], r"shape \(4,\)"),
    (np.ones((4, 2)), np.arange(4), [1.0], "between 0 and 1"),
    (np.ones((4, 2)), np.arange(4), [], "between 0 and 1"),
    (np.full((4, 2), np.inf), np.arange(4), [0.5], "infinite"),
])
def test_impostor_thresholds_refuse(embeddings, identity, fars, message):
    with pytest.raises(ValueError, match=message):
        metrics.impostor_thresholds(embeddings, identity, fars)


# ---------------------------------------------------------------- verification


@pytest.mark.parametrize("decimals", [1, 12])  # one decimal: many ties
def test_roc_has_the_points_of_scikit_learn(scored, decimals):
    scores, same = scored[0].round(decimals), scored[1]
    roc = metrics.roc_curve(scores, same)
    fpr, tpr, _ = reference.roc_curve(same, scores, drop_intermediate=False)
    np.testing.assert_allclose(roc.fmr, fpr, atol=1e-12)
    np.testing.assert_allclose(roc.tmr, tpr, atol=1e-12)
    for i in (0, len(fpr) // 2, len(fpr) - 1):
        assert roc.fmr[i] == pytest.approx(np.mean(scores[~same] > roc.threshold[i]))
        assert roc.tmr[i] == pytest.approx(np.mean(scores[same] > roc.threshold[i]))


@pytest.mark.parametrize("decimals", [1, 12])
def test_equal_error_rate_is_where_the_curves_cross(scored, decimals):
    scores, same = scored[0].round(decimals), scored[1]
    fpr, tpr, _ = reference.roc_curve(same, scores)
    expected = brentq(lambda x: 1 - x - np.interp(x, fpr, tpr), 0, 1)
    assert metrics.equal_error_rate(scores, same) == pytest.approx(expected, abs=1e-9)


def test_equal_error_rate_at_the_ends():
    same = np.array([True, True, False, False])
    assert metrics.equal_error_rate([4.0, 3, 2, 1], same) == 0
    assert metrics.equal_error_rate([1.0, 2, 3, 4], same) == 1


def test_fnmr_at_fmr_counts_rejected_mated_pairs(scored):
    scores, same = scored
    threshold = np.sort(scores[~same])[::-1][int(0.05 * np.sum(~same))]
    assert metrics.fnmr_at_fmr(scores, same, 0.05) == pytest.approx(np.mean(scores[same] <= threshold))


def test_verification_accuracy_matches_exhaustive_search(scored):
    scores, same = scored
    fold = np.arange(1000) % 10
    accuracies = []
    for held_out in range(10):
        train, test = fold != held_out, fold == held_out
        _, best = max((reference.accuracy_score(same[train], scores[train] > t), t) for t in scores[train])
        above = scores[train][scores[train] > best].min()
        accuracies.append(reference.accuracy_score(same[test], scores[test] > (best + above) / 2))
    result = metrics.verification_accuracy(scores, same, fold)
    assert result == pytest.approx((np.mean(accuracies), np.std(accuracies)))


def test_threshold_of_a_fold_is_not_chosen_on_it():
    """Fold 1 is separable only at a threshold that fold 0 does not know."""
    scores = np.array([0.9, 0.8, 0.2, 0.1, 0.45, 0.44, 0.43, 0.42])
    same = np.array([True, True, False, False] * 2)
    fold = np.repeat([0, 1], 4)
    assert metrics.verification_accuracy(scores, same, fold).mean == pytest.approx((1.0 + 0.5) / 2)


@pytest.mark.parametrize("function", [metrics.roc_curve, metrics.equal_error_rate,
                                      lambda s, y: metrics.fnmr_at_fmr(s, y, 0.5),
                                      lambda s, y: metrics.verification_accuracy(s, y, [0, 1][:len(s)])])
@pytest.mark.parametrize("scores, same, message", [
    ([], np.zeros(0, bool), "at least one value"),
    ([1.0, 2], np.array([True, True]), "impostor pair"),
    ([1.0, 2], np.array([False, False]), "mated pair"),
    ([1.0, np.nan], np.array([True, False]), "NaN"),
    ([1.0, 2], np.array([1, 0]), "boolean"),
    ([1.0, 2], np.array([True]), "one entry a pair"),
])
def test_verification_refuses(function, scores, same, message):
    with pytest.raises(ValueError, match=message):
        function(scores, same)


def test_verification_needs_two_folds(scored):
    with pytest.raises(ValueError, match="two folds, got only fold 3"):
        metrics.verification_accuracy(*scored, np.full(1000, 3))


def test_hit_rate_is_strict_and_dodging_its_complement():
    similarity = torch.tensor([0.1, 0.3, 0.5, 0.7], dtype=torch.float64)
    assert metrics.hit_rate(similarity, 0.5) == 0.25
    assert metrics.hit_rate(similarity, 0.5, dodging=True) == 0.75
    with pytest.raises(ValueError, match="at least one"):
        metrics.hit_rate([], 0.5)
    with pytest.raises(ValueError, match="threshold"):
        metrics.hit_rate([0.5], float("nan"))


# ---------------------------------------------------------------- how sure


def test_bootstrap_of_crossed_pairs_covers_as_it_says(rng):
    """Two random effects, 15 x 15 pairs: the interval covers the truth as it says; a naive one does not."""
    sources, targets = (ids.ravel() for ids in np.meshgrid(np.arange(15), np.arange(15)))
    covered = naive = 0
    for trial in range(200):
        values = rng.normal(size=15)[sources] + rng.normal(size=15)[targets] + 0.5 * rng.normal(size=225)
        interval = metrics.two_way_bootstrap(values, sources, targets, n_resamples=300, seed=trial)
        covered += interval.low <= 0 <= interval.high
        naive += abs(values.mean()) <= 1.96 * values.std() / 15
    assert 0.86 <= covered / 200 <= 0.99
    assert naive / 200 < 0.6


@pytest.mark.parametrize("shared", [False, True])
def test_bootstrap_of_separate_pairs_has_the_binomial_width(rng, shared):
    """Each source and target once, or all but a few: the standard error is that of independent pairs."""
    hits = (rng.random(400) < 0.3).astype(float)
    sources, targets = np.arange(400), np.arange(400)
    if shared:
        sources, targets = np.where(sources < 4, 0, sources), np.where(targets > 396, 399, targets)
    interval = metrics.two_way_bootstrap(hits, sources, targets, seed=1)
    expected = 2 * 1.96 * hits.std() / 20
    assert interval.estimate == hits.mean()
    assert interval.high - interval.low == pytest.approx(expected, rel=0.15)


def test_bootstrap_sees_pairs_that_share_a_target():
    """40 targets with 10 equal pairs each are worth 40 pairs, not 400."""
    values = np.repeat(np.random.default_rng(3).normal(size=40), 10)
    interval = metrics.two_way_bootstrap(values, np.arange(400), np.repeat(np.arange(40), 10), seed=0)
    assert interval.high - interval.low == pytest.approx(2 * 1.96 * values.std() / np.sqrt(40), rel=0.15)


def test_bootstrap_averages_columns_within_a_pair(rng):
    values = rng.normal(size=(60, 3))
    ids = np.arange(60) % 6, np.arange(60) // 6
    assert (metrics.two_way_bootstrap(values, *ids, seed=5)
            == metrics.two_way_bootstrap(values.mean(axis=1), *ids, seed=5))


def test_bootstrap_is_seeded_and_takes_names(rng):
    values = rng.normal(size=60)
    ids = np.arange(60) % 6, np.arange(60) // 6
    named = np.array(list("abcdef"))[ids[0]], ids[1] * 100
    first = metrics.two_way_bootstrap(values, *ids, seed=5)
    assert first == metrics.two_way_bootstrap(values, *named, seed=5)
    assert first != metrics.two_way_bootstrap(values, *ids, seed=6)
    wide = metrics.two_way_bootstrap(values, *ids, seed=5, level=0.99)
    assert wide.low < first.low < first.estimate < first.high < wide.high


def test_bootstrap_of_two_pairs_leaves_empty_resamples_out():
    interval = metrics.two_way_bootstrap([0.0, 1.0], [0, 1], [0, 1], seed=0)
    assert interval == (0.5, 0.0, 1.0)


@pytest.mark.parametrize("change, message", [
    ({"values": []}, "at least one value"),
    ({"values": np.zeros((0, 3))}, "values must have 1 dim"),
    ({"values": [1.0, np.nan]}, "NaN"),
    ({"source_ids": [1]}, "source_ids must have the shape"),
    ({"target_ids": [1, 2, 3]}, "target_ids must have the shape"),
    ({"level": 95}, "level must lie between 0 and 1"),
    ({"n_resamples": 10}, "at least 100"),
])
def test_bootstrap_refuses(change, message):
    good = {"values": [0.0, 1.0], "source_ids": [0, 1], "target_ids": [0, 1], "seed": 0}
    with pytest.raises(ValueError, match=message):
        metrics.two_way_bootstrap(**(good | change))


@pytest.mark.parametrize("hits, n", [(0, 10), (10, 10), (3, 40), (500, 1000), (0, 1)])
def test_wilson_agrees_with_scipy(hits, n):
    expected = binomtest(hits, n).proportion_ci(0.9, method="wilson")
    result = metrics.wilson_interval(hits, n, level=0.9)
    np.testing.assert_allclose(result, (hits / n, expected.low, expected.high), atol=1e-12)


def test_wilson_refuses_more_hits_than_trials():
    with pytest.raises(ValueError, match="hits=3 and n=2"):
        metrics.wilson_interval(3, 2)
    with pytest.raises(ValueError, match="n >= 1"):
        metrics.wilson_interval(0, 0)


@pytest.mark.parametrize("b, c", [(0, 0), (5, 5), (1, 9), (9, 1), (0, 20), (30, 50)])
def test_mcnemar_is_a_sign_test(b, c):
    expected = binomtest(b, b + c, 0.5).pvalue if b + c else 1.0
    assert metrics.mcnemar_exact(b, c) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("b, c", [(-1, 2), (1.5, 2)])
def test_mcnemar_refuses(b, c):
    with pytest.raises(ValueError, match="whole and not negative"):
        metrics.mcnemar_exact(b, c)


def test_holm_by_hand():
    np.testing.assert_allclose(metrics.holm([0.04, 0.01, 0.03, 0.005]), [0.06, 0.03, 0.06, 0.02])
    np.testing.assert_allclose(metrics.holm([0.6, 0.7]), [1, 1])
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        metrics.holm([0.5, 1.5])
    with pytest.raises(ValueError, match="at least one"):
        metrics.holm([])


# ---------------------------------------------------------------- distortion


def test_distortion_is_in_grey_levels():
    a = torch.full((2, 3, 4, 4), 100, dtype=torch.uint8)
    b = a.clone()
    b[0] += 10
    b[1, 0, 0, 0] = 52  # 48 levels darker, where uint8 arithmetic would wrap around
    np.testing.assert_allclose(metrics.rmsd(a, b), [10, np.sqrt(48**2 / 48)])
    np.testing.assert_allclose(metrics.linf(b, a), [10, 48])
    np.testing.assert_allclose(metrics.rmsd(a / 255, b / 255), metrics.rmsd(a, b), rtol=1e-5)


@pytest.mark.parametrize("a, error, message", [
    (np.zeros((1, 3, 4, 4)), TypeError, "both be uint8 or both be float"),
    (np.zeros((2, 3, 4, 4), np.uint8), ValueError, r"\(2, 3, 4, 4\)"),
    (np.zeros((0, 3, 4, 4), np.uint8), ValueError, "at least one"),
])
def test_distortion_refuses(a, error, message):
    with pytest.raises(error, match=message):
        metrics.rmsd(a, np.zeros((1, 3, 4, 4), np.uint8))


@pytest.mark.parametrize("value", [255.0, -0.1, np.nan])
def test_distortion_refuses_floats_out_of_range(value):
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        metrics.linf(np.full((1, 3, 4, 4), value), np.zeros((1, 3, 4, 4)))
