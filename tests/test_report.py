"""Results with provenance, three-column tables, verdicts, figures with alternative text."""

import json
import re
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest

from fa_utils import report
from fa_utils.report.claims import simultaneous_bounds

SHARED = {
    "chapter": "3_dfanet",
    "table": "Table II",
    "faces": "procedural",
    "networks": "zoo",
    "profile": "smoke",
    "seeds": "0",
    "eps": 10 / 255,
    "steps": 13,
    "device": "cpu",
    "package_version": "0.1.0",
    "commit": "abc",
    "date": "2026-01-01",
    "command": "fa run 3_dfanet",
}


def row(**changes):
    return {
        "source": "a",
        "method": "FIM",
        "target": "b",
        "metric": "hit_rate",
        "value": 50.0,
        "ci_low": 40.0,
        "ci_high": 60.0,
        "n_pairs": 40,
    } | changes


# results ------------------------------------------------------------


def test_results_come_back_as_they_were_written(tmp_path):
    rows = [
        row(),
        row(metric="similarity", value=0.25, ci_low=np.nan, ci_high=np.nan),
        row(target="c", far="1e-3"),
    ]
    path = report.write_results(rows, tmp_path / "run.csv", **SHARED)
    pd.testing.assert_frame_equal(report.read_results(path), report.results_frame(rows, **SHARED))
    assert len(report.read_results(tmp_path, chapter="3_dfanet", table="Table II")) == 3
    assert report.read_results(tmp_path, chapter="other").empty
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_without_results_is_empty(tmp_path):
    assert report.read_results(tmp_path).empty
    assert report.read_results(tmp_path / "missing").empty


@pytest.mark.parametrize(
    "bad, message",
    [
        ({"metric": "hitrate"}, "did you mean 'hit_rate'"),
        ({"value": 101.0, "ci_high": 101.0}, r"outside \[0, 100\] %"),
        ({"value": 30.0}, "not in its interval"),
        ({"value": float("nan")}, "outside"),
        ({"value": "many"}, "not a number"),
        ({"ci_high": np.nan}, "belong together"),
        ({"n_pairs": 0}, "n_pairs"),
        ({"n_pairs": 2.5}, "whole number"),
        ({"hitrate": 1}, "unknown column 'hitrate'"),
    ],
)
def test_bad_rows_are_refused_and_nothing_is_written(tmp_path, bad, message):
    with pytest.raises(ValueError, match=message):
        report.write_results([row(**bad)], tmp_path / "run.csv", **SHARED)
    assert not list(tmp_path.iterdir())


def test_missing_provenance_and_second_rows_are_refused():
    with pytest.raises(ValueError, match="lack the columns commit"):
        report.results_frame([row()], **{key: value for key, value in SHARED.items() if key != "commit"})
    with pytest.raises(ValueError, match="second row"):
        report.results_frame([row(), row()], **SHARED)


def test_a_row_keeps_what_it_says_itself():
    rows = [row(steps=100), row(target="c")]
    assert report.results_frame(rows, **SHARED)["steps"].tolist() == [100, 13]


def test_a_broken_file_is_named(tmp_path):
    path = report.write_results([row()], tmp_path / "run.csv", **SHARED)
    path.write_text(path.read_text().replace("50.0", "500.0"))
    with pytest.raises(ValueError, match=r"run\.csv: row 0 .*outside"):
        report.read_results(path)


def test_provenance_fills_its_columns():
    shared = report.provenance(
        faces="procedural",
        networks="zoo",
        profile="smoke",
        seeds=[0, 1],
        eps=10 / 255,
        steps=13,
        device="cpu",
        command="fa run",
    )
    frame = report.results_frame([row()], chapter="3_dfanet", table="Table II", **shared)
    assert frame["seeds"][0] == "0 1"
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", frame["date"][0])


