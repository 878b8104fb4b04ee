"""The numbers of data/paper_tables against figures that were computed from the paper on their own (shared
sheet, section 5)."""

import numpy as np
import pytest

from fa_utils.report import METRICS, method_differences, paper_table

SIX = ["FIM", "DFANet-FIM", "M-FIM", "DFANet-M-FIM", "DI-M-FIM", "DFANet-DI-M-FIM"]


@pytest.fixture(scope="module")
def paper():
    return paper_table("3-dfanet")


@pytest.fixture(scope="module")
def transfer(paper):
    return paper[paper["table"].isin(["Table II", "Table III", "Table IV"])]


@pytest.mark.parametrize(
    "table, means",
    [
        ("Table II", [27.8, 63.5, 39.1, 85.2, 78.7, 88.3]),
        ("Table III", [24.2, 64.4, 39.2, 85.5, 85.6, 90.7]),
        ("Table IV", [18.9, 48.1, 37.1, 70.3, 81.9, 88.5]),
    ],
)
def test_row_means(paper, table, means):
    cells = paper[paper["table"] == table]
    # the sheet rounds half up (37.05 -> 37.1), so compare to half a unit of its last digit
    found = [cells[cells["method"] == method]["value"].mean() for method in SIX]
    np.testing.assert_allclose(found, means, atol=0.05 + 1e-6)


@pytest.mark.parametrize(
    "table, methods",
    [("Table I", ["FTGSM", "ITGSM", "FFM", "FIM"]), ("Table II", SIX), ("Table III", SIX), ("Table IV", SIX)],
)
def test_twelve_cells_off_the_diagonal(paper, table, methods):
    cells = paper[paper["table"] == table]
    assert list(cells["method"].unique()) == methods
    for _, group in cells.groupby("method"):
        names = set(group["source"])
        assert len(group) == 12 and len(names) == 4 and set(group["target"]) == names
        assert (group["source"] != group["target"]).all()
        assert not group.duplicated(["source", "target"]).any()


@pytest.mark.parametrize("base, gain", [("FIM", 7.55), ("M-FIM", 14.26), ("DI-M-FIM", 0.51)])
def test_smallest_gain_of_dfanet(transfer, base, gain):
    differences = method_differences(transfer, f"DFANet-{base}", base)
    assert len(differences) == 36
    assert differences["value"].min() == pytest.approx(gain)


@pytest.mark.parametrize("better, worse, gain", [("DI-M-FIM", "M-FIM", 21.54), ("M-FIM", "FIM", 0.62)])
def test_smallest_gain_of_inputs_and_momentum(transfer, better, worse, gain):
    assert method_differences(transfer, better, worse)["value"].min() == pytest.approx(gain)


def test_cells_where_dfanet_di_m_fim_is_not_best(transfer):
    best = transfer.loc[transfer.groupby(["table", "source", "target"])["value"].idxmax()]
    false = best[best["method"] != "DFANet-DI-M-FIM"]
    assert set(zip(false["table"], false["source"], false["target"], false["method"], false["value"])) == {
        ("Table II", "IMDB-Face", "MS1M", "DFANet-M-FIM", 85.31),
        ("Table II", "VGGFace2", "MS1M", "DFANet-M-FIM", 87.30),
    }


def test_feature_level_against_label_level_and_iterative_against_fast(paper):
    one = paper[paper["table"] == "Table I"]
    assert (method_differences(one, "FFM", "FTGSM")["value"] > 0).all()
    assert (method_differences(one, "FIM", "ITGSM")["value"] > 0).all()

    def worse(first, second):
        differences = method_differences(one, first, second)
        return {(row.source, row.target) for row in differences.itertuples() if row.value < 0}

    assert worse("FIM", "FFM") == {("WebFace", "VGGFace2"), ("WebFace", "MS1M")}
    assert worse("ITGSM", "FTGSM") == {("WebFace", "MS1M"), ("IMDB-Face", "MS1M")}
    assert (method_differences(one, "ITGSM", "FFM")["value"] > 0).sum() == 6


def test_table_one_and_two_share_the_row_of_fim(paper):
    rows = [
        paper[(paper["table"] == table) & (paper["method"] == "FIM")]["value"].tolist()
        for table in ("Table I", "Table II")
    ]
    assert rows[0] == rows[1]


