"""The numbers of data/paper_tables/2-mi-privacy.csv against figures that were computed from the paper on their
own (shared sheet, sections 3 to 5) and against one another."""

import numpy as np
import pytest

from fa_utils.models.recipes import RECIPES
from fa_utils.report import METRICS, method_differences, paper_table

DATASETS = ["LFW", "AgeDB", "ColorFERET"]
METHODS = ["Reference", "MI-FGSM", "IVE", "Multi-IVE"]
ONE_STEP = ["FGSM", "MI-FGSM", "MI-FGSM-MLP"]


@pytest.fixture(scope="module")
def paper():
    return paper_table("2-mi-privacy")


@pytest.fixture(scope="module")
def two(paper):
    """Table 2: (metric, method) by data set."""
    rows = paper[paper["table"] == "Table 2"]
    return rows.pivot(index=["metric", "method"], columns="source", values="value")[DATASETS]


@pytest.fixture(scope="module")
def gender(two):
    return two.loc["balanced_accuracy"]


@pytest.fixture(scope="module")
def eer(two):
    return two.loc["eer"]


def difference(paper, metric, better, worse):
    """Differences of Table 2 by data set, from the rows themselves."""
    rows = paper[(paper["table"] == "Table 2") & (paper["metric"] == metric)]
    cells = rows.assign(target=rows["source"], source="")
    found = method_differences(cells, better, worse, metric=metric)
    return found.set_index("target")["value"][DATASETS]


def printed(paper, table, metric, method, source):
    rows = paper[(paper["table"] == table) & (paper["metric"] == metric)]
    return rows[(rows["method"] == method) & (rows["source"] == source)].set_index("setting")["value"]


def test_tables_and_counts(paper):
    assert list(paper["table"].unique()) == ["Table 2", "Fig. 3", "Fig. 4", "Fig. 5", "text"]
    rows = paper[paper["table"] == "Table 2"]
    assert list(rows["method"]) == [name for name in METHODS for _ in range(6)]
    assert list(rows["source"]) == [name for name in DATASETS for _ in range(2)] * 4
    assert list(rows["metric"]) == ["balanced_accuracy", "eer"] * 12
    assert paper["table"].value_counts().drop(["text", "Table 2"]).to_dict() == {
        "Fig. 3": 3,
        "Fig. 4": 9,
        "Fig. 5": 17,
    }


def test_gains_and_costs_of_mi_fgsm(paper):
    np.testing.assert_allclose(
        difference(paper, "balanced_accuracy", "MI-FGSM", "Reference"), [-9.03, -6.34, -18.14], atol=1e-9
    )
    np.testing.assert_allclose(
        difference(paper, "eer", "MI-FGSM", "Reference"), [0.133, 0.927, 0.351], atol=1e-9
    )


def test_text_rounds_the_table(paper, gender, eer):
    rows = paper[(paper["table"] == "text") & (paper["metric"] == "balanced_accuracy_difference")]
    assert set(rows["method"]) == {"Reference - MI-FGSM"}
    drop = -difference(paper, "balanced_accuracy", "MI-FGSM", "Reference")
    assert rows.set_index("source")["value"].to_dict() == drop.round().to_dict()
    cost = printed(paper, "text", "eer_difference", "MI-FGSM - Reference", "AgeDB")
    assert cost.tolist() == [1] and difference(paper, "eer", "MI-FGSM", "Reference")[
        "AgeDB"
    ] == pytest.approx(1, abs=0.1)
    assert printed(paper, "text", "eer", "Reference", "AgeDB").item() == eer["AgeDB"]["Reference"]
    about = printed(paper, "text", "balanced_accuracy", "Multi-IVE", "AgeDB").item()
    assert about == gender["AgeDB"]["MI-FGSM"].round() == int(gender["AgeDB"]["Multi-IVE"])


