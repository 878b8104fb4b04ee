"""The tables and figures of chapter 5, from rows of `fa_utils.report.bpfa`."""

from collections.abc import Iterator

import numpy as np
import pandas as pd

from fa_utils.attacks.transfer import network_name, open_network
from fa_utils.models.zoo import zoo_table
from fa_utils.report import bpfa
from fa_utils.report.bpfa import METHODS, PLUS, Cast, both, paper_names
from fa_utils.report.bpfa_pairs import ANOTHER, BENCHMARKS, OWN, display_name
from fa_utils.report.figures import COLORS, LINES, MARKERS, line_with_band, log_ticks, new_figure
from fa_utils.report.results import paper_table, results_frame
from fa_utils.report.scores import significant
from fa_utils.report.tables import Table, plain_table, three_columns, with_interval

PROFILES = {
    "smoke": {
        "n_pairs": 6, "steps": 3, "spectra": 2, "neighbors": 1, "n_seeds": 1, "encoders": 2, "people": 40,
        "device": "cpu", "workers": 1, "unit": 20,
    },
    "laptop": {
        "n_pairs": 16, "steps": 20, "spectra": 4, "neighbors": 3, "n_seeds": 1, "encoders": 4, "people": 100,
        "device": "cpu", "workers": 2, "unit": 16,
    },
    "gpu": {
        "n_pairs": 100, "steps": 100, "spectra": 20, "neighbors": 20, "n_seeds": 1, "encoders": 4, "people": 1500,
        "device": "cuda", "workers": 1, "unit": 100,
    },
    "paper": {
        "n_pairs": 1000, "steps": 1500, "spectra": 20, "neighbors": 20, "n_seeds": 3, "encoders": 4, "people": 1500,
        "device": "cuda", "workers": 1, "unit": 200,
    },
}  # fmt: skip


def live_frame(rows: list[dict], shared: dict) -> pd.DataFrame:
    """The run's rows so far, validated."""
    return results_frame(rows, chapter=bpfa.CHAPTER, **shared)


def _labels() -> dict[str, str]:
    return {ours: f"{name} ({ours})" for ours, name in paper_names().items()}


# ---------------------------------------------------------------- networks


def networks_table(cast: Cast, measured: pd.DataFrame, thresholds: pd.DataFrame) -> Table:
    """Encoders and robust targets: clean accuracy, both thresholds, and how many layers BPFA has to act on."""
    zoo, names, lines = zoo_table(), paper_names(), []
    for address in cast.networks:
        name = network_name(address)
        lines.append(
            {
                "stands for": names.get(name, ""),
                "network": name,
                "convolutions": len(open_network(address).convolutions(squeeze_excite=True)),
                "parameters": zoo["parameters"].get(name),
                "accuracy (%)": 100 * measured.loc[name, "accuracy"],
                "FAR 1e-3": thresholds.loc[name, bpfa.IMPERSONATION],
                "FAR 1e-2": thresholds.loc[name, bpfa.DODGING],
            }
        )
    digits = {"accuracy (%)": 2, "convolutions": 0, "parameters": 0}
    return plain_table(pd.DataFrame(lines), caption="Sources and targets. Accuracy: live benchmark.", digits=digits)


# ---------------------------------------------------------------- tables of hit rates


def mean_table(table: str, published: pd.DataFrame, live: pd.DataFrame) -> Table:
    """Methods with and without BPFA by source, averaged over the networks that judge, the source itself left out."""
    parts = [frame[(frame["table"] == table) & (frame["target"] == "mean")] for frame in (published, live)]
    what = "robust targets" if table in bpfa.ROBUST_TABLES else "other encoders"
    caption = f"{table}. Mean hit rate over the {what} at FAR 1e-3, by source."
    return three_columns(_comparable(_paper_means(table), *parts), *parts, index="method", columns="source", beside="similarity", caption=caption, labels=_labels())


def _paper_means(table: str) -> pd.DataFrame:
    cells = paper_table(bpfa.PAPER, table, networks=True)
    cells = cells[~cells["note"].str.contains("White-box")]
    means = cells.groupby(["method", "source"], sort=False)
    frame = means["value"].mean().reset_index().assign(metric="hit_rate")
    frame["suspicious"] = means["suspicious"].any().to_numpy()
    return frame.assign(note="a mean over cells of which some are suspicious")


def _comparable(paper: pd.DataFrame, *runs: pd.DataFrame) -> pd.DataFrame | None:
    """The paper's cells where a run has a network that stands for one of its networks; of other networks it says nothing."""
    sources = set().union(*(run["source"] for run in runs))
    return paper if not sources or sources & set(paper["source"]) else None