def test_table_five(paper):
    five = paper[paper["table"] == "Table V"]
    values = [group["value"].tolist() for _, group in five.groupby(["source", "method"], sort=False)]
    assert values == [
        [51.90, 67.20, 80.50], [56.70, 69.80, 83.80], [67.19, 76.99, 86.49],
        [71.29, 80.50, 88.30], [68.50, 76.29, 83.59], [73.70, 81.69, 88.40],
    ]  # fmt: skip
    assert list(five["far"][:3]) == ["1e-5", "1e-4", "1e-3"]
    gains = method_differences(five, "DFANet-E-DI-M-FIM", "E-DI-M-FIM", by=("source", "far"))["value"]
    assert (round(gains.min(), 2), round(gains.max(), 2)) == (1.81, 5.4)


def test_table_six(paper):
    six = paper[paper["table"] == "Table VI"].pivot(index="method", columns="target", values="value")
    assert len(six) == 14
    assert six["LFW"].min() == 96.95
    models = six.drop(["JPEG Encoding", "Gaussian Blur", "Adversarial Training"])["TALFW"]
    assert models.min() == 50.77 and models.max() == 73.90
    defended = six.loc[["No Defense", "JPEG Encoding", "Gaussian Blur", "Adversarial Training"]]
    assert defended["TALFW"].tolist() == [54.15, 73.93, 77.95, 82.17]
    assert defended["LFW"].tolist() == [99.78, 99.55, 99.57, 99.62]


def test_appendix_tables_agree_with_themselves(paper):
    two = paper[paper["table"] == "Table A2"]
    assert len(two) == 24
    assert (
        two.groupby(["source", "target"])["value"].nunique() == 1
    ).all()  # the ResNet-50 row is printed three times
    one = paper[(paper["table"] == "Table A1")].pivot(index="source", columns="metric", values="value")
    assert one["identities"].to_dict() == {
        "CASIA-WebFace": 10575,
        "IMDb-Face": 51348,
        "VGGFace2": 9131,
        "MS-Celeb-1M": 84164,
    }
    assert one["images"].to_dict() == {
        "CASIA-WebFace": 0.49,
        "IMDb-Face": 1.4,
        "VGGFace2": 3.3,
        "MS-Celeb-1M": 3.8,
    }


def on_grid(percent: float, pairs: int) -> bool:
    """Is a percentage with two decimals possible as hits out of so many pairs?"""
    hits = round(percent * pairs / 100)
    return f"{100 * hits / pairs:.2f}" == f"{percent:.2f}"


def test_suspicious_rows_are_those_on_the_grid_of_2100_pairs(paper):
    tables = paper[paper["table"].isin(["Table I", "Table II", "Table III", "Table IV"])]
    for (table, method), group in tables.groupby(["table", "method"]):
        hits = sum(on_grid(value, 2100) for value in group["value"])
        if group["suspicious"].all():
            assert hits == 12, (table, method)
        else:
            assert hits <= 5 and not group["suspicious"].any(), (table, method)
    flagged = tables[tables["suspicious"]]
    assert set(zip(flagged["table"], flagged["method"])) == {
        ("Table I", "FIM"), ("Table II", "FIM"), ("Table II", "M-FIM"), ("Table II", "DFANet-DI-M-FIM"),
    }  # fmt: skip
    assert flagged["note"].str.contains("2100").all()


def test_table_five_is_on_the_grid_of_1000_pairs(paper):
    hundredths = (paper[paper["table"] == "Table V"]["value"] * 100).round().astype(int)
    assert set(hundredths % 10) <= {0, 9}


def test_units_and_ranges(paper):
    for row in paper[paper["metric"].isin(METRICS) & (paper["table"] != "text")].itertuples():
        unit, low, high = METRICS[row.metric]
        assert row.unit == unit and low <= row.value <= high
    assert (paper[paper["suspicious"]]["note"] != "").all()


def test_names_of_our_networks():
    shown = paper_table("3-dfanet", "Table IV", networks=True)
    names = {
        "ires-webface-softmax",
        "irse-webface-softmax",
        "mobile-webface-softmax",
        "incres-webface-softmax",
    }
    assert set(shown["source"]) == names and set(shown["target"]) == names
    assert paper_table("3-dfanet", "Table IV")["source"].iloc[0] == "ResNet-50"


def test_unknown_names_are_answered_with_the_nearest():
    with pytest.raises(ValueError, match="did you mean '3-dfanet'"):
        paper_table("3-dfanets")
    with pytest.raises(ValueError, match="did you mean 'Table VI'"):
        paper_table("3-dfanet", "Tabel VI")
