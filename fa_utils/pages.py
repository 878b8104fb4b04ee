"""The parts of the book's prose pages that are computed: the verdicts of all chapters, the table of the networks.

A chapter leaves its verdicts in its executed notebook (:func:`leave_verdicts`), as an output that shows nothing. So they always belong to the
very run that the book shows, and a run with other parameters elsewhere cannot overwrite them.
"""

import json
import shutil
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import nbformat
import pandas as pd

VERDICTS = "application/vnd.fa-utils.verdicts+json"

# zoo.csv column -> heading and format on the page
_ZOO = {
    "name": ("network", "`{}`"),
    "parameters": ("parameters", "{:,.0f}"),
    "identities": ("identities", "{:,.0f}"),
    "accuracy": ("accuracy, 10 folds (%)", "{:.2f}"),
    "threshold_far_1e-2": ("threshold at FAR 1e-2", "{:.3f}"),
    "threshold_far_1e-3": ("at FAR 1e-3", "{:.3f}"),
    "threshold_far_1e-4": ("at FAR 1e-4", "{:.3f}"),
    "gender_accuracy": ("gender read (%)", "{:.1f}"),
}


def leave_verdicts(claims: Sequence, *, chapter: str, title: str, profile: str, page: str) -> None:
    """Call it once in a notebook, with its judged claims: the landing page of the book will list them.

    The arguments are those of :func:`fa_utils.report.save_verdicts`.
    """
    from IPython.display import display

    from fa_utils.report import save_verdicts

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "verdicts.json"
        save_verdicts(claims, path, chapter=chapter, title=title, profile=profile, page=page)
        display({VERDICTS: json.loads(path.read_text(encoding="utf-8"))}, raw=True)


def write_pages(executed: Iterable[Path], book: Path, zoo: Path) -> None:
    """Write ``book/_generated``: ``verdicts.md`` from the executed notebooks, ``zoo.md`` from the table ``zoo``."""
    from fa_utils.report import landing_table  # brings matplotlib, seconds that no other command should pay

    folder = book / "_generated"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for notebook in executed:
        for record in verdicts(notebook):
            (folder / f"{notebook.stem}.json").write_text(json.dumps(record, ensure_ascii=False), encoding="utf-8")
    (folder / "verdicts.md").write_text(landing_table(folder), encoding="utf-8")
    (folder / "zoo.md").write_text(zoo_table(zoo), encoding="utf-8")


def verdicts(notebook: Path) -> list[dict]:
    """What an executed notebook left for the landing page: no record, or one."""
    records = [output.data[VERDICTS] for cell in nbformat.read(notebook, as_version=4).cells
               for output in cell.get("outputs", []) if VERDICTS in output.get("data", {})]
    if len(records) > 1:
        raise ValueError(f"{notebook.name} leaves verdicts {len(records)} times; once is right")
    return records


def zoo_table(path: Path) -> str:
    """The table of the networks in Markdown; a sentence where none is trained yet."""
    if not path.exists():
        return "No network has been trained yet.\n"
    rows = pd.read_csv(path)
    shown = {name: style for name, style in _ZOO.items() if name in rows}
    lines = ["| " + " | ".join(heading for heading, _ in shown.values()) + " |",
             "|" + "|".join("---" if name == "name" else "--:" for name in shown) + "|"]
    for _, row in rows.iterrows():
        cells = [style.format(_percent(name, row[name])) for name, (_, style) in shown.items()]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _percent(name: str, value):
    return 100 * value if name in ("accuracy", "gender_accuracy") else value
