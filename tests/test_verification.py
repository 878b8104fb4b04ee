"""All-against-all scoring against brute force, scikit-learn and fa_utils.metrics, and the input that it refuses."""

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from fa_utils import metrics, verification
from fa_utils.verification import (
    GRID,
    Comparison,
    bootstrap_errors,
    compare_all,
    percentile_interval,
    replicates,
)

# Squares add up to 256: rows that permute these and change signs have length 16, and their cosines are whole multiples
# of 1/256. All arithmetic on them is exact, so results must be equal, not close.
MAGNITUDES = np.repeat([1, 2, 3], [32, 20, 16])


@pytest.fixture
def rng():
    return np.random.default_rng(3)


def exact_embeddings(rng, identity):
    """Scores that tie often; images of a person share most entries."""
    people = {person: rng.permutation(MAGNITUDES) * rng.choice([-1, 1], 68) for person in np.unique(identity)}
    return exact_variants(rng, np.array([people[person] for person in identity], dtype=np.float32), changed=40)


def exact_variants(rng, rows, *, changed=20):
    rows = rows.copy()
    for row in rows:
        some = rng.choice(68, changed, replace=False)
        row[some] = row[rng.permutation(some)]
    return rows


def noisy_embeddings(rng, identity, *, noise=1.5, dim=24):
    people = rng.normal(size=(identity.max() + 1, dim))
    return (people[identity] + noise * rng.normal(size=(len(identity), dim))).astype(np.float32)


def every_pair(a, identity, b=None):
    """Scores (float64, not rounded) and whether mated, of each pair in turn."""
    unit_a, unit_b = (x / np.linalg.norm(x.astype(float), axis=1, keepdims=True) for x in (a, a if b is None else b))
    pairs = [(i, j) for i in range(len(a)) for j in range(len(a)) if (i < j if b is None else i != j)]
    row, column = np.array(pairs).T
    return np.einsum("nd,nd->n", unit_a[row], unit_b[column]), identity[row] == identity[column]


def rounded(scores):
    return np.rint(scores * GRID) / GRID


@pytest.fixture
def people(rng):
    """130 images of 17 people, unsorted, unequal numbers each, labels with gaps."""
    return rng.integers(0, 17, 130) * 3


# ---------------------------------------------------------------- exactness


@pytest.mark.parametrize("ordered", [False, True])
@pytest.mark.parametrize("block", [3, 7, 64, 1000])
def test_all_numbers_equal_those_of_the_full_list_of_scores(rng, people, ordered, block):
    a = exact_embeddings(rng, people)
    b = exact_variants(rng, a) if ordered else None
    scores, same = every_pair(a, people, b)
    assert len(np.unique(scores)) < 300  # ties everywhere
    found = compare_all(a, people, b, block=block)
    np.testing.assert_array_equal(np.repeat(found.scores, found.mated_counts), np.sort(scores[same]))
    np.testing.assert_array_equal(np.repeat(found.scores, found.impostor_counts), np.sort(scores[~same]))
    assert found.eer == metrics.equal_error_rate(scores, same)
    assert found.auc_det == pytest.approx(1 - roc_auc_score(same, scores), abs=1e-13)
    for fmr in (2e-4, 1e-3, 0.029, 0.5):
        assert found.threshold(fmr) == metrics.pairs_threshold(scores, same, fmr)
        assert found.fnmr_at(fmr) == pytest.approx(metrics.fnmr_at_fmr(scores, same, fmr), abs=1e-15)


@pytest.mark.parametrize("ordered", [False, True])
def test_scores_are_the_cosines_rounded_to_the_grid(rng, people, ordered):
    a = noisy_embeddings(rng, people)
    b = a + rng.normal(size=a.shape).astype(np.float32) if ordered else None
    scores, same = every_pair(a, people, b)
    found = compare_all(torch.tensor(a), people, None if b is None else 100 * b, people if ordered else None)
    for counts, kind in ((found.mated_counts, same), (found.impostor_counts, ~same)):
        expanded, expected = np.repeat(found.scores, counts), np.sort(rounded(scores[kind]))
        assert np.abs(expanded - expected).max() <= 1 / GRID  # float32 may round to the neighbor
        assert np.mean(expanded != expected) < 0.05
    assert found.eer == pytest.approx(metrics.equal_error_rate(rounded(scores), same), abs=1e-5)
    assert found.auc_det == pytest.approx(1 - roc_auc_score(same, scores), abs=1e-6)


