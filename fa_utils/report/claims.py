"""Claims as falsifiable statements, judged by code.

A verdict is *holds*, *fails* or *undecided* and follows from an effect estimate and its confidence interval
alone:

* holds: the whole interval lies on the claimed side of the bound;
* fails: the whole interval lies on the other side;
* undecided: it does not, or there are too few pairs for any result to decide (:func:`fewest_pairs`).

"In all cells" claims use simultaneous intervals (:func:`claim_all_positive`). Numbers of a paper come without
intervals and are taken at face value (:func:`claim_printed`).
"""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from html import escape
from pathlib import Path
from statistics import NormalDist

import numpy as np
import pandas as pd

from fa_utils.metrics import wilson_interval
from fa_utils.report.tables import DASH, Table, grid, wrap

HOLDS, FAILS, UNDECIDED = "holds", "fails", "undecided"
MARKS = {HOLDS: "✓", FAILS: "✗", UNDECIDED: "?"}
RUNS = ("printed", "published", "live")
_PLURAL = {HOLDS: "hold", FAILS: "fail", UNDECIDED: "are undecided"}

STYLE = """<style>
.frt-verdict{border-left:.3em solid var(--frt-verdict);padding-left:.4em;font-weight:600;white-space:nowrap}
.frt-holds{--frt-verdict:#1a9850}.frt-fails{--frt-verdict:#d7301f}.frt-undecided{--frt-verdict:#8a8a8a}
</style>"""


@dataclass(frozen=True)
class Evidence:
    """What one run says about a claim.

    ``effect`` with the interval [``low``, ``high``] in ``unit`` (NaN without one), from ``n_pairs`` pairs (0:
    as printed); ``detail`` tells in words which cells decided.
    """

    verdict: str
    effect: float
    low: float = math.nan
    high: float = math.nan
    n_pairs: int = 0
    unit: str = "points"
    detail: str = ""


@dataclass(frozen=True)
class Claim:
    """A falsifiable statement of a paper with the evidence for it; None: that run does not speak to it.

    ``statement`` is plain text (no TeX: it is shown inside HTML tables).
    """

    number: int
    statement: str
    where: str
    printed: Evidence | None = None
    published: Evidence | None = None
    live: Evidence | None = None

    def __post_init__(self):
        if "$" in self.statement or "\\" in self.statement:
            raise ValueError(
                f"claim {self.number}: {self.statement!r} holds TeX, which tables do not typeset"
            )


def judge(low: float, high: float, *, bound: float = 0.0) -> str:
    """Verdict on "effect > bound" from an interval.

    Raises
    ------
    ValueError
        If an end is NaN, or low > high.
    """
    if not low <= high:
        raise ValueError(f"interval [{low}, {high}] is no interval")
    if low > bound:
        return HOLDS
    return FAILS if high < bound else UNDECIDED


def fewest_pairs(cells: int = 1, *, level: float = 0.95) -> int:
    """Smallest number of pairs that can decide anything: if all of fewer pairs agree, a two-sided sign test
    (Bonferroni over ``cells``) still has p > 1 - level. Guards against bootstrap intervals that collapse on a
    few equal pairs."""
    return math.ceil(1 + math.log2(cells / (1 - level)) - 1e-12)


def claim_mean_difference(
    effect: float,
    low: float,
    high: float,
    n_pairs: int,
    *,
    bound: float = 0.0,
    unit: str = "points",
    level: float = 0.95,
    detail: str = "",
) -> Evidence:
    """Evidence on "the effect exceeds ``bound``" from one estimate and its interval.

    Parameters
    ----------
    effect, low, high : estimate and confidence interval, oriented so that the claim says *larger*.
    n_pairs : image pairs behind it; below :func:`fewest_pairs` the verdict is *undecided*.

    A difference in points of exactly zero without width comes from a run in which no pair told the two methods apart. That
    does not make them equal: the interval is then plus and minus the upper end of Wilson's for none of ``n_pairs``.
    """
    if effect == low == high == 0 and unit == "points":
        high = 100 * wilson_interval(0, n_pairs, level=level).high
        low = -high
    if not low <= effect <= high:
        raise ValueError(f"effect {effect} is not in its interval [{low}, {high}]")
    verdict = judge(low, high, bound=bound) if n_pairs >= fewest_pairs(level=level) else UNDECIDED
    return Evidence(verdict, float(effect), float(low), float(high), int(n_pairs), unit, detail)


