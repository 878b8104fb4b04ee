"""The tables and figures of chapter 3, from rows of `fa_utils.report.dfanet`."""

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from fa_utils.attacks import FeatureDropout, Scope
from fa_utils.attacks.transfer import Study, network_name
from fa_utils.metrics import roc_curve
from fa_utils.models.recipes import RECIPES
from fa_utils.report import dfanet
from fa_utils.report.figures import distance_curves, lines, new_figure, roc
from fa_utils.report.results import paper_table, results_frame
from fa_utils.report.scores import FAR_TEXT
from fa_utils.report.tables import Table, plain_table, three_columns
from fa_utils.report.talfw import TRAINED, scores_of

PROFILES = {
    "smoke": {
        "n_pairs": 6, "steps": 3, "short": 2, "per_table": 2, "drop_rates": [0.0, 0.1, 0.3], "n_seeds": 1,
        "people": 40, "talfw_people": 20, "talfw_steps": 2, "device": "cpu", "workers": 1, "unit": 20,
    },
    "laptop": {
        "n_pairs": 24, "steps": 30, "short": 13, "per_table": 4, "drop_rates": [0.0, 0.05, 0.1, 0.3], "n_seeds": 1,
        "people": 100, "talfw_people": 60, "talfw_steps": 10, "device": "cpu", "workers": 2, "unit": 24,
    },
    "gpu": {
        "n_pairs": 200, "steps": 200, "short": 13, "per_table": 4, "drop_rates": [0.0, 0.025, 0.05, 0.1, 0.2, 0.3],
        "n_seeds": 3, "people": 1500, "talfw_people": 300, "talfw_steps": 100, "device": "cuda", "workers": 1, "unit": 200,
    },
    "paper": {
        "n_pairs": 10_000, "steps": 1500, "short": 13, "per_table": 4,
        "drop_rates": [0.0, 0.025, 0.05, 0.1, 0.15, 0.2, 0.3], "n_seeds": 3, "people": 1500, "talfw_people": 1500,
        "talfw_steps": 1500, "device": "cuda", "workers": 1, "unit": 200,
    },
}  # fmt: skip


def check_device(device: str) -> str:
    """The device, after a clear error where this machine lacks it."""
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device = 'cuda': this machine has no CUDA device; accepted here is device='cpu'")
    return device


def curve_steps(steps: int, *, count: int = 40) -> list[int]:
    """Every step of a short attack; of a long one the first 25, so that fluctuation can be seen, and some later ones."""
    if steps <= 60:
        return list(range(1, steps + 1))
    spread = np.unique(np.geomspace(1, steps, count).round().astype(int))
    return sorted({*range(1, 26), *spread.tolist(), steps})


# ---------------------------------------------------------------- tables


def databases_table(zoo: pd.DataFrame) -> Table:
    """Table A1: identities and pictures of the training sets, the paper's and ours."""
    paper = paper_table("3-dfanet", "Table A1")
    sizes = paper.pivot_table(index="source_network", columns="metric", values="value", sort=False)
    names = paper.drop_duplicates("source_network").set_index("source_network")["source"]
    rows = [
        {
            "database": names[network],
            "paper: people": int(row["identities"]),
            "paper: pictures (millions)": row["images"],
            "our stand-in": zoo.loc[network, "domain"] if network in zoo.index else None,
            "ours: people": int(zoo.loc[network, "identities"]) if network in zoo.index else None,
            "ours: pictures": int(zoo.loc[network, "images"]) if network in zoo.index else None,
        }
        for network, row in sizes.iterrows()
    ]
    return plain_table(pd.DataFrame(rows), caption="Table A1. Training databases.", digits=2)


