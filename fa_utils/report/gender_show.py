"""The tables and figures of chapter 1, from rows of `fa_utils.report.gender` and `gender_verification`."""

import numpy as np
import pandas as pd

from fa_utils.models.attributes import classifier_table
from fa_utils.models.zoo import zoo_table
from fa_utils.report import gender
from fa_utils.report.claims import MARKS
from fa_utils.report.figures import COLORS, MARKERS, line_with_band, log_ticks, new_figure
from fa_utils.report.gender_claims import STATEMENTS, judge_by_recognizer
from fa_utils.report.gender_probes import BACKBONES, Backbone
from fa_utils.report.gender_verification import FROZEN, OWN, SETTINGS
from fa_utils.report.results import paper_table, results_frame
from fa_utils.report.tables import Table, plain_table, three_columns

PROFILES = {
    "smoke": {
        "identities": 6, "pictures": 5, "people_c": 12, "sweep": 4, "audit": 5, "resamples": 100,
        "width": 4, "epochs": 1, "most": 60, "classifier_epochs": 1, "device": "cpu", "workers": 1,
    },
    "laptop": {
        "identities": 36, "pictures": 15, "people_c": 80, "sweep": 16, "audit": 16, "resamples": 100,
        "width": 8, "epochs": 2, "most": 800, "classifier_epochs": 10, "device": "cpu", "workers": 2,
    },
    "gpu": {
        "identities": 500, "pictures": 15, "people_c": 800, "sweep": 100, "audit": 200, "resamples": 200,
        "width": 64, "epochs": 10, "most": 16000, "classifier_epochs": 20, "device": "cuda", "workers": 1,
    },
    "paper": {
        "identities": 1000, "pictures": 15, "people_c": 800, "sweep": 1000, "audit": 1000, "resamples": 500,
        "width": 64, "epochs": 20, "most": 100000, "classifier_epochs": 20, "device": "cuda", "workers": 1,
    },
}  # fmt: skip


def live_frame(rows: list[dict], shared: dict) -> pd.DataFrame:
    """The run's rows so far, validated."""
    return results_frame(rows, chapter=gender.CHAPTER, **shared)


def with_setting(frame: pd.DataFrame) -> pd.DataFrame:
    """Rows with a column ``setting`` as in the paper's CSV: "eps 0.010"."""
    return frame.assign(setting=[f"eps {x:.3f}" if x == x else "All" for x in frame["x"]])


# ---------------------------------------------------------------- networks


def networks_table() -> Table:
    """The networks that ship: gender classifiers, the controls, and the face networks that inherit the pictures."""
    classifiers, zoo, lines = classifier_table(), zoo_table(), []
    for backbone in BACKBONES.values():
        for role, name in (("gender, attacked", backbone.classifier), ("glasses, control", backbone.unrelated)):
            row = classifiers.loc[name]
            lines.append({"layout": backbone.name, "role": role, "network": name, "accuracy (%)": 100 * row["accuracy"]})
            lines[-1] |= {"balanced (%)": 100 * row["balanced_accuracy"], "F1, label 1 (%)": 100 * row["f1_label_1"]}
        (target,) = backbone.targets
        row = zoo.loc[target]
        lines.append({"layout": backbone.name, "role": "faces, judge", "network": target})
        lines[-1] |= {"accuracy (%)": 100 * row["accuracy"], "threshold, FMR 0.1%": row["threshold_far_1e-3"]}
    caption = "The networks. Classifiers: accuracy on part C; face networks: verification accuracy on the LFW-like benchmark."
    return plain_table(pd.DataFrame(lines), caption=caption, digits={"accuracy (%)": 2, "balanced (%)": 2, "F1, label 1 (%)": 2})


