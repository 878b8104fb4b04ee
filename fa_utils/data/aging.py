"""Verification pairs by folds of people, with a smallest age gap where one is asked for: the protocol of AgeDB-30."""

import numpy as np

from fa_utils.data.faceset import Pairs

__all__ = ["fold_pairs", "made_pairs"]

PER_FOLD = 300  # of each kind: LFW's and AgeDB-30's 6,000 pairs in 10 folds
_FOLDS, _PEOPLE, _PICTURES = 10, 100, 20  # made pairs: folds, people in each at most, and pictures of each of them


def fold_pairs(
    identity: np.ndarray,
    *,
    age: np.ndarray | None = None,
    gap: float = 0.0,
    folds: int = 10,
    per_fold: int | None = None,
    seed: int = 0,
) -> Pairs:
    """Folds of people, in each as many mated as impostor pairs, both pictures at least ``gap`` years apart.

    AgeDB-30 asks for the gap in pairs of both kinds (Moschoglou et al. 2017; sheet 2-mi-privacy, item o).

    Parameters
    ----------
    identity : integer array, shape (N,)
    age : array, shape (N,), years, optional
        Age in each picture; needed for a gap.
    gap : float, years
        Smallest difference of the two ages; 0 takes every pair.
    folds : int of at least 2
    per_fold : int, optional
        Pairs of each kind in a fold; by default as many as the poorest fold has, at most 300.
    seed : int
        Of the folds and the pairs.

    Returns
    -------
    Pairs
        ``2 * folds * per_fold`` of them, fold after fold.

    Raises
    ------
    ValueError
        A gap without ages; people too few for the folds; no mated or no impostor pair at that gap, at all or in a fold
        (the largest gap there is is named); or a fold with fewer than ``per_fold``.
    """
    identity = np.asarray(identity)
    age = np.zeros(len(identity)) if age is None and not gap else age
    if age is None or np.shape(age) != identity.shape:
        raise ValueError(f"a gap of {gap:g} years needs one age a picture ({len(identity)}), got {None if age is None else np.shape(age)}")
    age = np.asarray(age, dtype=float)
    random = np.random.default_rng(seed)
    people = random.permutation(np.unique(identity))
    if folds < 2 or len(people) < 2 * folds:
        raise ValueError(f"{len(people)} people cannot form {folds} folds of two or more: take fewer folds (at least 2) or more people")
    found = [_candidates(identity, age, gap, members) for members in np.array_split(people, folds)]
    for kind in (True, False):
        counts = [len(fold[kind]) for fold in found]
        words = "mated" if kind else "impostor"
        if not sum(counts):
            raise ValueError(f"no {words} pair has an age gap of {gap:g} years or more; the largest is {_widest(identity, age, kind):.1f}")
        if min(counts) < (per_fold or 1):
            poorest = int(np.argmin(counts))
            raise ValueError(
                f"fold {poorest} has {counts[poorest]} {words} pairs with an age gap of {gap:g} years or more, "
                f"fewer than per_fold = {per_fold or 1}: take fewer folds, more people or a smaller gap"
            )
    size = per_fold or min(PER_FOLD, *(len(fold[kind]) for fold in found for kind in (True, False)))
    rows = []
    for number, fold in enumerate(found):
        for kind in (True, False):
            chosen = fold[kind][np.sort(random.choice(len(fold[kind]), size, replace=False))]
            rows.append(np.column_stack([chosen, np.full(size, kind), np.full(size, number)]))
    table = np.concatenate(rows)
    return Pairs(a=table[:, 0], b=table[:, 1], same=table[:, 2].astype(bool), fold=table[:, 3])


def made_pairs(identity: np.ndarray, *, seed: int = 0) -> Pairs:
    """Pairs in the way of LFW for a dataset without a list: as many as its people allow, at most 10 folds of 300 + 300.

    Only people with two pictures or more take part, at most 1,000 drawn with ``seed`` and 20 pictures of each, so that a
    dataset of any size costs little. Every fold has other people, and as many mated as impostor pairs.

    Raises
    ------
    ValueError
        Fewer than four people with two pictures: no two folds can be made.
    """
    identity = np.asarray(identity)
    people, counts = np.unique(identity, return_counts=True)
    able = people[counts > 1]
    if len(able) < 4:
        raise ValueError(f"{len(able)} of {len(people)} people have two pictures or more; a verification protocol needs 4 at least")
    random = np.random.default_rng(seed)
    chosen = random.permutation(able)[: _FOLDS * _PEOPLE]
    order = random.permutation(len(identity))
    order = order[np.isin(identity[order], chosen)]
    turn = np.empty(len(order), dtype=int)  # 0 for a person's first picture in this order, 1 for the second, ...
    by_person = np.argsort(identity[order], kind="stable")
    starts = np.unique(identity[order][by_person], return_index=True)[1]
    turn[by_person] = np.arange(len(order)) - np.repeat(starts, np.diff([*starts, len(order)]))
    rows = np.sort(order[turn < _PICTURES])
    pairs = fold_pairs(identity[rows], folds=min(_FOLDS, len(chosen) // 2), seed=seed)
    return Pairs(rows[pairs.a], rows[pairs.b], pairs.same, pairs.fold)


def _candidates(identity, age, gap: float, members) -> dict[bool, np.ndarray]:
    """Pairs (n, 2) of these people at the gap: mated under True, impostors under False."""
    index = np.flatnonzero(np.isin(identity, members))
    a, b = np.triu_indices(len(index), 1)
    a, b = index[a], index[b]
    far = np.abs(age[a] - age[b]) >= gap
    a, b = a[far], b[far]
    same = identity[a] == identity[b]
    return {kind: np.column_stack([a, b])[same == kind] for kind in (True, False)}


def _widest(identity, age, mated: bool) -> float:
    """The largest age gap of a mated pair, or of any two pictures."""
    groups = [age[identity == person] for person in np.unique(identity)] if mated else [age]
    return max(float(np.ptp(group)) for group in groups)
