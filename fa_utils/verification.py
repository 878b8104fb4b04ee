"""All images of a set against all, in tiles: error rates of a verification system from every pair, and how sure one can be.

**Score.** The cosine of two embeddings, a float32 product rounded to the nearest multiple of 2^-16 (1.5e-5). The grid is
part of the definition: counts on it are a complete summary of 10^9 scores in 1 MB, and every number below is exactly
what the full list of these scores gives. It differs from the list of unrounded scores as rounding does: a score by
at most 7.6e-6, a rate by the share of pairs within that distance of the threshold.

**Rule.** Two images are accepted as one person when ``score > threshold``, strictly, as in :mod:`fa_utils.metrics`. The
threshold at a false match rate (FMR) is the (k+1)-th highest impostor score with k = floor(FMR * n): k of the n impostor
pairs are accepted, fewer where scores tie with the threshold, never more. A FMR below 1/n is refused, not interpolated.
A tie of a mated and an impostor score counts one half in the AUC; the EER lies on the straight line between ROC points.

**Settings** (paper 1, section 4.3; sheets/1-gender-transfer.md section 4). Symmetric, clean with clean (CC), adversarial
with adversarial (AA), denoised with denoised (DD): each unordered pair of different images once. Ordered, clean with
adversarial or denoised (CA, CD): image i of one with image j of the other for all i != j, both orders, so twice the pairs;
an image is never compared with its own variant.

All rates are shares in [0, 1], ``auc_det`` too; the paper prints them in percent.
"""

import functools
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fa_utils.metrics import Interval, _check_rates, _finite, _labels, _n_accepted

GRID = 2**16  # scores are multiples of 1 / GRID
ERRORS = ("eer", "fnmr", "auc_det")

# A float32 to which 1.5 * 2^23 is added loses its fraction (to the nearest, ties to even) and keeps the whole number in
# its last bits: two passes over the scores instead of the three of "scale, round, convert".
_TO_WHOLE = 1.5 * 2**23
_WHOLE_BITS = 0x4B400000
_OFFSET = GRID + 1  # cell of score 0; cells 1 .. 2 GRID + 1 hold the scores -1 .. 1
_EXCLUDED = 0  # cell of pairs that are no comparison, or not an impostor's
_CELLS = 2 * GRID + 2

ROWS = 256  # normalized at once
STRIP = 128  # rows searched at once for what is no impostor pair; it lies near the diagonal
TILE_WIDTH = 2  # columns of a tile for each of its rows


class Errors(NamedTuple):
    """Error rates at one threshold, in [0, 1]."""

    fnmr: float
    fmr: float


@dataclass(frozen=True, eq=False)
class Comparison:
    """The scores of one setting, as counts on the grid, and the error rates that they give.

    Attributes
    ----------
    scores : ndarray of float64, shape (c,)
        The scores that occur, rising; multiples of 2^-16.
    mated_counts, impostor_counts : ndarray, shape (c,)
        How many pairs of one person, and of two people, have each score.
    """

    scores: np.ndarray
    mated_counts: np.ndarray
    impostor_counts: np.ndarray

    @functools.cached_property
    def mated(self) -> int:
        """Number of pairs of one person."""
        return int(self.mated_counts.sum())

    @functools.cached_property
    def impostors(self) -> int:
        """Number of pairs of two people."""
        return int(self.impostor_counts.sum())

    @functools.cached_property
    def eer(self) -> float:
        """Where FMR and FNMR meet, on straight lines between ROC points (:func:`fa_utils.metrics.equal_error_rate`)."""
        fmr = np.append(0, np.cumsum(self.impostor_counts[::-1])) / self.impostors
        tmr = np.append(0, np.cumsum(self.mated_counts[::-1])) / self.mated
        gap = fmr - (1 - tmr)  # rises from -1 to 1
        after = int(np.argmax(gap >= 0))
        share = -gap[after - 1] / (gap[after] - gap[after - 1])
        return float(fmr[after - 1] + share * (fmr[after] - fmr[after - 1]))

    @functools.cached_property
    def auc_det(self) -> float:
        """Area under the DET curve on linear axes: P(impostor > mated) + P(tie) / 2, one minus the ROC's area.

        The paper's AUC-DET is 100 times this (sheet item 3e).
        """
        above_or_half = self.impostors - np.cumsum(self.impostor_counts) + self.impostor_counts / 2
        return float(self.mated_counts @ above_or_half / (self.mated * self.impostors))

    def resolves(self, fmr: float) -> bool:
        """Whether at least one impostor pair may be accepted at ``fmr``."""
        return bool(fmr * self.impostors * (1 + 1e-12) >= 1)

    def threshold(self, fmr: float) -> float:
        """The (k+1)-th highest impostor score, k = floor(fmr * impostors).

        Raises
        ------
        ValueError
            When ``fmr`` is not in (0, 1), or below 1 / impostors, which cannot be resolved.
        """
        fmr = _check_rates([fmr], name="FMR")[0]
        if not self.resolves(fmr):
            raise ValueError(f"a FMR of {fmr:g} cannot be resolved with {self.impostors} impostor pairs: "
                             f"compare more identities, or ask for a FMR of at least {1 / self.impostors:.2g}")
        accepted = np.cumsum(self.impostor_counts[::-1])
        return float(self.scores[::-1][np.searchsorted(accepted, _n_accepted(fmr, self.impostors) + 1)])

    def fnmr_at(self, fmr: float) -> float:
        """FNMR at this setting's own threshold for ``fmr``; refuses what :meth:`threshold` does."""
        return self.errors_at(self.threshold(fmr)).fnmr

    def errors_at(self, threshold: float) -> Errors:
        """Share of mated pairs with ``score <= threshold`` and of impostor pairs with ``score > threshold``.

        For a threshold that another set fixed, such as CC's.

        Raises
        ------
        ValueError
            When ``threshold`` is NaN or infinite.
        """
        first = np.searchsorted(self.scores, _finite(threshold, "threshold", ndim=0), side="right")
        return Errors(float(self.mated_counts[:first].sum() / self.mated),
                      float(self.impostor_counts[first:].sum() / self.impostors))


