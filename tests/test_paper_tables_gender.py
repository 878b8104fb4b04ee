"""The numbers of data/paper_tables/1-gender-transfer.csv against figures that were computed from the paper on
their own (shared sheet, sections 3 and 5) and against one another."""

from decimal import Decimal

import numpy as np
import pandas as pd
import pytest

from fa_utils.models.recipes import RECIPES
from fa_utils.report import METRICS, method_differences, paper_table

COMBINATIONS = ["CC", "DD", "AA", "CD", "CA"]
ATTACKS = ["FGSM-fixed", "PGD-ATK", "FGSM-variable"]
DEFENSES = ["none", "PGD", "FGD", "FC2GD", "LGD"]
EPS = {
    "VGG16": ["eps 0.010", "eps 0.015", "eps 0.020", "eps 0.025", "eps 0.030", "eps 0.035"],
    "ResNet50": ["eps 0.110", "eps 0.115", "eps 0.120", "eps 0.125", "eps 0.130", "eps 0.135"],
}
GRIDS = {"Table 7": "VGG16", "Table 8": "VGG16", "Table 13": "ResNet50", "Table 14": "ResNet50"}
CELL = ["source", "method", "target"]
IMAGES = {"A": 162770, "B": 19962, "C": 19867}


@pytest.fixture(scope="module")
def paper():
    return paper_table("1-gender-transfer")


def by_eps(paper, table, method="FGSM-fixed"):
    """Rows CC, DD, ...; columns the values of eps in the printed order."""
    rows = paper[(paper["table"] == table) & (paper["method"] == method)]
    frame = rows.pivot(index="target", columns="setting", values="value")
    return frame[EPS[rows["source"].iloc[0]]]


def images(paper, setting, source, *, unit="images"):
    """Counts of Tables 1 and 2 by attack."""
    rows = paper[paper["table"].isin(["Table 1", "Table 2"]) & (paper["unit"] == unit)]
    rows = rows[(rows["setting"] == setting) & (rows["source"] == source)]
    return rows.set_index("method")["value"]


def comparisons(paper, table, kind, method="FGSM-fixed"):
    """Counts of one table: rows CC, DD, ...; columns what follows ``kind`` in the setting."""
    rows = paper[(paper["table"] == table) & (paper["method"] == method)]
    rows = rows[rows["setting"].str.startswith(kind)]
    heads = rows["setting"].str.removeprefix(kind).str.removeprefix(", ")
    return rows.assign(head=heads).pivot(index="target", columns="head", values="value").loc[COMBINATIONS]


def printed_interval(value, *, cut=False, digits=2):
    """What a count may have been before it was rounded (or cut) to ``digits`` digits."""
    unit = 10.0 ** (np.floor(np.log10(value) + 1e-9) - digits + 1)
    return (value, value + unit) if cut else (value - unit / 2, value + unit / 2)


def overlap(one, two):
    return max(one[0], two[0]) < min(one[1], two[1])


def gray_levels(eps, *, levels):
    """Whole steps that a shift by eps leaves in an 8-bit image whose unit is ``levels`` gray levels."""
    return [
        int(Decimal(str(name.removeprefix("eps "))) * Decimal(str(levels)) + Decimal("0.5")) for name in eps
    ]


def test_tables_and_counts(paper):
    counts = paper["table"].value_counts()
    assert counts.drop("text").to_dict() == {
        "Table 1": 10, "Table 2": 10, "Table 3": 10, "Table 4": 10, "Table 5": 70, "Table 6": 18,
        "Table 7": 30, "Table 8": 30, "Table 9": 20, "Table 10": 18, "Table 11": 70, "Table 12": 20,
        "Table 13": 30, "Table 14": 30, "Table 15": 24,
    }  # fmt: skip
    for table, source in GRIDS.items():
        rows = paper[paper["table"] == table]
        assert list(rows["target"]) == [name for name in COMBINATIONS for _ in range(6)]
        assert list(rows["setting"]) == EPS[source] * 5
        assert set(rows["source"]) == {source} and set(rows["method"]) == {"FGSM-fixed"}
    for table in ("Table 6", "Table 10"):
        assert list(paper[paper["table"] == table]["method"].unique()) == ATTACKS
    for table in ("Table 3", "Table 4"):
        assert list(paper[paper["table"] == table]["method"]) == DEFENSES * 2