def thresholds_table(measured: pd.DataFrame, thresholds: pd.DataFrame) -> Table:
    """The thresholds that the chapter uses, and the one that the live benchmark's protocol would give."""
    names = {far: f"FAR {text}" for far, text in FAR_TEXT.items()}
    frame = thresholds[list(names)].rename(columns=names)
    frame = frame.assign(**{"FAR 1e-3, live protocol": measured["protocol"].reindex(frame.index)})
    return plain_table(
        frame.rename_axis("network").reset_index(),
        caption="Cosine thresholds. From all impostor pairs of the benchmark; last column: from the impostor pairs of "
        "this run's protocol, where it has the thousand that FAR 1e-3 needs.",
    )


def transfer_table(table: str, published: pd.DataFrame, live: pd.DataFrame, *, few: bool = False) -> Table | None:
    """A table of hit rates with the mean similarity beside them; None where nobody has a number for it."""
    ending = dfanet.SHORT if few else dfanet.FULL
    paper = None
    if table.startswith("Table"):
        paper = paper_table("3-dfanet", table, networks=True)
        paper = paper[paper["steps"] == 13] if few else paper
    parts = [frame[frame["table"] == table + ending] for frame in (published, live)]
    if not any(map(len, parts)) and (paper is None or paper.empty):
        return None
    fixed = {1: "ires-*-softmax", 2: "ires-webface-*", 0: "*-webface-softmax"}.get(_VARIES.get(table), "")
    names = f" Networks: {fixed}." if fixed else ""
    caption = f"{table}{', few steps' if few else ''}. Hit rate at FAR 1e-3.{names} {_steps(parts)}"
    return three_columns(paper, *parts, caption=caption, beside="similarity", labels=_short_names(table))


# What varies in a table, as a place in the name LAYOUT-DOMAIN-LOSS.
_VARIES = {"Table I": 1, "Table II": 1, "Table III": 2, "Table IV": 0}


def _short_names(table: str) -> dict[str, str]:
    """The varying part of each network's name: in a table of databases, `ires-webface-softmax` is `webface`."""
    return {name: name.split("-")[_VARIES[table]] for name in RECIPES} if table in _VARIES else {}


def _steps(parts: list[pd.DataFrame]) -> str:
    found = []
    for name, frame in zip(("published", "live"), parts, strict=True):
        if len(frame):
            low, high = int(frame["steps"].min()), int(frame["steps"].max())
            found.append(f"{name} {high}" if low == high else f"{name} {low} to {high}")
    return f"Steps: {', '.join(found)}." if found else ""


def white_box_table(live: pd.DataFrame) -> Table:
    """Hit rates on the surrogate itself."""
    part = live[(live["table"] == "white box") & (live["metric"] == "hit_rate")]
    wide = part.pivot_table(index="source", columns="method", values="value", sort=False)
    caption = f"White-box hit rate (%) at FAR 1e-3, {int(part['n_pairs'].max())} pairs: the surrogate judges itself."
    return plain_table(wide.rename_axis("network").reset_index(), caption=caption, digits=1)


def service_table(published: pd.DataFrame, live: pd.DataFrame) -> Table:
    """Table V: ensembles against the held-out service."""
    paper = paper_table("3-dfanet", "Table V", networks=True)
    parts = [frame[frame["table"] == "Table V"] for frame in (published, live)]
    return three_columns(
        paper,
        *parts,
        index=("source", "method"),
        columns="far",
        beside="similarity",
        caption=f"Table V. Hit rate of ensembles on the paper's commercial service and on our held-out network. {_steps(parts)}",
    )


def benchmark_table(published: pd.DataFrame, live: pd.DataFrame, *, trained: bool = True) -> Table:
    """Table VI: accuracy on the benchmark before and after; says where no adversarially trained network was at hand."""
    parts = [frame[frame["table"] == "Table VI"] for frame in (published, live)]
    return three_columns(
        paper_table("3-dfanet", "Table VI"),
        *parts,
        index="method",
        columns="target",
        metric="accuracy",
        caption="Table VI. Verification accuracy by the LFW protocol; TALFW is the attacked benchmark.",
        labels=None if trained else {TRAINED: f"{TRAINED} (live: not trained)"},
    )


