"""Numbers that tables are made of: thresholds, error rates, hit rates, distortion, and how sure one can be.

One rule decides everywhere: two pictures are accepted as one person when ``similarity > threshold``,
strictly. The threshold at a false accept rate (FAR) is the (k+1)-th highest impostor score with
k = floor(FAR * n), so that exactly k of the n impostor pairs are accepted (fewer when scores tie there). The
FAR reached is thus never above the one asked for, and less than 1/n below it without ties. A FAR that n pairs
cannot resolve (n * FAR < 1) is refused: no threshold is extrapolated from less than one accepted impostor.

Thresholds come from clean pictures only; nothing here takes adversarial scores to set one.
"""

import functools
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.stats import binom

FARS = (1e-2, 1e-3, 1e-4)
INDEPENDENT_GROUPS = 20  # from so many on, a bootstrap over groups alone can be trusted (two_way_bootstrap)


class Interval(NamedTuple):
    """An estimate and the ends of its confidence interval."""

    estimate: float
    low: float
    high: float


class Accuracy(NamedTuple):
    """Mean and standard deviation of the accuracy over folds, in [0, 1]."""

    mean: float
    sd: float


class Roc(NamedTuple):
    """Points of a ROC curve: false and true match rate of ``similarity > threshold``; arrays (m,)."""

    fmr: np.ndarray
    tmr: np.ndarray
    threshold: np.ndarray


# ---------------------------------------------------------------- similarities and thresholds


def pair_similarity(a, b) -> np.ndarray:
    """Cosine between row i of ``a`` and row i of ``b``, in float64.

    Parameters
    ----------
    a, b : array or Tensor, shape (n, D)
        Embeddings, normalised or not.

    Returns
    -------
    ndarray of float64, shape (n,), in [-1, 1]

    Raises
    ------
    ValueError
        When the shapes differ, there is no row, a value is not finite, or an embedding is zero.
    """
    a, b = _unit(a, "a"), _unit(b, "b")
    if a.shape != b.shape:
        raise ValueError(f"a and b must have the same shape (n, D), got {a.shape} and {b.shape}")
    return np.clip(np.einsum("nd,nd->n", a, b), -1, 1)


def impostor_thresholds(embeddings, identity, fars=FARS, *, block: int = 512) -> dict[float, float]:
    """Thresholds from *all* impostor pairs of a benchmark (sheets/common.md section 5).

    Every picture is compared with every picture of another person, in float64 and a block of rows at a time;
    only the highest scores are kept. LFW's 13,233 pictures (8.7e7 pairs) take seconds and 0.5 GB.

    Parameters
    ----------
    embeddings : array or Tensor, shape (N, D)
    identity : integer array, shape (N,)
    fars : sequence of float in (0, 1)
    block : int
        Rows compared at once; memory grows with it, the result does not depend on it.

    Returns
    -------
    dict
        FAR -> cosine threshold, by the rule at the top of this module.

    Raises
    ------
    ValueError
        When a FAR cannot be resolved, there is a single identity, lengths differ, or a value is not finite.
    """
    unit = _unit(embeddings, "embeddings")
    identity = np.asarray(identity)
    if identity.shape != (len(unit),):
        raise ValueError(f"identity must have the shape ({len(unit)},), one entry an embedding, "
                         f"got {identity.shape}")
    _, identity, counts = np.unique(identity, return_inverse=True, return_counts=True)
    if len(counts) == 1:
        raise ValueError("all embeddings belong to a single identity: there is no impostor pair")
    n = (len(unit) ** 2 - int((counts**2).sum())) // 2
    accepted = {far: _n_accepted(far, n) for far in _check_rates(fars)}
    order = np.argsort(identity, kind="stable")
    best = _highest_impostor_scores(unit[order], identity[order], max(accepted.values()) + 1, block)
    return {far: float(best[k]) for far, k in accepted.items()}


def _highest_impostor_scores(unit: np.ndarray, identity: np.ndarray, size: int, block: int) -> np.ndarray:
    """The ``size`` highest scores between identities, highest first; rows come sorted by identity."""
    kept, floor = np.empty(0), -np.inf
    for start in range(0, len(unit), block):
        scores = unit[start:start + block] @ unit[start:].T
        # Sorted by identity, "less" means another person and each pair once.
        wanted = identity[start:start + block, None] < identity[None, start:]
        wanted &= scores > floor
        kept = np.concatenate([kept, scores[wanted]])
        if len(kept) > size:
            kept = np.partition(kept, -size)[-size:]
            floor = kept.min()
    return np.sort(kept)[::-1]


