"""The tables and figures of chapter 4, from rows of `fa_utils.report.eroding`."""

import numpy as np
import pandas as pd

from fa_utils.attacks.transfer import network_name, open_network
from fa_utils.models.recipes import ERODING_LIBRARY
from fa_utils.models.zoo import zoo_table
from fa_utils.report import eroding
from fa_utils.report.eroding import FAR_NAMES, GHOST, METHODS, OURS, RESIDUAL, SKIP, Cast, paper_names
from fa_utils.report.figures import COLORS, MARKERS, line_with_band, log_ticks, new_figure
from fa_utils.report.results import paper_table, results_frame
from fa_utils.report.scores import significant
from fa_utils.report.tables import Table, plain_table, three_columns, with_interval

PROFILES = {
    "smoke": {
        "n_pairs": 6, "steps": 2, "step_size": 8 / 255, "n_seeds": 1, "library": 7, "people": 40, "gallery": 8,
        "device": "cpu", "workers": 1, "unit": 20,
    },
    "laptop": {
        "n_pairs": 24, "steps": 20, "step_size": 2 / 255, "n_seeds": 1, "library": 15, "people": 100, "gallery": 40,
        "device": "cpu", "workers": 2, "unit": 24,
    },
    "gpu": {
        "n_pairs": 200, "steps": 100, "step_size": 1 / 255, "n_seeds": 3, "library": 15, "people": 1500, "gallery": 200,
        "device": "cuda", "workers": 1, "unit": 200,
    },
    "paper": {
        "n_pairs": 2000, "steps": 100, "step_size": 1 / 255, "n_seeds": 3, "library": 15, "people": 1500, "gallery": 200,
        "device": "cuda", "workers": 1, "unit": 200,
    },
}  # fmt: skip
VARIANTS = {"": "no erosion", GHOST: "Ghost", SKIP: "GE(c)", RESIDUAL: "GE(d)"}
WORDS = {"1e-3": "FAR 1e-3", "best": "the best-accuracy threshold"}


def live_frame(rows: list[dict], shared: dict) -> pd.DataFrame:
    """The run's rows so far, validated."""
    return results_frame(rows, chapter=eroding.CHAPTER, **shared)


# ---------------------------------------------------------------- the networks


def library_table(cast: Cast, measured: pd.DataFrame) -> Table:
    """The library: what each network stands for, its residual units and size, its accuracy on this run's benchmark."""
    zoo, names, lines = zoo_table(), paper_names(), []
    for address in cast.networks:
        name = network_name(address)
        recipe = zoo.loc[name] if address == name else {}
        lines.append(
            {
                "stands for": names.get(name, ""),
                "network": name,
                "residual units": len(open_network(address).residual_units()),
                "parameters": recipe.get("parameters"),
                "accuracy (%)": 100 * measured.loc[name, "accuracy"],
            }
        )
    caption = "The library. Our names read layout, domain, loss; a star marks the adversarially trained form. Accuracy: live benchmark."
    return plain_table(pd.DataFrame(lines), caption=caption, digits={"accuracy (%)": 2, "residual units": 0, "parameters": 0})


def thresholds_table(thresholds: pd.DataFrame, true_far: dict[str, float]) -> Table:
    """Both thresholds of each network, and how many strangers the best-accuracy one accepts."""
    frame = pd.DataFrame(
        {
            "network": thresholds.index,
            "FAR 1e-3": thresholds[eroding.FAR].to_numpy(),
            "best accuracy": thresholds["best"].to_numpy(),
            "FAR of best accuracy (%)": [100 * true_far[name] for name in thresholds.index],
        }
    )
    return plain_table(frame, caption="Cosine thresholds.", digits={"FAR of best accuracy (%)": 2})


# ---------------------------------------------------------------- tables of hit rates


def mean_table(table: str, published: pd.DataFrame, live: pd.DataFrame, *, far: str = "1e-3", variants=tuple(VARIANTS)) -> Table:
    """Attacks by what is done to the surrogate, averaged over the networks that judge."""
    parts = [_means(frame, table, far, variants) for frame in (published, live)]
    caption = f"{table}. Mean hit rate over the networks that judge, at {WORDS[far]}; the paper's threshold is not stated."
    beside = "similarity" if far == "1e-3" else None
    return three_columns(_paper_means(table, variants), *parts, index="attack", columns="variant", beside=beside, caption=caption)


