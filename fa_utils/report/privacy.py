"""How chapter 2's tables, differences and claims come from what `fa_utils.report.privacy_cases` runs.

The same functions serve the notebook (live) and ``benchmarks/publish_privacy.py`` (published).
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from fa_utils.privacy.probes import accuracy_difference, accuracy_interval
from fa_utils.report.claims import (
    FAILS,
    Claim,
    Evidence,
    claim_all_positive,
    claim_every,
    claim_mean_difference,
    claim_printed,
)
from fa_utils.report.privacy_cases import (
    ATTACKS,
    BENCHMARKS,
    DEFAULT,
    FGSM,
    GRADIENT,
    MI,
    MI_MLP,
    RANDOM,
    SETTINGS,
    Case,
    Errors,
    Plan,
    Verified,
    iterated,
)
from fa_utils.report.results import paper_table, result_row

CHAPTER = "2_mi_privacy"
PAPER = "2-mi-privacy"

# ---------------------------------------------------------------- rows of the figures


def curve_rows(case: Case, table: str, names: Sequence[str], epsilons: Sequence[float]) -> list[dict]:
    """Figures 2 to 4: accuracy on the balanced set in both settings against eps (column ``x``)."""
    rows = []
    for setting in SETTINGS:
        for name in names:
            for eps in dict.fromkeys((0.0, *epsilons)):
                values = case.readings.values(setting, name, eps)
                rows.append(case.readings.row(table, setting, values, method=name, source=case.name, x=eps))
    return rows


def optimum_rows(case: Case) -> list[dict]:
    """eps* of each attack (column ``x``) with the setting-B accuracy that it has on both halves."""
    rows = []
    for name, eps in case.optimum.items():
        for readings, half in ((case.tuning, "development"), (case.readings, "evaluation")):
            place = {"method": name, "source": case.name, "x": eps, "far": half}
            rows.append(readings.row("Optimum", "B", readings.values("B", name, eps), **place))
    return rows


# ---------------------------------------------------------------- all pictures


def whole_rows(case: Case, table: str, method: str, verified: Verified, errors: Errors, *, x: float = math.nan, **place) -> list[dict]:
    """Balanced accuracy and equal error rate of one method on all pictures."""
    shared = {"table": table, "method": method, "source": case.name, "x": x, **place}
    gender = accuracy_interval(verified.predictions, balanced=True, seed=0)
    images, pairs = len(case.benchmark.evaluation), len(case.benchmark.pairs)
    return [
        result_row("balanced_accuracy", gender, images, **shared),
        result_row("eer", errors.interval(verified.scores), pairs, **shared),
    ]


REFERENCE = "Reference"
ELIMINATIONS = ("IVE", "Multi-IVE")
OWN_SCALE = {"IVE": "IVE, own scale", "Multi-IVE": "Multi-IVE, own scale"}  # the same, not left standardized
MIXED = {MI: 50.0, MI_MLP: 37.5}  # attack -> share of clean templates in percent at which the paper finds AgeDB most private


def utility_rows(case: Case, whole: Mapping[tuple[str, float], Verified], errors: Errors) -> list[dict]:
    """Privacy against utility: every attack at every eps (column ``x``) on all pictures."""
    rows = []
    for (name, eps), verified in whole.items():
        rows += whole_rows(case, "Privacy and utility", REFERENCE if name == "clean" else name, verified, errors, x=eps)
    return rows


# ---------------------------------------------------------------- the differences behind the claims


def setting_effects(case: Case, plan: Plan) -> list[dict]:
    """Claims 1 to 4 on one benchmark."""
    readings, late = case.readings, [eps for eps in plan.epsilons if eps > plan.early]
    rows = []

    def add(claim: int, setting: str, method: str, values: np.ndarray, **place) -> None:
        shared = {"metric": "accuracy_difference", "method": method, "source": case.name, **place}
        rows.append(readings.row(f"claim {claim}", setting, values, **shared))

    for name in GRADIENT:
        eps = readings.lowest("A", name, late)
        values = readings.values("A", name, eps) - readings.values("A", name, plan.early)
        add(1, "A", f"{name}: lowest beyond eps {plan.early:g} minus there", values, x=eps)
    eps = readings.lowest("A", RANDOM, plan.epsilons[1:])
    add(1, "A", f"{RANDOM}: lowest minus clean", readings.values("A", RANDOM, eps) - readings.values("A", RANDOM, 0.0), x=eps)

    mean = {name: readings.values("A", name, DEFAULT) for name in ATTACKS}
    sign = -1 if case.name == "AgeDB" else 1
    for name in (MI, MI_MLP):
        words = f"{name} minus {FGSM}" if sign < 0 else f"{FGSM} minus {name}"
        add(2, "A", words, sign * (mean[FGSM] - mean[name]))
    add(2, "A", f"{MI_MLP} minus {MI}", mean[MI_MLP] - mean[MI])

    clean = readings.values("B", MI, 0.0)
    for name in GRADIENT:
        for eps in DEFAULT:
            add(3, "B", f"{name} minus clean", readings.values("B", name, eps) - clean, x=eps)
    add(3, "B", f"clean minus {RANDOM}", clean - readings.values("B", RANDOM, DEFAULT))

    best = min((MI, MI_MLP), key=lambda name: case.tuning.accuracy("B", name, case.optimum[name]))
    values = readings.values("B", FGSM, case.optimum[FGSM]) - readings.values("B", best, case.optimum[best])
    add(4, "B", f"{FGSM} minus {best}, each at its eps*", values)
    return rows


def training_effects(case: Case, plan: Plan, epsilons: Sequence[float]) -> list[dict]:
    """Claim 7 on one benchmark: what other numbers of iterations change, averaged over the eps of Fig. 2."""
    middle, rows = iterated(plan.iterations), []
    for steps in (plan.checkpoints[0], plan.checkpoints[-1]):
        for setting in SETTINGS:
            values = case.readings.values(setting, iterated(steps), epsilons) - case.readings.values(setting, middle, epsilons)
            place = {"metric": "accuracy_difference", "source": case.name, "method": f"{steps} minus {plan.iterations} iterations"}
            rows.append(case.readings.row("claim 7", setting, values, far="all eps", **place))
            if case.name == "AgeDB" and setting == "B":
                large = [eps for eps in epsilons if eps >= DEFAULT[0]]
                values = case.readings.values("B", iterated(steps), large) - case.readings.values("B", middle, large)
                rows.append(case.readings.row("claim 7", setting, values, far="default range", **place))
    return rows


def utility_effects(case: Case, whole: Mapping[tuple[str, float], Verified], errors: Errors) -> list[dict]:
    """Claim 5 on one benchmark: what MI-FGSM at eps* does to both numbers."""
    clean, attacked = whole["clean", 0.0], whole[MI, case.optimum[MI]]
    place = {"table": "claim 5", "source": case.name, "x": case.optimum[MI]}
    fall = accuracy_difference(clean.predictions, attacked.predictions, balanced=True, seed=0)
    rise = errors.difference(attacked.scores, clean.scores)
    images, pairs = len(case.benchmark.evaluation), len(case.benchmark.pairs)
    return [
        result_row("balanced_accuracy_difference", fall, images, method=f"clean minus {MI}", **place),
        result_row("eer_difference", rise, pairs, method=f"{MI} minus clean", **place),
    ]


# ---------------------------------------------------------------- the claims

MARGIN = 1.0  # points: "does not lower", "not above"
SIMILAR = 3.0  # points: "changes little", "similar gender accuracy"
FALL = 6.0  # points: the smallest fall of gender accuracy that the text names
AGREE = 99.9  # percent
STATEMENTS = {
    1: (f"Setting A: the gradient attacks reach their lowest accuracy by eps 0.015, RND-ATK does not lower it (by {MARGIN:g} point or more)", "Fig. 3 and 4"),
    2: ("Setting A: both MI attacks are below FGSM on LFW and ColorFERET, above it on AgeDB; MI-FGSM is not above MI-FGSM-MLP", "Fig. 3"),
    3: ("Setting B: from eps 0.05 on every gradient attack gives an accuracy above the clean one, RND-ATK does not", "Fig. 3"),
    4: ("Setting B: an MI attack at its eps* gives a lower accuracy than FGSM at its own, on all benchmarks", "Fig. 4"),
    5: (f"MI-FGSM at eps* costs the probes {FALL:g} points or more and the EER less than one, on all benchmarks", "Table 2"),
    6: ("At similar gender accuracy MI-FGSM has a lower EER than IVE and Multi-IVE, on all benchmarks", "Table 2"),
    7: (f"The estimator's iterations change the accuracies by less than {SIMILAR:g} points; AgeDB, setting B, is lowest at 15,000", "Fig. 2"),
    8: ("Mixing in clean templates helps at eps 0.3 on AgeDB; on LFW and ColorFERET it stays worse than eps* alone", "Fig. 5"),
    9: (f"MI-FGSM is cross-entropy FGSM on the estimator's head: {AGREE:g}% of the signs agree", "sheet, 3a"),
}


TWO_SIDED = (2, 7, 8)  # say one thing about AgeDB and another about the other benchmarks
BY_NAME = (2, 8)  # say nothing about a benchmark that the paper does not have


def judge_effects(rows: pd.DataFrame | None) -> dict[int, Evidence]:
    """Evidence on each claim from a run's rows; claims that the run does not speak to are left out.

    Claims 2, 7 and 8 say different things about AgeDB and about the others, 2 and 8 about the paper's benchmarks by name.
    A run without one of the two sides can contradict such a claim and cannot bear it out, so there only *fails* counts.
    """
    if rows is None or rows.empty:
        return {}
    judges = {1: _each(-MARGIN), 2: _second, 3: _third, 4: _each(0.0), 5: _fifth, 6: _sixth, 7: _seventh, 8: _each(0.0), 9: _each(AGREE, "percent")}
    sources = set(rows["source"])
    both_sides = "AgeDB" in sources and bool(sources & {"LFW", "ColorFERET"})
    found = {}
    for number, judge in judges.items():
        part = rows[rows["table"] == f"claim {number}"]
        if number in BY_NAME:
            part = part[part["source"].isin(BENCHMARKS)]
        evidence = judge(part) if len(part) else None
        if evidence and (both_sides or number not in TWO_SIDED or evidence.verdict == FAILS):
            found[number] = evidence
    return found


def _evidence(row: Mapping, *, bound: float = 0.0, sign: int = 1, unit: str = "points") -> Evidence:
    low, high = sorted((sign * row["ci_low"], sign * row["ci_high"]))
    return claim_mean_difference(sign * row["value"], low, high, int(row["n_pairs"]), bound=bound, unit=unit)


def _where(row: Mapping) -> str:
    return f"{row['source']}, {row['method']}"


def _each(bound: float, unit: str = "points"):
    def judge(part: pd.DataFrame) -> Evidence:
        return claim_every({_where(row): _evidence(row, bound=bound, unit=unit) for row in part.to_dict("records")})

    return judge


def _second(part: pd.DataFrame) -> Evidence:
    """MI-FGSM "not above" MI-FGSM-MLP allows the margin; the other parts are strict."""
    weak = f"{MI_MLP} minus {MI}"
    return claim_every(
        {_where(row): _evidence(row, bound=-MARGIN if row["method"] == weak else 0.0) for row in part.to_dict("records")}
    )


def _third(part: pd.DataFrame) -> Evidence:
    random = part["method"] == f"clean minus {RANDOM}"
    cells = part[~random].copy()
    cells["label"] = [f"{_where(row)}, eps {row['x']:g}" for row in cells.to_dict("records")]
    parts = {"gradient attacks above clean in every cell": claim_all_positive(cells.reset_index(drop=True))}
    return claim_every(parts | {_where(row): _evidence(row, bound=-MARGIN) for row in part[random].to_dict("records")})


def _fifth(part: pd.DataFrame) -> Evidence:
    parts = {}
    for row in part.to_dict("records"):
        falls = row["metric"] == "balanced_accuracy_difference"
        parts[_where(row)] = _evidence(row, bound=FALL) if falls else _evidence(row, bound=-1.0, sign=-1)
    return claim_every(parts)


def _sixth(part: pd.DataFrame) -> Evidence:
    """EER differences; where the other method is more private by more than `SIMILAR` points, nothing can be said."""
    gaps = part[part["metric"] == "balanced_accuracy_difference"].set_index(["source", "method"])["value"]
    parts = {}
    for row in part[part["metric"] == "eer_difference"].to_dict("records"):
        evidence = _evidence(row)
        if gaps[row["source"], row["method"]] < -SIMILAR:
            evidence = Evidence("undecided", evidence.effect, evidence.low, evidence.high, evidence.n_pairs, detail="not similarly private")
        parts[_where(row)] = evidence
    return claim_every(parts)


def _seventh(part: pd.DataFrame) -> Evidence:
    parts = {}
    for row in part.to_dict("records"):
        name = f"{_where(row)}, {row['target']}"
        if row["far"] == "default range":
            parts[f"{name}, default range"] = _evidence(row)
        else:
            parts |= {name + words: _evidence(row, bound=-SIMILAR, sign=sign) for sign, words in ((1, ""), (-1, ", reversed"))}
    return claim_every(parts)


def judge_printed() -> dict[int, Evidence]:
    """Evidence from the paper's own numbers, at face value; most of its curves have none."""
    table = paper_table(PAPER)
    cells = table[table["table"] == "Table 2"].pivot_table(index="source", columns=["method", "metric"], values="value")
    gender = {method: cells[method, "balanced_accuracy"] for method in (REFERENCE, MI)}
    eer = {method: cells[method, "eer"] for method in (REFERENCE, MI, *ELIMINATIONS)}
    worse = {f"{name} on {source}": eer[name][source] - eer[MI][source] for name in ELIMINATIONS for source in cells.index}
    found = {
        5: claim_printed([*(gender[REFERENCE] - gender[MI] - FALL), *(1 - (eer[MI] - eer[REFERENCE]))]),
        6: claim_printed(list(worse.values()), labels=list(worse)),
    }
    figure = table[(table["table"] == "Fig. 5") & (table["metric"] == "accuracy")]
    value = figure.set_index(["source", "method", "setting"])["value"]
    clean, at = value["AgeDB", REFERENCE, "B, 100% clean"], "B, eps 0.300, 0% clean"
    labels = [f"AgeDB, {name} at eps 0.3" for name in (MI, MI_MLP)]
    found[3] = claim_printed([value["AgeDB", name, at] - clean for name in (MI, MI_MLP)], labels=labels)
    gaps = table[(table["table"] == "Fig. 4") & (table["metric"] == "accuracy_difference")]
    found[4] = claim_printed(gaps["value"])
    helped = [value["AgeDB", name, at] - value["AgeDB", name, f"B, eps 0.300, {share:g}% clean"] for name, share in MIXED.items()]
    worse = [value["LFW", name, "B, eps 0.300, best mixture"] - value["LFW", name, "B, eps*, 0% clean"] for name in MIXED]
    found[8] = claim_printed([*helped, *worse])
    return dict(sorted(found.items()))


def make_claims(published: pd.DataFrame | None, live: pd.DataFrame | None, *, printed: bool = True) -> list[Claim]:
    """The nine claims with the evidence of each run."""
    runs = {"printed": judge_printed() if printed else {}, "published": judge_effects(published), "live": judge_effects(live)}
    return [
        Claim(number, statement, where, **{run: evidence.get(number) for run, evidence in runs.items()})
        for number, (statement, where) in STATEMENTS.items()
    ]
