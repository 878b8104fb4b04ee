"""Tidy results with provenance, and the numbers the papers print.

One row is one number. Rows of a run live in memory (live) or in ``data/results/*.csv`` (published); the
papers' own numbers in ``data/paper_tables/*.csv``. Rates are in percent, as the papers print them.
"""

import datetime
import difflib
import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path

import numpy as np
import pandas as pd

from fa_utils.paths import PAPER_TABLES, RESULTS, ROOT

# metric -> (unit, smallest, largest value)
METRICS = {
    "hit_rate": ("%", 0.0, 100.0),
    "hit_rate_difference": ("%", -100.0, 100.0),
    "accuracy": ("%", 0.0, 100.0),
    "accuracy_difference": ("%", -100.0, 100.0),
    "similarity": ("cosine", -1.0, 1.0),
    "similarity_difference": ("cosine", -2.0, 2.0),
    "distance": ("L2", 0.0, 2.0),
    "distance_difference": ("L2", -2.0, 2.0),
    "rmsd": ("gray levels", 0.0, 255.0),
    "threshold": ("cosine", -1.0, 1.0),
    "cost": ("ratio", 0.0, np.inf),
    "loss": ("squared L2", -4.0, 4.0),
    "loss_difference": ("squared L2", -4.0, 4.0),
    "memory": ("MB", 0.0, np.inf),
    "overhead": ("percent", -100.0, np.inf),
    "p_value": ("probability", 0.0, 1.0),
    "eer": ("%", 0.0, 100.0),
    "eer_difference": ("%", -100.0, 100.0),
    "fnmr": ("%", 0.0, 100.0),
    "fnmr_difference": ("%", -100.0, 100.0),
    "fmr": ("%", 0.0, 100.0),
    "auc_det": ("%", 0.0, 100.0),
    "auc_det_difference": ("%", -100.0, 100.0),
    "f1": ("%", 0.0, 100.0),
    "balanced_accuracy": ("%", 0.0, 100.0),
    "balanced_accuracy_difference": ("%", -100.0, 100.0),
    "information": ("nats", -np.inf, np.inf),
    "count": ("comparisons", 0.0, np.inf),
}

CELL = ["chapter", "table", "source", "method", "target", "metric", "far", "x"]
NUMBERS = ["value", "ci_low", "ci_high", "n_pairs"]
PROVENANCE = [
    "faces",
    "networks",
    "profile",
    "seeds",
    "eps",
    "steps",
    "device",
    "package_version",
    "commit",
    "date",
    "command",
]
COLUMNS = CELL + NUMBERS + PROVENANCE

_OPTIONAL = {
    "source": "",
    "method": "",
    "target": "",
    "far": "",
    "x": np.nan,
    "ci_low": np.nan,
    "ci_high": np.nan,
}
_NUMERIC = ["x", "value", "ci_low", "ci_high", "n_pairs", "eps", "steps"]
_KEY = CELL + ["faces", "networks", "profile", "seeds", "eps", "steps"]


def provenance(
    *, faces: str, networks: str, profile: str, seeds, eps: float, steps: int, device, command: str
) -> dict:
    """Columns that say where a number comes from, the same for every row of a run.

    Parameters
    ----------
    faces, networks : name or folder, e.g. ``"procedural"`` or ``"lfw"``; ``"zoo"`` or ``"onnx"``.
    profile : ``"smoke"``, ``"laptop"``, ``"gpu"``, ``"paper"`` or a name of your own.
    seeds : one int or several; several are joined by blanks.
    eps : budget on the scale of [0, 1], e.g. ``10 / 255``.
    steps : iterations.
    device : torch device, or a name of the machine.
    command : the line that repeats the run.
    """
    seeds = " ".join(str(seed) for seed in np.atleast_1d(seeds))
    return {
        "faces": str(faces),
        "networks": str(networks),
        "profile": profile,
        "seeds": seeds,
        "eps": float(eps),
        "steps": int(steps),
        "device": _device_name(device),
        "package_version": _package_version(),
        "commit": _commit(),
        "date": datetime.date.today().isoformat(),
        "command": command,
    }


