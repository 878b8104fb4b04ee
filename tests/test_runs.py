"""Executing notebooks: fingerprints, the guard, names, the command line."""

import os
import time

import nbformat
import pytest

from fa_utils import cli, runs
from fa_utils.pages import verdicts, zoo_table
from fa_utils.parameters import ParameterError
from fa_utils.paths import ROOT

PARAMETERS = '''profile: str = "laptop"  # how much is run; one of smoke, laptop
eps: float = 10 / 255  # budget; in (0, 1]
audit: bool = True  # controls
label: str = "x"  # text'''
CHECK = "from fa_utils.parameters import check_parameters\n_ = check_parameters(globals())"


def notebook(*sources: str) -> nbformat.NotebookNode:
    cells = [nbformat.v4.new_markdown_cell("# A sample"),
             nbformat.v4.new_code_cell(PARAMETERS, metadata={"tags": ["parameters"]}),
             *map(nbformat.v4.new_code_cell, [CHECK, *sources])]
    return nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": {
        "name": "python3", "display_name": "Python 3", "language": "python"}})


@pytest.fixture
def project(tmp_path):
    """A project of one notebook that runs in a second."""
    (tmp_path / "fa_utils").symlink_to(ROOT / "fa_utils")
    for folder in ("notebooks", "data"):
        (tmp_path / folder).mkdir()
    (tmp_path / "data" / "table.csv").write_text("a\n1\n")
    (tmp_path / "requirements.lock").write_text("numpy==2\n")
    nbformat.write(notebook("print('eps', eps, 'audit', audit)"), tmp_path / "notebooks" / "1_sample.ipynb")
    return tmp_path


def run(project, output="out.ipynb", **parameters):
    return runs.execute(project / "notebooks" / "1_sample.ipynb", project / output, parameters, root=project,
                        progress=False)


def printed(path) -> str:
    cells = nbformat.read(path, as_version=4).cells
    return "".join(output.get("text", "") for cell in cells for output in cell.get("outputs", []))


def test_a_run_shows_its_parameters_and_is_not_repeated(project):
    assert run(project, eps="4/255", audit="false")
    assert printed(project / "out.ipynb") == f"eps {4 / 255} audit False\n"
    written = os.stat(project / "out.ipynb").st_mtime_ns
    assert not run(project, eps=4 / 255, audit=False)
    assert os.stat(project / "out.ipynb").st_mtime_ns == written
    assert [path.name for path in project.glob("*.ipynb")] == ["out.ipynb"]


def _source(project):
    nbformat.write(notebook("print('other')"), project / "notebooks" / "1_sample.ipynb")


def _package(project):
    (project / "fa_utils").unlink()
    (project / "fa_utils").mkdir()
    (project / "fa_utils" / "__init__.py").write_text("")


def _data(project):
    (project / "data" / "table.csv").write_text("a\n2\n")


def _renamed_data(project):
    (project / "data" / "table.csv").rename(project / "data" / "table2.csv")


def _lock(project):
    (project / "requirements.lock").write_text("numpy==3\n")


@pytest.mark.parametrize("change", [_source, _package, _data, _renamed_data, _lock])
def test_a_change_of_anything_a_run_depends_on_makes_it_out_of_date(project, change):
    source = project / "notebooks" / "1_sample.ipynb"
    before = runs.fingerprint(source, {"eps": 0.1}, root=project)
    assert runs.fingerprint(source, {"eps": 0.1}, root=project) == before
    assert runs.fingerprint(source, {"eps": 0.2}, root=project) != before
    change(project)
    assert runs.fingerprint(source, {"eps": 0.1}, root=project) != before


def test_outputs_in_a_source_do_not_count(project):
    source = project / "notebooks" / "1_sample.ipynb"
    before = runs.fingerprint(source, {}, root=project)
    node = nbformat.read(source, as_version=4)
    node.cells[1].outputs = [nbformat.v4.new_output("stream", text="x")]
    node.cells[1].execution_count = 7
    nbformat.write(node, source)
    assert runs.fingerprint(source, {}, root=project) == before


def test_a_failed_run_leaves_the_older_result_and_is_kept_beside_it(project):
    run(project)
    good = (project / "out.ipynb").read_bytes()
    nbformat.write(notebook("1 / 0", "print('never')"), project / "notebooks" / "1_sample.ipynb")
    with pytest.raises(runs.UnfinishedNotebook, match="out.failed.ipynb(.|\n)*ZeroDivisionError"):
        run(project)
    assert (project / "out.ipynb").read_bytes() == good
    assert "ZeroDivisionError" in (project / "out.failed.ipynb").read_text()
    assert not list(project.glob(".*.ipynb"))
    nbformat.write(notebook("print(1)"), project / "notebooks" / "1_sample.ipynb")
    run(project)
    assert not (project / "out.failed.ipynb").exists()