def test_extreme_scores_have_a_place():
    line = np.array([[3.0, 4.0], [3.0, 4.0], [-3.0, -4.0], [-3.0, -4.0]], dtype=np.float32)
    found = compare_all(line, [0, 0, 1, 1])
    assert found.scores.tolist() == [-1, 1]
    assert found.mated_counts.tolist() == [0, 2] and found.impostor_counts.tolist() == [4, 0]
    assert found.eer == found.auc_det == 0


def test_the_number_of_threads_changes_nothing(rng, people):
    a = noisy_embeddings(rng, people)
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            found.append(compare_all(a, people, block=16))
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    for name in ("scores", "mated_counts", "impostor_counts"):
        np.testing.assert_array_equal(getattr(found[0], name), getattr(found[1], name))


# ---------------------------------------------------------------- what is compared


@pytest.mark.parametrize("n, k", [(2, 2), (9, 15), (40, 3)])
def test_pair_counts(rng, n, k):
    identity = rng.permutation(np.repeat(np.arange(n), k))
    a = noisy_embeddings(rng, identity)
    mated, impostors = n * k * (k - 1) // 2, n * (n - 1) // 2 * k**2
    symmetric, ordered = compare_all(a, identity, block=11), compare_all(a, identity, a[:, ::-1].copy(), block=11)
    assert (symmetric.mated, symmetric.impostors) == (mated, impostors)
    assert (ordered.mated, ordered.impostors) == (2 * mated, 2 * impostors)


def test_an_image_never_meets_itself_or_its_variant(rng, people):
    orthogonal = np.eye(len(people), dtype=np.float32)
    for found in (compare_all(orthogonal, people, block=16), compare_all(orthogonal, people, orthogonal, block=16)):
        assert found.scores.tolist() == [0]  # a single score of 1 would be an image with itself


def test_both_orders_count_when_variants_differ():
    a = np.eye(4, dtype=np.float32)
    b = a[[1, 0, 2, 3]]  # variants 0 and 1 look like the other image of that person
    found = compare_all(a, [0, 0, 1, 1], b)
    assert found.scores.tolist() == [0, 1]
    assert found.mated_counts.tolist() == [2, 2] and found.impostor_counts.tolist() == [8, 0]


# ---------------------------------------------------------------- thresholds


@pytest.fixture
def tied():
    """Ten impostors, of which three tie at 0.5, and four mated pairs."""
    scores = np.array([0.0, 0.25, 0.5, 0.75])
    return Comparison(scores, np.array([0, 1, 1, 2]), np.array([4, 2, 3, 1]))


def test_a_frozen_threshold_is_used_as_it_is(tied):
    assert tied.errors_at(0.5) == (0.5, 0.1)  # strictly above is accepted
    assert tied.errors_at(np.nextafter(0.5, 0)) == (0.25, 0.4)
    assert tied.errors_at(-1) == (0, 1) and tied.errors_at(1) == (1, 0)


def test_ties_accept_fewer_impostors_never_more(tied):
    for fmr, threshold, reached in ((0.1, 0.5, 0.1), (0.2, 0.5, 0.1), (0.3, 0.5, 0.1), (0.4, 0.25, 0.4), (0.65, 0, 0.6)):
        assert tied.threshold(fmr) == threshold
        assert tied.errors_at(tied.threshold(fmr)).fmr == reached <= fmr


def test_a_fmr_that_cannot_be_resolved_is_refused(tied):
    assert tied.resolves(0.1) and not tied.resolves(0.099)
    with pytest.raises(ValueError, match=r"FMR of 0.099 cannot be resolved with 10 impostor pairs: .* at least 0.1"):
        tied.fnmr_at(0.099)
    for fmr in (0, 1, float("nan")):
        with pytest.raises(ValueError, match="between 0 and 1"):
            tied.threshold(fmr)
    with pytest.raises(ValueError, match="threshold holds 1 value"):
        tied.errors_at(float("nan"))


# ---------------------------------------------------------------- how sure


@pytest.fixture
def study(rng):
    identity = rng.permutation(np.repeat(np.arange(30), 4))
    a = exact_embeddings(rng, identity)
    return a, identity, exact_variants(rng, a)


def weighted(a, identity, b, weights):
    images = verification._prepare(a, identity, b, None)
    present = np.unique(identity)
    return verification._Weighted(images, present, present).compare(weights)


