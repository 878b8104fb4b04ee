"""From transfer studies to numbers: thresholds, hit rates, paired differences.

What every chapter on transfer shares; which networks, methods and claims there are is the chapters' own.
"""

import functools
import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from fa_utils.attacks.craft import run_grid
from fa_utils.attacks.transfer import BLACK_BOX, Study, network_name, network_sha256, open_network
from fa_utils.data import FaceSet, Pairs
from fa_utils.metrics import (
    FARS,
    best_threshold,
    holm,
    impostor_thresholds,
    mcnemar_exact,
    pair_similarity,
    pairs_threshold,
    two_way_bootstrap,
    verification_accuracy,
    wilson_interval,
)
from fa_utils.models.weights import write_atomically
from fa_utils.models.zoo import zoo_table
from fa_utils.paths import CACHE
from fa_utils.report.claims import (
    Evidence,
    claim_all_positive,
    claim_mean_difference,
    claim_printed,
    method_differences,
)
from fa_utils.report.results import result_row

FAR_TEXT = {1e-2: "1e-2", 1e-3: "1e-3", 1e-4: "1e-4"}
UNITS = {
    "hit_rate_difference": "points",
    "accuracy_difference": "points",
    "similarity_difference": "cosine",
    "distance_difference": "L2",
}
_FORMAT = 2  # of the records that `measure_networks` keeps; 2 added the threshold of highest accuracy


# ---------------------------------------------------------------- how well the networks verify


def measure_networks(
    addresses: Iterable[str],
    benchmark: tuple[FaceSet, Pairs],
    *,
    workers: int = 1,
    device: str = "cpu",
    cache: str | Path | None = CACHE / "networks",
    progress: bool = True,
) -> pd.DataFrame:
    """Accuracy and thresholds on a benchmark, computed once for each network and benchmark.

    Returns
    -------
    DataFrame
        By network name: ``address``, ``accuracy`` and ``accuracy_sd`` in [0, 1], a column for each FAR of
        `fa_utils.metrics.FARS` (cosine thresholds from all impostor pairs; nan where they are too few to resolve it),
        ``protocol`` (FAR 1e-3 from the protocol's impostor pairs; nan likewise) and ``best`` (the cosine threshold of
        highest accuracy on all pairs of the protocol).
    """
    addresses = list(dict.fromkeys(addresses))
    run_one = functools.partial(_measure_one, benchmark=benchmark, device=device, cache=cache and Path(cache))
    records = run_grid(addresses, run_one, workers=workers, progress=progress)
    frame = pd.DataFrame([{**record["figures"], "address": record["spec"]} for record in records])
    frame = frame.rename(columns={str(far): far for far in FARS})
    return frame.set_index(frame["address"].map(network_name).rename("network"))


def _measure_one(address: str, *, benchmark: tuple[FaceSet, Pairs], device: str, cache: Path | None) -> dict:
    faces, pairs = benchmark
    path = cache and cache / f"{_figures_key(address, faces, pairs)}.json"
    if path and path.exists():
        return {"figures": json.loads(path.read_text())}
    embeddings = open_network(address, device).embed(faces)
    similarity = pair_similarity(embeddings[pairs.a], embeddings[pairs.b])
    accuracy = verification_accuracy(similarity, pairs.same, pairs.fold)
    counts = np.unique(faces.identity, return_counts=True)[1]
    impostors = (len(faces) ** 2 - int((counts**2).sum())) // 2
    resolved = [far for far in FARS if far * impostors >= 1]
    thresholds = impostor_thresholds(embeddings, faces.identity, resolved)
    enough = 1e-3 * int((~pairs.same).sum()) >= 1
    figures = {
        "accuracy": accuracy.mean,
        "accuracy_sd": accuracy.sd,
        **{str(far): thresholds.get(far, math.nan) for far in FARS},
        "protocol": pairs_threshold(similarity, pairs.same, 1e-3) if enough else math.nan,
        "best": best_threshold(similarity, pairs.same),
    }
    if path:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps(figures).encode())
    return {"figures": figures}