def other_networks_table(rows: pd.DataFrame, *, caption: str) -> Table | None:
    """Classifiers that were trained for photographs, and face networks from elsewhere, on part B; None if there are none."""
    part, lines = rows[rows["table"] == "networks"], []
    roles = {"gender": "gender, attacked", "glasses": "glasses, control", "faces": "faces, judge"}
    heads = {
        "accuracy": "accuracy (%)", "balanced_accuracy": "balanced (%)", "f1": "F1, label 1 (%)", "eer": "EER (%)",
        "fnmr": "FNMR at FMR 0.1% (%)", "auc_det": "AUC-DET (%)", "threshold": "threshold, FMR 0.1%",
    }  # fmt: skip
    for (source, method), group in part.groupby(["source", "method"], sort=False):
        value = group.set_index("metric")["value"]
        found = {head: value.get(metric, np.nan) for metric, head in heads.items() if (part["metric"] == metric).any()}
        lines.append({"network": source, "role": roles[method]} | found)
    return plain_table(pd.DataFrame(lines), caption=caption, digits=2) if lines else None


# ---------------------------------------------------------------- classifier


def accuracy_figure(rows: pd.DataFrame, backbone: Backbone):
    """Fig. 4 or 6: accuracy against eps, the paper's range shaded; for VGG16 with the denoisers of Fig. 5 beside it."""
    table = {"VGG16": "Fig. 4", "ResNet50": "Fig. 6"}[backbone.name]
    part = rows[rows["table"] == table].sort_values("x")
    defended = rows[rows["table"] == "Fig. 5"] if backbone.name == "VGG16" else rows.iloc[:0]
    panels = 2 if len(defended) else 1
    fig, axes = new_figure(width=4.6 * panels + 0.6, height=3.7, columns=panels)
    for index, ax in enumerate(axes[0]):
        line_with_band(ax, *(part[c] for c in ("x", "value", "ci_low", "ci_high")), label="no defense")
        if index:
            for style, (defense, curve) in enumerate(defended.groupby("method", sort=False), start=1):
                line_with_band(ax, *(curve.sort_values("x")[c] for c in ("x", "value")), label=defense, style=style)
            fig.legend(*ax.get_legend_handles_labels(), loc="outside lower center", ncols=6, frameon=False, fontsize=8)
        ax.axvspan(backbone.grid[0], backbone.grid[-1], color="#888888", alpha=0.18, linewidth=0)
        ax.axhline(50, color="#666666", linewidth=0.8, linestyle=":")
        log_ticks(ax, part["x"])
        ax.set_ylim(-3, 103)
        ax.set_xlabel("eps of FGSM, pixels in [0, 1]")
        ax.set_ylabel("gender accuracy (%)")
        ax.set_title(f"{backbone.name}{', with denoisers' if index else ''}", fontsize=10)
    return fig


def sets_table(name: str, published: pd.DataFrame, live: pd.DataFrame) -> Table:
    """Tables 1 and 2: sizes of the sets."""
    table = {"VGG16": "Table 1", "ResNet50": "Table 2"}[name]
    parts = [frame[frame["table"] == table] for frame in (published, live)]
    paper = paper_table(gender.PAPER, table)
    caption = f"{table}. Pictures in the sets, {name}. The heads count attacked pictures."
    return three_columns(paper.assign(target=paper["setting"]), *parts, caption=caption, index="target", columns="method", metric="count", digits=0, counted="picture")


def defense_table(table: str, published: pd.DataFrame, live: pd.DataFrame) -> Table:
    """Tables 3 (accuracy) and 4 (F1): the VGG16 classifier behind each denoiser."""
    metric = {"Table 3": "accuracy", "Table 4": "f1"}[table]
    parts = [frame[frame["table"] == table] for frame in (published, live)]
    paper = paper_table(gender.PAPER, table)
    what = "Accuracy" if metric == "accuracy" else "F1 with label 1 as the positive class"
    caption = f"{table}. {what} of the VGG16 classifier on denoised pictures."
    return three_columns(paper.assign(target=paper["setting"]), *parts, caption=caption, index="method", columns="target", metric=metric, digits=1, counted="picture")