def cell_table(table: str, published: pd.DataFrame, live: pd.DataFrame, *, far: str = "1e-3") -> Table:
    """A table in full: every source on every target, white-box cells included."""
    parts = [frame[(frame["table"] == table) & (frame["target"] != "mean")] for frame in (published, live)]
    caption = f"{table}. Hit rate at FAR {far} on each target."
    paper = _comparable(paper_table(bpfa.PAPER, table, networks=True), *parts)
    return three_columns(paper, *parts, caption=caption, intervals=False, labels=_labels())


def significance_table(published: pd.DataFrame, live: pd.DataFrame) -> Table:
    """Claim 1, cell by cell: how many gains are positive, and how many McNemar's test with Holm's correction is sure of."""
    lines = []
    for run, frame in (("published", published), ("live", live)):
        part = frame[frame["table"] == "claim 1"]
        if (part["metric"] == "p_value").any():
            counts = significant(part)
            for table in sorted({name.partition(":")[0] for name in counts.index}):
                chosen = counts[counts.index.str.startswith(f"{table}:")].sum()
                lines.append({"run": run, "table": table, **chosen.to_dict()})
    return plain_table(pd.DataFrame(lines), caption="Cells in which BPFA gains; Holm corrects over the cells of all tables.", digits=0)


def gains_table(rows: pd.DataFrame) -> Table:
    """What BPFA adds to each method, averaged over the black-box cells of each source."""
    part = rows[(rows["table"] == "claim 1") & (rows["target"] == "mean")]
    lines = []
    for (method, source), group in part.groupby(["method", "source"], sort=False):
        table, _, pair = method.partition(": ")
        line = {"table": table, "method": pair.partition(" minus ")[0], "source": source}
        lines.append(line | _differences(group))
    return plain_table(pd.DataFrame(lines), caption="What BPFA adds, live, averaged over the targets of each source.")


def differences_table(rows: pd.DataFrame, claim: int | str, *, caption: str) -> Table:
    """The differences behind a claim, or of a table by its name, in hit rate and in similarity."""
    part, lines = rows[rows["table"] == (f"claim {claim}" if isinstance(claim, int) else claim)], []
    for (method, source), group in part.groupby(["method", "source"], sort=False):
        lines.append({"difference": method, "source": source or None} | _differences(group))
    return plain_table(pd.DataFrame(lines), caption=caption)


_HEADS = {
    "hit_rate_difference": ("hits (points)", 1),
    "similarity_difference": ("similarity", 3),
    "loss_difference": ("loss", 3),
}


def _differences(group: pd.DataFrame) -> dict[str, str]:
    return {
        _HEADS[row["metric"]][0]: "{:+.{d}f} [{:+.{d}f}, {:+.{d}f}]".format(
            row["value"], row["ci_low"], row["ci_high"], d=_HEADS[row["metric"]][1]
        )
        for row in group.to_dict("records")
        if row["metric"] in _HEADS
    }


def layer_table(published: pd.DataFrame, live: pd.DataFrame) -> Table:
    """Table IX: placements by source, averaged over the black-box targets."""
    paper = paper_table(bpfa.PAPER, "Table IX", networks=True)
    runs = [frame[(frame["table"] == "Table IX") & (frame["source"] != frame["target"])] for frame in (published, live)]
    paper = _comparable(paper[~paper["note"].str.contains("White-box")], *runs)
    parts, means = [*([] if paper is None else [paper]), *runs], []
    for part in parts:
        keys = ["method", "source", "metric"]
        sizes = part.groupby(keys, sort=False)["n_pairs"].max() if "n_pairs" in part else None
        mean = part.groupby(keys, sort=False)["value"].mean()
        frame = mean.reset_index()
        means.append(frame if sizes is None else frame.assign(n_pairs=sizes.to_numpy()))
    return three_columns(
        *([None] if paper is None else []), *means, index="method", columns="source", beside="similarity", labels=_labels(),
        caption="Table IX. Where the perturbation is added: mean hit rate over the other encoders at FAR 1e-3.",
    )  # fmt: skip


def placed_note(cast: Cast) -> str:
    """Which networks lack a kind of layer and are left out where it is perturbed; else that none is."""
    return bpfa.left_out(bpfa.placements_of(cast)) or "Every network has convolutions, normalizations and activations."