def test_wrong_parameters_stop_a_run_before_it_starts(project):
    with pytest.raises(ParameterError, match="did you mean eps"):
        run(project, epss=1)
    assert not (project / "out.ipynb").exists()


def test_plain_papermill_is_checked_inside_the_notebook(project):
    import papermill

    source = project / "notebooks" / "1_sample.ipynb"
    out = project / "plain.ipynb"
    papermill.execute_notebook(str(source), str(out), {"audit": "false", "eps": "1e-3"}, progress_bar=False)
    assert printed(out) == "eps 0.001 audit False\n"
    with pytest.raises(papermill.PapermillExecutionError, match="unknown parameter epss; did you mean eps"):
        papermill.execute_notebook(str(source), str(out), {"epss": 0.1}, progress_bar=False)


# ----------------------------------------------------------------------------------------------------------- the guard


def finished() -> nbformat.NotebookNode:
    node = notebook("x = 1")
    node.metadata["papermill"] = {"exception": None, "end_time": "2026-01-01T00:00:00"}
    for cell in node.cells:
        cell.metadata["papermill"] = {"status": "completed"}
    return node


def _no_record(node):
    del node.metadata["papermill"]


def _no_end(node):
    node.metadata["papermill"]["end_time"] = None


def _exception(node):
    node.metadata["papermill"]["exception"] = True


def _pending(node):
    node.cells[-1].metadata["papermill"]["status"] = "pending"


def _cell_without_record(node):
    del node.cells[-1].metadata["papermill"]


def _error_output(node):
    node.cells[-1].outputs = [nbformat.v4.new_output("error", ename="E", evalue="e", traceback=[])]


@pytest.mark.parametrize("spoil", [_no_record, _no_end, _exception, _pending, _cell_without_record, _error_output])
def test_the_guard_refuses_what_did_not_run_to_its_end(tmp_path, spoil):
    node = finished()
    nbformat.write(node, tmp_path / "a.ipynb")
    runs.check_finished(tmp_path / "a.ipynb")
    spoil(node)
    nbformat.write(node, tmp_path / "a.ipynb")
    with pytest.raises(runs.UnfinishedNotebook, match="a.ipynb"):
        runs.check_finished(tmp_path / "a.ipynb")


def test_a_damaged_output_is_out_of_date(project):
    run(project)
    (project / "out.ipynb").write_text('{"cells": [')
    assert run(project)


def test_a_failed_notebook_stops_the_book_and_leaves_the_old_one(project):
    (project / "_build" / "html").mkdir(parents=True)
    (project / "_build" / "html" / "index.html").write_text("old")
    (project / "book").mkdir()
    nbformat.write(notebook("raise SystemError('no')"), project / "notebooks" / "1_sample.ipynb")
    with pytest.raises(runs.UnfinishedNotebook):
        runs.build_book("smoke", root=project)
    assert (project / "_build" / "html" / "index.html").read_text() == "old"
    assert not (project / "book" / "notebooks").exists()


# --------------------------------------------------------------------------------------------------------------- names


def test_output_names_tell_the_parameters(tmp_path):
    source = tmp_path / "3_dfanet.ipynb"
    assert runs.output_name(source, {"eps": 0.03, "n_pairs": 100}) == "3_dfanet__eps=0.03__n_pairs=100.ipynb"
    assert runs.output_name(source, {}) == "3_dfanet.ipynb"
    assert runs.output_name(source, {"networks": ["a", "b"]}) == "3_dfanet__networks=a+b.ipynb"


def test_output_names_are_safe_short_and_distinct(tmp_path):
    source = tmp_path / "n.ipynb"
    values = ["/data/lfw", "-data-lfw", "data lfw", "data:lfw", "é", "y" * 300, "y" * 301, "../x"]
    names = [runs.output_name(source, {"faces": value}) for value in values]
    assert len(set(names)) == len(values)
    assert all(len(name.encode()) < 140 and "/" not in name and name.isascii() for name in names)


# -------------------------------------------------------------------------------------------------------- command line


@pytest.fixture
def fa(project, monkeypatch, capfd):
    def call(*words: str) -> tuple[int, str]:
        code = cli.main(list(words))
        told = capfd.readouterr()
        return code, told.out + told.err

    monkeypatch.setattr(cli, "ROOT", project)
    find = runs.find_notebook
    monkeypatch.setattr(runs, "find_notebook", lambda name: find(name, root=project))
    return call


def test_run_takes_papermills_options_in_its_order(fa, project):
    (project / "more.yaml").write_text("eps: 1e-3\naudit: false\nlabel: from-file\n")
    code, told = fa("run", "1_sample", "-f", str(project / "more.yaml"), "-y", "{label: from-text}",
                    "-p", "eps", "4/255", "-r", "label", "1e-3", "--profile", "smoke")
    assert code == 0, told
    (output,) = (project / "runs").glob("*.ipynb")
    assert str(output) in told
    record = nbformat.read(output, as_version=4).metadata["fa_utils"]["parameters"]
    assert record == {"profile": "smoke", "eps": 4 / 255, "audit": False, "label": "1e-3"}
    assert "label=1e-3" in output.name