def test_partition_of_celeba(paper):
    sets = paper[paper["setting"].str.startswith("CelebA, set")].set_index("setting")["value"]
    assert sets.to_dict() == {f"CelebA, set {name}": count for name, count in IMAGES.items()}
    whole = paper[paper["setting"] == "CelebA"]
    assert whole["value"].tolist() == [sum(IMAGES.values())] == [202599]


@pytest.mark.parametrize("source", ["VGG16", "ResNet50"])
def test_denoisers_are_trained_on_80_percent(paper, source):
    train = images(paper, "C_AdvTrain/C_CleanTrain", source)
    test = images(paper, "C_AdvTest/C_CleanTest", source)
    assert list(train.index) == ["FGSM-fixed", "PGD-ATK"]
    total = train + test
    assert train["PGD-ATK"] == total["PGD-ATK"] * 4 // 5
    # one split for each of six eps loses less than one image each
    assert 0 <= 0.8 * total["FGSM-fixed"] - train["FGSM-fixed"] < 6
    np.testing.assert_allclose(train / total, 0.8, atol=1e-4)


def test_every_image_of_set_c_falls_to_fgsm_on_resnet50(paper):
    train = images(paper, "C_AdvTrain/C_CleanTrain", "ResNet50")["FGSM-fixed"]
    test = images(paper, "C_AdvTest/C_CleanTest", "ResNet50")["FGSM-fixed"]
    assert train + test == 6 * 19539
    assert train == 6 * (19539 * 4 // 5)  # split once for each eps
    trans = images(paper, "B_Trans", "ResNet50")
    assert 6 * trans["FGSM-variable"] - trans["FGSM-fixed"] == 11  # misses on set B


def test_accuracy_under_pgd_atk(paper):
    """Right before minus fooled, of all images of set C; ResNet50 needs the accuracy that Table 2 implies."""
    text = paper[(paper["table"] == "text") & (paper["metric"] == "accuracy")].set_index(
        ["setting", "source"]
    )
    right = {"VGG16": text["value"]["validation", "VGG16"] / 100, "ResNet50": 19539 / IMAGES["C"]}
    for source in right:
        fooled = images(paper, "C_AdvTrain/C_CleanTrain", source) + images(
            paper, "C_AdvTest/C_CleanTest", source
        )
        left = 100 * (right[source] - fooled["PGD-ATK"] / IMAGES["C"])
        printed = text[text["method"] == "PGD-ATK"]["value"]["adversarial samples", source]
        assert printed == pytest.approx(left, abs=0.05)
    printed = text.loc[("validation", "ResNet50")]
    assert printed["suspicious"] and printed["value"] + 0.005 < 100 * right["ResNet50"]
    assert not text.loc[("validation", "VGG16")]["suspicious"]


def test_more_images_fooled_than_right(paper):
    clean = paper[
        (paper["table"] == "Table 3") & (paper["setting"] == "clean B") & (paper["method"] == "none")
    ]
    right = int(IMAGES["B"] * (clean["value"].item() + 0.005) / 100)
    assert right == 19601
    trans = images(paper, "B_Trans", "VGG16")
    assert trans["FGSM-variable"] == 19703 > right
    assert trans["PGD-ATK"] < right and trans["FGSM-fixed"] < 6 * right
    assert (
        images(paper, "B_Trans, identities", "VGG16", unit="identities")[ATTACKS] == [995, 997, 995]
    ).all()
    assert (images(paper, "B_Trans, identities", "ResNet50", unit="identities")[ATTACKS] == 999).all()


def positives(accuracy, f1):
    """Least and largest share of the positive class that an accuracy and an F1 (percent) leave room for.

    F1 = 2 TP / (2 TP + errors), so TP = errors F1 / (2 (1 - F1)), and TP <= positives <= TP + errors.
    """
    half = 0.005
    shares = []
    for sign in (-1, 1):
        errors = (100 - accuracy + sign * half) / 100
        f = (f1 + sign * half) / 100
        shares.append((errors * f / (2 * (1 - f)), errors))
    (low, _), (high, errors) = shares
    return low, high + errors, high


def test_f1_is_that_of_the_smaller_class(paper):
    accuracy = paper[paper["table"] == "Table 3"].pivot(index="setting", columns="method", values="value")
    f1 = paper[paper["table"] == "Table 4"].pivot(index="setting", columns="method", values="value")
    ranges = [positives(accuracy[name]["clean B"], f1[name]["clean B"])[:2] for name in DEFENSES]
    low, high = max(pair[0] for pair in ranges), min(pair[1] for pair in ranges)
    assert 0.38 < low < high < 0.39  # the share of one class in set B, the same in all five columns
    ranges = [
        positives(accuracy[name]["adversarial C_test"], f1[name]["adversarial C_test"])[:2]
        for name in DEFENSES[1:]
    ]
    assert max(pair[0] for pair in ranges) < min(pair[1] for pair in ranges) < 0.37


def test_pgd_atk_row_of_table_6_needs_more_images_than_are_right(paper):
    clean = paper[paper["setting"].eq("clean B") & paper["method"].eq("none")].set_index("metric")["value"]
    most = (
        IMAGES["B"] * positives(clean["accuracy"], clean["f1"])[2]
    )  # all of them are right before the attack
    needed = {}
    for table, source in (("Table 6", "VGG16"), ("Table 10", "ResNet50")):
        rows = paper[(paper["table"] == table) & (paper["setting"] == "B_DenTrans")]
        for method in ("PGD-ATK", "FGSM-variable"):
            den = rows[rows["method"] == method].set_index("metric")["value"]
            needed[table, method] = (
                images(paper, "B_Trans", source)[method] * positives(den["accuracy"], den["f1"])[0]
            )
    assert needed["Table 6", "PGD-ATK"] > 7414.5 > most
    assert needed["Table 6", "FGSM-variable"] < most


def test_denoisers(paper):
    accuracy = paper[paper["table"] == "Table 3"].pivot(index="setting", columns="method", values="value")
    clean, adversarial = accuracy.loc["clean B"], accuracy.loc["adversarial C_test"]
    assert list(adversarial.sort_values().index) == ["none", "PGD", "FGD", "LGD", "FC2GD"]
    assert list(clean.sort_values().index) == ["FGD", "FC2GD", "LGD", "PGD", "none"]
    f1 = paper[paper["table"] == "Table 4"].pivot(index="setting", columns="method", values="value")
    assert list(f1.loc["adversarial C_test"].sort_values().index) == list(adversarial.sort_values().index)
    assert list(f1.loc["clean B"].sort_values().index) == list(clean.sort_values().index)
    text = paper[(paper["table"] == "text") & (paper["setting"] == "adversarial C_test")].set_index("method")[
        "value"
    ]
    assert text.to_dict() == adversarial[["PGD", "FC2GD"]].to_dict()


@pytest.mark.parametrize(
    "table, source, mean_gap", [("Table 6", "VGG16", 0.42), ("Table 10", "ResNet50", 1.28)]
)
def test_transfer_sets(paper, table, source, mean_gap):
    rows = paper[(paper["table"] == table) & (paper["source"] == source)]
    values = rows.pivot(index=["setting", "method"], columns="metric", values="value")
    assert (values.loc["B_CleanTrans"] == 100).all(axis=None)
    assert (values.loc["B_AdvTrans"] == 0).all(axis=None)
    den = values.loc["B_DenTrans"]
    assert (den["accuracy"] > den["f1"]).all()
    assert (den["accuracy"] - den["f1"]).mean() == pytest.approx(mean_gap, abs=0.005)
    assert den["accuracy"].idxmax() == "PGD-ATK"


@pytest.mark.parametrize(
    "table, target, excess",
    [
        ("Table 7", "AA", [0.32, 1.02, 1.91, 1.97, 3.37, 3.37]),
        ("Table 7", "CA", [0.22, 0.72, 1.36, 1.37, 2.29, 2.29]),
        ("Table 8", "AA", [0.10, 0.19, 0.32, 0.29, 0.45, 0.45]),
    ],
)
def test_excess_over_clean_pairs(paper, table, target, excess):
    rows = paper[paper["table"] == table]
    cells = rows.drop(columns="target").assign(method=rows["target"])
    found = method_differences(
        cells.assign(target=cells["setting"]), target, "CC", metric=rows["metric"].iloc[0]
    )
    assert list(found["target"]) == EPS["VGG16"]
    np.testing.assert_allclose(found["value"], excess, atol=1e-9)
    assert (np.diff(found["value"]) >= (-0.03 if table == "Table 8" else 0) - 1e-9).all()


def test_baseline_moves_where_it_is_printed_as_one(paper):
    """VGG16 has another set of pairs for each eps, ResNet50 has one."""
    seven = by_eps(paper, "Table 7").loc["CC"]
    assert seven.max() - seven.min() == pytest.approx(46.96 - 41.39)
    assert by_eps(paper, "Table 13").loc["CC"].unique().tolist() == [1.24]
    assert by_eps(paper, "Table 14").loc["CC"].unique().tolist() == [5.67]


@pytest.mark.parametrize("table", GRIDS)
def test_adversarial_pairs_are_worst_then_mixed_then_clean(paper, table):
    cells = by_eps(paper, table)
    assert (cells.loc["AA"] > cells.loc["CA"]).all()
    assert (cells.loc["CA"] > cells.loc["CC"]).all()
    assert (cells.loc["DD"] > cells.loc["CC"]).all() and (cells.loc["CD"] > cells.loc["CC"]).all()


def test_denoised_pairs(paper):
    for table in ("Table 13", "Table 14"):
        cells = by_eps(paper, table)
        assert (cells.loc[["CD", "DD"]].min() > cells.loc[["CA", "AA"]].max()).all()
        assert (cells.loc["CD"] > cells.loc["DD"]).all()
        assert (cells.drop("CC").diff(axis=1).iloc[:, 1:] > 0).all(axis=None)  # grows with eps
    between = {
        "Table 7": [False, False, True, True, True, True],
        "Table 8": [False, True, True, True, True, True],
    }
    for table, expected in between.items():
        cells = by_eps(paper, table)
        assert (cells.loc["CD"] < cells.loc["CA"]).tolist() == expected
    assert by_eps(paper, "Table 8").loc[["CD", "CA"], "eps 0.010"].tolist() == [3.04, 3.04]
    seven = by_eps(paper, "Table 7")
    assert (seven.loc["DD"] > seven.loc["AA"]).tolist() == [True, True, False, False, False, False]


@pytest.mark.parametrize("table", ["Table 7", "Table 8"])
def test_smallest_eps_has_the_largest_errors(paper, table):
    """Printed as low transfer; the clean pairs do the same."""
    cells = by_eps(paper, table)
    assert (cells.idxmax(axis=1) == "eps 0.010").all()
    assert (cells.drop("CC").idxmin(axis=1) == "eps 0.025").all()


def test_random_signs(paper):
    clean, fgsm = by_eps(paper, "Table 13").loc["CC"], by_eps(paper, "Table 15")
    random = by_eps(paper, "Table 15", "RAND-ATK")
    assert fgsm.equals(by_eps(paper, "Table 13").loc[["AA", "CA"]])
    ratio = (fgsm - clean) / (random - clean)
    found = [(round(row.min(), 1), round(row.max(), 1)) for _, row in ratio.loc[["AA", "CA"]].iterrows()]
    assert found == [(6.3, 7.2), (7.9, 8.9)]


def test_attack_fits_images_of_8_bits(paper):
    """README: errors of adversarial pairs grow with the whole gray levels that eps leaves, not with eps."""
    steps = gray_levels(EPS["ResNet50"], levels=255)
    assert steps == [28, 29, 31, 32, 33, 34]
    for table in ("Table 13", "Table 14"):
        cells = by_eps(paper, table).loc[["AA", "CA"]].to_numpy()
        even = np.abs(np.diff(cells, n=2)).max(axis=1)  # bends when the six are taken as evenly spaced
        slopes = np.diff(cells) / np.diff(steps)
        assert (np.abs(np.diff(slopes)).max(axis=1) < even / 3).all()
    jumps = np.argmax(np.diff(by_eps(paper, "Table 13").loc[["AA", "CA", "DD", "CD"]]), axis=1)
    assert (jumps[:2] == 1).all() and (jumps[2:] != 1).all()
    assert (np.argmax(np.diff(by_eps(paper, "Table 15", "RAND-ATK")), axis=1) != 1).all()
    steps = gray_levels(EPS["VGG16"], levels=127.5)
    assert steps == [1, 2, 3, 3, 4, 4]
    for table, tolerance in (("Table 7", 0.06), ("Table 8", 0.03)):
        cells = by_eps(paper, table)
        excess = (cells.loc[["AA", "CA"]] - cells.loc["CC"]).to_numpy().round(2)
        equal, unequal = np.abs(np.diff(excess))[:, [2, 4]], np.diff(excess)[:, [0, 1, 3]]
        assert equal.max() <= tolerance + 1e-9 and (unequal.min(axis=1) > equal.max(axis=1)).all()


@pytest.mark.parametrize("kind", ["mated", "non-mated"])
def test_counts_of_table_5_are_cut(paper, kind):
    """Sums and doubles fit numbers that are cut to two digits; rounded ones leave CD at eps 0.015 without room."""
    cells = comparisons(paper, "Table 5", kind)
    for combination in COMBINATIONS:
        row = cells.loc[combination if combination != "CC" else "DD"]
        low = sum(printed_interval(row[name], cut=True)[0] for name in EPS["VGG16"])
        high = sum(printed_interval(row[name], cut=True)[1] for name in EPS["VGG16"])
        assert overlap((low, high), printed_interval(row["All"], cut=True))
    whole = cells.loc["DD"]
    for combination in ("CD", "CA"):
        for name in [*EPS["VGG16"], "All"]:
            double = tuple(2 * end for end in printed_interval(whole[name], cut=True))
            assert overlap(double, printed_interval(cells[name][combination], cut=True))
    double = tuple(2 * end for end in printed_interval(whole["eps 0.015"]))
    assert overlap(double, printed_interval(cells["eps 0.015"]["CD"])) == (kind == "non-mated")


def test_symmetric_combinations_have_the_same_counts(paper):
    for table in ("Table 5", "Table 9", "Table 11", "Table 12"):
        methods = paper[paper["table"] == table]["method"].unique()
        for method in methods:
            for kind in ("mated", "non-mated"):
                cells = comparisons(paper, table, kind, method)
                assert cells.loc["DD"].equals(cells.loc["AA"]) and cells.loc["CD"].equals(cells.loc["CA"])
                apart = cells.columns[cells.loc["CC"] != cells.loc["AA"]]
                assert list(apart) == (["eps 0.015"] if (table, kind) == ("Table 5", "non-mated") else [])
    five = comparisons(paper, "Table 5", "non-mated")["eps 0.015"]
    assert five["CC"] * 1000 == five["AA"]


@pytest.mark.parametrize("table", ["Table 9", "Table 12"])
@pytest.mark.parametrize("method", ["PGD-ATK", "FGSM-variable"])
def test_two_orders_give_twice_the_pairs(paper, table, method):
    for kind in ("mated", "non-mated"):
        cells = comparisons(paper, table, kind, method)[""]
        double = tuple(2 * end for end in printed_interval(cells["CC"]))
        cut = tuple(2 * end for end in printed_interval(cells["CC"], cut=True))
        fits = [
            overlap(double, printed_interval(cells["CD"])),
            overlap(cut, printed_interval(cells["CD"], cut=True)),
        ]
        broken = (table, kind) == ("Table 12", "mated")
        assert any(fits) != broken


def test_totals_of_table_11(paper):
    mated, other = (comparisons(paper, "Table 11", kind) for kind in ("mated", "non-mated"))
    one = EPS["ResNet50"][0]
    for cells in (mated, other):
        assert (cells[EPS["ResNet50"]].nunique(axis=1) == 1).all()
        assert overlap(
            tuple(2 * end for end in printed_interval(cells[one]["CC"])), printed_interval(cells[one]["CD"])
        )
    times = pd.DataFrame({"mated": mated["All"] / mated[one], "non-mated": other["All"] / other[one]})
    assert times["mated"]["CC"] == pytest.approx(6, rel=0.01)  # printed as 5e5
    broken = times.drop(index=["CC", "DD", "AA"]).to_numpy().ravel().tolist() + times["non-mated"].tolist()
    np.testing.assert_allclose(broken, 5, rtol=1e-9)


def test_images_behind_the_comparisons(paper):
    """n images have n (n - 1) / 2 pairs: VGG16 with fixed eps was verified on a fraction of its images."""
    pairs = {}
    for table in ("Table 5", "Table 11"):
        cells = sum(comparisons(paper, table, kind).loc["AA"] for kind in ("mated", "non-mated"))
        pairs[table] = cells[EPS["VGG16" if table == "Table 5" else "ResNet50"]]
    number = {table: np.sqrt(2 * counts).round(-2).tolist() for table, counts in pairs.items()}
    assert number == {"Table 5": [1600, 2300, 2800, 3100, 3100, 3100], "Table 11": [12800] * 6}
    fooled = images(paper, "B_Trans", "VGG16")["FGSM-fixed"] / 6
    assert max(number["Table 5"]) < fooled / 5


def test_no_pgd_step_reaches_the_ball(paper):
    text = paper[(paper["table"] == "text") & (paper["method"] == "PGD-ATK")]
    cells = text[text["metric"] != "accuracy"].pivot(index="source", columns="metric", values="value")
    assert (cells["steps"] * cells["step_size"]).tolist() == pytest.approx([0.01, 0.01])
    assert cells["eps"].to_dict() == {"ResNet50": 0.135, "VGG16": 0.035}
    steps = paper[paper["method"] == "PGD-ATK"]["steps"]
    assert (steps == 10).all()


def test_suspicious_cells(paper):
    marked = paper[paper["suspicious"]]
    counts = marked["table"].value_counts().to_dict()
    assert counts == {"Table 1": 1, "Table 5": 1, "Table 6": 2, "Table 11": 7, "Table 12": 4, "text": 1}
    assert (marked["note"] != "").all()
    eleven = marked[marked["table"] == "Table 11"]
    assert eleven["setting"].str.endswith("All").all()
    assert set(zip(eleven["setting"], eleven["target"])) == {("non-mated, All", name) for name in COMBINATIONS} | {
        ("mated, All", "CD"), ("mated, All", "CA"),
    }  # fmt: skip
    twelve = marked[marked["table"] == "Table 12"]
    assert set(zip(twelve["setting"], twelve["target"])) == {("mated", "CD"), ("mated", "CA")}
    six = marked[marked["table"] == "Table 6"]
    assert set(six["method"]) == {"PGD-ATK"} and set(six["setting"]) == {"B_DenTrans"}


def test_units_and_ranges(paper):
    known = paper["metric"].isin(METRICS)
    assert set(paper[~known]["metric"]) == {"epochs", "eps", "step_size", "steps", "probability"}
    assert set(paper[~known]["table"]) == {"text"}
    for row in paper[known].itertuples():
        unit, low, high = METRICS[row.metric]
        assert low <= row.value <= high
        assert row.unit == unit or (row.metric == "count" and row.table in ("Table 1", "Table 2", "text"))
    compared = paper["table"].isin(["Table 5", "Table 9", "Table 11", "Table 12"])
    assert (paper["unit"] == "comparisons").equals(compared)
    assert set(paper["far"][paper["metric"] == "fnmr"]) == {"1e-3"}
    assert (paper["far"][paper["metric"] != "fnmr"] == "").all()
    assert not paper.duplicated(["table", "setting", *CELL, "metric"]).any()


def test_names_of_our_networks(paper):
    gender = {"VGG16": "vgg16-celeba-gender", "ResNet50": "resnet50-celeba-gender", "": ""}
    verification = {"VGG16": "vgg16-vggface2-softmax", "ResNet50": "resnet50-ms1m-arcface"}
    assert set(verification.values()) <= set(RECIPES)
    assert (paper["source"].map(gender) == paper["source_network"]).all()
    verified = paper["target"].isin(COMBINATIONS)
    assert (paper["source"][verified].map(verification) == paper["target_network"][verified]).all()
    assert (paper["target"][~verified] == "").all() and (paper["target_network"][~verified] == "").all()
    assert {"fnmr", "auc_det", "eer", "count"} == set(paper["metric"][verified])