def memory_table(published: pd.DataFrame, live: pd.DataFrame) -> Table:
    """Table X: peak memory and what BPFA adds."""
    lines, names = [], paper_names()
    paper = paper_table(bpfa.PAPER, "Table X", networks=True)
    for run, frame in (("paper", paper), ("published", published), ("live", live)):
        part = frame[(frame["table"] == "Table X") & (frame["metric"] == "memory")]
        for source, group in part.groupby("source", sort=False):
            used = group.set_index("method")["value"]
            line = {"run": run, "network": f"{names.get(source, source)}", "FIM (MB)": used["FIM"]}
            for placement in bpfa.PLACEMENTS:
                if (name := f"FIM{PLUS}({placement})") in used:
                    line[f"{placement} (%)"] = 100 * (used[name] / used["FIM"] - 1)
            lines.append(line)
    digits = {"FIM (MB)": 1} | {f"{placement} (%)": 2 for placement in bpfa.PLACEMENTS}
    return plain_table(pd.DataFrame(lines), caption="Table X. Peak memory of FIM, and what BPFA adds to it.", digits=digits)


def cost_table(published: pd.DataFrame, live: pd.DataFrame) -> Table:
    """Time of a step with BPFA at each kind of layer, in times of a step without."""
    lines, names = [], paper_names()
    for run, frame in (("published", published), ("live", live)):
        part = frame[frame["table"] == "Cost"]
        for source, group in part.groupby("source", sort=False):
            ratios = {row["method"]: with_interval(row, ".2f") for row in group.to_dict("records")}
            line = {"run": run, "network": names.get(source, source), "pictures": int(group["n_pairs"].max())}
            lines.append(line | {placement: ratios.get(f"FIM{PLUS}({placement})") for placement in bpfa.PLACEMENTS})
    caption = "Time of a step of FIM with BPFA at convolutions, normalizations, activations; FIM without takes 1."
    return plain_table(pd.DataFrame(lines), caption=caption)


def direction_table(rows: pd.DataFrame, *, caption: str) -> Table:
    """Direction or noise: what each control reaches, and its paired difference to the paper's direction."""
    part, lines = rows[rows["table"] == "Audit: direction"], []
    for method, group in part.groupby("method", sort=False):
        means = group[group["target"] == "mean"].set_index("metric")["value"]
        line = {"direction": method, "hit rate (%)": means["hit_rate"], "similarity": means["similarity"], "rmsd": means["rmsd"]}
        differences = _differences(group)
        line |= {"minus own: hits (points)": differences.get("hits (points)"), "minus own: similarity": differences.get("similarity")}
        lines.append(line)
    return plain_table(pd.DataFrame(lines), caption=caption, digits={"hit rate (%)": 1, "rmsd": 2})


# ---------------------------------------------------------------- figures


def eta_figure(rows: pd.DataFrame, base: str, *, chosen: dict[str, float] | None = None):
    """Fig. 3 for a method, a line a source: paired gain in similarity over eta 0, and hit rate; the calibrated eta is ringed."""
    names = paper_names()
    fig, axes = new_figure(width=8.6, height=3.6, columns=2)
    panels = (
        ("Fig. 3, gain", "similarity_difference", "gain in mean similarity over eta = 0"),
        ("Fig. 3", "hit_rate", _REACHED["hit_rate"]),
    )
    for ax, (table, metric, label) in zip(axes[0], panels, strict=True):
        part = rows[(rows["table"] == table) & (rows["method"] == base + PLUS) & (rows["metric"] == metric)]
        for style, source in enumerate(dict.fromkeys(part["source"])):
            curve = part[part["source"] == source].sort_values("x")
            band = [curve[name] for name in ("ci_low", "ci_high")] if metric != "hit_rate" else ()
            line_with_band(ax, curve["x"], curve["value"], *band, label=names.get(source, source), style=style)
            at = curve[np.isclose(curve["x"], (chosen or {}).get(source, np.nan))]
            ax.plot(at["x"], at["value"], "o", ms=11, mfc="none", color=COLORS[style % len(COLORS)])
        _eta_axis(ax, part["x"])
        ax.axvline(0, color="#666666", linewidth=1)
        ax.set_ylabel(label)
    axes[0, 0].axhline(0, color="#666666", linewidth=1)
    axes[0, 0].legend(frameon=False, fontsize=8)
    return fig


def _eta_axis(ax, etas: pd.Series) -> None:
    """Logarithmic on both sides of zero, linear between the smallest values of the grid."""
    ax.set_xscale("symlog", linthresh=2 * etas[etas > 0].min())
    ax.set_xlabel("eta")


_REACHED = {"similarity": "mean similarity to the target", "hit_rate": "mean hit rate at FAR 1e-3 (%)"}