def _split(frame: pd.DataFrame, variants) -> pd.DataFrame:
    """Columns ``attack`` and ``variant`` from ``method``; rows of other variants are left out."""
    base = frame["method"].str.replace(r"[+].*", "", regex=True)
    rest = frame["method"].str.replace(r"^[^+]*[+]?", "", regex=True)
    variant = ("+" + rest).where(rest != "", "")
    frame = frame.assign(attack=base, variant=variant.map(VARIANTS))
    return frame[base.isin(METHODS) & variant.isin(variants)]


def _means(frame: pd.DataFrame, table: str, far: str, variants) -> pd.DataFrame:
    return _split(frame[(frame["table"] == table) & (frame["target"] == "mean") & (frame["far"] == far)], variants)


def _paper_means(table: str, variants) -> pd.DataFrame:
    paper = paper_table(eroding.PAPER)
    wanted = ["Table I", "Table II"] if table == "Table II" else [table]
    cells = paper[paper["table"].isin(wanted) & (paper["metric"] == "hit_rate")]
    if table == "Table II":  # what both tables print is taken from Table II
        cells = cells[(cells["table"] == "Table II") | cells["method"].str.endswith(GHOST)]
    means = cells.groupby("method", sort=False)["value"].mean().reset_index().assign(metric="hit_rate")
    return _in_order(_split(means, variants))


def _in_order(frame: pd.DataFrame) -> pd.DataFrame:
    """Rows in the order of the attacks and variants: a table's columns stand as they first appear."""
    ranks = frame["attack"].map(list(METHODS).index), frame["variant"].map(list(VARIANTS.values()).index)
    return frame.assign(rank=10 * ranks[0] + ranks[1]).sort_values("rank", kind="stable").drop(columns="rank")


def cell_table(table: str, base: str, published: pd.DataFrame, live: pd.DataFrame, *, variants=tuple(VARIANTS)) -> Table:
    """One attack on every network that judges."""
    paper = paper_table(eroding.PAPER, networks=True)
    wanted = ["Table I", "Table II"] if table == "Table II" else [table]
    paper = paper[paper["table"].isin(wanted)].drop_duplicates(["source", "target", "method"], keep="last")
    frames = [frame[(frame["table"] == table) & (frame["far"] == "1e-3") & (frame["target"] != "mean")] for frame in (published, live)]
    parts = [_split(frame, variants) for frame in (paper, *frames)]
    parts = [_in_order(part[part["attack"] == base]) for part in parts]
    caption = f"{table}, {base}. Hit rate at FAR 1e-3 on each network; the paper's threshold is not stated."
    return three_columns(*parts, index="target", columns="variant", caption=caption, labels=_labels())


def _labels() -> dict[str, str]:
    return {ours: f"{name} ({ours})" for ours, name in paper_names().items()}


def single_table(published: pd.DataFrame, live: pd.DataFrame) -> Table:
    """Fig. 2 as means over the networks that judge; the paper prints two of them for each surrogate."""
    paper = paper_table(eroding.PAPER, "Fig. 2", networks=True)
    parts = [frame[(frame["table"] == "Fig. 2") & (frame["target"] == "mean") & (frame["far"] == "1e-3")] for frame in (published, live)]
    caption = "Fig. 2 in numbers. Mean hit rate over the networks that judge, at FAR 1e-3."
    return three_columns(paper, *parts, index="source", columns="method", beside="similarity", caption=caption, labels=_labels())