def claim_all_positive(
    cells: pd.DataFrame, *, replicates: np.ndarray | None = None, unit: str = "points", level: float = 0.95
) -> Evidence:
    """Evidence on "the difference is positive in every cell".

    Rule: simultaneous intervals over all cells. The claim holds if each of them lies above zero, fails if one
    of them lies below zero, and is undecided otherwise. (Simultaneous bounds are needed to say that it fails;
    to say that it holds they are stricter than an intersection-union test, Berger 1982.)

    Parameters
    ----------
    cells : one row a cell: ``value``, ``ci_low``, ``ci_high``, ``n_pairs``, and ``label`` (optional) to name
    it. replicates : bootstrap replicates (B, cells), resampled jointly over the cells. With them the bounds
    are
        ``value +- q * se`` with q the ``level`` quantile of the largest studentized deviation over the cells
        (max-t); without, each interval is stretched about its value from ``level`` to Bonferroni's level.

    Returns
    -------
    Evidence
        ``effect`` and interval are those of the deciding cell: the one with the lowest upper bound if the
        claim fails, the one with the lowest lower bound otherwise.

    Raises
    ------
    ValueError
        For no cells, missing columns, values that are not finite, or replicates of another shape.
    """
    _check_cells(cells)
    value = cells["value"].to_numpy(float)
    low, high = simultaneous_bounds(cells, replicates=replicates, level=level)
    verdicts = [judge(a, b) for a, b in zip(low, high)]
    if cells["n_pairs"].min() < fewest_pairs(len(cells), level=level):
        verdict = UNDECIDED
    elif FAILS in verdicts:
        verdict = FAILS
    else:
        verdict = HOLDS if set(verdicts) == {HOLDS} else UNDECIDED
    k = int(np.argmin(high if verdict == FAILS else low))
    detail = f"{int((value > 0).sum())} of {len(value)} cells positive; deciding cell: {_label(cells, k)}"
    return Evidence(
        verdict, float(value[k]), float(low[k]), float(high[k]), int(cells["n_pairs"].min()), unit, detail
    )


def claim_printed(
    differences: Sequence[float],
    *,
    labels: Sequence[str] | None = None,
    unit: str = "points",
    bound: float = 0.0,
) -> Evidence:
    """Evidence from printed numbers, taken at face value: "every difference exceeds ``bound``" holds or
    fails.

    ``effect`` is the smallest difference; ``detail`` counts the cells and names the exceptions.
    """
    values = np.round(np.asarray(list(differences), dtype=float), 9)  # 0.1 + 0.2 style dust must not decide
    if not values.size or not np.isfinite(values).all():
        raise ValueError(f"differences must be finite numbers, at least one; got {list(differences)}")
    good = values > bound
    detail = f"{int(good.sum())} of {values.size} cells" if values.size > 1 else ""
    if labels is not None and not good.all():
        detail += "; not " + ", ".join(str(label) for label, fine in zip(labels, good) if not fine)
    return Evidence(HOLDS if good.all() else FAILS, float(values.min()), unit=unit, detail=detail)


def claim_every(parts: dict[str, Evidence]) -> Evidence:
    """Evidence on "all of these": fails if a part fails, holds if all hold. Shows the part that decides."""
    if not parts:
        raise ValueError("a claim of parts needs at least one part")
    order = {FAILS: 0, UNDECIDED: 1, HOLDS: 2}
    name, part = min(parts.items(), key=lambda item: order[item[1].verdict])
    return Evidence(
        part.verdict,
        part.effect,
        part.low,
        part.high,
        part.n_pairs,
        part.unit,
        f"{_verdicts_in_words(parts)}; shown: {name}",
    )


def _verdicts_in_words(parts: dict[str, Evidence], *, most: int = 4) -> str:
    """The verdict of each part; of more than a few, how many there are of each kind and which ones fail."""
    if len(parts) <= most:
        return "; ".join(f"{key}: {value.verdict}" for key, value in parts.items())
    counts = {word: sum(part.verdict == verdict for part in parts.values()) for verdict, word in _PLURAL.items()}
    text = f"of {len(parts)} parts " + ", ".join(f"{count} {word}" for word, count in counts.items() if count)
    failing = [key for key, value in parts.items() if value.verdict == FAILS]
    if not failing:
        return text
    more = f" and {len(failing) - most} more" if len(failing) > most else ""
    return f"{text}; fails: {'; '.join(failing[:most])}{more}"