@pytest.mark.parametrize(("words", "message"), [
    (["run", "1_sampel"], "no notebook 1_sampel (notebooks: 1_sample)"),
    (["run", "1_sample", "-p", "epss", "1"], "did you mean eps"),
    (["run", "1_sample", "-p", "eps", "2"], "float in (0, 1]"),
    (["run", "1_sample", "-r", "eps", "0.1"], "use -p"),
    (["run", "1_sample", "-y", "[1]"], "must hold lines 'name: value'"),
    (["run", "1_sample", "-y", "{a"], "is not YAML"),
    (["run", "1_sample", "-f", "missing.yaml"], "cannot read the parameter file missing.yaml"),
    (["run", "1_sample", "--profile", "huge"], "one of smoke, laptop"),
    (["sweep", "1_sample", "-g", "eps"], "-g eps has no values"),
])
def test_what_makes_no_sense_is_an_error_of_one_line(fa, project, words, message):
    code, told = fa(*words)
    assert code == 2
    assert message in told
    assert told.count("\n") == 1
    assert not (project / "runs").exists()


def test_a_sweep_runs_every_point_and_survives_a_failure(fa, project):
    nbformat.write(notebook("assert eps < 0.3, 'too much'"), project / "notebooks" / "1_sample.ipynb")
    code, told = fa("sweep", "1_sample", "-g", "eps", "0.2", "0.4", "-p", "audit", "false")
    assert code == 1
    assert "too much" in told
    assert {path.name for path in (project / "runs").glob("*.ipynb")} == {
        "1_sample__audit=False__eps=0.2.ipynb", "1_sample__audit=False__eps=0.4.failed.ipynb"}


def test_list_and_results(fa, project, monkeypatch):
    code, told = fa("list")
    assert code == 0
    assert "eps = 0.0392" in told and "float in (0, 1]" in told
    monkeypatch.setattr(cli, "RESULTS", project / "data")
    assert "no results" not in fa("results")[1]
    monkeypatch.setattr(cli, "RESULTS", project / "notebooks")
    assert "no results" in fa("results")[1]


def test_train_hands_its_arguments_on(monkeypatch):
    from fa_utils.models import train

    seen = []
    monkeypatch.setattr(train, "main", lambda arguments: seen.append(arguments) or 0)
    assert cli.main(["train", "ires-webface-softmax", "--epochs", "1"]) == 0
    assert seen == [["ires-webface-softmax", "--epochs", "1"]]


# ------------------------------------------------------------------------------------------------------ computed pages


def test_verdicts_are_read_from_the_executed_notebook(project):
    leave = ("from fa_utils.pages import leave_verdicts\n"
             "leave_verdicts([], chapter='1', title='One', profile=profile, page='notebooks/1_sample.ipynb')")
    nbformat.write(notebook(leave), project / "notebooks" / "1_sample.ipynb")
    run(project)
    (record,) = verdicts(project / "out.ipynb")
    assert (record["chapter"], record["profile"], record["claims"]) == ("1", "laptop", [])
    nbformat.write(notebook(leave, leave), project / "notebooks" / "1_sample.ipynb")
    run(project)
    with pytest.raises(ValueError, match="2 times"):
        verdicts(project / "out.ipynb")


def test_the_zoo_table_shows_percent(tmp_path):
    assert "No network" in zoo_table(tmp_path / "zoo.csv")
    (tmp_path / "zoo.csv").write_text("name,parameters,accuracy,file\nires-a,1234567,0.98765,f\n")
    assert zoo_table(tmp_path / "zoo.csv").splitlines()[-1] == "| `ires-a` | 1,234,567 | 98.77 |"


def test_an_image_takes_its_alternative_text_into_the_book(project):
    draw = ("from IPython.display import Image, display\nimport base64\n"
            "png = base64.b64decode('iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAA"
            "BJRU5ErkJggg==')\ndisplay(Image(data=png, alt='a dot'))")
    nbformat.write(notebook(draw), project / "notebooks" / "1_sample.ipynb")
    run(project)
    cell = nbformat.read(project / "out.ipynb", as_version=4).cells[-1]
    assert cell.metadata["mystnb"]["image"]["alt"] == "a dot"


def test_a_fingerprint_is_quick():
    """The second `make book` takes one for each notebook, over the whole package and all data."""
    notebooks = sorted((ROOT / "notebooks").glob("*.ipynb"))
    started = time.perf_counter()
    for path in notebooks:
        runs.fingerprint(path, {})
    assert time.perf_counter() - started < 5