# ---------------------------------------------------------------- all against all


class _Images(NamedTuple):
    """Embeddings of length sqrt(GRID), sorted by identity; products of two of them are scores on the grid's scale."""

    a: Tensor
    b: Tensor
    identity: np.ndarray  # (N,) labels 0, 1, ..., rising
    symmetric: bool


def compare_all(a, identity_a, b=None, identity_b=None, *, block: int = 1024) -> Comparison:
    """Compare every image with every other one.

    Tiles of ``block`` times ``2 * block`` scores are counted and forgotten, by as many threads as ``torch.get_num_threads()``
    says. Memory: one sorted copy of the embeddings, and some 15 MB a thread. Counting costs about 2 ns a score whatever the
    length of the embeddings, a product 13 ps for each of their entries: see benchmarks/verification.py.

    Parameters
    ----------
    a : array or Tensor, shape (N, D)
        Embeddings, one row an image; normalized here.
    identity_a : integer array, shape (N,)
        Who is on each image, in any order.
    b : array or Tensor, shape (N, D), optional
        Embeddings of variants of *the same images in the same order*: the ordered setting. Row i of ``a`` is never
        compared with row i of ``b``. Without it: the symmetric setting.
    identity_b : integer array, shape (N,), optional
        Checked to equal ``identity_a``, so that a mix-up of rows does not go unnoticed.
    block : int
        Rows of a tile. The result depends on it only where products of another order of summation round differently.

    Returns
    -------
    Comparison
        n identities of k images each give n k (k - 1) / 2 mated and n (n - 1) k^2 / 2 impostor pairs,
        twice as many in the ordered setting.

    Raises
    ------
    ValueError
        When there is no image, a single identity or no identity with two images; when shapes or identities do not match; when
        an embedding is zero, NaN or infinite; when ``block`` is below 1.
    """
    if block < 1:
        raise ValueError(f"block must be at least 1 row, got {block}")
    images = _prepare(a, identity_a, b, identity_b)
    tiles = list(_tiles(images, block))
    workers = torch.get_num_threads()
    with _one_thread_an_operation(), ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        counts = sum(pool.map(lambda w: _count(images, tiles[w::workers]), range(workers)))
    return _on_occupied_cells(*counts)


def _on_occupied_cells(mated: np.ndarray, impostor: np.ndarray) -> Comparison:
    occupied = np.flatnonzero(mated + impostor)
    return Comparison((occupied - _OFFSET) / GRID, mated[occupied], impostor[occupied])


def _tiles(images: _Images, block: int) -> Iterator[tuple[slice, slice]]:
    size = len(images.identity)
    for row in range(0, size, block):
        for column in range(row if images.symmetric else 0, size, TILE_WIDTH * block):
            yield slice(row, min(row + block, size)), slice(column, min(column + TILE_WIDTH * block, size))