def pairs_threshold(scores, same, far: float) -> float:
    """Threshold at ``far`` from the impostor pairs of a pair list (LFW's 6,000 pairs have 3,000 of them).

    Parameters
    ----------
    scores : array, shape (P,)
        Similarities.
    same : boolean array, shape (P,)
        True for mated pairs, which are left out.
    far : float in (0, 1)
        With 3,000 impostor pairs at FAR 1e-3, three pairs decide; prefer :func:`impostor_thresholds`.

    Raises
    ------
    ValueError
        When ``far`` cannot be resolved, there is no impostor pair, lengths differ, or a score is not finite.
    """
    scores, same = _scored_pairs(scores, same, mated=False)
    impostors = np.sort(scores[~same])[::-1]
    return float(impostors[_n_accepted(_check_rates([far])[0], len(impostors))])


def _n_accepted(far: float, n: int) -> int:
    # The tiny factor keeps 0.29 * 100 = 28.999999999999996 from losing a pair.
    accepted = int(far * n * (1 + 1e-12))
    if accepted < 1:
        raise ValueError(f"a FAR of {far:g} cannot be resolved with {n} impostor pairs: "
                         f"at least {int(np.ceil(1 / far * (1 - 1e-12)))} are needed")
    return accepted


# ---------------------------------------------------------------- verification


def roc_curve(scores, same) -> Roc:
    """All points of the ROC curve, from (0, 0) to (1, 1).

    Parameters
    ----------
    scores : array, shape (P,)
    same : boolean array, shape (P,)

    Returns
    -------
    Roc
        Thresholds fall from the highest score (nothing accepted) to minus infinity (everything accepted).

    Raises
    ------
    ValueError
        When there is no mated or no impostor pair, lengths differ, or a score is not finite.
    """
    scores, same = _scored_pairs(scores, same)
    order = np.argsort(-scores, kind="stable")
    scores, same = scores[order], same[order]
    last_of_tie = np.append(np.flatnonzero(np.diff(scores)), len(scores) - 1)
    tmr = np.append(0, np.cumsum(same)[last_of_tie]) / same.sum()
    fmr = np.append(0, np.cumsum(~same)[last_of_tie]) / (~same).sum()
    return Roc(fmr, tmr, np.append(scores[last_of_tie], -np.inf))


def equal_error_rate(scores, same) -> float:
    """Where false match and false non-match rate meet, on straight lines between the ROC points; in [0, 1].

    Takes and refuses what :func:`roc_curve` does.
    """
    roc = roc_curve(scores, same)
    gap = roc.fmr - (1 - roc.tmr)  # rises from -1 to 1
    after = int(np.argmax(gap >= 0))
    share = -gap[after - 1] / (gap[after] - gap[after - 1])
    return float(roc.fmr[after - 1] + share * (roc.fmr[after] - roc.fmr[after - 1]))


def fnmr_at_fmr(scores, same, fmr: float) -> float:
    """Share of mated pairs rejected at the threshold of :func:`pairs_threshold` for ``fmr``; in [0, 1].

    Raises
    ------
    ValueError
        When there is no mated pair, and where :func:`pairs_threshold` does.
    """
    scores, same = _scored_pairs(scores, same)
    return float(np.mean(scores[same] <= pairs_threshold(scores, same, fmr)))