def method_differences(
    frame: pd.DataFrame,
    better: str,
    worse: str,
    *,
    metric: str = "hit_rate",
    by=("table", "source", "target"),
) -> pd.DataFrame:
    """Differences ``better - worse`` of two methods, cell by cell: columns ``by``, ``label`` and ``value``.

    For numbers without pairs, such as printed ones. A run's own differences must be paired over images:
    take them, with their intervals, from ``fa_utils.metrics``.

    Raises
    ------
    ValueError
        If a cell has one method but not the other, or one of them twice.
    """
    by = list(by)
    chosen = frame[frame["metric"] == metric]
    one, two = (chosen[chosen["method"] == name].set_index(by)["value"] for name in (better, worse))
    if (
        one.empty
        or two.empty
        or one.index.has_duplicates
        or two.index.has_duplicates
        or set(one.index) != set(two.index)
    ):
        raise ValueError(
            f"{better!r} ({len(one)} cells) and {worse!r} ({len(two)} cells) do not share "
            f"the same single cells of {metric}"
        )
    difference = (one - two.reindex(one.index)).rename("value").reset_index()
    difference["label"] = [" ".join(str(row[name]) for name in by) for row in difference.to_dict("records")]
    return difference


def simultaneous_bounds(
    cells: pd.DataFrame, *, replicates: np.ndarray | None = None, level: float = 0.95
) -> tuple[np.ndarray, np.ndarray]:
    """Lower and upper bounds that hold for all cells at once; see :func:`claim_all_positive`."""
    value = cells["value"].to_numpy(float)
    if replicates is None:
        normal = NormalDist()
        stretch = normal.inv_cdf(1 - (1 - level) / (2 * len(cells))) / normal.inv_cdf(1 - (1 - level) / 2)
        return value - stretch * (value - cells["ci_low"].to_numpy(float)), value + stretch * (
            cells["ci_high"].to_numpy(float) - value
        )
    replicates = np.asarray(replicates, dtype=float)
    if replicates.ndim != 2 or replicates.shape[1] != len(cells):
        raise ValueError(
            f"replicates have the shape {replicates.shape}; (replicates, {len(cells)} cells) is needed"
        )
    spread = replicates.std(axis=0, ddof=1)
    moving = spread > 0
    if not moving.any():
        return value.copy(), value.copy()
    largest = (np.abs(replicates[:, moving] - value[moving]) / spread[moving]).max(axis=1)
    width = np.quantile(largest, level) * spread
    return value - width, value + width


