"""The tables and figures of chapter 2, from rows of `fa_utils.report.privacy` and `fa_utils.report.privacy_probes`."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pandas as pd

from fa_utils.attacks.transfer import network_name
from fa_utils.report import privacy
from fa_utils.report.figures import COLORS, LINES, MARKERS, image_strip, line_with_band, new_figure
from fa_utils.report.privacy import ELIMINATIONS, OWN_SCALE, REFERENCE
from fa_utils.report.privacy_cases import (
    ATTACKS,
    BENCHMARKS,
    DEFAULT,
    GRADIENT,
    MI,
    MI_MLP,
    PROCEDURAL,
    SETTINGS,
    Case,
    Errors,
    Plan,
)
from fa_utils.report.privacy_probes import SHARES, STAR, STRONG, too_few_for_rotation, trained_on
from fa_utils.report.results import paper_table, results_frame
from fa_utils.report.tables import Table, plain_table, three_columns

PROFILES = {
    "smoke": {
        "people": 64, "images": 40, "iterations": 150, "grid": "quick", "utility": (0.3,), "folds": 4, "levels": 2, "pace": 5,
        "shares": (0.0, 37.5, 50.0, 100.0),
        "device": "cpu", "workers": 1,
    },
    "laptop": {
        "people": 160, "images": 240, "iterations": 1500, "grid": "coarse", "utility": (0.006, 0.03, 0.3), "folds": 10,
        "levels": 4, "pace": 2, "shares": SHARES, "device": "cpu", "workers": 2,
    },
    "gpu": {
        "people": None, "images": 2000, "iterations": 15000, "grid": "fine", "utility": (0.0012, 0.003, 0.006, 0.015, 0.03, 0.1, 0.3),
        "folds": 10, "levels": 10, "pace": 1, "shares": SHARES, "device": "cuda", "workers": 8,
    },
    "paper": {
        "people": None, "images": 5000, "iterations": 15000, "grid": "full", "utility": (0.0012, 0.003, 0.006, 0.015, 0.03, 0.1, 0.3),
        "folds": 10, "levels": 20, "pace": 1, "shares": SHARES, "device": "cuda", "workers": 8,
    },
}  # fmt: skip


def live_frame(rows: list[dict], shared: dict) -> pd.DataFrame:
    """The run's rows so far, validated."""
    return results_frame(rows, chapter=privacy.CHAPTER, **shared)


def published_part(results: pd.DataFrame, *, faces: str, networks: str) -> pd.DataFrame:
    """Published rows on the same faces: those of the same extractor, or of the first one where it was not published."""
    part = results[results["faces"] == faces]
    own = part[part["networks"] == networks]
    return own if len(own) or part.empty else part[part["networks"] == part["networks"].iloc[0]]


def by_network(frame: pd.DataFrame) -> pd.DataFrame:
    """Rows of several extractors with the extractor's name beside the benchmark's, so that each gets a panel of its own."""
    return frame.assign(source=frame["source"] + ", " + frame["networks"])