def test_eer_of_multi_ive_in_the_text_is_that_of_ive(paper, eer):
    row = paper[(paper["table"] == "text") & (paper["metric"] == "eer") & (paper["method"] == "Multi-IVE")]
    assert row["suspicious"].item()
    assert row["value"].item() == eer["AgeDB"]["IVE"] != eer["AgeDB"]["Multi-IVE"]
    assert eer["AgeDB"]["Multi-IVE"] > 2 * eer["AgeDB"]["Reference"]  # it doubles all the same


def test_lowest_eer_of_the_three_protections(eer):
    assert (eer.loc["MI-FGSM"] < eer.loc[["IVE", "Multi-IVE"]].min()).all()
    assert (eer.loc["Reference"] < eer.loc["MI-FGSM"]).all()


def test_not_all_rows_have_similar_privacy(gender):
    apart = (gender.loc[["IVE", "Multi-IVE"]] - gender.loc["MI-FGSM"]).abs()
    np.testing.assert_allclose(apart.loc["IVE"], [0.61, 2.90, 8.68], atol=1e-9)
    np.testing.assert_allclose(apart.loc["Multi-IVE"], [0.31, 0.40, 1.24], atol=1e-9)


@pytest.mark.parametrize(
    "method, expected",
    [
        ("MI-FGSM", [0.325, 0.772, 2.932]),
        ("IVE", [-1.589, -0.625, 0.720]),
        ("Multi-IVE", [-4.425, -0.255, 0.854]),
    ],
)
def test_relative_gain_less_relative_cost(gender, eer, method, expected):
    """Privacy gain identity coefficient, which the sheet worked out from Table 2."""
    error = 100 - gender
    gain = error.loc[method] / error.loc["Reference"] - 1
    cost = eer.loc[method] / eer.loc["Reference"] - 1
    np.testing.assert_allclose(gain - cost, expected, atol=5.1e-4)


def test_error_rates_are_not_counts_of_6000_pairs(eer):
    """README: k / 6000 would be a multiple of 1/60 %, so EERs are interpolated."""
    own = eer.loc[["Reference", "MI-FGSM"]]
    # cut or rounded to three digits
    on_grid = (own * 60 % 1).pipe(lambda rest: (rest < 0.03) | (rest > 0.939))
    assert on_grid.all().to_dict() == {"LFW": True, "AgeDB": False, "ColorFERET": False}
    assert not on_grid["ColorFERET"].any()


def test_figure_4(paper):
    rows = paper[paper["table"] == "Fig. 4"]
    cells = rows[rows["source"] != ""].pivot(index="method", columns="source", values="value")
    assert list(cells.columns) == ["ColorFERET", "LFW"]
    assert (cells.loc["FGSM"] - cells.loc["MI-FGSM"]).equals(cells.loc["FGSM - MI-FGSM"])
    assert cells.loc["MI-FGSM"].tolist() == [75, 75]


def test_mixtures_of_agedb(paper):
    small = printed(paper, "Fig. 5", "accuracy", "MI-FGSM", "AgeDB")
    head = printed(paper, "Fig. 5", "accuracy", "MI-FGSM-MLP", "AgeDB")
    clean = printed(paper, "Fig. 5", "accuracy", "Reference", "AgeDB").item()
    gain = small["B, eps 0.300, 0% clean"] - small["B, eps 0.300, 50% clean"]
    assert gain == pytest.approx(5.72)
    assert head["B, eps 0.300, 0% clean"] - head["B, eps 0.300, 37.5% clean"] == pytest.approx(4.72)
    # in no mixture is gender easier to tell than in clean images alone
    assert max(small.max(), head.max()) < clean
    assert head["B, eps 0.300, 37.5% clean"] == min(small.min(), head.min())