def loss_figure(rows: pd.DataFrame):
    """Fig. 5: (a) losses along the attack, (b) the loss at the second step against eta."""
    fig, axes = new_figure(width=8.6, height=3.6, columns=2)
    steps = rows[rows["table"] == "Fig. 5a"]
    for style, method in enumerate(dict.fromkeys(steps["method"])):
        curve = steps[steps["method"] == method].sort_values("x")
        line_with_band(axes[0, 0], *(curve[name] for name in ("x", "value", "ci_low", "ci_high")), label=method, style=style, marker=False)
    axes[0, 0].set_xlabel("step")
    axes[0, 0].set_ylabel("loss (squared L2)")
    axes[0, 0].legend(frameon=False, fontsize=8)
    curve = rows[rows["table"] == "Fig. 5b"].sort_values("x")
    line_with_band(axes[0, 1], *(curve[name] for name in ("x", "value", "ci_low", "ci_high")), label="step 2")
    _eta_axis(axes[0, 1], curve["x"])
    axes[0, 1].set_ylabel("loss at step 2 (squared L2)")
    return fig


def compute_figure(rows: pd.DataFrame, *, metric: str = "similarity"):
    """Every method against its passes; an arrow leads from a method to the same with BPFA."""
    part = rows[(rows["table"] == "Audit: compute") & (rows["metric"] == metric) & (rows["target"] == "mean")]
    part = part.drop_duplicates("method").set_index("method")
    fig, axes = new_figure(height=4.2)
    ax = axes[0, 0]
    for style, method in enumerate(name for name in METHODS if name in part.index):
        color = COLORS[style % len(COLORS)]
        x, y = part.loc[method, ["x", "value"]]
        # Methods of equal cost would lie on one another: a small shift tells them apart.
        x *= 1.06 ** (style % 6)
        fill = color if style < len(MARKERS) else "none"  # more methods than markers: the last ones are hollow
        ax.plot(x, y, MARKERS[style % len(MARKERS)], color=color, mfc=fill, label=method)
        if method + PLUS in part.index:
            ax.annotate("", (x, part.loc[method + PLUS, "value"]), (x, y), arrowprops={"arrowstyle": "->", "color": color})
    log_ticks(ax, part["x"])
    ax.set_xlabel("forward plus backward passes a picture (methods of equal cost side by side)")
    ax.set_ylabel(_REACHED[metric])
    ax.legend(frameon=False, fontsize=8, ncols=2)
    return fig