def result_row(metric: str, interval, n_pairs: int, **cell) -> dict:
    """One row from an interval of ``fa_utils.metrics``.

    Parameters
    ----------
    metric : a name in ``METRICS``. Metrics in percent are scaled from the shares in [0, 1]
        that ``fa_utils.metrics`` uses.
    interval : (estimate, low, high), or one number without an interval.
    n_pairs : image pairs behind it.
    **cell : where it belongs: source, method, target, table, ...
    """
    if metric not in METRICS:
        raise ValueError(unknown("metric", metric, METRICS))
    scale = 100.0 if METRICS[metric][0] == "%" else 1.0
    value, low, high = (
        scale * float(number) for number in (interval if np.ndim(interval) else (interval, np.nan, np.nan))
    )
    return {**cell, "metric": metric, "value": value, "ci_low": low, "ci_high": high, "n_pairs": n_pairs}


def results_frame(rows, **shared) -> pd.DataFrame:
    """Rows (dicts or a frame) plus shared columns as a validated frame with the columns ``COLUMNS``.

    What a row says itself (say ``steps``, where methods differ) is kept; ``shared`` fills the rest.

    Examples
    --------
    >>> results_frame(rows, chapter="3_dfanet", table="Table II", **provenance(...))   # doctest: +SKIP

    Raises
    ------
    ValueError
        For an unknown or missing column, an unknown metric, a value outside the metric's range, an interval
        that does not hold its value, a pair count below 1, or two rows for one cell. The message names the
        row.
    """
    frame = pd.DataFrame(rows)
    for name, value in shared.items():
        frame[name] = frame[name].where(frame[name].notna(), value) if name in frame else value
    _check_columns(frame)
    for column, default in _OPTIONAL.items():
        if column not in frame:
            frame[column] = default
    frame = frame[COLUMNS].reset_index(drop=True)
    for column in _NUMERIC:
        frame[column] = _numeric(frame, column)
    for column in [name for name in COLUMNS if name not in _NUMERIC]:
        frame[column] = frame[column].fillna("").astype(str)
    _check_values(frame)
    _check_unique(frame)
    return frame


def write_results(rows, path, **shared) -> Path:
    """Validate rows and write them as one CSV; the file appears whole or not at all.

    See :func:`results_frame` for ``rows``, ``shared`` and the errors.
    """
    frame = results_frame(rows, **shared)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        frame.to_csv(partial, index=False, lineterminator="\n")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return path


def read_results(source=RESULTS, *, chapter: str | None = None, table: str | None = None) -> pd.DataFrame:
    """Published results: one CSV file, or all of a folder; no file at all gives an empty frame.

    Raises
    ------
    ValueError
        When a file breaks the schema; the message names the file.
    """
    source = Path(source)
    files = sorted(source.glob("*.csv")) if source.is_dir() else [source] if source.exists() else []
    frames = [_read_file(file) for file in files]
    frame = pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=COLUMNS)
    if chapter is not None:
        frame = frame[frame["chapter"] == chapter]
    if table is not None:
        frame = frame[frame["table"] == table]
    return frame.reset_index(drop=True)


def paper_table(
    paper: str, table: str | None = None, *, networks: bool = False, folder=PAPER_TABLES
) -> pd.DataFrame:
    """Numbers printed in a paper, one row a cell (columns: data/paper_tables/README.md).

    Parameters
    ----------
    paper : name of the CSV, e.g. ``"3-dfanet"``.
    table : e.g. ``"Table II"``; everything by default.
    networks : put this project's network names into ``source`` and ``target`` (the rows that have
        a counterpart; the printed names otherwise), so that the rows meet those of a run.

    Raises
    ------
    ValueError
        For an unknown paper or table; the message lists what there is.
    """
    path = Path(folder) / f"{paper}.csv"
    if not path.exists():
        raise ValueError(unknown("paper", paper, sorted(file.stem for file in Path(folder).glob("*.csv"))))
    text = pd.read_csv(path, dtype=str, keep_default_na=False)
    frame = text.assign(value=text["value"].astype(float), steps=pd.to_numeric(text["steps"]))
    frame["suspicious"] = frame["suspicious"].map({"true": True, "false": False}).astype(bool)
    if table is not None:
        if table not in set(frame["table"]):
            raise ValueError(unknown("table", table, list(frame["table"].unique())))
        frame = frame[frame["table"] == table]
    if networks:
        for side in ("source", "target"):
            name = frame[f"{side}_network"]
            frame[side] = name.where(name != "", frame[side])
    return frame.reset_index(drop=True)