def without_flagged(published: pd.DataFrame, live: pd.DataFrame) -> Table:
    """Corrasion of Table III with and without GE, averaged over all networks and without the one that carries the paper's mean."""
    flagged = {"paper": "FaceNet_vggface2", "ours": ERODING_LIBRARY["FaceNet_vggface2"]}
    frames = {"paper": paper_table(eroding.PAPER, "Table III"), "published": published, "live": live}
    lines = []
    for run, frame in frames.items():
        part = frame[(frame["table"] == "Table III") & (frame["metric"] == "hit_rate") & (frame["target"] != "mean")]
        part = part[part["far"].isin(["1e-3", ""])]
        for name, chosen in (("all", part), ("without FaceNet_vggface2", part[part["target"] != flagged.get(run, flagged["ours"])])):
            means = chosen.groupby("method")["value"].mean()
            if {OURS, OURS + RESIDUAL} <= set(means.index):
                plain, eroded = means[OURS], means[OURS + RESIDUAL]
                lines.append({"run": run, "networks": name, OURS: plain, "with GE(d)": eroded, "difference": eroded - plain})
    return plain_table(pd.DataFrame(lines), caption="Table III, corrasion: mean hit rate (%) with and without one column.", digits=2)


def service_table(published: pd.DataFrame, live: pd.DataFrame) -> Table:
    """Table IV: the paper's two services and our two held-out networks; levels are not comparable."""
    lines = [
        {"run": "paper", "task": f"{row['target']}", "pictures": row["method"], "hit rate (%)": row["value"]}
        for row in paper_table(eroding.PAPER, "Table IV").to_dict("records")
    ]
    for run, frame in (("published", published), ("live", live)):
        part = frame[(frame["table"] == "Table IV") & frame["metric"].isin(["hit_rate", "cost"])]
        queries = part[part["metric"] == "cost"].set_index("target")["value"]
        for row in part[part["metric"] == "hit_rate"].to_dict("records"):
            task = f"verification, {WORDS[row['far']]}" if row["far"] else "identification"
            line = {"run": run, "task": task, "pictures": row["method"], "hit rate (%)": row["value"]}
            line |= {"low": row["ci_low"], "high": row["ci_high"], "pairs": row["n_pairs"]}
            lines.append(line | {"service": row["target"], "queries in all": queries[row["target"]]})
    digits = {"hit rate (%)": 1, "low": 1, "high": 1, "pairs": 0, "queries in all": 0}
    caption = "Table IV: the paper's services, and our held-out networks behind bytes. The levels are not comparable."
    return plain_table(pd.DataFrame(lines), caption=caption, digits=digits)


def training_table(published: pd.DataFrame, live: pd.DataFrame) -> Table:
    """Table V: how much adversarial training lowers hit rates, by attack."""
    paper = paper_table(eroding.PAPER, "Table V", networks=True)
    parts = [frame[(frame["table"] == "Table V") & frame["source"].str.contains("+", regex=False)] for frame in (published, live)]
    caption = "Table V. Gain in points: hit rate before minus after adversarial training; ours crafted on the ensemble, at FAR 1e-3."
    return three_columns(
        paper, *parts, index="target", columns="method", metric="hit_rate_difference", caption=caption, labels=_labels()
    )


def price_table(live: pd.DataFrame) -> Table:
    """What the gains cost, and what they are gains from: clean accuracy and hit rates of this run."""
    part, names, lines = live[live["table"] == "Table V"], paper_names(), []
    accuracy = part[part["metric"] == "accuracy"].set_index("target")["value"]
    own = part["source"] == part["target"]
    hits = part[(part["metric"] == "hit_rate") & (own | part["source"].str.contains("+", regex=False))]
    for target, value in accuracy.items():
        line = {"network": f"{names.get(target, '')} ({target})", "clean accuracy (%)": value}
        lines.append(line | hits[hits["target"] == target].set_index("method")["value"].to_dict())
    return plain_table(pd.DataFrame(lines), caption="Clean accuracy, and hit rates (%) at FAR 1e-3.", digits=1)


# ---------------------------------------------------------------- differences


def differences_table(rows: pd.DataFrame, claim: int, *, caption: str) -> Table:
    """The mean differences behind a claim, in hit rate and in similarity."""
    part = rows[(rows["table"] == f"claim {claim}") & (rows["target"] == "mean")]
    lines = []
    for (source, method), group in part.groupby(["source", "method"], sort=False):
        line = {"difference": method, "surrogate": "the ensemble" if "+" in source else source}
        for metric, head, digits in (("hit_rate_difference", "hits (points)", 1), ("similarity_difference", "similarity", 3)):
            for row in group[group["metric"] == metric].to_dict("records"):
                line[head] = with_interval(row, f"+.{digits}f")
        lines.append(line)
    return plain_table(pd.DataFrame(lines), caption=caption)


