"""What chapter 5 attacks: rendered pairs of two benchmarks, or the pairs of one dataset of photographs."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from fa_utils.attacks.transfer import PairSet, benchmark_pairs, procedural_pairs
from fa_utils.data import FaceSet, Pairs, load_domain

BENCHMARKS = {"LFW": None, "CelebA-HQ": "celebahq"}  # name in the paper -> our domain of pairs; None: as in chapters 3 and 4
FIRST = next(iter(BENCHMARKS))
OWN, ANOTHER = "own", "another"  # the picture that a dodging attack is judged by
ENOUGH = 4  # pairs that eta is calibrated on, before people are allowed in both


class Pools(NamedTuple):
    """The pairs of a run.

    Attributes
    ----------
    reported : dict of str to PairSet
        Benchmark -> pairs for impersonation; the claims about one benchmark are judged on the first.
    dodging : dict of (str, str) to PairSet
        (benchmark, picture that judges) -> pairs for dodging.
    calibration : PairSet
        Pairs that eta is chosen on and that no table reports.
    note : str
        Sentences about where the pairs come from, and what the faces lack.
    """

    reported: Mapping[str, PairSet]
    dodging: Mapping[tuple[str, str], PairSet]
    calibration: PairSet
    note: str

    @property
    def first(self) -> PairSet:
        """The reported pairs of the first benchmark."""
        return next(iter(self.reported.values()))


def slot(benchmark: str) -> str:
    """The benchmark of the paper in whose tables a benchmark stands: a dataset of photographs stands in those of the first."""
    return benchmark if benchmark in BENCHMARKS else FIRST


def display_name(dataset: str) -> str:
    """How tables call a dataset of photographs."""
    return {"lfw": "LFW"}.get(dataset, dataset)


# ---------------------------------------------------------------- rendered people


def procedural_pools(count: int, *, calibration: int | None = None) -> Pools:
    """``count`` rendered pairs of each benchmark, and ``calibration`` of other people (as many by default)."""
    reported = {name: pairs_of(name, count) for name in BENCHMARKS}
    dodging = {
        (name, picture): dodging_pairs(name, pairs, picture) for name, pairs in reported.items() for picture in (OWN, ANOTHER)
    }
    tuned = pairs_of(FIRST, calibration or count, calibration=True)
    note = (
        f"{len(reported[FIRST])} pairs of rendered people on each of two benchmarks; eta is calibrated on {len(tuned)} pairs "
        "of people who appear in neither."
    )
    return Pools(reported, dodging, tuned, note)


def pairs_of(benchmark: str, count: int, *, calibration: bool = False) -> PairSet:
    """Rendered pairs of one of the two benchmarks; those for calibration are of other people."""
    return procedural_pairs(count, domain=BENCHMARKS[benchmark], calibration=calibration)


def dodging_pairs(benchmark: str, pairs: PairSet, picture: str = OWN) -> PairSet:
    """The pairs of dodging: each rendered source against the attacked picture itself, or against another of the same person.

    Raises
    ------
    ValueError
        If the pairs do not show the benchmark's own people.
    """
    pictures = pairs.sources
    if picture == ANOTHER:
        domain = BENCHMARKS[benchmark] or "ms1m"  # the sources of chapter 3
        faces = load_domain(domain, "test", identities=len(pairs.sources), pictures=2, progress=False)
        if not np.array_equal(faces.images[::2], pairs.sources):
            raise ValueError(f"the sources of {pairs.name!r} are not the first pictures of the people of {domain!r}")
        pictures = np.ascontiguousarray(faces.images[1::2])
    same = {"targets": pictures, "target": pairs.source, "target_id": pairs.source_id}
    return replace(pairs, **same, name=f"{pairs.name}, dodging, {picture} picture")


# ---------------------------------------------------------------- photographs


def real_pools(faces: FaceSet, protocol: Pairs, count: int, *, calibration: int | None = None, seed: int = 0) -> Pools:
    """Pairs of one dataset: impostor pairs of its protocol to attack and to calibrate on, mated ones to dodge.

    Parameters
    ----------
    faces, protocol : FaceSet, Pairs
        As `fa_utils.data.load_benchmark` returns them.
    count : int
        Impostor pairs that are reported, the same as in chapters 3 and 4; as many mated pairs where there are so many.
    calibration : int, optional
        Other impostor pairs; as many as are reported by default, fewer where there are fewer.
    seed : int
        Of the draw.

    Raises
    ------
    ValueError
        If the protocol has fewer impostor pairs than ``count``, or these leave none to calibrate on.
    """
    name = display_name(faces.name)
    reported = benchmark_pairs(faces, protocol, count, seed=seed)
    dodging = dict(_dodging(faces, protocol, reported, count, seed))
    tuned, whose = _calibration(faces, protocol, reported, dodging[OWN], calibration or count, seed)
    note = f"{count} impostor pairs of {name}; eta is calibrated on {len(tuned)} others, {whose}."
    if ANOTHER in dodging:
        note += f" Dodging starts from {len(dodging[OWN])} mated pairs: a picture, and another of the same person."
    else:
        note += f" {NO_SECOND}"
    return Pools({name: reported}, {(name, picture): pairs for picture, pairs in dodging.items()}, tuned, note)


NO_SECOND = (
    "The protocol of these faces has no mated pair, so no second picture of a person: dodging is judged by the attacked "
    "picture itself alone."
)


def _dodging(faces: FaceSet, protocol: Pairs, reported: PairSet, count: int, seed: int) -> Iterator[tuple[str, PairSet]]:
    """Dodging by the own and by another picture: sources of mated pairs, or the reported sources where there is no mated pair."""
    if not protocol.same.any():
        same = {"targets": reported.sources, "target": reported.source, "target_id": reported.source_id}
        yield OWN, replace(reported, **same, name=f"{reported.name}, dodging, {OWN} picture")
        return
    mated = protocol.positives()
    chosen = np.sort(np.random.default_rng(seed).choice(len(mated), min(count, len(mated)), replace=False))
    a, b = mated.a[chosen], mated.b[chosen]
    rows, source = np.unique(a, return_inverse=True)
    others, target = np.unique(b, return_inverse=True)
    people = faces.identity[a]
    own = (faces.images[rows], faces.images[rows], source, source)
    another = (faces.images[rows], faces.images[others], source, target)
    for picture, columns in ((OWN, own), (ANOTHER, another)):
        yield picture, PairSet(*columns, people, people, f"{faces.name}, dodging, {picture} picture")


def _calibration(
    faces: FaceSet, protocol: Pairs, reported: PairSet, dodged: PairSet, count: int, seed: int
) -> tuple[PairSet, str]:
    """Impostor pairs as far from the reported ones as the data allow, and whom they show."""
    negatives = protocol.negatives()
    people = np.sort([faces.identity[negatives.a], faces.identity[negatives.b]], axis=0)  # (2, pairs)
    attacked = np.union1d(reported.source_id, reported.target_id)
    couples = set(zip(*np.sort([reported.source_id, reported.target_id], axis=0).tolist(), strict=True))
    everybody = np.union1d(attacked, dodged.source_id)
    choices = {
        "of people who appear in no table": ~np.isin(people, everybody).any(0),
        "of people who are in no attacked pair, though some of them dodge": ~np.isin(people, attacked).any(0),
        "of people of whom some are in attacked pairs, too, since there are no others, "
        "though nobody is compared with the same person": np.array([couple not in couples for couple in zip(*people.tolist(), strict=True)]),
    }
    enough = [pair for pair in choices.items() if pair[1].sum() >= min(count, ENOUGH)]
    whose, free = enough[0] if enough else list(choices.items())[-1]
    if not free.any():
        raise ValueError(
            f"n_pairs = {len(reported)}: {faces.name} has {len(negatives)} impostor pairs of {len(np.unique(people))} people, and "
            f"the attacked ones leave none to calibrate eta on; ask for fewer pairs, at most {len(negatives) - 1}, or take more people"
        )
    return benchmark_pairs(faces, negatives.take(free), min(count, int(free.sum())), seed=seed), whose