@pytest.mark.parametrize("ordered", [False, True])
def test_equal_weights_give_the_estimate(study, ordered):
    a, identity, b = study
    whole = compare_all(a, identity, b if ordered else None)
    found = weighted(a, identity, b if ordered else None, np.ones(30))
    assert (found.mated, found.impostors) == (whole.mated, whole.impostors)
    assert (found.eer, found.auc_det, found.fnmr_at(0.01)) == (whole.eer, whole.auc_det, whole.fnmr_at(0.01))


@pytest.mark.parametrize("ordered", [False, True])
def test_weights_repeat_pairs(study, rng, ordered):
    """w_i times a mated pair of i, w_i w_j times an impostor pair, in a list written out in full."""
    a, identity, b = study
    b = b if ordered else None
    weights = rng.multinomial(30, np.full(30, 1 / 30))
    first = np.array([(i, j) for i in range(120) for j in range(120) if (i < j if b is None else i != j)])
    scores, same = every_pair(a, identity, b)
    w, v = weights[identity[first]].T
    times = np.where(same, w, w * v)
    scores, same = np.repeat(scores, times), np.repeat(same, times)
    found = weighted(a, identity, b, weights)
    assert (found.mated, found.impostors) == (same.sum(), (~same).sum())
    assert found.eer == metrics.equal_error_rate(scores, same)
    assert found.auc_det == pytest.approx(1 - roc_auc_score(same, scores), abs=1e-13)
    assert found.fnmr_at(1e-3) == pytest.approx(metrics.fnmr_at_fmr(scores, same, 1e-3), abs=1e-15)


def test_settings_share_the_draws(study, rng):
    """The same errors in both settings: each difference is zero. Which images a setting has does not matter for the draws."""
    a, identity, _ = study
    one = replicates(a, identity, seed=5, fmr=0.01)
    order = rng.permutation(120)
    other = replicates(a[order], identity[order], seed=5, fmr=0.01)
    for metric in one:
        np.testing.assert_array_equal(one[metric], other[metric])
        assert len(one[metric]) == 200 and one[metric].std() > 0
    assert not np.array_equal(one["eer"], replicates(a, identity, seed=6, fmr=0.01)["eer"])
    few = identity < 20  # a third of the people is absent but still drawn
    part = replicates(a[few], identity[few], people=identity, n_resamples=3, seed=5, metrics=["auc_det"])["auc_det"]
    for value, weights in zip(part, np.random.default_rng(5).multinomial(30, np.full(30, 1 / 30), size=3)):
        assert value == weighted(a[few], identity[few], None, weights[:20]).auc_det


def test_people_are_resampled_not_pairs(rng):
    """Some people's images vary more: the spread must be far wider than that of a bootstrap of independent pairs."""
    identity = np.repeat(np.arange(40), 8)
    noise = np.where(np.arange(40) % 4 == 0, 3.0, 0.5)[identity, None]
    a = (rng.normal(size=(40, 16))[identity] + noise * rng.normal(size=(320, 16))).astype(np.float32)
    found = compare_all(a, identity)
    threshold = found.threshold(0.01)
    scores = np.repeat(found.scores, found.mated_counts)
    independent = np.std([np.mean(rng.choice(scores, len(scores)) <= threshold) for _ in range(200)])
    clustered = replicates(a, identity, seed=0, fmr=0.01, metrics=["fnmr"])["fnmr"].std()
    assert clustered > 2 * independent


def test_bootstrap_spread_is_that_of_new_people():
    """Against the truth: the standard deviation over fresh studies of 25 people."""
    identity = np.repeat(np.arange(25), 4)
    studies = [noisy_embeddings(np.random.default_rng(s), identity) for s in range(60)]
    truth = np.std([compare_all(a, identity).auc_det for a in studies])
    spread = np.mean([replicates(a, identity, n_resamples=60, seed=s, metrics=["auc_det"])["auc_det"].std()
                      for s, a in enumerate(studies[:20])])
    assert 0.7 < spread / truth < 1.4


def test_intervals_hold_the_estimate(study):
    a, identity, b = study
    whole = compare_all(a, identity, b)
    found = bootstrap_errors(a, identity, b, seed=1, fmr=0.01)
    assert [found[m].estimate for m in ("eer", "fnmr", "auc_det")] == [whole.eer, whole.fnmr_at(0.01), whole.auc_det]
    narrow = bootstrap_errors(a, identity, b, seed=1, fmr=0.01, level=0.5)
    for metric, interval in found.items():
        assert interval.low < narrow[metric].low < narrow[metric].high < interval.high
        assert interval.low <= interval.estimate <= interval.high