def verification_accuracy(scores, same, fold) -> Accuracy:
    """Accuracy by the LFW protocol: each fold judged at the threshold that is best on all the others.

    Where several thresholds are equally good, the highest is taken; it lies midway between two scores.

    Parameters
    ----------
    scores : array, shape (P,)
    same : boolean array, shape (P,)
    fold : integer array, shape (P,)
        LFW: 0 to 9, 600 pairs each.

    Returns
    -------
    Accuracy
        Mean and (population) standard deviation over folds.

    Raises
    ------
    ValueError
        With fewer than two folds, when the others of a fold lack mated or impostor pairs, lengths differ,
        or a score is not finite.
    """
    scores, same = _scored_pairs(scores, same)
    fold = np.asarray(fold)
    if fold.shape != scores.shape:
        raise ValueError(f"fold must have the shape {scores.shape}, one entry a pair, got {fold.shape}")
    folds = np.unique(fold)
    if len(folds) < 2:
        raise ValueError(f"cross-validation needs at least two folds, got only fold {folds[0]}")
    accuracies = []
    for held_out in folds:
        test = fold == held_out
        threshold = best_threshold(scores[~test], same[~test])
        accuracies.append(np.mean((scores[test] > threshold) == same[test]))
    return Accuracy(float(np.mean(accuracies)), float(np.std(accuracies)))


def best_threshold(scores: np.ndarray, same: np.ndarray) -> float:
    """The threshold with the most correct decisions, in the middle of the gap between scores where there is one."""
    roc = roc_curve(scores, same)
    correct = np.rint(roc.tmr * same.sum()) + np.rint((1 - roc.fmr) * (~same).sum())
    best = int(np.argmax(correct))
    lower, upper = roc.threshold[best], roc.threshold[max(best - 1, 0)]
    middle = (lower + upper) / 2
    return float(middle if lower < middle < upper else lower)


def hit_rate(similarity, threshold: float, *, dodging: bool = False) -> float:
    """Share of attacked pairs that reach the attacker's goal, in [0, 1].

    Parameters
    ----------
    similarity : array or Tensor, shape (n,)
        Between each adversarial picture and its target (impersonation), or another picture of the same person
        (dodging).
    threshold : float
        From clean pictures of the attacked network.
    dodging : bool
        False: a hit is an accepted impostor (``similarity > threshold``). True: a rejected mated pair.

    Raises
    ------
    ValueError
        When there is no pair, or a value is not finite.
    """
    accepted = _finite(similarity, "similarity", ndim=1) > _finite(threshold, "threshold", ndim=0)
    return float(np.mean(~accepted if dodging else accepted))


# ---------------------------------------------------------------- how sure


def two_way_bootstrap(values, source_ids, target_ids, *, n_resamples: int = 2000, seed: int,
                      level: float = 0.95) -> Interval:
    """Percentile interval of a mean over pairs that share sources and targets.

    Attack results on crossed pairs are not independent: an easy target is easy for every source. The
    pigeonhole bootstrap (Owen 2007, "The pigeonhole bootstrap") draws sources and targets independently, with
    replacement, and weights a pair by how often its source times how often its target was drawn.

    Where pairs fall into groups that share neither a source nor a target with one another, the groups are
    independent, and whole groups are drawn instead; the pigeonhole bootstrap would up to triple the variance
    there. This is done when there are effectively 20 groups or more (n^2 / sum of squared sizes). With each
    source and each target used once, every pair is its own group: the ordinary bootstrap of pairs.

    Values that are all equal give an interval of no width; for a hit rate of 0 or 1 see
    :func:`wilson_interval`.

    Parameters
    ----------
    values : array, shape (n,) or (n, k)
        One row a pair: hits (0 or 1), similarities, or differences between two methods on the same pairs.
        Several columns (networks, table cells) are averaged within the pair, so they are resampled together.
    source_ids, target_ids : array, shape (n,)
        Who is attacked and who is impersonated: identities, when an identity has several pictures.
    n_resamples : int
        Resamples in which no pair at all was drawn are left out; this takes a handful of pairs to happen.
    seed : int
    level : float in (0, 1)

    Returns
    -------
    Interval
        The mean of ``values`` and the two ends.

    Raises
    ------
    ValueError
        When there is no pair, lengths differ, a value is not finite, or ``level`` or ``n_resamples`` is out
        of range.
    """
    values = np.asarray(_numpy(values), dtype=float)
    values = _finite(values.mean(axis=1) if values.ndim == 2 and values.size else values, "values", ndim=1)
    _check_rates([level], name="level")
    if n_resamples < 100:
        raise ValueError(f"n_resamples must be at least 100 for an interval, got {n_resamples}")
    sources = _labels(source_ids, len(values), "source_ids")
    targets = _labels(target_ids, len(values), "target_ids")
    groups = _independent_groups(sources, targets)
    clusterings = [sources, targets]
    if len(values) ** 2 / (np.bincount(groups) ** 2).sum() >= INDEPENDENT_GROUPS:
        clusterings = [groups]
    means = _resampled_means(values, clusterings, n_resamples, seed)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(values.mean()), float(low), float(high))