def runs_with(table: str, **frames: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """(run, its rows of a table) for every run that has some."""
    for name, frame in frames.items():
        part = frame[frame["table"] == table]
        if len(part):
            yield name, part


def images_of(part: pd.DataFrame) -> str:
    """How many pictures are behind the rows, in words."""
    low, high = int(part["n_pairs"].min()), int(part["n_pairs"].max())
    return f"{low} pictures" if low == high else f"{low} to {high} pictures"


# ---------------------------------------------------------------- tables


def benchmarks_table(cases: Mapping[str, Case], errors: Mapping[str, Errors], plan: Plan) -> Table:
    """People, pictures and pairs of each benchmark."""
    lines = []
    for name, case in cases.items():
        benchmark = case.benchmark
        taking_part = benchmark.identity(np.concatenate([benchmark.development, benchmark.evaluation]))
        lines.append(
            {
                "benchmark": name,
                "our domain": BENCHMARKS[name].domain if plan.faces == PROCEDURAL else None,
                "people": len(np.unique(taking_part)),
                "development": len(benchmark.development),
                "evaluation": len(benchmark.evaluation),
                "balanced": len(benchmark.shown),
                "pairs": len(benchmark.pairs),
                "age gap": f"{benchmark.gap:g} years" if benchmark.gap else None,
                "label 1 (%)": 100 * benchmark.labels(benchmark.evaluation).mean(),
                "clean EER (%)": 100 * errors[name].rate(errors[name].clean(case.clean["evaluation"])),
            }
        )
    caption = f"The benchmarks, in pictures; templates of {network_name(plan.extractor)}. Label shares and pairs: evaluation half."
    frame = pd.DataFrame(lines).dropna(axis=1, how="all")
    return plain_table(frame, caption=caption, digits={"label 1 (%)": 1, "clean EER (%)": 2})


def remarks(cases: Mapping[str, Case], plan: Plan) -> list[str]:
    """Sentences on what real faces lack, and on what is done instead; none for rendered ones."""
    return [] if plan.faces == PROCEDURAL else [sentence for name, case in cases.items() for sentence in _lacks(name, case, cases)]


def _lacks(name: str, case: Case, cases: Mapping[str, Case]) -> list[str]:
    benchmark, found = case.benchmark, []
    if name not in BENCHMARKS:
        found.append(f"{name} is not among the paper's benchmarks: there is no paper column for it, and claims 2 and 8 do not speak of it.")
    if benchmark.unlabeled:
        found.append(f"{name}: {benchmark.unlabeled} of {len(benchmark.faces)} pictures have no label, or contradicting ones, and are left out.")
    if name in BENCHMARKS and BENCHMARKS[name].gap > benchmark.gap:
        found.append(f"The pairs of {name} should lie {BENCHMARKS[name].gap:g} years apart. These pictures have no ages, so its pairs have no gap and are easier.")
    if trained_on(name, cases) == name:
        found.append("There is no second dataset, so IVE and Multi-IVE rank variables on the development half of the same one.")
    if too_few_for_rotation(case):
        have, need = case.clean["development"].shape
        found.append(f"Multi-IVE is left out: {need} principal components need as many pictures, and the development half has {have}. More people would do.")
    return found


def _cell(row: Mapping, digits: int, interval: bool, *, signed: bool = False) -> str:
    style = f"{{:{'+' if signed else ''}.{digits}f}}"
    text = style.format(row["value"])
    if interval and np.isfinite(row["ci_low"]):
        text += f" [{style.format(row['ci_low'])}, {style.format(row['ci_high'])}]"
    return text


def grid_table(
    part: pd.DataFrame,
    *,
    rows: Sequence[str],
    column: str,
    caption: str,
    metric: str = "accuracy",
    digits: int = 1,
    interval: bool = True,
    heads: Mapping[str, str] | None = None,
    name_of=None,
) -> Table:
    """Rows of results as a table: ``rows`` name its lines, the values of ``column`` its columns.

    Parameters
    ----------
    heads : dict, optional
        Headings of the ``rows``.
    name_of : callable, optional
        Heading of a value of ``column``.
    """
    part = part[part["metric"] == metric]
    signed = metric.endswith("difference")
    lines: dict[tuple, dict] = {}
    for row in part.to_dict("records"):
        key = tuple(_shown(row[name]) for name in rows)
        line = lines.setdefault(key, {(heads or {}).get(name, name): value for name, value in zip(rows, key, strict=True)})
        head = (name_of or _shown)(row[column])
        line[head] = _cell(row, digits, interval, signed=signed)
    return plain_table(pd.DataFrame(list(lines.values())), caption=caption, digits=digits)


def _shown(value):
    if isinstance(value, float):
        return "" if np.isnan(value) else f"{value:g}"
    return value


def eps_name(value: float) -> str:
    """How a column of an eps is headed."""
    return "clean" if value == 0 else f"eps {value:g}"


def clean_table(**frames: pd.DataFrame) -> Table:
    """Gender read from clean templates in both settings, where all curves start."""
    lines = []
    for run, part in runs_with("Clean", **frames):
        for source, group in part.groupby("source", sort=False):
            value = {row["target"]: row for row in group.to_dict("records")}
            line = {"run": run, "benchmark": source}
            line |= {f"{setting} (%)": _cell(row, 1, True) for setting, row in value.items()}
            lines.append(line | {"pictures": int(group["n_pairs"].max())})
    return plain_table(pd.DataFrame(lines), caption="Gender read from clean templates, balanced set of the evaluation half.", digits=0)


def optimum_table(**frames: pd.DataFrame) -> Table:
    """eps* of every attack on every benchmark and the accuracies in setting B there."""
    lines = []
    for run, part in runs_with("Optimum", **frames):
        for (source, method), group in part.groupby(["source", "method"], sort=False):
            value = {row["far"]: row for row in group.to_dict("records")}
            line = {"run": run, "benchmark": source, "attack": method, "eps*": f"{group['x'].iloc[0]:.4f}"}
            line["gray levels"] = 255 * group["x"].iloc[0]
            line |= {f"B, {half} half (%)": _cell(value[half], 1, True) for half in ("development", "evaluation")}
            lines.append(line)
    return plain_table(pd.DataFrame(lines), caption="The eps of lowest accuracy in setting B, chosen on the development half.", digits=2)


def table_two(metric: str, published: pd.DataFrame, live: pd.DataFrame, *, table: str = "Table 2") -> Table:
    """Table 2, one of its two numbers: methods by benchmark, paper, published and live."""
    what = {"balanced_accuracy": "balanced accuracy of the probes, all pictures", "eer": "equal error rate"}[metric]
    parts = [frame[frame["table"] == table].drop(columns="n_pairs") for frame in (published, live)]
    printed = paper_table(privacy.PAPER, "Table 2")
    return three_columns(
        printed[printed["source"].isin({*parts[0]["source"], *parts[1]["source"]})], *parts, index="method", columns="source", metric=metric,
        digits=2 if metric == "eer" else 1, caption=f"Table 2: {what}.",
    )  # fmt: skip


def photographs_table(metric: str, frame: pd.DataFrame) -> Table:
    """Table 2 on published real faces, one of its two numbers: the paper's for this dataset, and ours by extractor."""
    part = frame[(frame["table"] == "Table 2") & (frame["metric"] == metric)]
    printed, digits = paper_table(privacy.PAPER, "Table 2"), 2 if metric == "eer" else 1
    printed = printed[(printed["metric"] == metric) & printed["source"].isin(set(part["source"]))]
    lines = {method: {"method": method} for method in dict.fromkeys([*printed["method"], *part["method"]])}
    for row in printed.to_dict("records"):
        lines[row["method"]][f"{row['source']}, paper"] = _cell(row, digits, False)
    for row in part.to_dict("records"):
        lines[row["method"]][f"{row['source']}, {row['networks']}"] = _cell(row, digits, True)
    what = {"balanced_accuracy": "balanced accuracy of the probes (%)", "eer": "equal error rate (%)"}[metric]
    return plain_table(pd.DataFrame(list(lines.values())), caption=f"Table 2 on photographs: {what}, as printed and by extractor.")


_DIALS = (*ELIMINATIONS, *OWN_SCALE.values())


def strength_table(part: pd.DataFrame, *, caption: str) -> Table:
    """Both numbers and the strength (eps, or eliminated variables) of every method."""
    lines = []
    for (source, method), group in part[~part["metric"].str.endswith("difference")].groupby(["source", "method"], sort=False):
        value = {row["metric"]: row for row in group.to_dict("records")}
        at = group["x"].iloc[0]
        words = "" if np.isnan(at) else f"{at:g} eliminated" if method in _DIALS else f"eps {at:g}"
        line = {"benchmark": source, "method": method, "at": words}
        line["gender (%)"] = _cell(value["balanced_accuracy"], 1, True)
        line["EER (%)"] = _cell(value["eer"], 2, True)
        lines.append(line)
    return plain_table(pd.DataFrame(lines), caption=caption)


def differences_table(rows: pd.DataFrame, claim: str, *, caption: str) -> Table:
    """The differences behind a claim, with their intervals."""
    part = rows[(rows["table"] == claim) & rows["metric"].str.endswith("difference")]
    lines: dict[tuple, dict] = {}
    for row in part.to_dict("records"):
        key = tuple(_shown(row[name]) for name in ("source", "target", "method", "far", "x"))
        source, target, method, far, x = key
        start = {"benchmark": source, "setting": target.removeprefix("setting ") or None, "difference": method + (f", {far}" if far else "")}
        line = lines.setdefault(key, start | {"at": x or None})
        what = row["metric"].removesuffix("_difference").replace("_", " ").replace("eer", "EER")
        line[f"{what} (points)"] = _cell(row, 2 if what == "EER" else 1, True, signed=True)
    frame = pd.DataFrame(list(lines.values()))
    return plain_table(frame.dropna(axis=1, how="all"), caption=caption)


def rounding_table(part: pd.DataFrame, *, caption: str) -> Table:
    """The lowest point of the curve with and without rounding, and the eps where it lies."""
    part, lines = part[part["target"] == "setting B"], []
    for source, group in part.groupby("source", sort=False):
        line = {"benchmark": source}
        for method, curve in group.groupby("method", sort=False):
            row = curve.sort_values(["value", "x"]).to_dict("records")[0]
            line |= {method: _cell(row, 1, True), f"at, {method}": f"eps {row['x']:g}"}
        lines.append(line)
    return plain_table(pd.DataFrame(lines), caption=caption)


def choice_table(part: pd.DataFrame, *, caption: str) -> Table:
    """eps chosen on others and on the evaluated pictures, and what the second flatters."""
    lines = []
    for (source, method), group in part.groupby(["source", "method"], sort=False):
        line = {"benchmark": source, "attack": method}
        for row in group.to_dict("records"):
            difference = row["metric"] == "accuracy_difference"
            at = "" if difference else f", eps {row['x']:g}"
            line[row["far"]] = _cell(row, 1, difference, signed=difference) + at
        lines.append(line)
    return plain_table(pd.DataFrame(lines), caption=caption)


# ---------------------------------------------------------------- figures


def panels(part: pd.DataFrame) -> list[str]:
    """The benchmarks of some rows, in the paper's order, then others."""
    found, known = list(dict.fromkeys(part["source"])), list(BENCHMARKS)
    return sorted(found, key=lambda name: known.index(name) if name in known else len(known))


def _width(each: float, names: Sequence[str]) -> float:
    """Inches for panels side by side; a single one is wider, for its legend."""
    return max(each * len(names), 5.0)


def _legend(fig, ax, *, most: int = 4) -> None:
    """One legend below all panels, in as many columns as fit."""
    handles, labels = ax.get_legend_handles_labels()
    inches = 0.5 + 0.075 * max(map(len, labels))
    columns = max(1, min(len(labels), most, int(fig.get_figwidth() / inches)))
    fig.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False, fontsize=9)


