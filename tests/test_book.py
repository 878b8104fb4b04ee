"""The book as a reader meets it: every page in a headless Chromium, from the disk, at two widths."""

import json
import os
import shutil
import time
from pathlib import Path

import nbformat
import pytest
from browser import CHROMIUM, Browser

from fa_utils import runs
from fa_utils.paths import ROOT

DESKTOP, PHONE = 1280, 390


@pytest.fixture(scope="session")
def browser():
    if CHROMIUM is None:
        message = "no Chromium: apt-get install chromium"
        pytest.fail(message) if os.environ.get("CI") else pytest.skip(message)
    with Browser() as browser:
        yield browser


def problems(visit) -> list[str]:
    """All that a page must not have, in words."""
    look = visit.look
    found = [f"console: {error}" for error in visit.errors]
    found += [f"failed request: {failure}" for failure in visit.failed]
    found += [f"remote request: {url}" for url in visit.remote]
    found += [f"raw TeX: {text}" for text in look["tex"]]
    found += [f"{look['unset']} formulas not set"] * (look["unset"] > 0)
    found += [f"TeX error: {text}" for text in look["wrong"]]
    found += [f"overflows by {look['overflow']} px"] * (look["overflow"] > 0)
    found += [f"wider than the page: {name}" for name in look["wide"]]
    for image in look["images"]:
        # Where a page gives no text, Sphinx writes the file's name.
        if not image["alt"].strip() or image["alt"].endswith((".png", ".jpg", ".jpeg", ".svg", ".gif")):
            found.append(f"no alternative text: {image['src']}")
        if not image["shown"]:
            found.append(f"broken image: {image['src']}")
    return found


# ------------------------------------------------------------------------------------------------- the test is a test

GOOD = "<h1>Fine</h1><p>Prices are 3 $, code is <code>$x$</code>.</p><div style='overflow-x:auto'><pre>" + "x" * 999
BAD = {
    "console": "<script>console.error('oh')</script>",
    "console:": "<script>undefinedFunction()</script>",
    "failed request": "<img src='missing.png' alt='a picture'>",
    "remote request": "<img src='https://example.invalid/a.png' alt='a picture'>",
    "raw TeX: $x^2$": "<p>and $x^2$ is</p>",
    "raw TeX": "<p>\\(x\\)</p>",
    "formulas not set": "<span class='math'>x</span>",
    "overflows by": "<div style='width:2000px'>wide</div>",
    "wider than the page": "<table><tr><td><div style='width:2000px'>wide</div></td></tr></table>",
    "no alternative text": "<img src='data:image/gif;base64,R0lGODlhAQABAAAAACw=' alt='x.png'>",
    "broken image": "<img src='data:image/gif;base64,AAAA' alt='a picture'>",
}


def _page(folder: Path, body: str) -> Path:
    page = folder / "page.html"
    page.write_text(f"<!doctype html><meta charset=utf-8><meta name=viewport content='width=device-width'>"
                    f"<link rel=icon href='data:,'><article>{body}</article>")
    return page


def test_a_page_without_faults_has_no_problems(browser, tmp_path):
    assert problems(browser.open(_page(tmp_path, GOOD), width=PHONE)) == []


@pytest.mark.parametrize("fault", BAD)
def test_every_kind_of_fault_is_found(browser, tmp_path, fault):
    found = problems(browser.open(_page(tmp_path, BAD[fault]), width=PHONE))
    assert any(fault in problem for problem in found), found


# ------------------------------------------------------------------------------------------------------- a sample book

SAMPLE = {
    "intro.md": "# Sample\n\nText with $x^2$ and {cite}`sample`, [a chapter](notebooks/1_sample.ipynb).\n\n"
                "$$\\operatorname{sign}(\\nabla_x L) + " + " + ".join(f"a_{{{i}}}" for i in range(60)) + "$$\n\n"
                "| " + " | ".join(f"heading{i}" for i in range(20)) + " |\n|" + "---|" * 20 + "\n|"
                + " cell |" * 20 + "\n\n```{include} _generated/verdicts.md\n```\n\n```{bibliography}\n```\n",
    "references.bib": "@misc{sample, author={A. Author}, title={A title}, year={2020}, howpublished={A place}}\n",
    "_toc.yml": "format: jb-book\nroot: intro\nchapters:\n  - file: notebooks/1_sample\n",
}
CELLS = (
    'profile: str = "laptop"  # how much; one of smoke, laptop',
    "from fa_utils.parameters import check_parameters\n_ = check_parameters(globals())",
    "import pandas as pd\npd.DataFrame([[1.5] * 30], columns=[f'column {i}' for i in range(30)])",
    "import base64\nfrom IPython.display import Image\nImage(data=base64.b64decode('iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYA"
    "AAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=='), alt='a red dot')",
    "import sys\nprint('progress', 10 + 7, file=sys.stderr)",
    "from fa_utils.pages import leave_verdicts\n"
    "leave_verdicts([], chapter='1_sample', title='Sample', profile=profile, page='notebooks/1_sample.ipynb')",
)


def _sample(folder: Path) -> Path:
    for name in ("fa_utils", "_config.yml", "requirements.lock"):
        (folder / name).symlink_to(ROOT / name)
    for name in ("data", "notebooks", "book"):
        (folder / name).mkdir()
    for name in ("_static", "_vendor"):
        shutil.copytree(ROOT / "book" / name, folder / "book" / name)
    for name, text in SAMPLE.items():
        (folder / "book" / name).write_text(text)
    node = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell("# A chapter\n\nWith $\\epsilon$."),
                                           *map(nbformat.v4.new_code_cell, CELLS)])
    node.cells[1].metadata["tags"] = ["parameters"]
    nbformat.write(node, folder / "notebooks" / "1_sample.ipynb")
    return folder