def _independent_groups(sources: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Label of each pair's connected component in the graph whose edges are the pairs."""
    n_sources, n_targets = sources.max() + 1, targets.max() + 1
    nodes = n_sources + n_targets
    graph = coo_array((np.ones(len(sources)), (sources, n_sources + targets)), shape=(nodes, nodes))
    return connected_components(graph, directed=False)[1][sources]


def _resampled_means(values, clusterings, n_resamples: int, seed: int) -> np.ndarray:
    chunk = max(1, int(4e6) // len(values))  # bounds memory at some tens of megabytes
    key = tuple(labels.tobytes() for labels in clusterings)
    if n_resamples <= chunk:  # a table asks for hundreds of intervals over the same pairs: draw once
        return _draw_once(key, clusterings[0].dtype.str, n_resamples, seed) @ values
    rng = np.random.default_rng(seed)
    sizes = [min(chunk, n_resamples - start) for start in range(0, n_resamples, chunk)]
    return np.concatenate([_draw(clusterings, size, rng) @ values for size in sizes])


@functools.lru_cache(maxsize=8)
def _draw_once(key: tuple[bytes, ...], dtype: str, n_resamples: int, seed: int) -> np.ndarray:
    clusterings = [np.frombuffer(labels, dtype) for labels in key]
    return _draw(clusterings, n_resamples, np.random.default_rng(seed))


def _draw(clusterings, n_resamples: int, rng: np.random.Generator) -> np.ndarray:
    """Weight of each pair in each resample (resamples, pairs), summing to one; resamples without a pair are left out."""
    weights = 1.0
    for labels in clusterings:
        size = labels.max() + 1
        draws = rng.multinomial(size, np.full(size, 1 / size), size=n_resamples)
        weights = weights * draws[:, labels]
    total = weights.sum(axis=1, keepdims=True)
    drawn = total[:, 0] > 0
    return weights[drawn] / total[drawn]


def wilson_interval(hits: int, n: int, *, level: float = 0.95) -> Interval:
    """Wilson's score interval of a share of *independent* trials (Wilson 1927); never of no width.

    Raises
    ------
    ValueError
        Unless 0 <= hits <= n, n >= 1 and ``level`` is in (0, 1).
    """
    if n < 1 or not 0 <= hits <= n:
        raise ValueError(f"a share needs 0 <= hits <= n and n >= 1, got hits={hits} and n={n}")
    z = NormalDist().inv_cdf((1 + _check_rates([level], name="level")[0]) / 2)
    share = hits / n
    middle = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * np.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    # At 0 and n hits an end is exact; arithmetic would miss it by a rounding.
    low = 0.0 if hits == 0 else float(middle - half)
    high = 1.0 if hits == n else float(middle + half)
    return Interval(share, low, high)


def mcnemar_exact(only_first: int, only_second: int) -> float:
    """Two-sided exact p-value that two methods hit equally often on the same pairs (McNemar 1947).

    Parameters
    ----------
    only_first, only_second : int
        Pairs that only the first, or only the second method hits. The pairs must be independent; where they
        share people, judge by :func:`two_way_bootstrap` of the differences.

    Raises
    ------
    ValueError
        When a count is negative or not whole.
    """
    for count in (only_first, only_second):
        if count < 0 or count != int(count):
            raise ValueError(f"counts of discordant pairs must be whole and not negative, got {count}")
    discordant = int(only_first + only_second)
    return float(min(1.0, 2 * binom.cdf(min(only_first, only_second), discordant, 0.5)))


def holm(p_values) -> np.ndarray:
    """p-values adjusted for being several (Holm 1979), in the given order, shape (m,).

    Raises
    ------
    ValueError
        When there is none, or one is outside [0, 1].
    """
    p = _finite(p_values, "p_values", ndim=1)
    if p.min() < 0 or p.max() > 1:
        raise ValueError(f"p_values must lie in [0, 1], got values from {p.min():g} to {p.max():g}")
    order = np.argsort(p, kind="stable")
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(1, np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)))
    return adjusted