def curves_figure(part: pd.DataFrame, *, log: bool = False):
    """Accuracy against eps: settings A and B above one another, a panel a benchmark, a line an attack."""
    names = panels(part)
    fig, axes = new_figure(width=_width(3.4, names), height=5.6, rows=2, columns=len(names))
    for i, setting in enumerate(SETTINGS):
        for j, source in enumerate(names):
            ax = axes[i, j]
            cell = part[(part["source"] == source) & (part["target"] == f"setting {setting}")]
            for style, method in enumerate(dict.fromkeys(cell["method"])):
                curve = cell[cell["method"] == method].sort_values("x")
                line_with_band(ax, *(curve[key] for key in ("x", "value", "ci_low", "ci_high")), label=method, style=style)
            clean = cell.loc[cell["x"] == 0, "value"].iloc[0]
            ax.axhline(clean, color="#666666", linewidth=1, linestyle=":")
            ax.axhline(50, color="#666666", linewidth=1, linestyle="--")
            ax.set_ylim(-3 if setting == "A" else 45, 103)
            if log:
                ax.set_xscale("symlog", linthresh=0.002)
                ax.set_xlim(left=0)
                ax.set_xticks([0, 0.002, 0.01, 0.1], ["0", "0.002", "0.01", "0.1"])
            ax.set_title(f"{source}, setting {setting}", fontsize=10)
            ax.set_xlabel("eps" if i else "")
            ax.set_ylabel("accuracy (%)" if j == 0 else "")
    _legend(fig, axes[0, 0])
    return fig