def test_rows_from_intervals_are_in_percent_where_the_metric_is():
    made = report.result_row("hit_rate", (0.5, 0.4, 0.6), 40, source="a", method="FIM", target="b")
    assert made == row()
    cosine = report.result_row("similarity", (0.5, 0.4, 0.6), 40)
    assert (cosine["value"], cosine["ci_high"]) == (0.5, 0.6)
    assert np.isnan(report.result_row("accuracy", 0.5, 40)["ci_low"])
    with pytest.raises(ValueError, match="hit_rate"):
        report.result_row("hitrate", 0.5, 40)


# tables ------------------------------------------------------------


class Cells(HTMLParser):
    """Texts of the table's cells, row by row, and every attribute seen."""

    def __init__(self, html):
        super().__init__()
        self.rows, self.attributes, self.inside = [], [], False
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        self.attributes.append((tag, dict(attributes)))
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
            self.inside = True

    def handle_endtag(self, tag):
        self.inside = self.inside and tag not in ("td", "th")

    def handle_data(self, data):
        if self.inside:
            self.rows[-1][-1] += " " + data


def live(**changes):
    rows = [
        row(),
        row(metric="similarity", value=0.25, ci_low=0.2, ci_high=0.3),
        row(source="b", target="a", value=10.0, ci_low=4.0, ci_high=20.0),
    ]
    return report.results_frame([values | changes for values in rows], **SHARED)


def test_three_columns_puts_each_number_in_its_place():
    printed = [
        {
            "method": "FIM",
            "source": "a",
            "target": "b",
            "metric": "hit_rate",
            "value": 11.1,
            "suspicious": True,
            "note": "odd <b>",
        },
        {
            "method": "FIM",
            "source": "b",
            "target": "a",
            "metric": "hit_rate",
            "value": 30.9,
            "suspicious": False,
            "note": "fine",
        },
    ]
    table = report.three_columns(
        pd.DataFrame(printed), None, live(), caption="Hits & more", beside="similarity"
    )
    cells = [[text.split() for text in line] for line in Cells(table.html).rows]
    assert cells[0] == [["source"], ["a"], ["b"]]
    assert cells[1] == [["paper"], ["published"], ["live", "40", "pairs"]] * 2
    assert cells[2] == [["FIM"]]
    here = ["50.0", "[40.0,", "60.0]", "0.250"]
    assert cells[3] == [["a"], ["–"], ["–"], ["–"], ["11.1†"], ["–"], here]
    assert cells[4] == [["b"], ["30.9"], ["–"], ["10.0", "[4.0,", "20.0]"], ["–"], ["–"], ["–"]]
    assert "† odd &lt;b&gt;" in table.html and "fine" not in table.html and "Hits &amp; more" in table.html
    assert "11.1† | – | 50.0 [40.0, 60.0]; 0.250" in repr(table)


def test_three_columns_is_announced_to_screen_readers_and_scrolls():
    seen = Cells(report.three_columns(None, live(), None, caption="Hits").html).attributes
    assert all("scope" in attributes for tag, attributes in seen if tag == "th")
    # The theme would put any other output on a light ground in dark mode, and icons into classes "fa-...".
    assert [values["class"].split()[0] for tag, values in seen if tag == "table"] == ["dataframe"]
    assert not any(" fa-" in " " + (values.get("class") or "") for _, values in seen)
    assert any(tag == "caption" for tag, _ in seen)
    assert any(
        attributes.get("role") == "region" and attributes.get("tabindex") == "0"
        for tag, attributes in seen
        if tag == "div"
    )


def test_labels_order_and_intervals():
    table = report.three_columns(None, None, live(), caption="Hits", labels={"a": "WebFace"}, intervals=False)
    assert "WebFace" in table.html and "[40" not in table.html


def test_three_columns_refuses_what_it_cannot_show():
    with pytest.raises(ValueError, match="two rows of hit_rate for method FIM, source a, target b"):
        report.three_columns(None, None, pd.concat([live(), live()]), caption="x")
    with pytest.raises(ValueError, match="did you mean 'similarity'"):
        report.three_columns(None, None, live(), caption="x", metric="similarty")
    with pytest.raises(ValueError, match="no row of metric"):
        report.three_columns(None, None, live(), caption="x", metric="rmsd")
    with pytest.raises(ValueError, match="live lacks the columns target"):
        report.three_columns(None, None, live().drop(columns="target"), caption="x")


