"""Verification benchmarks: pictures and the pairs that a protocol compares."""

from fa_utils.data.aging import made_pairs
from fa_utils.data.datasets import KINDS, find_dataset, read_pictures
from fa_utils.data.domains import load_domain, protocol_pairs
from fa_utils.data.faceset import FaceSet, Pairs

__all__ = ["load_benchmark"]

_FOLDS, _PER_FOLD = 10, 300  # LFW: 6,000 pairs


def load_benchmark(
    name: str = "lfw", faces: str = "procedural", *, identities: int | None = None, progress: bool = True
) -> tuple[FaceSet, Pairs]:
    """Pictures of a benchmark and its protocol of pairs.

    Parameters
    ----------
    name : str
        A procedural domain with a test split; of no account with real faces.
    faces : str
        "procedural", or an address of real faces: see :func:`fa_utils.data.load_faces`.
    identities : int, optional
        Procedural only: fewer people than the benchmark's own, for a quick look. The pairs of a fold shrink in proportion.
        Real faces are taken whole.
    progress : bool

    Returns
    -------
    FaceSet, Pairs
        LFW's protocol has 10 folds of 300 mated and 300 impostor pairs. Real faces come with the official pairs where
        their folder has the list (LFW's pairs.txt, AgeDB-30's), else with pairs made by :func:`fa_utils.data.aging.made_pairs`.
    """
    if str(faces) != "procedural":
        kind, folder = find_dataset(faces)
        listing = KINDS[kind].read(folder)
        pairs = KINDS[kind].pairs(listing)
        pictures = read_pictures(listing, kind, progress=progress)
        return pictures, (made_pairs(pictures.identity) if pairs is None else pairs).check(pictures)
    pictures = load_domain(name, "test", identities=identities, progress=progress)
    people = len(set(pictures.identity.tolist()))
    per_fold = min(_PER_FOLD, max(1, people // _FOLDS * 2))
    return pictures, protocol_pairs(pictures.identity, folds=_FOLDS, per_fold=per_fold)