def mixture_figure(part: pd.DataFrame):
    """Fig. 5: setting B against the share of clean templates, a panel a benchmark."""
    names = panels(part)
    fig, axes = new_figure(width=_width(3.4, names), height=3.4, columns=len(names))
    for ax, source in zip(axes[0], names, strict=True):
        for color, name in enumerate((MI, MI_MLP)):
            for line, words in enumerate((STAR, STRONG)):
                curve = part[(part["source"] == source) & (part["method"] == f"{name}, {words}")].sort_values("x")
                look = {"color": COLORS[color], "marker": MARKERS[color], "ms": 4, "label": f"{name}, {words}"}
                ax.plot(curve["x"], curve["value"], LINES[line], **look)
        ax.axhline(50, color="#666666", linewidth=1, linestyle="--")
        ax.set_ylim(45, 102)
        ax.set_title(source, fontsize=10)
        ax.set_xlabel("clean templates (%)")
    axes[0, 0].set_ylabel("accuracy, setting B (%)")
    _legend(fig, axes[0, 0])
    return fig


def rounding_figure(part: pd.DataFrame):
    """Setting B with and without rounding to 8 bits, a panel a benchmark; ticks at whole gray levels."""
    part = part[part["target"] == "setting B"]
    names = panels(part)
    fig, axes = new_figure(width=_width(3.4, names), height=3.2, columns=len(names))
    for ax, source in zip(axes[0], names, strict=True):
        for style, method in enumerate(dict.fromkeys(part["method"])):
            curve = part[(part["source"] == source) & (part["method"] == method)].sort_values("x")
            line_with_band(ax, 255 * curve["x"], curve["value"], curve["ci_low"], curve["ci_high"], label=method, style=style)
        ax.axvspan(0, 0.5, color="#999999", alpha=0.25, linewidth=0)
        ax.set_title(source, fontsize=10)
        ax.set_xlabel("eps (gray levels); shaded: rounded away")
    axes[0, 0].set_ylabel("accuracy, setting B (%)")
    axes[0, 0].legend(frameon=False, fontsize=8)
    return fig