def _count(images: _Images, tiles: Sequence[tuple[slice, slice]]) -> np.ndarray:
    """Pairs in each cell, mated and impostor; int64, shape (2, cells)."""
    counts = torch.zeros(2, _CELLS, dtype=torch.int64)
    buffer = torch.empty(0)
    for rows, columns in tiles:
        cells = _cells(images, rows, columns, buffer)
        mated = torch.from_numpy(_take_out(cells.numpy(), images, rows, columns))
        for total, part in zip(counts, (mated, cells.view(-1))):
            found = torch.bincount(part)
            total[:len(found)] += found
    counts[:, _EXCLUDED] = 0
    return counts.numpy()


def _cells(images: _Images, rows: slice, columns: slice, buffer: Tensor) -> Tensor:
    """Cell of each score of a tile; int32, shape (rows, columns), in the memory of ``buffer``, which grows as needed."""
    a, b = images.a[rows], images.b[columns]
    scores = torch.mm(a, b.T, out=buffer.resize_(len(a) * len(b)).view(len(a), len(b)))
    return scores.add_(_TO_WHOLE).view(torch.int32).sub_(_WHOLE_BITS - _OFFSET)


def _take_out(cells: np.ndarray, images: _Images, rows: slice, columns: slice) -> np.ndarray:
    """Move all but impostor pairs to the excluded cell; return the cells that the mated pairs had, shape (m,)."""
    first, last = _own_columns(images, rows)
    if columns.start >= last or columns.stop <= first:
        return cells[:0].ravel()
    taken = []
    for start in range(rows.start, rows.stop, STRIP):
        strip = slice(start, min(start + STRIP, rows.stop))
        part = cells[strip.start - rows.start:strip.stop - rows.start]
        first, last = _own_columns(images, strip)
        if images.symmetric:
            part[:, :max(0, first - columns.start)] = _EXCLUDED
        near = slice(max(first, columns.start), max(first, columns.start, min(last, columns.stop)))
        part = part[:, near.start - columns.start:near.stop - columns.start]
        row, column = np.arange(strip.start, strip.stop)[:, None], np.arange(near.start, near.stop)
        wanted = row < column if images.symmetric else row != column
        same = images.identity[strip, None] == images.identity[near]
        taken.append(part[same & wanted])
        part[same | ~wanted] = _EXCLUDED
    return np.concatenate(taken)


def _own_columns(images: _Images, rows: slice) -> tuple[int, int]:
    """Where the images of the rows' people begin and end; in the symmetric setting, those of the upper triangle."""
    first, last = images.identity[[rows.start, rows.stop - 1]]
    begin, end = np.searchsorted(images.identity, [first, last + 1])
    return rows.start if images.symmetric else int(begin), int(end)