@pytest.mark.parametrize(
    "name, methods", [("Table I", 4), ("Table II", 6), ("Table III", 6), ("Table IV", 6)]
)
def test_the_papers_own_tables_fit(name, methods):
    paper = report.paper_table("3-dfanet", name)
    rows = Cells(report.three_columns(paper, None, None, caption=name, digits=2).html).rows
    assert len(rows) == 2 + 5 * methods
    assert [line[0].strip() for line in rows[3:7]] == [
        head.strip() for head in rows[0][1:]
    ]  # same order on both sides
    for k, line in enumerate(rows[3:7]):
        assert line[1 + 3 * k].strip() == "–"  # the diagonal is not printed
    assert rows[-1][4].strip(" \n†") == f"{paper['value'].iloc[-2]:.2f}"


def test_table_five_by_far():
    paper = report.paper_table("3-dfanet", "Table V")
    rows = Cells(
        report.three_columns(paper, None, None, caption="V", index=("source", "method"), columns="far").html
    ).rows
    assert [text.strip() for text in rows[0][1:]] == ["1e-5", "1e-4", "1e-3"]
    assert [rows[3][k].strip() for k in (1, 4, 7)] == ["51.9†", "67.2†", "80.5†"]


def test_plain_table():
    table = report.plain_table(
        pd.DataFrame({"name": ["<x>", "y"], "loss": ["softmax", None], "accuracy": [0.98765, np.nan]}),
        caption="Zoo",
    )
    assert [[text.strip() for text in line] for line in Cells(table.html).rows] == [
        ["name", "loss", "accuracy"],
        ["<x>", "softmax", "0.988"],
        ["y", "–", "–"],
    ]


# claims ------------------------------------------------------------


@pytest.mark.parametrize(
    "low, high, verdict",
    [(0.1, 2, "holds"), (-2, -0.1, "fails"), (-1, 1, "undecided"), (0, 1, "undecided"), (-1, 0, "undecided")],
)
def test_judge(low, high, verdict):
    assert report.judge(low, high) == verdict
    assert report.judge(low + 5, high + 5, bound=5) == verdict


def test_judge_refuses_what_is_no_interval():
    for low, high in ((1, 0), (float("nan"), 1)):
        with pytest.raises(ValueError, match="no interval"):
            report.judge(low, high)


@pytest.mark.parametrize("cells", [1, 2, 12, 36])
def test_fewest_pairs_is_where_the_sign_test_can_first_decide(cells):
    pairs = report.fewest_pairs(cells)
    assert cells * 2.0 ** (1 - pairs) <= 0.05 < cells * 2.0 ** (2 - pairs)


def test_few_pairs_never_decide():
    assert report.claim_mean_difference(100, 100, 100, 5).verdict == "undecided"
    assert report.claim_mean_difference(100, 100, 100, 6).verdict == "holds"


def cells(values, width, n=1000):
    values = np.asarray(values, float)
    return pd.DataFrame(
        {
            "value": values,
            "ci_low": values - width,
            "ci_high": values + width,
            "n_pairs": n,
            "label": [f"c{k}" for k in range(len(values))],
        }
    )


def test_all_positive_needs_every_cell():
    assert report.claim_all_positive(cells([5, 6, 7], 1)).verdict == "holds"
    open_one = report.claim_all_positive(cells([5, 0.5, 7], 1))
    assert open_one.verdict == "undecided" and "c1" in open_one.detail and "3 of 3" in open_one.detail
    failed = report.claim_all_positive(cells([5, 0.5, -7], 1))
    assert failed.verdict == "fails" and failed.effect == -7 and failed.high < 0 and "2 of 3" in failed.detail
    assert report.claim_all_positive(cells([5, 6, 7], 1, n=6)).verdict == "undecided"