def surrogates_table(rows: pd.DataFrame, *, caption: str) -> Table:
    """Mean hit rates of Tables I and II at FAR 1e-3 as the paper prints them, and from each surrogate of a run with several."""
    means = _in_order(_means(rows[rows["metric"] == "hit_rate"], "Table II", "1e-3", tuple(VARIANTS)))
    printed = _paper_means("Table II", tuple(VARIANTS)).set_index(["attack", "variant"])["value"]
    lines: dict[tuple, dict] = {}
    for row in means.to_dict("records"):
        key = row["attack"], row["variant"]
        line = lines.setdefault(key, {"attack": key[0], "surrogate with": key[1], "paper": printed.get(key, np.nan)})
        line[row["source"]] = with_interval(row, ".1f")
    return plain_table(pd.DataFrame(lines.values()), caption=caption, digits=1)


def gains_table(rows: pd.DataFrame, claim: int, versus: str, *, caption: str) -> Table:
    """What GE(d) adds to ``versus`` in hit rate, in points: attacks by surrogates. For a run with several surrogates."""
    compared = {f"{base}{RESIDUAL} minus {base}{versus}": base for base in eroding.BASES}
    part = rows[(rows["table"] == f"claim {claim}") & (rows["target"] == "mean") & (rows["metric"] == "hit_rate_difference")]
    part = part[part["method"].isin(compared)]
    lines: dict[str, dict] = {}
    for row in part.to_dict("records"):
        line = lines.setdefault(row["method"], {"attack": compared[row["method"]]})
        line[row["source"]] = with_interval(row, "+.1f")
    return plain_table(pd.DataFrame(lines.values()), caption=caption)


def significance_table(published: pd.DataFrame, live: pd.DataFrame) -> Table:
    """Claims 1 to 3, cell by cell: how many are positive, and how many McNemar's test with Holm's correction is sure of."""
    lines = []
    for run, frame in (("published", published), ("live", live)):
        for claim in eroding.EVERY_CELL:
            part = frame[frame["table"] == claim]
            if (part["metric"] == "p_value").any():
                counts = significant(part)
                lines += [{"run": run, "comparison": name, **row} for name, row in counts.to_dict("index").items()]
    return plain_table(pd.DataFrame(lines), caption="Cells of Tables I and II: differences in hit rate at FAR 1e-3.", digits=0)


# ---------------------------------------------------------------- figures


def difference_figure(rows: pd.DataFrame, claims=("claim 1", "claim 2", "claim 3"), *, metric: str = "similarity_difference"):
    """Mean differences with their intervals, one line each, for the surrogate of Tables I and II."""
    part = rows[rows["table"].isin(claims) & (rows["target"] == "mean") & (rows["metric"] == metric)].drop_duplicates("method")
    fig, axes = new_figure(height=0.8 + 0.26 * len(part))
    ax, place = axes[0, 0], -np.arange(len(part))
    spread = np.abs(part[["ci_low", "ci_high"]].to_numpy().T - part["value"].to_numpy())
    colors = [COLORS[list(claims).index(table) % len(COLORS)] for table in part["table"]]
    for x, y, low, high, color in zip(part["value"], place, *spread, colors, strict=True):
        ax.errorbar(x, y, xerr=[[low], [high]], fmt="o", capsize=3, color=color)
    ax.axvline(0, color="#666666", linewidth=1)
    ax.set_yticks(place, part["method"])
    ax.set_xlabel({"similarity_difference": "similarity", "hit_rate_difference": "hit rate at FAR 1e-3 (points)"}[metric])
    return fig


def panels_figure():
    """Fig. 1: where the four panels put their factor, forward (black) and backward (red)."""
    panels = {
        "(a) plain": {},
        "(b) Ghost": {"shortcut": "w", "shortcut back": "w"},
        "(c) GE, shortcut": {"shortcut back": "λ"},
        "(d) GE, residual branch": {"residual back": "λ"},
    }
    fig, axes = new_figure(width=7.6, height=2.8, columns=4)
    for ax, (title, factors) in zip(axes[0], panels.items(), strict=True):
        ax.axis("off")
        ax.set(xlim=(-0.6, 2.1), ylim=(-0.35, 3.2))
        ax.set_title(title, fontsize=10)
        _unit(ax, factors)
    return fig