def frontier(points: pd.DataFrame) -> pd.DataFrame:
    """The points that no other one beats in both numbers (``gender`` and ``eer``, less is better), by EER."""
    kept, lowest = [], np.inf
    for index, row in points.sort_values(["eer", "gender"]).iterrows():
        if row["gender"] < lowest:
            kept.append(index)
            lowest = row["gender"]
    return points.loc[kept]


def utility_points(part: pd.DataFrame) -> pd.DataFrame:
    """One line a method and strength: columns source, method, x, ``gender`` (%) and ``eer`` (%)."""
    part = part[part["metric"].isin(("balanced_accuracy", "eer"))].assign(x=part["x"].fillna(0.0))
    wide = part.pivot_table(index=["source", "method", "x"], columns="metric", values="value").reset_index()
    return wide.rename(columns={"balanced_accuracy": "gender"})


def utility_figure(part: pd.DataFrame):
    """Privacy against utility: balanced accuracy of the probes against EER, every method at every strength, and the frontier."""
    points = utility_points(part)
    names = panels(points)
    fig, axes = new_figure(width=_width(3.6, names), height=4.2, columns=len(names))
    styles = {name: style for style, name in enumerate((*ATTACKS, *ELIMINATIONS))}
    for ax, source in zip(axes[0], names, strict=True):
        mine = points[points["source"] == source]
        best = frontier(mine)
        ax.step(best["eer"], best["gender"], where="post", color="#000000", linewidth=6, alpha=0.12, label="frontier")
        for method, style in styles.items():
            curve = mine[mine["method"] == method].sort_values("x")
            look = {"color": COLORS[style % len(COLORS)], "marker": MARKERS[style % len(MARKERS)], "ms": 5, "lw": 1.2}
            if len(curve):
                ax.plot(curve["eer"], curve["gender"], LINES[style % len(LINES)], label=method, **look)
            if method in OWN_SCALE:
                own = mine[mine["method"] == OWN_SCALE[method]].sort_values("x")
            if method in OWN_SCALE and len(own):
                ax.plot(own["eer"], own["gender"], "-", label=OWN_SCALE[method], mfc="none", **look)
        start = mine[mine["method"] == REFERENCE]
        ax.plot(start["eer"], start["gender"], "*", color="#000000", ms=14, label="no protection", zorder=5)
        ax.axhline(50, color="#666666", linewidth=1, linestyle="--")
        ax.set_xscale("symlog", linthresh=1.0)
        ax.set_ylim(45, 102)
        ax.set_xticks([0, 0.5, 1, 2, 5, 10, 20, 50], ["0", "0.5", "1", "2", "5", "10", "20", "50"])
        ax.set_xlim(left=0)
        ax.set_title(source, fontsize=10)
        ax.set_xlabel("EER (%): less is more useful")
    axes[0, 0].set_ylabel("gender read (%): 50 is private")
    axes[0, 0].annotate("better", (0.06, 0.06), (0.22, 0.16), xycoords="axes fraction", arrowprops={"arrowstyle": "->", "color": "#444444"}, fontsize=9)
    _legend(fig, axes[0, 0])
    return fig