@contextmanager
def _one_thread_an_operation():
    """Tiles are shared among threads; operations inside a tile must not start threads of their own."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


# ---------------------------------------------------------------- how sure


def replicates(a, identity_a, b=None, *, people=None, n_resamples: int = 200, seed: int, metrics: Sequence[str] = ERRORS,
               fmr: float = 1e-3, max_identities: int = 100) -> dict[str, np.ndarray]:
    """Error rates under resampling of people, with replacement.

    Pairs that share a person are not independent. A resample draws as many people as there are; one that was drawn w times
    gives its mated pairs the weight w, and its impostor pairs with another, drawn v times, the weight w v.
    The draws depend on ``people`` and ``seed`` alone: settings and attacks on the same people share them, so that the
    difference of two replicates is a replicate of the (paired) difference; see :func:`percentile_interval`.

    More than ``max_identities`` people are not resampled whole: so many of them, drawn by the seed, are, and the deviations
    from their own error rate are shrunk by sqrt(max_identities / number of people) and set around the rate of the whole set
    (an m-out-of-n bootstrap; kept within [0, 1]). 100 people with 15 images each take some two seconds at 200 resamples,
    and 20 bytes of memory for each two of their images.

    Parameters
    ----------
    a, identity_a, b
        As :func:`compare_all` takes them.
    people : integer array, optional
        Everyone in the study, when some have no image in this setting; by default those in ``identity_a``.
    n_resamples : int
    seed : int
    metrics : sequence of str
        Of "eer", "fnmr" (at the resample's own threshold for ``fmr``) and "auc_det".
    fmr : float in (0, 1)
    max_identities : int

    Returns
    -------
    dict
        Metric -> float64 array, shape (n_resamples,), in [0, 1]. NaN where a resample has no such rate: it holds no mated or
        no impostor pair, or (fnmr) too few impostor pairs for ``fmr``.

    Raises
    ------
    ValueError
        Where :func:`compare_all` does; when a metric is unknown, ``people`` lacks someone, or a number is out of range.
    """
    for metric in metrics:
        if metric not in ERRORS:
            raise ValueError(f"unknown metric {metric!r}; known: {', '.join(ERRORS)}")
    if n_resamples < 1 or max_identities < 2:
        raise ValueError(f"n_resamples must be at least 1 and max_identities at least 2, got {n_resamples} and {max_identities}")
    fmr = _check_rates([fmr], name="FMR")[0]
    images = _prepare(a, identity_a, b, None)
    people = np.unique(identity_a if people is None else people)
    strangers = np.setdiff1d(identity_a, people)
    if len(strangers):
        raise ValueError(f"people lacks {len(strangers)} of identity_a, first {strangers[0]}: give everyone in the study")
    drawn = people
    if len(people) > max_identities:
        drawn = np.sort(np.random.default_rng([seed, len(people)]).choice(people, max_identities, replace=False))
    weighted = _Weighted(images, np.unique(identity_a), drawn)

    def rates(comparison: Comparison) -> list[float]:
        return [_rate(comparison, metric, fmr) for metric in metrics]

    times = np.random.default_rng(seed).multinomial(len(drawn), np.full(len(drawn), 1 / len(drawn)), size=n_resamples)
    values = np.array([rates(weighted.compare(weights)) for weights in times])
    if len(drawn) < len(people):
        deviations = values - rates(weighted.compare(np.ones(len(drawn))))
        values = np.clip(rates(compare_all(a, identity_a, b)) + np.sqrt(len(drawn) / len(people)) * deviations, 0, 1)
    return dict(zip(metrics, values.T))


def bootstrap_errors(a, identity_a, b=None, *, n_resamples: int = 200, seed: int, metrics: Sequence[str] = ERRORS,
                     fmr: float = 1e-3, level: float = 0.95, max_identities: int = 100) -> dict[str, Interval]:
    """Error rates of the whole set with percentile intervals of :func:`replicates`, which explains the parameters.

    Returns
    -------
    dict
        Metric -> Interval, in [0, 1].

    Raises
    ------
    ValueError
        Where :func:`replicates`, :func:`percentile_interval` and :meth:`Comparison.threshold` do.
    """
    values = replicates(a, identity_a, b, n_resamples=n_resamples, seed=seed, metrics=metrics, fmr=fmr,
                        max_identities=max_identities)
    comparison = compare_all(a, identity_a, b)
    if "fnmr" in metrics:
        comparison.threshold(fmr)  # refuses what cannot be resolved
    return {metric: percentile_interval(_rate(comparison, metric, fmr), values[metric], level=level) for metric in metrics}


def percentile_interval(estimate: float, values, *, level: float = 0.95) -> Interval:
    """Interval from replicates: of an error rate, or of the difference of two settings' replicates of one seed.

    Replicates that are NaN, having no such rate, are left out.

    Raises
    ------
    ValueError
        With fewer than 100 replicates that are not NaN, or a ``level`` outside (0, 1).
    """
    level = _check_rates([level], name="level")[0]
    values = np.asarray(values, dtype=float)
    kept = values[~np.isnan(values)]
    if len(kept) < 100:
        raise ValueError(f"an interval needs at least 100 resamples that have the rate, got {len(kept)} of {len(values)}: "
                         "raise n_resamples, or give more identities")
    low, high = np.quantile(kept, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(estimate), float(low), float(high))


def _rate(comparison: Comparison, metric: str, fmr: float) -> float:
    if not comparison.mated or not comparison.impostors or (metric == "fnmr" and not comparison.resolves(fmr)):
        return float("nan")
    return comparison.fnmr_at(fmr) if metric == "fnmr" else getattr(comparison, metric)


class _Weighted:
    """All scores of some people, ready to be counted with a weight for each person.

    ``present`` are the identities of ``images``, in the order of their labels; ``drawn`` those that get weights, rising.
    """

    def __init__(self, images: _Images, present: np.ndarray, drawn: np.ndarray):
        kept = np.flatnonzero(np.isin(present, drawn)[images.identity])
        index = torch.from_numpy(kept)
        images = _Images(images.a[index], images.b[index], images.identity[kept], images.symmetric)
        everything = slice(0, len(kept))
        impostor = _cells(images, everything, everything, torch.empty(0)).numpy()
        cells = impostor.copy()
        if len(kept):
            _take_out(impostor, images, everything, everything)
        used = np.bincount(cells.ravel(), minlength=_CELLS) > 0
        used[_EXCLUDED] = True
        number = (np.cumsum(used) - 1).astype(np.int64)  # of the cells in use; the excluded one is 0
        row, column = np.nonzero(images.identity[:, None] == images.identity)
        wanted = row < column if images.symmetric else row != column
        row, column = row[wanted], column[wanted]
        self.person = np.searchsorted(drawn, present[images.identity])
        self.impostor = number[impostor]
        self.mated, self.mated_person = number[cells[row, column]], self.person[row]
        self.scores = (np.flatnonzero(used)[1:] - _OFFSET) / GRID

    def compare(self, weights: np.ndarray) -> Comparison:
        """The comparison in which the person at ``drawn[i]`` is there ``weights[i]`` times."""
        weight = weights[self.person].astype(float)
        rows = np.flatnonzero(weight)  # about 63 % of the images, 40 % of the pairs
        pairs = np.outer(weight[rows], weight[rows]).ravel()
        size = len(self.scores) + 1
        impostor = np.bincount(self.impostor[np.ix_(rows, rows)].ravel(), pairs, size)
        return Comparison(self.scores, np.bincount(self.mated, weights[self.mated_person], size)[1:], impostor[1:])


# ---------------------------------------------------------------- input


def _prepare(a, identity_a, b, identity_b) -> _Images:
    a = _matrix(a, "a")
    identity = _labels(identity_a, len(a), "identity_a")
    counts = np.bincount(identity)
    if len(counts) == 1:
        raise ValueError(f"all {len(a)} images belong to a single identity, so there is no impostor pair: "
                         "give images of two or more people")
    if counts.max() == 1:
        raise ValueError(f"none of the {len(counts)} identities has two images, so there is no mated pair: "
                         "give two or more images of a person")
    if b is None and identity_b is not None:
        raise ValueError("identity_b without b: give the embeddings of the variants too, or leave identity_b out")
    order = np.argsort(identity, kind="stable")
    sorted_a = sorted_b = _sorted_unit(a, order, "a")
    if b is not None:
        b = _matrix(b, "b")
        if b.shape != a.shape:
            raise ValueError("b must hold variants of the images of a, in the same order and of the same shape "
                             f"{tuple(a.shape)}, got {tuple(b.shape)}")
        if identity_b is not None and not np.array_equal(np.asarray(identity_b), np.asarray(identity_a)):
            raise ValueError("identity_b differs from identity_a: b must hold variants of the images of a in the same order")
        sorted_b = _sorted_unit(b, order, "b")
    return _Images(sorted_a, sorted_b, identity[order], symmetric=b is None)


def _matrix(embeddings, name: str) -> Tensor:
    embeddings = torch.as_tensor(embeddings).detach().cpu()
    if embeddings.ndim != 2 or not embeddings.numel():
        raise ValueError(f"{name} must have the shape (N, D), one row an image and at least one image, "
                         f"got {tuple(embeddings.shape)}")
    return embeddings


def _sorted_unit(embeddings: Tensor, order: np.ndarray, name: str) -> Tensor:
    """Float32 rows of length sqrt(GRID), in ``order``; the lengths are summed in float64, some rows at a time."""
    unit = torch.empty(embeddings.shape, dtype=torch.float32)
    for start in range(0, len(order), ROWS):
        index = torch.from_numpy(order[start:start + ROWS])
        rows = embeddings[index].float()
        norms = torch.linalg.vector_norm(rows, dim=1, keepdim=True, dtype=torch.float64)
        if not (norms.isfinite() & (norms > 0)).all():
            bad = int(np.flatnonzero(~(norms.isfinite() & (norms > 0)).numpy())[0])
            kind = "an embedding of length zero" if norms[bad] == 0 else "a value that is NaN or infinite"
            raise ValueError(f"{name} holds {kind}, in row {int(index[bad])}: "
                             "leave that image out of every set, or embed it again")
        torch.mul(rows, (GRID**0.5 / norms).float(), out=unit[start:start + ROWS])
    return unit