def _unit(ax, factors: dict[str, str]) -> None:
    """One residual unit: x below, the sum above, the shortcut on the left and the residual branch on the right."""
    for y, text in ((0.0, "x"), (2.8, "y = s(x) + R(x)")):
        ax.text(0.75, y, text, ha="center", va="center")
    for x, name, box in ((0.0, "shortcut", "s"), (1.5, "residual", "R")):
        ax.text(x, 1.4, box, ha="center", va="center", bbox={"boxstyle": "round,pad=0.5", "fc": "#e8eef4", "ec": "#666666"})
        for shift, key, color, low, high in ((-0.13, name, "#222222", 0.25, 2.6), (0.13, f"{name} back", "#c0392b", 2.6, 0.25)):
            arrow = {"arrowstyle": "->", "color": color, "lw": 1.4}
            ends = [(x + shift, low), (x + shift, high)]
            middle = 1.0 if low < high else 1.8
            ax.annotate("", (ends[0][0], middle), ends[0], arrowprops=arrow | {"arrowstyle": "-"})
            ax.annotate("", ends[1], (ends[1][0], 1.8 if low < high else 1.0), arrowprops=arrow)
            if key in factors:
                side = -0.16 if shift < 0 else 0.16
                ax.text(x + shift + side, 2.2, f"× {factors[key]}", color=color, ha="right" if side < 0 else "left", va="center")


def single_figure(rows: pd.DataFrame):
    """Fig. 2: one panel a surrogate; a dot for each network that judges, a bar for their mean with its interval."""
    part = rows[(rows["table"] == "Fig. 2") & (rows["metric"] == "hit_rate") & (rows["far"] == "1e-3")]
    sources, names = list(dict.fromkeys(part["source"])), paper_names()
    fig, axes = new_figure(width=3.2 * len(sources) + 0.6, height=3.6, columns=len(sources))
    for ax, source in zip(axes[0], sources, strict=True):
        for place, method in enumerate(METHODS):
            one = part[(part["source"] == source) & (part["method"] == method)]
            dots, mean = one[one["target"] != "mean"]["value"], one[one["target"] == "mean"]
            color = COLORS[place % len(COLORS)]
            ax.plot(np.full(len(dots), place), dots, "o", ms=4, color=color, alpha=0.45)
            for row in mean.to_dict("records"):
                ends = [[row["value"] - row["ci_low"]], [row["ci_high"] - row["value"]]]
                ax.errorbar(place, row["value"], yerr=ends, fmt="_", ms=18, mew=2, capsize=3, color=color)
        ax.set_xticks(range(len(METHODS)), METHODS, rotation=40, ha="right")
        ax.set_ylim(-3, 103)
        ax.set_title(names.get(source, source), fontsize=10)
    axes[0, 0].set_ylabel("hit rate at FAR 1e-3 (%)")
    return fig


def compute_figure(rows: pd.DataFrame, *, metric: str = "similarity"):
    """Hit rate or similarity against passes, without erosion and with GE(d)."""
    part = rows[(rows["table"] == "Audit: compute") & (rows["metric"] == metric)]
    fig, axes = new_figure(width=8.6, height=3.8, columns=2)
    for ax, (variant, title) in zip(axes[0], {"": "no erosion", RESIDUAL: "GE(d)"}.items(), strict=True):
        for style, base in enumerate(METHODS):
            curve = part[part["method"] == base + variant].sort_values("x")
            if len(curve):
                line_with_band(ax, *(curve[name].to_numpy() for name in ("x", "value", "ci_low", "ci_high")), label=base, style=style)
        ax.set_title(title, fontsize=10)
        ax.set_xlabel("forward plus backward passes")
        log_ticks(ax, part["x"])
    axes[0, 1].sharey(axes[0, 0])
    axes[0, 0].set_ylabel({"similarity": "mean similarity to the target", "hit_rate": "mean hit rate at FAR 1e-3 (%)"}[metric])
    axes[0, 0].legend(frameon=False, fontsize=8)
    return fig