def test_clean_level_of_the_subsets(paper, gender):
    """About 75 after a fall of 12 and 20 points: what the subsets have clean against all images."""
    fall = {
        name: printed(paper, "Fig. 5", "accuracy_difference", "Reference - MI-FGSM", name)
        for name in DATASETS
    }
    lowest = {name: printed(paper, "Fig. 5", "accuracy", "MI-FGSM", name) for name in DATASETS}
    best = "B, eps*, 0% clean"
    clean = {name: lowest[name][best] + fall[name][best] for name in ("LFW", "ColorFERET")}
    assert clean == {"LFW": 87, "ColorFERET": 95}
    apart = {name: round(level - gender[name]["Reference"], 2) for name, level in clean.items()}
    assert apart == {"LFW": 2.04, "ColorFERET": 0.4}
    mixture = "B, eps 0.300, best mixture"
    assert fall["ColorFERET"][mixture] == 15 < fall["ColorFERET"][best]
    head = printed(paper, "Fig. 5", "accuracy", "MI-FGSM-MLP", "LFW")
    assert lowest["LFW"][best] < head[mixture] < lowest["LFW"][mixture]


def test_ranges_of_the_perturbation(paper):
    text = paper[(paper["table"] == "text") & paper["metric"].isin(["eps", "eps_steps"])]
    cells = text.set_index("setting")["value"]
    low, high, step = (cells[f"default range, {name}"] for name in ("smallest", "largest", "step"))
    assert (high - low) / step == pytest.approx(5)
    fine = cells["sensitive range, largest"] / cells["sensitive range"]
    assert fine == pytest.approx(0.0006)
    lowest = paper[paper["table"] == "Fig. 4"].query("metric == 'eps'")["value"].unique()
    assert lowest.tolist() == [0.015] and lowest / fine == pytest.approx(25)
    assert cells["sensitive range, largest"] < low


def test_pairs_and_data_sets(paper):
    counts = paper[(paper["metric"] == "count") & (paper["table"] == "text")]
    cells = counts.pivot(index=["setting", "unit"], columns="source", values="value")
    for name in ("LFW", "ColorFERET"):
        pairs = cells[name].xs("comparisons", level="unit")
        assert pairs["verification, pairs"] == pairs["verification, mated"] + pairs["verification, non-mated"]
    assert cells["AgeDB"].xs("comparisons", level="unit").isna().all()  # not printed
    per_person = cells.loc[("all images", "images")] / cells.loc[("identities", "identities")]
    assert per_person[DATASETS].round(1).tolist() == [2.3, 29.0, 11.4]


def test_suspicious_cells(paper):
    marked = paper[paper["suspicious"]]
    assert list(zip(marked["table"], marked["method"], marked["metric"])) == [("text", "Multi-IVE", "eer")]
    assert (marked["note"] != "").all()


def test_units_and_ranges(paper):
    known = paper["metric"].isin(METRICS)
    assert set(paper[~known]["table"]) == {"text", "Fig. 3", "Fig. 4"}
    assert set(paper[~known]["metric"]) == {
        "eps", "eps_steps", "units", "iterations", "probability", "folds", "classifiers", "locked_components",
        "age_gap",
    }  # fmt: skip
    for row in paper[known].itertuples():
        unit, low, high = METRICS[row.metric]
        assert low <= row.value <= high
        assert row.unit == unit or (row.metric == "count" and row.unit in ("images", "identities"))
    assert (paper["far"] == "").all() and (paper["target"] == "").all()
    assert not paper.duplicated(["table", "setting", "source", "method", "metric"]).any()


def test_names_of_our_networks(paper):
    assert "ires-vggface2-arcface" in RECIPES
    judged = paper["method"] != ""
    assert set(paper["source_network"][judged]) == {"ires-vggface2-arcface"}
    assert (paper["source_network"][~judged] == "").all() and (paper["target_network"] == "").all()
    one_step = paper["method"].str.split(" - ").map(lambda names: any(name in ONE_STEP for name in names))
    assert (paper["steps"][one_step] == 1).all() and paper["steps"][~one_step].isna().all()