def _figures_key(address: str, faces: FaceSet, pairs: Pairs) -> str:
    digest = hashlib.sha256(f"{_FORMAT} {network_sha256(address)}".encode())
    every = max(1, len(faces) // 100)
    for part in (faces.identity, faces.images[::every], pairs.a, pairs.b, pairs.same, pairs.fold):
        digest.update(np.ascontiguousarray(part).tobytes())
    return digest.hexdigest()[:24]


def thresholds_of(measured: pd.DataFrame, *, faces: str = "procedural") -> pd.DataFrame:
    """Thresholds by network name: a column for each FAR, and ``best``, the threshold of highest accuracy.

    At a FAR: the zoo's, from its whole benchmark, where they apply; measured ones else. ``best`` is always measured.
    """
    thresholds = measured[[*FARS, "best"]].copy()
    if faces == "procedural":
        zoo = zoo_table()
        for name in measured.index.intersection(zoo.index):
            if measured.loc[name, "address"] == name:  # and not a file that is called the same
                thresholds.loc[name, list(FARS)] = [zoo.loc[name, f"threshold_far_{FAR_TEXT[far]}"] for far in FARS]
    return thresholds


def resolved_fars(study: Study, thresholds: pd.DataFrame) -> list[float]:
    """The FARs at which every judge of the study has a threshold."""
    judges = study.frame["target"].str.removeprefix(BLACK_BOX).unique()
    return [far for far in FARS if np.isfinite(thresholds.loc[judges, far]).all()]


# ---------------------------------------------------------------- from trials to numbers


def looks_of(looks: Mapping[int, tuple[str, ...]]) -> tuple[tuple[int, tuple[str, ...]], ...]:
    """The ``looks`` of a `Trial` from a mapping of steps to judges."""
    return tuple(sorted(looks.items()))


def join(*studies: Study) -> Study:
    """Several studies on the same pairs as one."""
    return Study(*(pd.concat(parts, ignore_index=True) for parts in zip(*studies, strict=True)))


class Scores(NamedTuple):
    """Studies as matrices: a row for each pair, a column for each (source, method, step, target); means over seeds.

    ``similarity`` and ``hit_rate`` (in [0, 1]) by pair; ``sources`` and ``targets`` are the persons of each pair.
    """

    similarity: pd.DataFrame
    hit_rate: pd.DataFrame
    rmsd: pd.DataFrame
    sources: np.ndarray
    targets: np.ndarray
    places: dict[tuple, int]  # where each column is: pandas takes milliseconds to find one

    def cells(self, metric: str, method: str, step: int, cells: Sequence[tuple[str, str]]) -> np.ndarray:
        """(pairs, cells) of a metric for (source, target) cells."""
        columns = [self.places[source, method, step, target] for source, target in cells]
        return getattr(self, metric).to_numpy()[:, columns]

    def has(self, method: str, step: int, cells: Sequence[tuple[str, str]]) -> bool:
        """Whether the method was run in each of the cells."""
        return bool(cells) and all((s, method, step, t) in self.places for s, t in cells)

    def interval(self, values: np.ndarray, *, share: bool = False):
        """Mean over pairs and cells, with an interval clustered by sources and targets.

        Shares that are 0 or 1 for every pair get Wilson's interval over the smaller number of persons.
        """
        values = np.asarray(values, dtype=float)
        values = values if values.ndim == 2 else values[:, None]
        if share and (values.min() == values.max()) and values.min() in (0.0, 1.0):
            people = min(len(np.unique(self.sources)), len(np.unique(self.targets)))
            return wilson_interval(int(values.min()) * people, people)
        return two_way_bootstrap(values, self.sources, self.targets, seed=0)


def score(study: Study, thresholds: pd.DataFrame, *, at: float | str = 1e-3, dodging: bool = False) -> Scores:
    """Hits at a threshold, and similarities, as matrices.

    Parameters
    ----------
    study : Study
    thresholds : DataFrame
        By network name, as `thresholds_of` returns them.
    at : float or str
        Column of ``thresholds``: a false accept rate, or ``"best"`` for the threshold of highest accuracy.
    dodging : bool
        A hit is then a picture that is *not* accepted as its target's person, who is its own.

    Raises
    ------
    ValueError
        If there is no such column, or a judge of the study has no threshold in it.
    """
    if at not in thresholds.columns:
        raise ValueError(f"at = {at!r}: the thresholds have the columns {', '.join(map(repr, thresholds.columns))}")
    frame = study.frame
    limits = frame["target"].str.removeprefix(BLACK_BOX).map(thresholds[at])
    if limits.isna().any():
        unresolved = ", ".join(sorted(set(frame["target"][limits.isna()])))
        kind = f"{at!r} threshold" if isinstance(at, str) else f"threshold at FAR {at:g}"
        raise ValueError(f"no {kind} for {unresolved}: not measured, or the benchmark has too few pairs")
    accepted = frame["similarity"] > limits
    frame = frame.assign(hit_rate=(~accepted if dodging else accepted).astype(float))
    people = frame.drop_duplicates("pair").sort_values("pair")
    keys = ["source", "method", "step", "target"]
    metrics = ["similarity", "hit_rate", "rmsd"]
    wide = frame.pivot_table(index="pair", columns=keys, values=metrics, aggfunc="mean", observed=True)
    parts = [wide[name] for name in metrics]
    places = {column: i for i, column in enumerate(parts[0].columns)}
    return Scores(*parts, people["source_id"].to_numpy(), people["target_id"].to_numpy(), places)


# ---------------------------------------------------------------- rows of tables and figures


def off_diagonal(names: Sequence[str]) -> list[tuple[str, str]]:
    """Black-box cells: every (source, target) of a group but the white-box ones."""
    named = [network_name(name) for name in names]
    return [(source, target) for source in named for target in named if source != target]


def table_rows(
    scores: Scores, table: str, cells: Sequence[tuple[str, str]], steps: Mapping[str, int], **shared
) -> list[dict]:
    """Hit rate and mean similarity of each cell; ``steps`` tells when each method is looked at.

    ``shared`` goes into each row, such as the ``far`` of the hit rates.
    """
    rows = []
    for method, step in steps.items():
        for cell in cells:
            if not scores.has(method, step, [cell]):
                continue
            for metric in ("hit_rate", "similarity"):
                interval = scores.interval(scores.cells(metric, method, step, [cell]), share=metric == "hit_rate")
                place = {"table": table, "source": cell[0], "target": cell[1], "method": method, "steps": step}
                rows.append(result_row(metric, interval, len(scores.sources), **place, **shared))
    return rows


def mean_rows(
    scores: Scores, table: str, cells: Sequence[tuple[str, str]], method: str, step: int, *, name: str = "", **shared
) -> list[dict]:
    """Hit rate and similarity averaged over the cells of one source; ``target`` is "mean".

    The rows call the method ``name`` where that is given; ``shared`` goes into each, such as ``far`` and ``x``.
    """
    rows = []
    for metric in ("hit_rate", "similarity"):
        interval = scores.interval(scores.cells(metric, method, step, cells), share=metric == "hit_rate")
        place = {"table": table, "source": cells[0][0], "target": "mean", "method": name or method, "steps": step}
        rows.append(result_row(metric, interval, len(scores.sources), **place, **shared))
    return rows


# ---------------------------------------------------------------- paired differences


def difference_row(
    scores: Scores,
    claim: str,
    cells: Sequence[tuple[str, str]],
    better: tuple[str, int],
    worse: tuple[str, int],
    *,
    metric: str,
    name: str = "",
    **place,
) -> dict:
    """The paired difference of two (method, step), averaged over cells, as a row of ``claim``.

    ``metric`` is "hit_rate" or "similarity"; the row's is ``metric`` with "_difference". ``name`` replaces
    "better minus worse"; ``place`` goes into the row.
    """
    values = scores.cells(metric, *better, cells) - scores.cells(metric, *worse, cells)
    name = name or f"{better[0]} minus {worse[0]}"
    interval = scores.interval(values)
    where = {"table": claim, "method": name, "steps": better[1], **place}
    return result_row(f"{metric}_difference", interval, len(scores.sources), **where)


def evidence_of(row: Mapping) -> Evidence:
    """Evidence on "the difference is positive" from a row of results whose metric is among `UNITS`."""
    unit = UNITS[row["metric"]]
    return claim_mean_difference(row["value"], row["ci_low"], row["ci_high"], int(row["n_pairs"]), unit=unit)


def printed_differences(
    frame: pd.DataFrame,
    pairs: Iterable[tuple[str, str]],
    *,
    metric: str = "hit_rate",
    by: Sequence[str] = ("table", "source", "target"),
) -> Evidence:
    """Evidence on "the first of each pair of methods beats the second in every cell" from printed numbers.

    ``by`` names the columns that make a cell.
    """
    parts = []
    for better, worse in pairs:
        differences = method_differences(frame, better, worse, metric=metric, by=by)
        parts.append(differences.assign(pair=f"{better} over {worse}"))
    every = pd.concat(parts, ignore_index=True)
    return claim_printed(every["value"], labels=every["label"] + " (" + every["pair"] + ")")


def mean_differences(scores: Scores, claim: str, cells, better: str, worse: str, step: int, **place) -> list[dict]:
    """The paired difference of two methods after ``step``, averaged over the cells of one source; ``target`` is "mean"."""
    where = {"source": cells[0][0], "target": "mean", **place}
    return [
        difference_row(scores, claim, cells, (better, step), (worse, step), metric=metric, **where)
        for metric in ("hit_rate", "similarity")
    ]


def cell_differences(scores: Scores, claim: str, cells, better: str, worse: str, step: int, **place) -> list[dict]:
    """The difference of two methods in every cell, its interval, and McNemar's exact p-value."""
    rows = []
    for cell in cells:
        where = {"source": cell[0], "target": cell[1], **place}
        difference = difference_row(scores, claim, [cell], (better, step), (worse, step), metric="hit_rate", **where)
        gap = scores.cells("hit_rate", better, step, [cell]) - scores.cells("hit_rate", worse, step, [cell])
        # With several seeds a pair counts for the method that hits it more often.
        p = mcnemar_exact(int((gap > 0).sum()), int((gap < 0).sum()))
        same = {"table": claim, "method": difference["method"], "steps": step, **where}
        rows += [difference, result_row("p_value", p, len(scores.sources), **same)]
    return rows


def section_rows(
    scores: Scores, table: str, name: str, cells, column: tuple[str, int], other: tuple[str, int] | None, **place
) -> list[dict]:
    """One line of an audit: means over the judges, the deviation, and the paired difference to ``other``."""
    rows = mean_rows(scores, table, cells, *column, name=name, **place)
    deviation = scores.interval(scores.cells("rmsd", *column, cells[:1]))
    where = {"source": cells[0][0], "method": name, "steps": column[1], "table": table, **place}
    rows.append(result_row("rmsd", deviation, len(scores.sources), target="mean", **where))
    if other is not None and other != column:
        compared = {"name": name, "source": cells[0][0], "target": f"minus {other[0]}", **place}
        rows += [
            difference_row(scores, table, cells, column, other, metric=metric, **compared)
            for metric in ("hit_rate", "similarity")
        ]
    return rows


def significant(rows: pd.DataFrame, *, level: float = 0.05) -> pd.DataFrame:
    """How many cells of each comparison are positive, and how many are significant by McNemar with Holm's correction.

    Parameters
    ----------
    rows : DataFrame
        Results with the metrics ``hit_rate_difference`` and ``p_value`` of one claim; Holm corrects over all its cells.

    Returns
    -------
    DataFrame
        By ``method``: ``cells``, ``positive``, ``significantly positive``, ``significantly negative``.
    """
    keys = ["method", "source", "target"]
    gaps = rows[(rows["metric"] == "hit_rate_difference") & (rows["target"] != "mean")].set_index(keys)["value"]
    p_values = rows[rows["metric"] == "p_value"].set_index(keys)["value"].reindex(gaps.index)
    frame = pd.DataFrame({"gap": gaps, "sure": holm(p_values.to_numpy()) < level}).reset_index()
    counts = {
        "cells": np.ones(len(frame), bool),
        "positive": frame["gap"] > 0,
        "significantly positive": frame["sure"] & (frame["gap"] > 0),
        "significantly negative": frame["sure"] & (frame["gap"] < 0),
    }
    return pd.DataFrame(counts).groupby(frame["method"], sort=False).sum().astype(int)


def claim_in_cells(rows: pd.DataFrame, methods: Sequence[str]) -> Evidence | None:
    """Evidence on "positive in every cell" from rows of `cell_differences`, judged at once; None where there is none."""
    part = rows[rows["method"].isin(methods) & (rows["target"] != "mean")]
    cells = part[part["metric"] == "hit_rate_difference"].reset_index(drop=True)
    if cells.empty:
        return None
    source = ", " + cells["source"] if cells["source"].nunique() > 1 else ""
    evidence = claim_all_positive(cells.assign(label=cells["method"] + source + " on " + cells["target"]))
    counts = significant(part).sum()
    sure = f"McNemar with Holm: {counts['significantly positive']} cells up, {counts['significantly negative']} down"
    return replace(evidence, detail=f"{evidence.detail}; {sure}")