@pytest.fixture(scope="session")
def sample(tmp_path_factory):
    folder = _sample(tmp_path_factory.mktemp("sample"))
    runs.build_book("smoke", root=folder)
    return folder


def test_the_sample_book_is_fine(browser, sample):
    assert _problems_of(browser, sample / "_build" / "html", ["intro.html", "notebooks/1_sample.html"]) == []
    assert "as printed" in (sample / "_build" / "html" / "intro.html").read_text()  # the table of the verdicts
    assert "progress 17" not in (sample / "_build" / "html" / "notebooks" / "1_sample.html").read_text()
    assert "progress 17" in (sample / "_build" / "executed" / "smoke" / "1_sample.ipynb").read_text()
    assert "url=intro.html" in (sample / "_build" / "html" / "index.html").read_text()


def test_a_second_build_does_nothing(sample, capfd):
    page = sample / "_build" / "html" / "index.html"
    executed = sample / "_build" / "executed" / "smoke" / "1_sample.ipynb"
    before = page.stat().st_mtime_ns, executed.stat().st_mtime_ns
    started = time.perf_counter()
    assert runs.build_book("smoke", root=sample) == page
    assert time.perf_counter() - started < 30
    assert (page.stat().st_mtime_ns, executed.stat().st_mtime_ns) == before
    told = capfd.readouterr().out
    assert "unchanged" in told and "up to date" in told and str(page) in told


def test_a_warning_fails_the_build_and_the_next_build_too(tmp_path, capfd):
    folder = _sample(tmp_path)
    intro = folder / "book" / "intro.md"
    good = intro.read_text()
    intro.write_text(good + "\n[nowhere](missing.md)\n")
    for _ in range(2):
        with pytest.raises(RuntimeError, match="was not built"):
            runs.build_book("smoke", root=folder)
        assert "missing" in "".join(capfd.readouterr())
        assert not (folder / "_build" / "html").exists()


# --------------------------------------------------------------------------------------------------------- this book


@pytest.fixture(scope="session")
def book():
    """The whole book with every notebook executed at the profile smoke, apart from the reader's own build."""
    root = ROOT / "_build" / "smoke"
    root.mkdir(parents=True, exist_ok=True)
    for name in ("fa_utils", "_config.yml", "requirements.lock", "data", "notebooks"):
        if not (root / name).is_symlink():
            (root / name).symlink_to(ROOT / name)
    shutil.rmtree(root / "book", ignore_errors=True)
    shutil.copytree(ROOT / "book", root / "book", ignore=shutil.ignore_patterns("notebooks", "_generated"))
    return runs.build_book("smoke", root=root).parent


def _pages(html: Path) -> list[str]:
    return sorted(path.relative_to(html).as_posix() for path in html.rglob("*.html")
                  if path.relative_to(html).parts[0] not in ("_static", "_sources", "index.html"))  # it only leads on


def _problems_of(browser, html: Path, pages: list[str]) -> list[str]:
    return [f"{page} at {width} px{' dark' * dark}: {problem}" for page in pages
            for width, dark in ((DESKTOP, False), (PHONE, False), (PHONE, True))
            for problem in problems(browser.open(html / page, width=width, dark=dark))]


def test_every_notebook_is_in_the_book(book):
    sources = {path.stem for path in (ROOT / "notebooks").glob("*.ipynb")}
    assert "3_dfanet" in sources
    assert {path.stem for path in (book / "notebooks").glob("*.html")} == sources


def test_every_page_is_fine_on_a_desk_and_on_a_phone(browser, book):
    pages = _pages(book)
    assert len(pages) > 8
    assert _problems_of(browser, book, pages) == []


def test_links_inside_the_book_lead_somewhere(browser, book):
    dead = []
    for page in _pages(book):
        for link in browser.open(book / page).look["links"]:
            target = link.partition("#")[0].partition("?")[0]
            if target.startswith("file:") and not Path(target.removeprefix("file://")).exists():
                dead.append(f"{page} -> {link}")
    assert dead == []


def test_launch_buttons_point_at_the_source(browser, book):
    links = browser.open(book / "notebooks" / "3_dfanet.html").look["links"]
    launch = [link for link in links if "mybinder" in link or "colab" in link]
    assert launch
    assert all("notebooks/3_dfanet.ipynb" in link and "book/notebooks" not in link.replace("%2F", "/") for link in launch)
    assert any(link.endswith("_sources/notebooks/3_dfanet.ipynb") for link in links)


def test_search_works_offline(browser, book):
    browser.open(book / "search.html")
    browser.evaluate(f"location.href = {json.dumps((book / 'search.html').as_uri() + '?q=embedding')}")
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        if browser.evaluate("document.readyState === 'complete' && document.querySelectorAll('#search-results li a').length"):
            return
        time.sleep(0.2)
    pytest.fail("a search for 'embedding' finds nothing")


def test_faces_are_not_dimmed_in_the_dark(browser, book):
    look = browser.open(book / "notebooks" / "3_dfanet.html", dark=True).look
    assert browser.evaluate("document.documentElement.dataset.theme") == "dark"
    assert look["images"]
    assert {image["filter"] for image in look["images"]} == {"none"}