def maps_figure(maps: Mapping[float, tuple[np.ndarray, np.ndarray]]):
    """t-SNE of the templates at several eps, colored by label."""
    fig, axes = new_figure(width=3.2 * len(maps), height=3.3, columns=len(maps))
    for ax, (eps, (where, labels)) in zip(axes[0], maps.items(), strict=True):
        for label, word in enumerate(("0, feminine", "1")):
            chosen = labels == label
            ax.plot(*where[chosen].T, MARKERS[label], color=COLORS[label], ms=3, alpha=0.7, label=f"label {word}", linewidth=0)
        ax.set(xticks=[], yticks=[])
        ax.grid(False)
        ax.set_title(eps_name(eps), fontsize=10)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    fig.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    return fig


def strip_figure(pictures: Mapping[float, np.ndarray], probabilities: Mapping[float, np.ndarray]):
    """Pictures at several eps, below each P(feminine)."""
    rows = {eps_name(eps): images for eps, images in pictures.items()}
    captions = [[f"P(feminine) {value:.2f}" for value in probabilities[eps]] for eps in pictures]
    return image_strip(rows, captions=captions, size=1.4)


# ---------------------------------------------------------------- sentences that a run writes


def summary(frame: pd.DataFrame) -> list[str]:
    """What a run found, in sentences whose numbers and words follow from its rows; for the end of the chapter."""
    parts = (_losses, _optima, _costs, _large, _files, _readers, _elsewhere, _scales, _own_scale, _equal_cost)
    return [] if frame.empty else [sentence for part in parts for sentence in part(frame)]


def _of(frame: pd.DataFrame, table: str, **wanted) -> pd.DataFrame:
    part = frame[frame["table"] == table]
    for name, value in wanted.items():
        part = part[part[name] == value]
    return part


def _at_optimum(frame: pd.DataFrame, part: pd.DataFrame) -> pd.DataFrame:
    """The rows of a part at MI-FGSM's eps*."""
    stars = dict(_of(frame, "Optimum", method=MI, far="evaluation")[["source", "x"]].to_numpy())
    return part[[row["x"] == stars.get(row["source"]) for row in part.to_dict("records")]]


def _range(values: pd.Series, digits: int = 1) -> str:
    low, high = f"{values.min():.{digits}f}", f"{values.max():.{digits}f}"
    return low if low == high else f"{low} to {high}"


def _losses(frame: pd.DataFrame) -> list[str]:
    signs = _of(frame, "Audit: equality", method="signs that agree, CLUB head")
    if signs.empty:
        return []
    found = [f"Information and cross-entropy on the same head agree in at least {signs['value'].min():.3f}% of the signs."]
    crossed = _of(frame, "Audit: 2 x 2", target="setting A", x=DEFAULT[0])
    value = {method: group["value"] for method, group in crossed.groupby("method")}
    saturated = _of(frame, "Audit: equality", method="images with a saturated cross-entropy, MLP")["value"]
    return found + [
        f"Setting A at eps {DEFAULT[0]:g}: FGSM leaves {_range(value['cross-entropy on MLP'])}%, the same step with the information loss "
        f"{_range(value['information on MLP'])}%; the cross-entropy was saturated on {_range(saturated)}% of the pictures."
    ]


def _optima(frame: pd.DataFrame) -> list[str]:
    found, clean = [], _of(frame, "Clean", target="setting B").set_index("source")["value"]
    for row in _of(frame, "Optimum", method=MI, far="evaluation").to_dict("records"):
        found.append(
            f"{row['source']}: at eps* = {row['x']:g}, {255 * row['x']:.2f} gray levels, new probes read gender in {row['value']:.1f}% of the pictures "
            f"({clean[row['source']]:.1f}% before); chance is 50%."
        )
    return found