def verdict_table(claims: Sequence[Claim], *, caption: str = "The paper's claims, judged by code") -> Table:
    """All claims with the verdict of each run: word, mark and color, effect, interval, pair count."""
    head = "".join(
        f'<th scope="col" style="text-align:left">{name}</th>'
        for name in ("", "claim", "as printed", "published", "live")
    )
    body = "".join(
        f'<tr><th scope="row" style="min-width:0">{claim.number}</th>'
        f'<td class="frt-text">{escape(claim.statement)}<small>{escape(claim.where)}</small></td>'
        + "".join(_evidence_cell(getattr(claim, run)) for run in RUNS)
        + "</tr>"
        for claim in claims
    )
    html = STYLE + wrap(f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody>", caption)
    lines = [["", "claim", "as printed", "published", "live"]]
    lines += [
        [str(claim.number), claim.statement, *[_words(getattr(claim, run)) for run in RUNS]]
        for claim in claims
    ]
    return Table(html, caption + "\n" + grid(lines), _frame(claims))


def save_verdicts(
    claims: Sequence[Claim], path, *, chapter: str, title: str, profile: str, page: str | None = None
) -> Path:
    """Store a chapter's verdicts as JSON for the landing page.

    Parameters
    ----------
    path : e.g. ``book/_generated/3_dfanet.json``; the file appears whole or not at all.
    chapter, title : e.g. ``"3_dfanet"``, ``"DFANet"``.
    profile : profile of the live run.
    page : link target from the landing page, e.g. ``"notebooks/3_dfanet"``.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    record = {
        "chapter": chapter,
        "title": title,
        "profile": profile,
        "page": page or "",
        "claims": [_record(claim) for claim in claims],
    }
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    partial.replace(path)
    return path


def landing_table(folder) -> str:
    """Markdown table of the verdicts of all chapters, from the JSON files of :func:`save_verdicts` in
    ``folder``.

    A folder without any gives a sentence that says so, so that the book builds before the first run.
    """
    records = [json.loads(file.read_text(encoding="utf-8")) for file in sorted(Path(folder).glob("*.json"))]
    if not records:
        return "No chapter has been run yet.\n"
    lines = ["| chapter | claim | as printed | published | live |", "|---|---|---|---|---|"]
    for record in records:
        name = f"[{record['title']}]({record['page']})" if record["page"] else record["title"]
        for claim in record["claims"]:
            cells = [_short(claim[run], record["profile"] if run == "live" else "") for run in RUNS]
            lines.append(
                "| "
                + " | ".join([name, f"{claim['number']}. {claim['statement']}".replace("|", "\\|"), *cells])
                + " |"
            )
            name = ""
    return "\n".join(lines) + "\n"


def _check_cells(cells: pd.DataFrame) -> None:
    needed = ["value", "ci_low", "ci_high", "n_pairs"]
    missing = [name for name in needed if name not in cells]
    if missing or not len(cells):
        raise ValueError(
            f"cells lack {', '.join(missing)}"
            if missing
            else "a claim about all cells needs at least one cell"
        )
    if not np.isfinite(cells[needed].to_numpy(float)).all():
        raise ValueError("cells hold a value, bound or pair count that is not finite")
    if not ((cells["ci_low"] <= cells["value"]) & (cells["value"] <= cells["ci_high"])).all():
        raise ValueError("a cell's value is not in its interval")


def _label(cells: pd.DataFrame, k: int) -> str:
    return str(cells["label"].iloc[k]) if "label" in cells else f"number {k + 1}"


def _number(value: float, unit: str) -> str:
    return f"{value:+.3f}" if unit in ("cosine", "L2") else f"{value:+.2f}"


def _size(evidence: Evidence) -> str:
    """Effect, interval, pair count in words."""
    text = f"{_number(evidence.effect, evidence.unit)} {evidence.unit}"
    if math.isfinite(evidence.low):
        text += f" [{_number(evidence.low, evidence.unit)}, {_number(evidence.high, evidence.unit)}]"
    return text + (f", n = {evidence.n_pairs}" if evidence.n_pairs else "")


def _evidence_cell(evidence: Evidence | None) -> str:
    if evidence is None:
        return f'<td class="frt-text" style="min-width:0">{DASH}</td>'
    detail = f'<small style="white-space:normal">{escape(evidence.detail)}</small>' if evidence.detail else ""
    word = f"{MARKS[evidence.verdict]} {evidence.verdict}"
    return (
        f'<td class="frt-text" style="min-width:9em">'
        f'<span class="frt-verdict frt-{evidence.verdict}">{word}</span>'
        f'<small style="white-space:normal">{escape(_size(evidence))}</small>{detail}</td>'
    )


def _words(evidence: Evidence | None) -> str:
    return DASH if evidence is None else f"{evidence.verdict} ({_size(evidence)})"


def _short(evidence: dict | None, profile: str) -> str:
    if evidence is None:
        return DASH
    count = f"n = {evidence['n_pairs']}" if evidence["n_pairs"] else ""
    note = ", ".join(part for part in (profile, count) if part)
    return f"{MARKS[evidence['verdict']]} {evidence['verdict']}" + (f" ({note})" if note else "")


def _record(claim: Claim) -> dict:
    """A claim as JSON values; NaN (no interval) becomes null."""
    record = asdict(claim)
    for run in RUNS:
        if record[run] is not None:
            record[run] = {
                key: None if isinstance(value, float) and math.isnan(value) else value
                for key, value in record[run].items()
            }
    return record


def _frame(claims: Sequence[Claim]) -> pd.DataFrame:
    rows = [
        {"number": claim.number, "statement": claim.statement, "run": run, **asdict(getattr(claim, run))}
        for claim in claims
        for run in RUNS
        if getattr(claim, run) is not None
    ]
    return pd.DataFrame(rows, columns=["number", "statement", "run", *Evidence.__dataclass_fields__])
