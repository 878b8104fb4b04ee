"""Executing notebooks and building the book.

A notebook is executed by papermill into a temporary file, looked over, stamped with a fingerprint of all that it
depends on, and only then put in place. So whatever lies at an output's place ran to its end, and is known to be
current or not without running it. A run that failed stays beside the output, as ``NAME.failed.ipynb``, for reading.
"""

import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

import nbformat
import papermill
from papermill.exceptions import PapermillExecutionError

from fa_utils import __version__
from fa_utils.pages import write_pages
from fa_utils.parameters import ParameterError, read_parameters, validate
from fa_utils.paths import ROOT

PROFILES = ("smoke", "laptop", "gpu", "paper")
_LONGEST_NAME = 120


class UnfinishedNotebook(RuntimeError):
    """An executed notebook that failed, or did not run to its end."""


# ------------------------------------------------------------------------------------------------- what is up to date


def _digest(paths: Iterable[Path], root: Path) -> str:
    """SHA-256 over the files' names relative to ``root`` and their bytes, in order of name."""
    digest = hashlib.sha256()
    for path in sorted(paths):
        digest.update(f"{path.relative_to(root).as_posix()}\0{path.stat().st_size}\0".encode())
        with open(path, "rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _files(folder: Path, pattern: str = "*") -> list[Path]:
    """The files below ``folder``, hidden ones and compiled ones aside."""
    return [path for path in folder.rglob(pattern) if path.is_file()
            and not any(part.startswith((".", "__pycache__")) for part in path.relative_to(folder).parts)]


def fingerprint(notebook: Path, parameters: Mapping[str, object], *, root: Path = ROOT) -> str:
    """What a run depends on, as one hexadecimal SHA-256.

    The notebook's source, its parameters, the package, ``data/``, the lock file and the Python version. Outputs and
    cell numbers in the notebook do not count.
    """
    cells = [[cell.cell_type, cell.source, cell.metadata.get("tags", [])]
             for cell in nbformat.read(notebook, as_version=4).cells]
    parts = [cells, dict(sorted(parameters.items())), _digest(_files(root / "fa_utils", "*.py"), root),
             _digest(_files(root / "data"), root),
             _digest([root / "requirements.lock"], root), platform.python_version()]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def check_finished(notebook: Path) -> None:
    """Refuse an executed notebook that did not run to its end without an error.

    Raises
    ------
    UnfinishedNotebook
        papermill's record is missing, has an exception or no end time; a code cell is not completed; an output is
        an error.
    """
    node = nbformat.read(notebook, as_version=4)
    record = node.metadata.get("papermill", {})
    if not record:
        raise UnfinishedNotebook(f"{notebook} was not executed by papermill")
    if record.get("exception"):
        raise UnfinishedNotebook(f"{notebook} failed")
    if not record.get("end_time"):
        raise UnfinishedNotebook(f"{notebook} did not run to its end: papermill's record has no end time")
    for number, cell in enumerate(node.cells, start=1):
        if cell.cell_type != "code":
            continue
        status = cell.metadata.get("papermill", {}).get("status", "missing")
        if status != "completed":
            raise UnfinishedNotebook(f"{notebook}: cell {number} is not completed (its status is {status})")
        if any(output.output_type == "error" for output in cell.outputs):
            raise UnfinishedNotebook(f"{notebook}: cell {number} ended with an error")


def is_current(output: Path, expected: str) -> bool:
    """Whether ``output`` is a finished run with the fingerprint ``expected``."""
    if not output.exists():
        return False
    try:
        check_finished(output)
    except (UnfinishedNotebook, ValueError, nbformat.ValidationError):
        return False
    return nbformat.read(output, as_version=4).metadata.get("fa_utils", {}).get("fingerprint") == expected


# ------------------------------------------------------------------------------------------------------- one notebook


def find_notebook(name: str, *, root: Path = ROOT) -> Path:
    """The notebook called ``name``: a path, or a file of ``notebooks/`` with or without its ending."""
    for path in (Path(name), root / "notebooks" / name, root / "notebooks" / f"{name}.ipynb"):
        if path.suffix == ".ipynb" and path.is_file():
            return path
    known = ", ".join(sorted(path.stem for path in (root / "notebooks").glob("*.ipynb"))) or "none"
    raise ParameterError(f"no notebook {name} (notebooks: {known})")


def output_name(notebook: Path, parameters: Mapping[str, object]) -> str:
    """A file name that tells the parameters, in characters safe everywhere; its tail hashed where it grows long."""
    told = [f"{name}={_word(value)}" for name, value in parameters.items()]
    name = "__".join([notebook.stem, *told])
    if len(name) > _LONGEST_NAME:
        tail = hashlib.sha256(json.dumps(dict(parameters), sort_keys=True).encode()).hexdigest()[:12]
        name = f"{name[:_LONGEST_NAME - 14]}__{tail}"
    return f"{name}.ipynb"


def _word(value) -> str:
    text = "+".join(map(str, value)) if isinstance(value, list) else str(value)
    safe = re.sub(r"[^A-Za-z0-9._+-]+", "-", text)
    # What was replaced must not make two values share a file.
    return safe if safe == text else f"{safe}~{hashlib.sha256(text.encode()).hexdigest()[:6]}"


def execute(notebook: Path, output: Path, parameters: Mapping[str, object] | None = None, *,
            root: Path = ROOT, progress: bool = True) -> bool:
    """Run ``notebook`` with ``parameters`` into ``output``, unless that is current already.

    Parameters
    ----------
    notebook, output : Path
        Source and result.
    parameters : mapping, optional
        Values by name; checked, and converted to the declared types, before anything runs.
    progress : bool
        Show papermill's bar over the cells, and what the notebook writes to its standard error (its own bars).

    Returns
    -------
    bool
        Whether it ran.

    Raises
    ------
    ParameterError
        See :func:`fa_utils.parameters.validate`.
    UnfinishedNotebook
        A cell failed. An older result at ``output`` is left as it was.
    """
    parameters = validate(read_parameters(notebook), parameters or {})
    expected = fingerprint(notebook, parameters, root=root)
    if is_current(output, expected):
        return False
    output.parent.mkdir(parents=True, exist_ok=True)
    running = output.with_name(f".{output.stem}.{os.getpid()}.running.ipynb")
    failed = output.with_name(f"{output.stem}.failed.ipynb")
    try:
        papermill.execute_notebook(
            str(notebook), str(running), parameters=parameters, kernel_name="python3",
            language="python", cwd=str(root),
            progress_bar=progress, stderr_file=sys.stderr if progress else None)
        check_finished(running)
        _stamp(running, expected, parameters)
        os.replace(running, output)
    except (PapermillExecutionError, UnfinishedNotebook) as error:
        os.replace(running, failed)
        raise UnfinishedNotebook(f"{notebook.name} failed; the run is kept in {failed}\n{error}") from None
    finally:
        running.unlink(missing_ok=True)
    failed.unlink(missing_ok=True)
    return True


def _stamp(executed: Path, expected: str, parameters: Mapping[str, object]) -> None:
    node = nbformat.read(executed, as_version=4)
    node.metadata["fa_utils"] = {"fingerprint": expected, "parameters": dict(parameters), "version": __version__}
    for cell in node.cells:
        _describe_pictures(cell)
    nbformat.write(node, executed)


def _describe_pictures(cell) -> None:
    """Hand a picture's alternative text (``IPython.display.Image(alt=...)``) to where the book looks for it."""
    told = [kind["alt"] for output in cell.get("outputs", []) for kind in output.get("metadata", {}).values()
            if isinstance(kind, dict) and kind.get("alt")]
    if told:
        cell.metadata.setdefault("mystnb", {}).setdefault("image", {})["alt"] = "; ".join(dict.fromkeys(told))


def run_one(spec: Mapping) -> dict:
    """Run one point of a sweep: ``{notebook, output, parameters}`` in, a record out. Never raises."""
    started = time.perf_counter()
    record = {**spec["parameters"], "output": str(spec["output"]), "status": "ran", "error": ""}
    try:
        if not execute(Path(spec["notebook"]), Path(spec["output"]), spec["parameters"], progress=False):
            record["status"] = "current"
    except Exception as error:  # one failed point must not end the sweep
        record.update(status="failed", error=str(error).strip().splitlines()[-1] if str(error) else repr(error))
    record["seconds"] = round(time.perf_counter() - started, 1)
    return record


# ----------------------------------------------------------------------------------------------------------- the book


def execute_all(profile: str, *, root: Path = ROOT) -> list[Path]:
    """Run every notebook of ``notebooks/`` at a profile into ``_build/executed/PROFILE``; stop at the first failure."""
    if profile not in PROFILES:
        raise ParameterError(f"unknown profile {profile!r} (profiles: {', '.join(PROFILES)})")
    notebooks = sorted((root / "notebooks").glob("*.ipynb"))
    executed = []
    for number, notebook in enumerate(notebooks, start=1):
        output = root / "_build" / "executed" / profile / notebook.name
        print(f"[{number}/{len(notebooks)}] {notebook.name} at profile {profile}", flush=True)
        started = time.perf_counter()
        parameters = {"profile": profile} if "profile" in read_parameters(notebook) else {}
        ran = execute(notebook, output, parameters, root=root)
        print(f"    {'executed in %.0f s' % (time.perf_counter() - started) if ran else 'unchanged'}", flush=True)
        executed.append(output)
    return executed


def _lay_out(executed: list[Path], book: Path) -> None:
    """Make ``book/notebooks`` hold the executed notebooks and nothing else."""
    folder = book / "notebooks"
    folder.mkdir(exist_ok=True)
    for stale in set(folder.iterdir()) - {folder / path.name for path in executed}:
        shutil.rmtree(stale) if stale.is_dir() else stale.unlink()
    for path in executed:
        check_finished(path)
        if not (folder / path.name).exists() or (folder / path.name).read_bytes() != path.read_bytes():
            shutil.copyfile(path, folder / path.name)


def build_book(profile: str = "laptop", *, root: Path = ROOT) -> Path:
    """Execute every notebook, then build ``_build/html`` with warnings as errors; both only where out of date.

    Returns
    -------
    Path
        The landing page.

    Raises
    ------
    UnfinishedNotebook
        A notebook failed: the book is not built, and an older one stays as it was.
    RuntimeError
        The build has warnings or errors; they were printed.
    """
    book, html = root / "book", root / "_build" / "html"
    executed = execute_all(profile, root=root)
    _lay_out(executed, book)
    write_pages(executed, book, root / "data" / "weights" / "zoo.csv")
    stamp = root / "_build" / "html.sha256"
    expected = _digest([root / "_config.yml", root / "requirements.lock", *_files(book)], root)
    page = html / "index.html"
    if page.exists() and stamp.exists() and stamp.read_text() == expected:
        print(f"The book is up to date: {page}")
        return page
    # Sphinx forgets the warnings of pages that it does not read again, so an incremental build after a failed one
    # would be green. Always building from nothing also leaves no page of a notebook that is gone.
    stamp.unlink(missing_ok=True)
    for folder in (html, root / "_build" / ".doctrees"):
        shutil.rmtree(folder, ignore_errors=True)
    command = [sys.executable, "-c", "from jupyter_book.cli.main import main; main()", "build", str(book), "--config", str(root / "_config.yml"),
               "--toc", str(book / "_toc.yml"), "--path-output", str(root), "-W", "-n", "--keep-going"]
    if subprocess.run(command, cwd=root, stdin=subprocess.DEVNULL).returncode != 0 or not page.exists():
        shutil.rmtree(html, ignore_errors=True)
        raise RuntimeError("the book was not built: see the warnings above (each of them is an error)")
    stamp.write_text(expected)
    print(f"The book is at {page}")
    return page