def deviation_figure(rows: pd.DataFrame):
    """Similarity against deviation: each method at three budgets."""
    part = rows[(rows["table"] == "Audit: deviation") & (rows["target"] == "mean")]
    wide = part.pivot_table(index=["method", "x"], columns="metric", values="value").reset_index()
    fig, axes = new_figure(height=3.8)
    ax = axes[0, 0]
    for style, method in enumerate(both(["MI", "FMD"])):
        curve = wide[wide["method"] == method].sort_values("rmsd")
        ax.plot(curve["rmsd"], curve["similarity"], LINES[style % 2] + MARKERS[style], color=COLORS[style // 2], label=method)
    ax.set_xlabel("root-mean-square deviation (gray levels)")
    ax.set_ylabel(_REACHED["similarity"])
    ax.legend(frameon=False)
    return fig


def curve_table(published: pd.DataFrame, live: pd.DataFrame) -> Table:
    """Fig. 4 in numbers: FMDN with and without BPFA along the way."""
    lines = []
    for run, frame in (("published", published), ("live", live)):
        part = frame[(frame["table"] == "Fig. 4") & frame["metric"].isin(_CURVES)]
        for step, group in part.groupby("x"):
            line = {"run": run, "pairs": int(group["n_pairs"].max()), "steps": int(step)}
            for metric, (short, digits) in _CURVES.items():
                value = group[group["metric"] == metric].set_index("method")["value"]
                gap = value["FMDN" + PLUS] - value["FMDN"]
                line |= {f"{short}, FMDN": f"{value['FMDN']:.{digits}f}", f"{short}, gap": f"{gap:+.{digits}f}"}
            lines.append(line)
    caption = "Fig. 4: FMDN over the other encoders, and what BPFA adds to it; the paper draws curves without numbers."
    return plain_table(pd.DataFrame(lines), caption=caption)


_CURVES = {"hit_rate": ("hits (%)", 1), "similarity": ("similarity", 3)}


def curve_figure(rows: pd.DataFrame):
    """Fig. 4: hit rate and similarity against the steps, with and without BPFA, with intervals over pairs."""
    part = rows[rows["table"] == "Fig. 4"]
    fig, axes = new_figure(width=8.6, height=3.6, columns=2)
    for ax, (metric, label) in zip(axes[0], _REACHED.items(), strict=True):
        for style, method in enumerate(both(["FMDN"])):
            curve = part[(part["method"] == method) & (part["metric"] == metric)].sort_values("x")
            line_with_band(ax, *(curve[name] for name in ("x", "value", "ci_low", "ci_high")), label=method, style=style)
        log_ticks(ax, part["x"])
        ax.set_xlabel("steps")
        ax.set_ylabel(label)
    axes[0, 0].legend(frameon=False)
    return fig


# ---------------------------------------------------------------- calibration and dodging


def eta_table(rows: pd.DataFrame, spreads: dict[str, float], *, run: str) -> Table:
    """The calibrated eta of each network, what it gains on its calibration pairs, and how it compares with the maps."""
    names, lines = paper_names(), []
    gains = rows[(rows["table"] == "Fig. 3, gain") & (rows["method"] == bpfa.CALIBRATED + PLUS)]
    for source, eta in bpfa.calibrated(rows[rows["table"] == "Fig. 3"].to_dict("records")).items():
        curve = gains[gains["source"] == source].sort_values("x")
        best = curve[np.isclose(curve["x"], eta)].iloc[0]
        line = {"stands for": names.get(source, ""), "network": source, "eta": f"{eta:g}"}
        line["similarity gained"] = "{value:+.4f} [{ci_low:+.4f}, {ci_high:+.4f}]".format(**best)
        line["end of the grid"] = "yes" if eta in (curve["x"].max(), curve.loc[curve["x"] > 0, "x"].min()) else "no"
        if source in spreads:
            line |= {"spread of the median map": f"{spreads[source]:.3f}", "eta in spreads": f"{eta / spreads[source]:.2g}"}
        lines.append(line)
    count = int(gains["n_pairs"].max())
    return plain_table(pd.DataFrame(lines), caption=f"Calibrated by {bpfa.CALIBRATED}, {run}; the gain is over eta = 0 on the same {count} pairs.")


def dodging_summary(published: pd.DataFrame, live: pd.DataFrame) -> Table:
    """Dodging in all its forms: mean share of rejected pictures over the targets, unattacked and attacked."""
    lines = []
    for run, frame in (("published", published), ("live", live)):
        real = next((name for name in frame["faces"] if name != "procedural"), "")
        for picture in (OWN, ANOTHER):
            for benchmark in BENCHMARKS:
                for robust in (False, True):
                    table = bpfa.dodging_table(benchmark, picture, robust=robust)
                    part = frame[(frame["table"] == table) & (frame["target"] == "mean") & (frame["metric"] == "hit_rate")]
                    if len(part):
                        line = {"run": run, "judged by": f"{picture} picture", "benchmark": display_name(real) if real else benchmark}
                        line |= {"targets": "robust" if robust else "plain", "pairs": int(part["n_pairs"].max())}
                        lines.append(line | part.set_index("method")["value"].to_dict())
    caption = "Dodging: mean share (%) of pictures rejected at FAR 1e-2, unattacked and attacked."
    return plain_table(pd.DataFrame(lines), caption=caption, digits=1)


# ---------------------------------------------------------------- the published run on photographs


def photograph_tables(frame: pd.DataFrame) -> Iterator[Table]:
    """What a run on photographs has of the chapter's tables, one after the other; runs may leave out sections."""
    none, held = frame.iloc[:0], set(frame["table"])
    for table in (*bpfa.PLAIN_TABLES, *bpfa.ROBUST_TABLES):
        if table in held:
            yield mean_table(table, frame, none)
    if "claim 1" in held:
        yield significance_table(frame, none)
    for claim, words in _PHOTOGRAPHED.items():
        if claim in held:
            yield differences_table(frame, claim, caption=words)
    if "Fig. 3, gain" in held:
        yield eta_table(frame, {}, run="published")
    if any(table.startswith("Table VII") for table in held):
        yield dodging_summary(frame, none)
    if "Table IX" in held:
        yield layer_table(frame, none)
    if "Audit: direction" in held:
        count = int(frame.loc[frame["table"] == "Audit: direction", "n_pairs"].max())
        yield direction_table(frame, caption=f"Direction or noise, on photographs, {count} pairs.")


_PHOTOGRAPHED = {
    "claim 3": "Claim 3, on photographs: gains of weak against gains of strong methods.",
    "claim 4": "Claim 4, on photographs: with BPFA, without DFANet against with it.",
    "claim 5": "Claim 5, on photographs: the calibrated eta against none, against the largest tried, and against APFA.",
}