def transfer_table(name: str, published: pd.DataFrame, live: pd.DataFrame) -> Table:
    """Tables 6 and 10: the classifier on the compared pictures."""
    table = {"VGG16": "Table 6", "ResNet50": "Table 10"}[name]
    parts = [frame[frame["table"] == table] for frame in (published, live)]
    paper = paper_table(gender.PAPER, table)
    caption = f"{table}. Gender accuracy on the sets of compared pictures, {name}; 100 and 0 by construction but for the last row; below it F1 of label 1."
    return three_columns(paper.assign(target=paper["setting"]), *parts, caption=caption, index="target", columns="method", metric="accuracy", beside="f1", digits=1, counted="picture")


# ---------------------------------------------------------------- verification

ERROR_TABLES = {("VGG16", "fnmr"): "Table 7", ("VGG16", "auc_det"): "Table 8", ("ResNet50", "auc_det"): "Table 13", ("ResNet50", "fnmr"): "Table 14"}
COUNT_TABLES = {"VGG16": ("Table 5", "Table 9"), "ResNet50": ("Table 11", "Table 12")}


def error_table(backbone: Backbone, metric: str, published: pd.DataFrame, live: pd.DataFrame) -> Table:
    """Tables 7, 8, 13, 14: an error of each setting at each eps."""
    table = ERROR_TABLES[backbone.name, metric]
    parts = [_errors(frame, "fixed", backbone.source, metric, eps=True) for frame in (published, live)]
    what = "AUC-DET on linear axes" if metric == "auc_det" else "FNMR at FMR 0.1%, threshold of the setting's own impostors"
    caption = f"{table}. {what}, {backbone.source}, FGSM-fixed."
    paper = paper_table(gender.PAPER, table)
    return three_columns(paper, *parts, caption=caption, index="target", columns="setting", metric=metric, digits=2, intervals=False, counted="mated comparison")


def _errors(frame: pd.DataFrame, table: str, source: str, metric: str, *, eps: bool) -> pd.DataFrame:
    part = frame[(frame["table"] == table) & (frame["source"] == source) & (frame["metric"] == metric) & frame["far"].isin(("", OWN))]
    part = part[part["x"].notna()] if eps else part
    order = {setting: i for i, setting in enumerate(SETTINGS)}
    return with_setting(part.sort_values(["target", "x"], key=lambda c: c.map(order) if c.name == "target" else c))


def random_table(backbone: Backbone, published: pd.DataFrame, live: pd.DataFrame) -> Table:
    """Table 15: FGSM against random signs of the same size, on ResNet50."""
    parts = []
    for frame in (published, live):
        both = [_errors(frame, table, backbone.source, "auc_det", eps=True) for table in ("fixed", "random")]
        joined = pd.concat(both)
        parts.append(joined[joined["target"].isin(("AA", "CA"))])
    caption = f"Table 15. AUC-DET of FGSM and of random signs at the same eps, {backbone.source}."
    return three_columns(
        paper_table(gender.PAPER, "Table 15"), *parts, caption=caption, index=("target", "method"), columns="setting", metric="auc_det", digits=2,
        intervals=False, counted="mated comparison",
    )  # fmt: skip


def counts_table(backbone: Backbone, kind: str, published: pd.DataFrame, live: pd.DataFrame) -> Table:
    """Tables 5 and 11 (``kind`` "fixed") or 9 and 12 ("variable"): mated and non-mated comparisons."""
    table = COUNT_TABLES[backbone.name][kind == "variable"]
    paper = paper_table(gender.PAPER, table)
    paper = paper.assign(what=paper["setting"].str.partition(",")[0], setting=paper["setting"].str.partition(", ")[2])
    parts = []
    for frame in (published, live):
        part = frame[(frame["table"] == kind) & (frame["source"] == backbone.source) & (frame["metric"] == "count")]
        parts.append(with_setting(part).assign(what=part["far"]))
    columns = "setting" if kind == "fixed" else "method"
    caption = f"{table}. Comparisons, {backbone.source}, {'FGSM-fixed' if kind == 'fixed' else 'variable attacks'}."
    return three_columns(paper, *parts, caption=caption, index=("target", "what"), columns=columns, metric="count", digits=0, counted="mated comparison")