def test_one_cell_needs_no_adjustment():
    low, high = simultaneous_bounds(cells([5], 1))
    np.testing.assert_allclose([low[0], high[0]], [4, 6])


def test_more_cells_make_wider_bounds():
    assert report.claim_all_positive(cells([1.1], 1)).verdict == "holds"
    assert report.claim_all_positive(cells([1.1] * 36, 1)).verdict == "undecided"


@pytest.mark.parametrize("joint", [False, True])
def test_simultaneous_bounds_cover_all_cells_together(joint):
    """With 12 cells of true difference 0, some cell is found non-zero in about 5% of the runs, not 46%."""
    rng = np.random.default_rng(0)
    trials, wrong, naive = 400, 0, 0
    for _ in range(trials):
        value = rng.normal(size=12)
        table = cells(value, 1.96)
        replicates = value + rng.normal(size=(500, 12)) if joint else None
        low, high = simultaneous_bounds(table, replicates=replicates)
        wrong += bool(((low > 0) | (high < 0)).any())
        naive += bool((np.abs(value) > 1.96).any())
    assert wrong / trials < 0.09
    assert naive / trials > 0.35


def test_joint_bounds_use_the_correlation_of_the_cells():
    shared = np.random.default_rng(0).normal(size=(4000, 1)) * np.ones((1, 12))
    _, high = simultaneous_bounds(cells([0] * 12, 1.96), replicates=shared)
    np.testing.assert_allclose(high, 1.96, atol=0.1)  # twelve copies of one cell need no adjustment
    with pytest.raises(ValueError, match="12 cells"):
        simultaneous_bounds(cells([0] * 12, 1.96), replicates=shared[:, :5])


def test_all_positive_refuses_bad_cells():
    with pytest.raises(ValueError, match="at least one cell"):
        report.claim_all_positive(cells([], 1))
    with pytest.raises(ValueError, match="not finite"):
        report.claim_all_positive(cells([np.nan], 1))
    with pytest.raises(ValueError, match="ci_low"):
        report.claim_all_positive(cells([1], 1).drop(columns="ci_low"))


def test_claims_as_printed():
    paper = report.paper_table("3-dfanet")
    paper = paper[paper["table"].isin(["Table II", "Table III", "Table IV"])]
    gain = report.method_differences(paper, "DFANet-FIM", "FIM")
    assert report.claim_printed(gain["value"]) == report.Evidence("holds", 7.55, detail="36 of 36 cells")
    best = report.method_differences(paper, "DFANet-DI-M-FIM", "DFANet-M-FIM")
    evidence = report.claim_printed(best["value"], labels=best["label"])
    assert evidence.verdict == "fails" and evidence.effect == pytest.approx(-1.01)
    assert evidence.detail == "34 of 36 cells; not Table II IMDB-Face MS1M, Table II VGGFace2 MS1M"
    assert report.claim_printed([0.0]).verdict == "fails"
    with pytest.raises(ValueError, match="do not share"):
        report.method_differences(paper, "DFANet-FIM", "FFM")


def test_claim_of_parts():
    good, bad, both = (
        report.Evidence("holds", 1.0),
        report.Evidence("fails", -1.0),
        report.Evidence("undecided", 0.0),
    )
    assert report.claim_every({"a": good, "b": both}).verdict == "undecided"
    failed = report.claim_every({"a": good, "b": both, "c": bad})
    assert failed.verdict == "fails" and failed.effect == -1.0 and "shown: c" in failed.detail


def some_claims():
    printed = report.Evidence("fails", -1.01, detail="34 of 36 cells")
    here = report.claim_mean_difference(4.0, 1.0, 7.0, 40)
    return [
        report.Claim(1, "DFANet < everything | else", "Tables II to IV", printed, None, here),
        report.Claim(2, "Two", "Fig. 3", None, here, None),
    ]