def test_large_sets_are_resampled_in_part(study):
    """Around the rate of all, and about as wide as the bootstrap of all."""
    a, identity, _ = study
    whole = replicates(a, identity, n_resamples=400, seed=2, metrics=["auc_det"])["auc_det"]
    part = replicates(a, identity, n_resamples=400, seed=2, metrics=["auc_det"], max_identities=15)["auc_det"]
    assert part.mean() == pytest.approx(whole.mean(), abs=whole.std() / 2)
    assert 0.5 < part.std() / whole.std() < 2


def test_a_resample_without_the_rate_is_flagged(rng):
    identity = np.array([0, 0, 1, 2, 3])  # only person 0 has a mated pair
    a = noisy_embeddings(rng, identity)
    values = replicates(a, identity, seed=0, n_resamples=300, metrics=["eer", "fnmr"], fmr=0.12)
    times = np.random.default_rng(0).multinomial(4, np.full(4, 1 / 4), size=300)
    lacks = (times[:, 0] == 0) | ((times > 0).sum(axis=1) == 1)
    np.testing.assert_array_equal(np.isnan(values["eer"]), lacks)
    assert np.isnan(values["fnmr"])[lacks].all() and np.isnan(values["fnmr"]).sum() > lacks.sum()
    assert percentile_interval(0.1, values["eer"]).high == np.nanquantile(values["eer"], 0.975)
    with pytest.raises(ValueError, match="at least 100 resamples that have the rate, got 50 of 60"):
        percentile_interval(0.1, np.append(np.zeros(50), np.full(10, np.nan)))


# ---------------------------------------------------------------- refusals


GOOD = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)
PEOPLE = np.array([0, 0, 1, 1, 2, 2])


def spoiled(value):
    a = GOOD.copy()
    a[3] = value
    return a


@pytest.mark.parametrize("arguments, message", [
    ((GOOD[:0], PEOPLE[:0]), r"a must have the shape \(N, D\).* at least one image, got \(0, 4\)"),
    ((GOOD[0], PEOPLE), r"a must have the shape \(N, D\).*got \(4,\)"),
    ((GOOD, PEOPLE[:5]), r"identity_a must have the shape \(6,\).*got \(5,\)"),
    ((GOOD, np.zeros(6, int)), "all 6 images belong to a single identity.*two or more people"),
    ((GOOD, np.arange(6)), "none of the 6 identities has two images.*two or more images of a person"),
    ((spoiled(np.nan), PEOPLE), "a holds a value that is NaN or infinite, in row 3: leave that image out"),
    ((GOOD, PEOPLE, spoiled(np.inf)), "b holds a value that is NaN or infinite, in row 3"),
    ((spoiled(0), PEOPLE), "a holds an embedding of length zero, in row 3"),
    ((GOOD, PEOPLE, GOOD[:5]), r"b must hold variants.*\(6, 4\), got \(5, 4\)"),
    ((GOOD, PEOPLE, GOOD, PEOPLE[::-1]), "identity_b differs from identity_a"),
    ((GOOD, PEOPLE, None, PEOPLE), "identity_b without b"),
])
def test_compare_all_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        compare_all(*arguments)


def test_the_row_named_is_the_callers(rng):
    """Images are sorted by identity inside; the message must not name the sorted row."""
    with pytest.raises(ValueError, match="in row 3"):
        compare_all(spoiled(np.nan), PEOPLE[::-1])


def test_block_must_be_positive():
    with pytest.raises(ValueError, match="block must be at least 1 row, got 0"):
        compare_all(GOOD, PEOPLE, block=0)


@pytest.mark.parametrize("options, message", [
    ({"metrics": ["far"]}, "unknown metric 'far'; known: eer, fnmr, auc_det"),
    ({"n_resamples": 0}, "n_resamples must be at least 1"),
    ({"max_identities": 1}, "max_identities at least 2"),
    ({"fmr": 2}, "FMR must lie between 0 and 1"),
    ({"people": [0, 1]}, "people lacks 1 of identity_a, first 2"),
])
def test_replicates_refuse(options, message):
    with pytest.raises(ValueError, match=message):
        replicates(GOOD, PEOPLE, seed=0, **options)


def test_bootstrap_errors_refuses_an_unresolved_fmr():
    with pytest.raises(ValueError, match="FMR of 0.001 cannot be resolved with 12 impostor pairs"):
        bootstrap_errors(GOOD, PEOPLE, seed=0)
