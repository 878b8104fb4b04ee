"""Verification benchmarks: pictures and the pairs that a protocol compares."""

from pathlib import Path

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
        A procedural domain with a test split; for real faces "lfw".
    faces : str
        "procedural", or the folder of a real LFW.
    identities : int, optional
        Procedural only: fewer people than the benchmark's own, for a quick look. The pairs of a fold shrink in proportion.
    progress : bool

    Returns
    -------
    FaceSet, Pairs
        LFW's protocol has 10 folds of 300 mated and 300 impostor pairs.
    """
    if faces != "procedural":
        from fa_utils.data.lfw import load_lfw

        if name != "lfw":
            raise ValueError(f"name = {name!r}: of real benchmarks 'lfw' can be read so far")
        return load_lfw(Path(faces), progress=progress)
    pictures = load_domain(name, "test", identities=identities, progress=progress)
    people = len(set(pictures.identity.tolist()))
    per_fold = min(_PER_FOLD, max(1, people // _FOLDS * 2))
    return pictures, protocol_pairs(pictures.identity, folds=_FOLDS, per_fold=per_fold)