def test_verdict_table_says_the_word_not_only_the_color():
    table = report.verdict_table(some_claims())
    rows = [[" ".join(text.split()) for text in line] for line in Cells(table.html).rows]
    assert rows[1][2].startswith("✗ fails -1.01 points") and rows[1][3] == "–"
    assert rows[1][4] == "✓ holds +4.00 points [+1.00, +7.00], n = 40"
    assert "holds (+4.00 points" in repr(table)
    assert len(table.frame) == 3


def test_verdicts_reach_the_landing_page(tmp_path):
    path = report.save_verdicts(
        some_claims(),
        tmp_path / "3_dfanet.json",
        chapter="3_dfanet",
        title="DFANet",
        profile="laptop",
        page="notebooks/3_dfanet",
    )
    assert json.loads(path.read_text())["claims"][0]["printed"]["low"] is None  # valid JSON, no NaN
    assert "NaN" not in path.read_text()
    lines = report.landing_table(tmp_path).splitlines()
    assert (
        lines[2] == "| [DFANet](notebooks/3_dfanet) | 1. DFANet < everything \\| else "
        "| ✗ fails | – | ✓ holds (laptop, n = 40) |"
    )
    assert lines[3] == "|  | 2. Two | – | ✓ holds (n = 40) | – |"
    assert "No chapter" in report.landing_table(tmp_path / "empty")


def test_claims_are_plain_text():
    with pytest.raises(ValueError, match="TeX"):
        report.Claim(1, "falls with $p_d$", "Fig. 3")


# figures ------------------------------------------------------------


def images(n=3, size=8):
    return np.random.default_rng(0).integers(0, 256, (n, 3, size, size), dtype=np.uint8)


FIGURES = {
    "lines": lambda: report.lines(
        {"FIM": ([1, 2], [3, 4]), "DFANet": ([1, 2], [5, 6], [4, 5], [6, 7])},
        x_label="steps",
        y_label="hits (%)",
        x_log=True,
        y_range=(0, 100),
    ),
    "distance": lambda: report.distance_curves(
        {m: {"source": [1.2, 1.0], "target": [1.3, 1.2]} for m in ("FIM", "M-FIM", "DI", "X")}
    ),
    "roc": lambda: report.roc({"LFW": ([0, 0.01, 1], [0.5, 0.9, 1])}),
    "matrix": lambda: report.hit_matrix([[np.nan, 80], [20, np.nan]], sources=["a", "b"], targets=["a", "b"]),
    "strip": lambda: report.image_strip(
        {"source": images(), "adversarial": images()}, captions=[["x"] * 3, [""] * 3]
    ),
}


@pytest.mark.parametrize("name", FIGURES)
def test_figures_are_drawn_once_and_closed(name):
    import matplotlib.pyplot as plt

    fig = FIGURES[name]()
    html = report.show(fig, 'A figure with <lines> & "bands".', caption="c < d")._repr_html_()
    seen = dict(Cells(html).attributes)
    assert seen["img"]["alt"] == 'A figure with <lines> & "bands".'
    assert seen["img"]["src"].startswith("data:image/png;base64,iVBOR")
    assert 100 < int(seen["img"]["width"]) < 1400
    assert not plt.get_fignums()
    if name not in ("strip",):
        plotted = [ax for ax in fig.axes if ax.lines or ax.images]
        assert plotted and all(ax.get_xlabel() and ax.get_ylabel() for ax in plotted)


def test_house_style_does_not_leak():
    import matplotlib

    before = matplotlib.rcParams["axes.grid"]
    report.new_figure()
    assert matplotlib.rcParams["axes.grid"] == before