def frozen_table(rows: pd.DataFrame, backbone: Backbone, *, caption: str) -> Table:
    """FNMR at the setting's own threshold, and FNMR and FMR at the threshold frozen on CC."""
    part = rows[(rows["source"] == backbone.source) & rows["table"].isin(("fixed", "variable")) & rows["metric"].isin(("fnmr", "fmr"))]
    part = part[(part["table"] == "variable") | part["x"].isin((backbone.grid[0], backbone.ball))]
    lines = []
    for (method, x, setting), group in with_setting(part).groupby(["method", "setting", "target"], sort=False):
        value = group.set_index(["metric", "far"])["value"]
        lines.append({
            "attack": f"{method}, {x}" if x != "All" else method, "setting": setting,
            "FNMR, own threshold (%)": value.get(("fnmr", OWN)), "FNMR, threshold of CC (%)": value.get(("fnmr", FROZEN)),
            "FMR, threshold of CC (%)": value.get(("fmr", FROZEN)),
        })  # fmt: skip
    return plain_table(pd.DataFrame(lines), caption=caption, digits=2)


def settings_figure(rows: pd.DataFrame, source: str):
    """Figures 7 to 10: EER and FNMR in the five settings, a marker an attack, with intervals."""
    part = rows[(rows["source"] == source) & rows["table"].isin(("fixed", "variable")) & rows["x"].isna()]
    fig, axes = new_figure(width=8.8, height=3.6, columns=2)
    for ax, (metric, label) in zip(axes[0], {"eer": "EER (%)", "fnmr": "FNMR at FMR 0.1% (%)"}.items(), strict=True):
        for style, (method, group) in enumerate(part.groupby("method", sort=False)):
            chosen = group[(group["metric"] == metric) & group["far"].isin(("", OWN))].set_index("target").reindex(SETTINGS).dropna(subset="value")
            where = np.array([SETTINGS.index(s) for s in chosen.index]) + 0.16 * (style - 1)
            error = np.abs(chosen[["ci_low", "ci_high"]].to_numpy().T - chosen["value"].to_numpy())
            ax.errorbar(where, chosen["value"], error, fmt=MARKERS[style], color=COLORS[style], label=method, capsize=2, ms=5)
        ax.set_xticks(range(len(SETTINGS)), SETTINGS)
        ax.set_ylabel(label)
        ax.set_ylim(bottom=0)
    axes[0, 0].legend(frameon=False, fontsize=8)
    axes[0, 0].set_title(source, fontsize=10)
    return fig


def excess_figure(rows: pd.DataFrame, source: str):
    """What each setting adds to CC over eps: the paper's changing subsets (filled, with bands) and one subset for all eps (hollow)."""
    fig, axes = new_figure(width=8.8, height=3.6, columns=2)
    for ax, (metric, label) in zip(axes[0], {"fnmr": "FNMR at FMR 0.1%", "auc_det": "AUC-DET"}.items(), strict=True):
        for style, setting in enumerate(("AA", "CA", "CD", "DD")):
            for table in ("excess", "excess, one subset"):
                part = rows[(rows["table"] == table) & (rows["source"] == source) & (rows["target"] == setting)]
                part = part[part["metric"] == f"{metric}_difference"].sort_values("x")
                if table == "excess" and len(part):
                    line_with_band(ax, *(part[c] for c in ("x", "value", "ci_low", "ci_high")), label=setting, style=style)
                elif len(part):
                    ax.plot(part["x"], part["value"], ":", color=COLORS[style], marker=MARKERS[style], mfc="none", ms=5)
        ax.axhline(0, color="#666666", linewidth=0.8)
        ax.set_xlabel("eps of FGSM-fixed")
        ax.set_ylabel(f"{label} minus that of CC (points)")
        if ax.get_legend_handles_labels()[0]:
            ax.legend(frameon=False, fontsize=8)
    axes[0, 0].set_title(source, fontsize=10)
    return fig