def direction_figure(rows: pd.DataFrame, *, metric: str = "similarity"):
    """Spread of gradient directions against what the attack reaches; ranges with the same mean are joined."""
    cosine = rows[(rows["table"] == "Audit: directions") & (rows["target"] == "other draws")].set_index("method")["value"]
    reached = _reached(rows, metric)
    fig, axes = new_figure(height=4.0)
    ax = axes[0, 0]
    groups = {
        "mean 0.75": ["MI, constant 0.75", "MI, uniform 0.6 to 0.9", "MI, uniform 0.5 to 1"],
        "mean 0.5": ["MI, constant 0.5", "MI, uniform 0.25 to 0.75", "MI, uniform 0.01 to 0.99"],
        "Ghost": ["MI" + GHOST],
        "GE(c)": ["MI" + SKIP],
        "constant 0.2": ["MI, constant 0.2"],
    }
    for style, (label, methods) in enumerate(groups.items()):
        found = [(1 - cosine[name], reached[name]) for name in methods if name in cosine.index and name in reached.index]
        if found:
            marker, color = MARKERS[style % len(MARKERS)], COLORS[style % len(COLORS)]
            ax.plot(*zip(*found, strict=True), "-", marker=marker, ms=6, color=color, label=label)
    ax.set_xlabel("spread of directions: 1 - mean cosine between two draws")
    ax.set_ylabel({"similarity": "mean similarity to the target", "hit_rate": "mean hit rate at FAR 1e-3 (%)"}[metric])
    ax.legend(frameon=False, fontsize=8)
    return fig


def _reached(rows: pd.DataFrame, metric: str) -> pd.Series:
    """What MI reaches under each way of eroding, by the name that the measurement of directions uses."""
    chosen = rows[(rows["metric"] == metric) & (rows["target"] == "mean") & rows["far"].isin([FAR_NAMES[eroding.FAR]])]
    decay = chosen[chosen["table"] == "Audit: decay or diversity"]
    tables = chosen[(chosen["table"] == "Table II") & chosen["method"].isin(["MI" + v for v in (GHOST, SKIP, RESIDUAL)])]
    names = pd.concat([("MI, " + decay["method"]), tables["method"]])
    values = pd.concat([decay["value"], tables["value"]])
    return pd.Series(values.to_numpy(), index=names.to_numpy())


# ---------------------------------------------------------------- the audit


def audit_table(rows: pd.DataFrame, section: str, *, caption: str) -> Table:
    """A section of the audit: what each variant reaches, and its paired difference to what it is compared with."""
    part, lines = rows[rows["table"] == f"Audit: {section}"], []
    for method, group in part.groupby("method", sort=False):
        means = group[group["target"] == "mean"].set_index("metric")["value"]
        line = {"variant": method, "hit rate (%)": means.get("hit_rate"), "similarity": means.get("similarity")}
        line["rmsd"] = means.get("rmsd")
        for metric, digits, head in (("hit_rate_difference", 1, "hits (points)"), ("similarity_difference", 3, "similarity gained")):
            for row in group[group["metric"] == metric].to_dict("records"):
                line["compared with"] = row["target"].removeprefix("minus ").replace("MI, constant", "constant").partition(", eps")[0]
                line[head] = with_interval(row, f"+.{digits}f")
        lines.append(line)
    return plain_table(pd.DataFrame(lines), caption=caption, digits={"hit rate (%)": 1, "rmsd": 2})


def ghost_table(rows: pd.DataFrame) -> Table:
    """Accuracy and similarity to itself of the main surrogate under Ghost."""
    part = rows[rows["table"] == "Audit: Ghost spread"]
    wide = part.pivot_table(index="x", columns="metric", values="value").reset_index()
    wide = wide.rename(columns={"x": "spread", "accuracy": "accuracy (%)", "similarity": "similarity to the clean embedding"})
    return plain_table(wide, caption="Ghost on clean pictures of the benchmark.", digits={"accuracy (%)": 2, "spread": 2})