def test_figures_refuse_bad_input():
    with pytest.raises(ValueError, match="alternative text"):
        report.show(FIGURES["roc"](), "plot")
    with pytest.raises(ValueError, match="float32"):
        report.image_strip({"a": images().astype(np.float32)})
    with pytest.raises(ValueError, match="same number"):
        report.image_strip({"a": images(2), "b": images(3)})
    with pytest.raises(ValueError, match="both axes"):
        report.lines({}, x_label="", y_label="y")
    with pytest.raises(ValueError, match="shape"):
        report.lines({"a": ([1, 2], [1, 2, 3])}, x_label="x", y_label="y")
    with pytest.raises(ValueError, match="belong together"):
        report.lines({"a": ([1, 2], [1, 2], [0, 1], None)}, x_label="x", y_label="y")
    with pytest.raises(ValueError, match="2 sources x 1 targets"):
        report.hit_matrix([[1.0]], sources=["a", "b"], targets=["c"])


# through myst-nb ------------------------------------------------------------


def output(value):
    from nbformat.v4 import new_code_cell, new_output

    data = {"text/html": value._repr_html_(), "text/plain": repr(value)}
    return new_code_cell(
        "show()", outputs=[new_output("execute_result", data=data, execution_count=1)], execution_count=1
    )


def test_outputs_survive_myst_nb(tmp_path):
    """The book renders executed notebooks with myst-nb: tables keep scopes, pictures their alternative
    text."""
    pytest.importorskip("myst_nb")
    import nbformat
    from sphinx.testing.util import SphinxTestApp

    source = tmp_path / "src"
    source.mkdir()
    (source / "conf.py").write_text('extensions = ["myst_nb"]\nnb_execution_mode = "off"\nproject = "x"\n')
    picture = report.show(FIGURES["roc"](), "Curves that rise.")
    table = report.three_columns(None, None, live(), caption="Hits", beside="similarity")
    notebook = nbformat.v4.new_notebook(
        cells=[
            nbformat.v4.new_markdown_cell("# Page"),
            output(picture),
            output(table),
            output(report.verdict_table(some_claims())),
        ]
    )
    notebook["metadata"]["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(notebook, source / "index.ipynb")
    app = SphinxTestApp("html", srcdir=source, builddir=tmp_path / "out")
    try:
        app.build()
        assert not app.statuscode and "WARNING" not in app.warning.getvalue(), app.warning.getvalue()
        html = (app.outdir / "index.html").read_text()
    finally:
        app.cleanup()
    seen = Cells(html).attributes
    assert [values["alt"] for tag, values in seen if tag == "img"] == ["Curves that rise."]
    assert sum(tag == "table" for tag, _ in seen) == 2
    assert all("scope" in values for tag, values in seen if tag == "th")
    assert "✓ holds" in html and "[figure:" not in html


def test_many_parts_are_counted_and_the_failing_ones_named():
    def part(verdict):
        return report.claims.Evidence(verdict, 1.0, 0.5, 1.5, 50)

    few = report.claims.claim_every({"a": part("holds"), "b": part("undecided")})
    assert few.detail == "a: holds; b: undecided; shown: b"
    many = report.claims.claim_every({f"p{i}": part("fails" if i < 5 else "holds") for i in range(9)})
    assert many.verdict == "fails"
    assert many.detail == "of 9 parts 4 hold, 5 fail; fails: p0; p1; p2; p3 and 1 more; shown: p0"


def test_ticks_of_a_logarithmic_axis_are_values_that_keep_apart():
    from fa_utils.report.figures import log_ticks, new_figure

    ax = new_figure()[1][0, 0]
    log_ticks(ax, [27, 27, 28, 81, 83, 201, 243])
    assert [label.get_text() for label in ax.get_xticklabels()] == ["27", "81", "201"]
    assert ax.get_xscale() == "log" and not len(ax.get_xticks(minor=True))


def test_no_discordant_pair_is_no_proof_of_equality():
    few = report.claims.claim_mean_difference(0.0, 0.0, 0.0, 50, bound=-3.0)
    assert few.verdict == "undecided" and few.low == -few.high == pytest.approx(-7.1, abs=0.1)
    many = report.claims.claim_mean_difference(0.0, 0.0, 0.0, 2000, bound=-3.0)
    assert many.verdict == "holds"