def effects_table(rows: pd.DataFrame, claim: int, *, caption: str) -> Table:
    """The differences behind a claim, in points."""
    lines = []
    for row in rows[rows["table"] == f"claim {claim}"].to_dict("records"):
        lines.append({
            "difference": row["method"], "network": row["source"], "eps": f"{row['x']:.3f}" if row["x"] == row["x"] else None,
            "error": row["metric"].removesuffix("_difference").upper().replace("_", "-"),
            "points": f"{row['value']:+.2f} [{row['ci_low']:+.2f}, {row['ci_high']:+.2f}]",
        })  # fmt: skip
    return plain_table(pd.DataFrame(lines), caption=caption)


# ---------------------------------------------------------------- photographs, in short


def short_errors_table(rows: pd.DataFrame, *, caption: str) -> Table:
    """One line an attack and recognizer: the errors of CC, and what the other settings add, at the smallest and largest eps."""
    lines = []
    fixed = rows["table"].isin(("fixed", "variable")) & (rows["metric"] == "auc_det")
    for (source, table, method), group in rows[fixed].groupby(["source", "table", "method"], sort=False):
        eps = group["x"].dropna()
        for x in (eps.min(), eps.max()) if table == "fixed" else (np.nan,):
            value = group[(group["x"] == x) | (np.isnan(x) & group["x"].isna())].set_index("target")["value"]
            attack = f"{method}, {x:.3f}" if x == x else method
            line = {"networks": source, "attack": attack, "mated": int(_mated(rows, source, table, method, x)), "CC": value.get("CC")}
            lines.append(line | {f"{s} - CC": value.get(s, np.nan) - value.get("CC") for s in SETTINGS if s != "CC"})
    return plain_table(pd.DataFrame(lines), caption=caption, digits={"mated": 0} | {f"{s} - CC": 2 for s in SETTINGS} | {"CC": 2})


def _mated(rows: pd.DataFrame, source: str, table: str, method: str, x: float) -> float:
    part = rows[(rows["source"] == source) & (rows["table"] == table) & (rows["method"] == method) & (rows["target"] == "CC")]
    part = part[(part["metric"] == "count") & (part["far"] == "mated")]
    return part[part["x"] == x if x == x else part["x"].isna()]["value"].sum()


def recognizer_verdicts(rows: pd.DataFrame, *, caption: str) -> Table:
    """The claims judged for each face network on its own; those about the classifier alone are the same for all of them."""
    found, lines = judge_by_recognizer(rows), []
    for number, (statement, _) in STATEMENTS.items():
        verdicts = {name: f"{MARKS[e[number].verdict]} {e[number].verdict}" if number in e else None for name, e in found.items()}
        if any(verdicts.values()):
            lines.append({"": number, "claim": statement} | verdicts)
    return plain_table(pd.DataFrame(lines), caption=caption)


# ---------------------------------------------------------------- audit


def audit_table(rows: pd.DataFrame, table: str, *, caption: str, names: dict[str, str] | None = None) -> Table:
    """One line a variant: gender accuracy, size, and what it adds to the errors of CC."""
    part, lines = rows[rows["table"] == table], []
    for (source, method), group in part.groupby(["source", "method"], sort=False):
        line = {"network": source, "pictures": method} | ({"what": names.get(method, "")} if names else {})
        value = group.set_index("metric")["value"]
        line |= {"gender accuracy (%)": value.get("accuracy", np.nan), "RMS (gray levels)": value.get("rmsd", np.nan)}
        for row in group[group["metric"].isin(("auc_det_difference", "eer_difference"))].to_dict("records"):
            error = row["metric"].removesuffix("_difference").upper().replace("_", "-")
            line[f"{error}, {row['target']}"] = f"{row['value']:+.2f} [{row['ci_low']:+.2f}, {row['ci_high']:+.2f}]"
        lines.append(line)
    return plain_table(pd.DataFrame(lines), caption=caption, digits={"gender accuracy (%)": 1, "RMS (gray levels)": 2})