def unknown(kind: str, name, known) -> str:
    """Message for a name that does not exist, with the nearest one that does."""
    near = difflib.get_close_matches(str(name), [str(item) for item in known], n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return f"unknown {kind} {name!r}{hint} (known: {', '.join(str(item) for item in known) or 'none'})"


def _read_file(file: Path) -> pd.DataFrame:
    try:
        raw = pd.read_csv(file, dtype=str, keep_default_na=False, na_values={name: [""] for name in _NUMERIC})
        return results_frame(raw)
    except (ValueError, OSError) as error:
        raise ValueError(f"{file}: {error}") from error


def _check_columns(frame: pd.DataFrame) -> None:
    for column in frame.columns:
        if column not in COLUMNS:
            raise ValueError(unknown("column", column, COLUMNS))
    missing = [name for name in COLUMNS if name not in frame and name not in _OPTIONAL]
    if missing:
        raise ValueError(f"results lack the columns {', '.join(missing)}")


def _numeric(frame: pd.DataFrame, column: str) -> pd.Series:
    numbers = pd.to_numeric(frame[column], errors="coerce").astype(float)
    broken = numbers.isna() & frame[column].notna()
    if broken.any():
        raise ValueError(
            f"{_row(frame, broken)}: {column} = {frame[column][broken].iloc[0]!r} is not a number"
        )
    return numbers


def _check_values(frame: pd.DataFrame) -> None:
    for metric in frame["metric"].unique():
        if metric not in METRICS:
            raise ValueError(unknown("metric", metric, METRICS))
    lowest = frame["metric"].map(lambda name: METRICS[name][1])
    highest = frame["metric"].map(lambda name: METRICS[name][2])
    tolerance = 1e-6  # sums of float32 may end a hair outside [-1, 1]
    outside = ~frame["value"].between(lowest - tolerance, highest + tolerance)
    if outside.any():
        row = frame[outside].iloc[0]
        unit, low, high = METRICS[row["metric"]]
        raise ValueError(
            f"{_row(frame, outside)}: {row['metric']} = {row['value']} "
            f"lies outside [{low:g}, {high:g}] {unit}"
        )
    one_sided = frame["ci_low"].isna() != frame["ci_high"].isna()
    if one_sided.any():
        raise ValueError(f"{_row(frame, one_sided)}: ci_low and ci_high belong together, one is missing")
    apart = (frame["ci_low"] > frame["value"] + tolerance) | (frame["ci_high"] < frame["value"] - tolerance)
    if apart.any():
        row = frame[apart].iloc[0]
        raise ValueError(
            f"{_row(frame, apart)}: value {row['value']} is not in its interval "
            f"[{row['ci_low']}, {row['ci_high']}]"
        )
    empty = ~(frame["n_pairs"] >= 1) | (frame["n_pairs"] % 1 != 0)
    if empty.any():
        raise ValueError(
            f"{_row(frame, empty)}: n_pairs = {frame['n_pairs'][empty].iloc[0]} "
            "must be a whole number from 1 on"
        )


def _check_unique(frame: pd.DataFrame) -> None:
    twice = frame.duplicated(_KEY)
    if twice.any():
        raise ValueError(f"{_row(frame, twice)}: a second row for the same cell and run")


def _row(frame: pd.DataFrame, mask) -> str:
    """Name the first row under a mask."""
    row = frame[mask].iloc[0]
    return (
        f"row {frame.index[mask][0]} ("
        + ", ".join(f"{name} {row[name]}" for name in CELL[:6] if name in row)
        + ")"
    )


def _device_name(device) -> str:
    text = str(device)
    if text == "cpu":
        return f"cpu ({platform.machine()}, {os.cpu_count()} cores)"
    if text.startswith("cuda"):
        import torch

        return f"{text} ({torch.cuda.get_device_name(device)})"
    return text


def _package_version() -> str:
    try:
        return metadata.version("fa_utils")
    except metadata.PackageNotFoundError:
        return "not installed"


def _commit() -> str:
    """Short commit of the checkout, with ``+`` when files differ from it; ``unknown`` outside a checkout."""

    def git(*arguments):
        return subprocess.run(
            ["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=True, timeout=20
        ).stdout.strip()

    try:
        return git("rev-parse", "--short=10", "HEAD") + (
            "+" if git("status", "--porcelain", "--untracked-files=no") else ""
        )
    except (OSError, subprocess.SubprocessError):
        return "unknown"