def _costs(frame: pd.DataFrame) -> list[str]:
    gender, error = (_of(frame, "claim 5", metric=metric)["value"] for metric in ("balanced_accuracy_difference", "eer_difference"))
    if gender.empty:
        return []
    return [f"On all pictures that lowers balanced accuracy by {_range(gender)} points and raises the equal error rate by {_range(error, 2)}."]


def _large(frame: pd.DataFrame) -> list[str]:
    part = _of(frame, "Fig. 3", target="setting B", x=DEFAULT[0])
    part = part[part["method"].isin(GRADIENT)]
    told = _of(frame, "Audit: labels", method="random labels, those labels read", x=DEFAULT[0])["value"]
    if part.empty or told.empty:
        return []
    start = _of(frame, "Clean", target="setting B").set_index("source")["value"]
    above = int((part["value"] > part["source"].map(start)).sum())
    return [
        f"At eps {DEFAULT[0]:g} new probes read gender in {_range(part['value'])}% of the pictures, more than on clean ones in {above} of {len(part)} cells. "
        f"Labels drawn at random and given to the attack are read in {_range(told)}% of the pictures."
    ]


def _files(frame: pd.DataFrame) -> list[str]:
    part = _of(frame, "Audit: 8 bits", target="setting B")
    if part.empty:
        return []
    lowest = part.groupby(["method", "source"])["value"].min()
    methods = list(dict.fromkeys(part["method"]))
    change = lowest[methods[1]] - lowest[methods[0]]
    return [f"Saved with 8 bits, the lowest accuracy of MI-FGSM changes by {change.min():+.1f} to {change.max():+.1f} points."]


def _readers(frame: pd.DataFrame) -> list[str]:
    part = frame[(frame["table"] == "Audit: adaptive") & (frame["metric"] == "accuracy")]
    part = _at_optimum(frame, part)
    if part.empty:
        return []
    best = part.groupby("source")["value"].max()
    own = _of(part, "Audit: adaptive", method="the paper's probes", far="attacked").set_index("source")["value"]
    gain = (best - own).rename("gain")
    return [f"At eps* the best of the adapting readers gains {_range(gain)} points over the probes of the paper."]


def _elsewhere(frame: pd.DataFrame) -> list[str]:
    part = frame[(frame["table"] == "Audit: other extractors") & (frame["metric"] == "accuracy_difference")]
    part = _at_optimum(frame, part)
    if part.empty:
        return []
    own = part.groupby("far", sort=False)["value"]
    words = "; ".join(f"{name} {values.min():+.1f} to {values.max():+.1f}" for name, values in own)
    return [f"Templates of the same pictures by each extractor, change of accuracy at eps* in points: {words}."]


def _scales(frame: pd.DataFrame) -> list[str]:
    part = _of(frame, "Privacy and utility", metric="eer", x=0.0)
    if part.empty or "IVE" not in set(part["method"]):
        return []
    value = {method: group["value"] for method, group in part.groupby("method")}
    return [
        f"Equal error rate without protection {_range(value[REFERENCE], 2)}%, with templates that are standardized and nothing else {_range(value['IVE'], 2)}%."
    ]


def _own_scale(frame: pd.DataFrame) -> list[str]:
    part = _of(frame, "Audit: own scale", metric="eer_difference")
    if part.empty:
        return []
    zero = int(((part["ci_low"] <= 0) & (part["ci_high"] >= 0)).sum())
    return [
        f"On the own scale, where they hide about as much, eliminations differ from MI-FGSM by {part['value'].min():+.2f} to {part['value'].max():+.2f} points "
        f"of equal error rate; {zero} of {len(part)} intervals hold zero."
    ]


def _equal_cost(frame: pd.DataFrame) -> list[str]:
    part = frame[(frame["table"] == "Audit: equal EER") & (frame["metric"] == "balanced_accuracy_difference")]
    if part.empty:
        return []
    ends = "; ".join(f"{method} {group['value'].min():+.1f} to {group['value'].max():+.1f}" for method, group in part.groupby("method", sort=False))
    return [f"At the nearest EER, gender accuracy in points: {ends}."]