def conclusion_table(rows: pd.DataFrame, *, setting: str = "AA minus CC") -> Table:
    """What size, variability and the knowledge of gender explain: AUC-DET that FGSM adds, in points and in shares."""
    part = rows[(rows["metric"] == "auc_det_difference") & (rows["target"] == setting)]
    lines = []
    for source, group in part.groupby("source", sort=False):
        four = group[group["table"] == "Audit: factorial"].set_index("method")["value"]
        added = group[group["table"] == "Audit: controls"].set_index("method")["value"]
        gender = added[added.index.str.match(r"FGSM \d")].mean()
        line = {"network": source}
        line["different minus same eps"] = np.mean([four[f"different eps, {size}"] - four[f"same eps, {size}"] for size in ("small", "large")])
        line["large minus small eps"] = np.mean([four[f"{kind} eps, large"] - four[f"{kind} eps, small"] for kind in ("same", "different")])
        line["FGSM on gender"] = gender
        for kind in ("untrained", "glasses"):
            line[f"of it from {kind} (%)"] = 100 * added[added.index.str.contains(kind)].mean() / gender if gender > 0.01 else np.nan  # of next to nothing there are no shares
        lines.append(line)
    digits = {"of it from untrained (%)": 0, "of it from glasses (%)": 0}
    return plain_table(pd.DataFrame(lines), caption=f"AUC-DET, {setting}, in points: variability, size, and other networks' gradients, means over eps.", digits=digits)


def bits_table(rows: pd.DataFrame) -> Table:
    """Gender accuracy before and after rounding to 8 bits."""
    part, lines = rows[rows["table"] == "Audit: 8 bits"], []
    for source, group in part.groupby("source", sort=False):
        value = group.set_index("method")["value"]
        for method in [m for m in value.index if not m.endswith("8 bits")]:
            lines.append({"network": source, "attack": method, "as floats (%)": value[method], "as 8-bit pictures (%)": value[f"{method}, 8 bits"]})
    return plain_table(pd.DataFrame(lines), caption="Gender accuracy of attacked pictures before and after rounding.", digits=1)


def size_figure(rows: pd.DataFrame, *, setting: str = "AA minus CC"):
    """AUC-DET that an attack adds against its root-mean-square size: FGSM, random signs, PGD and the controls in one picture."""
    part = rows[rows["table"].isin(("Audit: curve", "Audit: size", "Audit: controls"))]
    part = part.drop_duplicates(["source", "method", "metric", "target"])
    kinds = {
        "FGSM on gender": r"^FGSM \d", "random signs": r"^RAND-ATK \d+\.", "random signs, 2 x 2": r"^RAND-ATK 2 x 2 \d", "FGSM on glasses": "glasses", "FGSM on untrained": "untrained",
        "PGD-ATK": "^PGD-ATK$", "PGD, whole ball": "^PGD, whole",
    }  # fmt: skip
    sources = list(dict.fromkeys(part["source"]))
    columns = min(2, len(sources))
    panels = -(-len(sources) // columns)
    fig, axes = new_figure(width=4.5 * columns + 0.6, height=3.8 * panels, rows=panels, columns=columns)
    for ax in axes.flat[len(sources) :]:
        ax.set_axis_off()
    for ax, source in zip(axes.flat, sources, strict=False):
        own = part[part["source"] == source]
        size = own[own["metric"] == "rmsd"].set_index("method")["value"]
        gain = own[(own["metric"] == "auc_det_difference") & (own["target"] == setting)].set_index("method")
        for style, (label, pattern) in enumerate(kinds.items()):
            names = [name for name in gain.index if pd.Series([name]).str.contains(pattern, regex=True)[0]]
            names = sorted(names, key=lambda name: size[name])
            if names:
                x, y = size[names].to_numpy(), gain.loc[names, "value"].to_numpy()
                error = np.abs(gain.loc[names, ["ci_low", "ci_high"]].to_numpy().T - y)
                ax.errorbar(x, y, error, fmt=("-" if len(names) > 1 else "") + MARKERS[style % len(MARKERS)],
                            color=COLORS[style % len(COLORS)], label=label, capsize=2, ms=5, linewidth=1)  # fmt: skip
        ax.axhline(0, color="#666666", linewidth=0.8)
        ax.set_xlabel("root-mean-square change (gray levels)")
        ax.set_ylabel(f"AUC-DET, {setting} (points)")
        ax.set_title(source, fontsize=10)
    axes[0, 0].legend(frameon=False, fontsize=8)
    return fig