# ---------------------------------------------------------------- distortion


def rmsd(a, b) -> np.ndarray:
    """Root mean square deviation of each picture, in grey levels (0..255); shape (B,).

    Parameters
    ----------
    a, b : array or Tensor, shape (B, 3, H, W)
        Both uint8, or both float in [0, 1].

    Raises
    ------
    TypeError, ValueError
        When the types or shapes differ, there is no picture, or a value is not finite.
    """
    return np.sqrt((_grey_level_change(a, b) ** 2).mean(axis=1))


def linf(a, b) -> np.ndarray:
    """Largest change of any value of each picture, in grey levels (0..255); shape (B,).

    Takes and refuses what :func:`rmsd` does.
    """
    return np.abs(_grey_level_change(a, b)).max(axis=1)


def _grey_level_change(a, b) -> np.ndarray:
    a, b = _numpy(a), _numpy(b)
    if a.shape != b.shape or a.ndim != 4 or a.size == 0:
        raise ValueError("pictures must both have the shape (B, 3, H, W) with at least one, "
                         f"got {a.shape} and {b.shape}")
    if a.dtype == b.dtype == np.uint8:
        scale = 1
    elif np.issubdtype(a.dtype, np.floating) and np.issubdtype(b.dtype, np.floating):
        scale = 255
        _check_unit_range(a)
        _check_unit_range(b)
    else:
        raise TypeError("pictures must both be uint8 or both be float in [0, 1], "
                        f"got {a.dtype} and {b.dtype}")
    return ((a.astype(float) - b.astype(float)) * scale).reshape(len(a), -1)


def _check_unit_range(images: np.ndarray) -> None:
    # Written so that NaN fails too.
    if not (images.min() >= 0 and images.max() <= 1):
        raise ValueError("float pictures must lie in [0, 1], "
                         f"got values from {images.min():.4g} to {images.max():.4g}")


# ---------------------------------------------------------------- input


def _numpy(values) -> np.ndarray:
    return values.detach().cpu().numpy() if isinstance(values, torch.Tensor) else np.asarray(values)


def _finite(values, name: str, *, ndim: int) -> np.ndarray:
    values = np.asarray(_numpy(values), dtype=float)
    if values.ndim != ndim or values.size == 0:
        raise ValueError(f"{name} must have {ndim} dimension(s) and at least one value, "
                         f"got the shape {values.shape}")
    if not np.isfinite(values).all():
        raise ValueError(f"{name} holds {np.sum(~np.isfinite(values))} value(s) that are NaN or infinite")
    return values


def _unit(embeddings, name: str) -> np.ndarray:
    embeddings = _finite(embeddings, name, ndim=2)
    norms = np.linalg.norm(embeddings, axis=1, keepdims=True)
    if not norms.all():
        raise ValueError(f"{name} holds an embedding of length zero, in row {int(np.argmin(norms))}")
    return embeddings / norms


def _scored_pairs(scores, same, *, mated: bool = True) -> tuple[np.ndarray, np.ndarray]:
    scores, same = _finite(scores, "scores", ndim=1), _numpy(same)
    if same.shape != scores.shape or same.dtype != bool:
        raise ValueError(f"same must be boolean with the shape {scores.shape}, one entry a pair, "
                         f"got {same.dtype} with the shape {same.shape}")
    if same.all():
        raise ValueError(f"none of the {len(same)} pairs is an impostor pair")
    if mated and not same.any():
        raise ValueError(f"none of the {len(same)} pairs is a mated pair")
    return scores, same


def _labels(ids, n: int, name: str) -> np.ndarray:
    ids = _numpy(ids)
    if ids.shape != (n,):
        raise ValueError(f"{name} must have the shape ({n},), one entry a pair, got {ids.shape}")
    return np.unique(ids, return_inverse=True)[1]


def _check_rates(rates, *, name: str = "FAR") -> list[float]:
    rates = [float(rate) for rate in rates]
    for rate in rates or [np.nan]:
        if not 0 < rate < 1:
            raise ValueError(f"a {name} must lie between 0 and 1, both excluded, got {rate:g}")
    return rates