def differences_table(rows: pd.DataFrame, claim: int, *, caption: str) -> Table:
    """The paired differences behind a claim, as they are."""
    part = rows[rows["table"] == f"claim {claim}"]
    lines_ = [
        {
            "difference": row["method"] + (f" ({row['source']})" if row["source"] else ""),
            "FAR": row["far"] or None,
            "steps": int(row["steps"]),
            "in": row["metric"].removesuffix("_difference").replace("_", " "),
            "value": row["value"],
            "low": row["ci_low"],
            "high": row["ci_high"],
            "pairs": int(row["n_pairs"]),
        }
        for row in part.to_dict("records")
    ]
    frame = pd.DataFrame(lines_)
    return plain_table(frame if frame["FAR"].notna().any() else frame.drop(columns="FAR"), caption=caption)


def queries_table(costs: pd.DataFrame) -> Table:
    """What Table V cost: passes through the surrogates, and queries of the service."""
    columns = ["source", "method", "seed", "steps", "forwards", "backwards", "queries"]
    return plain_table(costs[columns], caption="Cost: passes through surrogates for one picture; queries of the service in all.")


def audit_table(rows: pd.DataFrame) -> pd.DataFrame:
    """The audit's rows as one line a variant, intervals as text."""
    lines_ = []
    for variant, note in dfanet.AUDIT.items():
        part = rows[(rows["table"] == "Audit") & (rows["method"] == variant)].set_index("metric")
        if part.empty:
            continue
        cost = part.loc[["cost"]].set_index("target")["value"]
        line = {"variant": variant, "what it is": note}
        line |= {"forward + backward": f"{cost.iloc[0]:.0f} + {cost.iloc[1]:.0f}", "rmsd": part.loc["rmsd", "value"]}
        line |= {"hit rate (%)": part.loc["hit_rate", "value"], "similarity": part.loc["similarity", "value"]}
        for metric, digits, head in (("hit_rate", 1, "hits (points)"), ("similarity", 3, "similarity")):
            name = f"{metric}_difference"
            text = "reference"
            if name in part.index:
                value, low, high = part.loc[name, ["value", "ci_low", "ci_high"]]
                text = f"{value:+.{digits}f} [{low:+.{digits}f}, {high:+.{digits}f}]"
            line[f"difference in {head}"] = text
        lines_.append(line)
    return pd.DataFrame(lines_)


# ---------------------------------------------------------------- figures


def forest(rows: pd.DataFrame, claim: int, *, metric: str = "similarity_difference"):
    """Differences with their intervals, one line each."""
    part = rows[(rows["table"] == f"claim {claim}") & (rows["metric"] == metric)].reset_index(drop=True)
    fig, axes = new_figure(height=0.8 + 0.35 * len(part))
    ax, place = axes[0, 0], -np.arange(len(part))
    spread = np.abs(part[["ci_low", "ci_high"]].to_numpy().T - part["value"].to_numpy())
    ax.errorbar(part["value"], place, xerr=spread, fmt="o", capsize=3, color="#0072B2")
    ax.axvline(0, color="#666666", linewidth=1)
    ax.set_yticks(place, [f"{m}, {int(s)} steps" for m, s in zip(part["method"], part["steps"], strict=True)])
    ax.set_xlabel(metric.replace("_", " "))
    return fig


def rate_figure(frame: pd.DataFrame):
    """Fig. 3: hit rate against drop rate, a curve a surrogate."""
    part = frame[(frame["table"] == "Fig. 3") & (frame["metric"] == "hit_rate")]
    curves = {source: _curve(group) for source, group in part.groupby("source", sort=False)}
    return lines(curves, x_label="drop rate", y_label="mean hit rate at FAR 1e-3 (%)")


