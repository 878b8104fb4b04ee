"""The ten claims of chapter 1, judged on printed, published and live numbers."""

import pandas as pd

from fa_utils.report.claims import (
    Claim,
    Evidence,
    claim_all_positive,
    claim_every,
    claim_mean_difference,
    claim_printed,
)
from fa_utils.report.gender import PAPER
from fa_utils.report.gender_probes import BACKBONES
from fa_utils.report.results import paper_table

MARGIN = 1.0  # points of EER: "no substantial difference", "almost constant", "overlapping"
STATEMENTS = {
    1: ("VGG16 is fooled most by small eps and recovers from 0.04 on; ResNet50 is fooled most by 0.110 to 0.135", "Figs. 4 and 6"),
    2: ("On attacked pictures every feature-guided denoiser beats the pixel-guided one, and FC2GD is the best", "Table 3"),
    3: ("On clean pictures the order is PGD, LGD, FC2GD, FGD: a deeper guide hurts less", "Table 3"),
    4: ("FGSM-fixed, at each eps: errors of AA are above CA, and CA above CC, on both backbones", "Tables 7, 8, 13, 14"),
    5: ("What FGSM adds to the errors of CC grows with eps", "Tables 7 and 8, baseline subtracted"),
    6: ("VGG16, from eps 0.020 on: CD lies between CC and CA", "Tables 7 and 8"),
    7: ("ResNet50: denoising makes it worse, CD above CA and DD above AA", "Table 13"),
    8: ("ResNet50: FGSM harms recognition more than random signs of the same size", "Table 15"),
    9: (f"PGD-ATK does not transfer: no setting's EER is {MARGIN:g} point or more from that of CC", "Figs. 7 and 9"),
    10: (f"FGSM-variable: within {MARGIN:g} point of EER of CC on VGG16, and of FGSM-fixed on ResNet50", "Figs. 7 and 9"),
}
IN_ALL_CELLS = (4, 6, 7, 8)  # many cells at once: simultaneous intervals
EQUAL = (9, 10)


def judge_effects(rows: pd.DataFrame | None) -> dict[int, Evidence]:
    """Evidence on each claim from a run's rows; claims that the run does not speak to are left out."""
    if rows is None or rows.empty:
        return {}
    found = {}
    for number in STATEMENTS:
        part = rows[rows["table"] == f"claim {number}"]
        if part.empty:
            continue
        if number in IN_ALL_CELLS:
            found[number] = claim_all_positive(part.reset_index(drop=True).assign(label=[_where(row) for row in part.to_dict("records")]))
        else:
            signs = ((1, ""), (-1, ", reversed")) if number in EQUAL else ((1, ""),)
            bound = -MARGIN if number in EQUAL else 0.0
            found[number] = claim_every(
                {_where(row) + suffix: _evidence(row, bound=bound, sign=sign) for row in part.to_dict("records") for sign, suffix in signs}
            )
    return found


def judge_by_recognizer(rows: pd.DataFrame) -> dict[str, dict[int, Evidence]]:
    """Evidence from one face network at a time, by its name: rows of both backbones that it judged, and those of the classifiers."""
    layout, _, judge = (rows["source"].str.partition(", ")[k] for k in range(3))
    names = dict.fromkeys(judge[(rows["table"] == "fixed") & (judge != "")])
    return {name: judge_effects(rows[layout.isin(BACKBONES) & judge.isin(("", name))]) for name in names}


def _where(row: dict) -> str:
    metric = row["metric"].removesuffix("_difference").upper().replace("_", "-")
    place = row["source"] if row["source"] not in row["method"] else ""
    eps = f"eps {row['x']:.3f}" if row["x"] == row["x"] else ""
    return ", ".join(part for part in (row["method"], place, eps, metric if metric != "ACCURACY" else "") if part)


def _evidence(row: dict, *, bound: float, sign: int) -> Evidence:
    low, high = sorted((sign * row["ci_low"], sign * row["ci_high"]))
    return claim_mean_difference(sign * row["value"], low, high, int(row["n_pairs"]), bound=bound)


def printed_errors() -> pd.DataFrame:
    """Tables 7, 8, 13 and 14 with a column for each setting, by ``source``, ``metric`` and ``x`` (eps)."""
    tables = pd.concat([paper_table(PAPER, f"Table {k}") for k in (7, 8, 13, 14)])
    tables = tables.assign(x=tables["setting"].str.extract(r"eps ([\d.]+)", expand=False).astype(float))
    return tables.pivot_table(index=["source", "metric", "x"], columns="target", values="value")


def judge_printed() -> dict[int, Evidence]:
    """Evidence from the paper's own cells, at face value; claims 1, 9 and 10 rest on figures without printed numbers."""
    three = paper_table(PAPER, "Table 3").pivot_table(index="setting", columns="method", values="value")
    attacked = next(three.loc[name] for name in three.index if "adversarial" in name)
    clean = next(three.loc[name] for name in three.index if "clean" in name)
    errors = printed_errors()
    places = [", ".join(map(str, key)) for key in errors.index]
    order = pd.concat([errors["AA"] - errors["CA"], errors["CA"] - errors["CC"]])
    small = errors.loc["VGG16"]
    growth = (small["AA"] - small["CC"]).groupby(level="metric")
    late = errors[(errors.index.get_level_values("source") == "VGG16") & (errors.index.get_level_values("x") > 0.0199)]
    large = errors.loc["ResNet50"].xs("auc_det", level="metric")
    random = paper_table(PAPER, "Table 15")
    random = random.pivot_table(index="setting", columns=["method", "target"], values="value")
    attack = next(name for name in random.columns.get_level_values(0) if "RAND" not in name)
    other = next(name for name in random.columns.get_level_values(0) if "RAND" in name)
    gaps = pd.concat([random[(attack, s)] - random[(other, s)] for s in ("AA", "CA")])
    return {
        2: claim_printed([
            *(attacked[name] - attacked["PGD"] for name in ("FGD", "FC2GD", "LGD")),
            *(attacked["FC2GD"] - attacked[name] for name in ("FGD", "LGD")),
        ]),
        3: claim_printed([clean["PGD"] - clean["LGD"], clean["LGD"] - clean["FC2GD"], clean["FC2GD"] - clean["FGD"]],
                         labels=["PGD minus LGD", "LGD minus FC2GD", "FC2GD minus FGD"]),
        4: claim_printed(order, labels=[f"{place}: {over}" for over in ("AA over CA", "CA over CC") for place in places]),
        5: claim_printed([float(g.iloc[-1] - g.iloc[0]) for _, g in growth], labels=[name for name, _ in growth]),
        6: claim_printed(pd.concat([late["CD"] - late["CC"], late["CA"] - late["CD"]])),
        7: claim_printed(pd.concat([large["CD"] - large["CA"], large["DD"] - large["AA"]])),
        8: claim_printed(gaps),
    }  # fmt: skip


def make_claims(published: pd.DataFrame | None, live: pd.DataFrame | None, *, printed: bool = True) -> list[Claim]:
    """The ten claims with the evidence of each run, and of the paper's own cells."""
    runs = {"printed": judge_printed() if printed else {}, "published": judge_effects(published), "live": judge_effects(live)}
    return [
        Claim(number, statement, where, **{run: evidence.get(number) for run, evidence in runs.items()})
        for number, (statement, where) in STATEMENTS.items()
    ]