def step_figure(frame: pd.DataFrame, *, metric: str = "hit_rate"):
    """Fig. 4: hit rate, or similarity, against the number of steps."""
    wanted = ["FIM", "M-FIM", "DI-M-FIM", "DFANet-DI-M-FIM"]
    part = frame[(frame["table"] == "Fig. 4") & (frame["metric"] == metric) & frame["method"].isin(wanted)]
    curves = {method: _curve(part[part["method"] == method]) for method in wanted if method in set(part["method"])}
    label = {"hit_rate": "mean hit rate at FAR 1e-3 (%)", "similarity": "mean similarity to the target (cosine)"}[metric]
    return lines(curves, x_label="steps", y_label=label, x_log=True)


def _curve(rows: pd.DataFrame) -> tuple:
    rows = rows.sort_values("x")
    return tuple(rows[name].to_numpy() for name in ("x", "value", "ci_low", "ci_high"))


def distance_series(study: Study, cast: dfanet.Cast, method: str) -> dict[str, np.ndarray]:
    """Fig. 5: mean distance to the target after each step looked at, the surrogate first."""
    main = network_name(cast.main)
    chosen = study.frame[(study.frame["source"] == main) & (study.frame["method"] == method)]
    chosen = chosen.assign(distance=np.sqrt(np.maximum(0, 2 - 2 * chosen["similarity"])))
    means = chosen.pivot_table(index="step", columns="target", values="distance", aggfunc="mean")
    names = [main, *(network_name(judge) for judge in cast.curve_judges)]
    return {name: means[name].dropna().sort_index().to_numpy() for name in dict.fromkeys(names)}


def distance_figure(study: Study, cast: dfanet.Cast, *, steps: int):
    """Fig. 5: mean distance to the target after each of the first steps; panels of the paper's five methods."""
    methods = [name for name in (*dfanet.NARROWEST, dfanet.BEST) if name in set(study.frame["method"])]
    return distance_curves(
        {name: {k: v[:steps] for k, v in distance_series(study, cast, name).items()} for name in methods}
    )


def distances_end(study: Study, cast: dfanet.Cast, *, steps: int) -> Table:
    """What Fig. 5 ends with: distances, the gap, and how often the surrogate's curve rises on the way."""
    rows = []
    for method in (*dfanet.NARROWEST, dfanet.BEST):
        series = distance_series(study, cast, method)
        source, *others = series.values()
        end = float(np.mean([values[-1] for values in others]))
        rises = float(np.mean(np.diff(source[:steps]) > 0)) if steps > 1 else np.nan
        line = {"method": method, "surrogate": source[-1], "targets, mean": end, "gap": end - source[-1]}
        rows.append(line | {"share of the first steps that rise": rises})
    return plain_table(pd.DataFrame(rows), caption="Fig. 5 in numbers: mean distance after the last step.")


def roc_figure(frame: pd.DataFrame, pairs, *, systems: list[str]):
    """Fig. 7: ROC before and after the attack."""
    curves = {}
    for system in systems:
        for pictures in ("LFW", "TALFW"):
            curve = roc_curve(scores_of(frame, system, pictures), pairs.same)
            curves[f"{system}, {pictures}"] = (curve.fmr, curve.tmr)
    return roc(curves, far_floor=max(1e-4, 1 / int((~pairs.same).sum())))


def under_masks(encoder, pictures: Tensor, *, drop: float, seed: int = 0, copies: int = 1) -> list[Tensor]:
    """Embeddings of the pictures under one draw of masks, ``copies`` times under the same."""
    scope = Scope(pictures, tuple(map(str, range(len(pictures)))), seed, "look")
    with torch.no_grad(), FeatureDropout(drop).attach(encoder, scope) as state:
        state.begin_step(0)
        state.enabled = True
        return [encoder(pictures) for _ in range(copies)]


def live_frame(rows: list[dict], shared: dict) -> pd.DataFrame:
    """The run's rows so far, validated."""
    return results_frame(rows, chapter=dfanet.CHAPTER, **shared)


