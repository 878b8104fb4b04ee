"""HTML tables for the book: paper | published | live in one cell, light and dark, scrolling on a phone.

Everything is plain HTML with the theme's own colors, so the tables look the same in Jupyter and in the built
book, and need no script. Each table also has a text form for terminals and for readers of the notebook file.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from html import escape

import numpy as np
import pandas as pd

from fa_utils.report.results import METRICS, unknown

COLUMN_NAMES = ("paper", "published", "live")
DASH = "–"

# Colors come from the theme (pydata-sphinx-theme), with a fallback for Jupyter. Class names must not begin
# with "fa-" (the theme's icon font would put icons into them), and a table must be a "dataframe" (the theme
# puts any other HTML output on a light ground in dark mode).
STYLE = """<style>
.frt-scroll{overflow-x:auto;max-width:100%;margin:1em 0}
.frt-table{border-collapse:collapse;font-size:.85em;font-variant-numeric:tabular-nums;margin:0}
.frt-scroll table.frt-table{width:auto;max-width:none}
.frt-table caption{caption-side:top;text-align:left;color:inherit;padding:.3em 0}
.frt-table th,.frt-table td{padding:.25em .55em;border:0;text-align:right;vertical-align:top}
.frt-table th,.frt-table td{background:none;color:inherit}
.frt-table th{font-weight:600}
.frt-table thead th{border-bottom:1px solid var(--pst-color-border,#8888);vertical-align:bottom}
.frt-table tbody th,.frt-table td.frt-text{text-align:left}
.frt-table tbody th[scope=row]{position:sticky;left:0;font-weight:500;min-width:6.5em}
.frt-table tbody th[scope=row]{background:var(--pst-color-background,Canvas)}
.frt-table tbody th[scope=rowgroup]{border-top:1px solid var(--pst-color-border,#8888);padding-top:.5em}
.frt-table .frt-first{border-left:1px solid var(--pst-color-border,#8888)}
.frt-table .frt-live{background:var(--pst-color-surface,#8881)}
.frt-table .frt-head{text-align:center}
.frt-table small{display:block;font-size:.92em;opacity:.85;white-space:nowrap}
.frt-table td{white-space:nowrap}
.frt-table td.frt-text{white-space:normal;min-width:14em}
.frt-note{font-size:.85em;margin:.3em 0 0}
</style>"""


@dataclass(frozen=True)
class Table:
    """A table to be shown as a cell's output: ``html``, its ``text`` form, and the numbers as a ``frame``."""

    html: str
    text: str
    frame: pd.DataFrame = field(repr=False)

    def _repr_html_(self) -> str:
        return self.html

    def __repr__(self) -> str:
        return self.text


def three_columns(
    paper: pd.DataFrame | None,
    published: pd.DataFrame | None,
    live: pd.DataFrame | None,
    *,
    caption: str,
    index=("method", "source"),
    columns: str = "target",
    metric: str = "hit_rate",
    beside: str | None = None,
    digits: int = 1,
    intervals: bool = True,
    labels: dict | None = None,
    counted: str = "pair",
) -> Table:
    """One table with up to three numbers a cell: what the paper prints, the published run, and this run.

    Parameters
    ----------
    paper : rows of :func:`fa_utils.report.paper_table`. Suspicious cells get a dagger and their reason below
    the table. published, live : tidy results (:func:`fa_utils.report.results_frame`). None or empty: a column
    of dashes. caption : what the table shows; plain text. index : columns that name a row. The last one heads
    each row, those before it head a group of rows. columns : column whose values become the columns of the
    table. metric : the number to show. beside : second metric under the first, such as ``"similarity"``.
    digits : decimals of ``metric``; a cosine always has three. intervals : show confidence intervals of
    published and live numbers. labels : names to show instead of those in the data. counted : what ``n_pairs`` counts,
    in the singular.

    Returns
    -------
    Table
        Rows and columns stand in the order of first appearance, the paper's first. Published and live are
        headed by their pair counts.

    Raises
    ------
    ValueError
        For an unknown metric, a missing column, or two rows for one cell (filter, or lengthen ``index``).
    """
    index = [index] if isinstance(index, str) else list(index)
    for name in [metric] + ([beside] if beside else []):
        if name not in METRICS:
            raise ValueError(unknown("metric", name, METRICS))
    parts = {
        name: _part(frame, name, index, columns)
        for name, frame in zip(COLUMN_NAMES, (paper, published, live))
    }
    cells = {
        name: _cells(frame, name, index, columns, metric, beside, digits, intervals)
        for name, frame in parts.items()
    }
    rows = _in_order(parts.values(), index, metric, beside)
    heads = _heads(parts.values(), columns, rows, metric, beside)
    if not rows:
        raise ValueError(f"no row of metric {metric!r} in paper, published or live")
    titles = {name: _title(name, frame, counted) for name, frame in parts.items()}
    notes = _notes(parts["paper"], metric)

    def show(name):
        return str((labels or {}).get(name, name))

    html = _html(rows, heads, cells, titles, notes, caption, index, columns, show, metric, beside)
    text = _text(rows, heads, cells, titles, notes, caption, show)
    numbers = pd.concat(
        [frame.assign(column=name) for name, frame in parts.items() if len(frame)], ignore_index=True
    )
    return Table(html, text, numbers)


def plain_table(
    frame: pd.DataFrame, *, caption: str, digits: int | dict[str, int] = 3, labels: dict | None = None
) -> Table:
    """Any frame as a table of the book; the first column heads the rows, missing values become dashes.

    ``digits`` after the point hold for all columns, or by column with 3 for the ones that the dictionary leaves out.
    """
    labels = labels or {}
    places = [digits.get(name, 3) if isinstance(digits, dict) else digits for name in frame.columns]
    heads = [str(labels.get(name, name)) for name in frame.columns]
    lines = [[_plain(value, n) for value, n in zip(row, places)] for row in frame.itertuples(index=False)]
    numeric = [pd.api.types.is_numeric_dtype(frame[name]) for name in frame.columns]
    body = "".join(f"<tr>{_plain_row(line, numeric)}</tr>" for line in lines)
    head = "".join(
        f'<th scope="col"{_left(not numeric[k])}>{escape(name)}</th>' for k, name in enumerate(heads)
    )
    html = wrap(f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody>", caption)
    return Table(html, caption + "\n" + grid([heads, *lines]), frame)


def wrap(rows: str, caption: str, after: str = "") -> str:
    """A scrolling table around finished rows; the keyboard can scroll it, a screen reader announces its
    caption."""
    label = escape(caption, quote=True)
    return (
        f'{STYLE}<div class="frt-scroll" role="region" tabindex="0" aria-label="{label}">'
        f'<table class="dataframe frt-table">'
        f"<caption>{escape(caption)}</caption>{rows}</table></div>{after}"
    )


def _left(text: bool) -> str:
    return ' style="text-align:left"' if text else ""


def _part(frame, name, index, columns) -> pd.DataFrame:
    """The frame, or an empty one; with the columns it must have."""
    needed = [*index, columns, "metric", "value"]
    if frame is None or not len(frame):
        return pd.DataFrame(columns=needed)
    missing = [column for column in needed if column not in frame]
    if missing:
        raise ValueError(f"{name} lacks the columns {', '.join(missing)}")
    return frame


def _in_order(frames, names, metric, beside) -> list[tuple]:
    """Distinct combinations of the columns, in order of first appearance; the groups stay together."""
    keys = {}
    for frame in frames:
        wanted = frame[frame["metric"].isin([metric, beside])]
        for key in wanted[names].itertuples(index=False, name=None):
            keys.setdefault(key, len(keys))
    groups = {}
    for key in keys:
        groups.setdefault(key[:-1], len(groups))
    return sorted(keys, key=lambda key: (groups[key[:-1]], keys[key]))


def _heads(frames, columns, rows, metric, beside) -> list:
    """Values of ``columns``: in the order of the rows where both name the same networks (a diagonal without
    cells would put the first network last), otherwise as they appear."""
    heads = [head for (head,) in _in_order(frames, [columns], metric, beside)]
    order = list(dict.fromkeys(row[-1] for row in rows))
    return [name for name in order if name in heads] if set(heads) <= set(order) else heads


def _cells(frame, name, index, columns, metric, beside, digits, intervals) -> dict:
    """(row, column) -> [lines of text] of one of the three columns."""
    cells = {}
    for part, decimals in ((metric, digits), (beside, 3)):
        chosen = frame[frame["metric"] == part]
        twice = chosen.duplicated([*index, columns])
        if twice.any():
            row = chosen[twice].iloc[0]
            cell = ", ".join(f"{key} {row[key]}" for key in [*index, columns])
            raise ValueError(
                f"{name} holds two rows of {part} for {cell}: "
                "filter them, or add what tells them apart to index"
            )
        for row in chosen.to_dict("records"):
            key = (tuple(row[column] for column in index), row[columns])
            decimals_here = 3 if METRICS[part][0] in ("cosine", "L2") else decimals
            mark = "†" if row.get("suspicious") is True else ""
            lines = [f"{row['value']:.{decimals_here}f}{mark}"]
            if intervals and part == metric and np.isfinite(row.get("ci_low", np.nan)):
                lines.append(f"[{row['ci_low']:.{decimals_here}f}, {row['ci_high']:.{decimals_here}f}]")
            cells.setdefault(key, []).append(" ".join(lines))
    return cells


def _title(name, frame, counted) -> str:
    """Column head with its pair count, so that a small run is never taken for the paper's scale."""
    counts = frame["n_pairs"].dropna() if "n_pairs" in frame else frame["value"].iloc[:0]
    if counts.empty:
        return name
    low, high = int(counts.min()), int(counts.max())
    pairs = f"{low}" if low == high else f"{low} to {high}"
    return f"{name}, {pairs} {counted}{'' if high == 1 else 's'}"


def _notes(paper, metric) -> list[str]:
    """Distinct reasons of the suspicious cells."""
    if "suspicious" not in paper:
        return []
    flagged = paper[paper["suspicious"].astype(bool) & (paper["metric"] == metric)]
    return list(dict.fromkeys(part for note in flagged["note"] for part in note.split("; ")))


def _html(rows, heads, cells, titles, notes, caption, index, columns, show, metric, beside) -> str:
    corner = f'<th rowspan="2" scope="col"{_left(True)}>{escape(index[-1])}</th>'
    top = "".join(
        f'<th scope="colgroup" colspan="3" class="frt-first frt-head">{escape(show(head))}</th>'
        for head in heads
    )
    second = "".join(_head(name, titles[name]) for _ in heads for name in COLUMN_NAMES)
    colgroups = "<colgroup></colgroup>" + '<colgroup span="3"></colgroup>' * len(heads)
    body, open_group = [], None
    for row in rows:
        group = row[:-1]
        if group != open_group:
            label = " · ".join(show(name) for name in group)
            title = (
                f'<tr><th scope="rowgroup" colspan="{1 + 3 * len(heads)}">{escape(label)}</th></tr>'
                if group
                else ""
            )
            body.append(("</tbody>" if open_group is not None else "") + "<tbody>" + title)
            open_group = group
        tds = "".join(_cell(name, cells[name].get((row, head))) for head in heads for name in COLUMN_NAMES)
        body.append(f'<tr><th scope="row">{escape(show(row[-1]))}</th>{tds}</tr>')
    body.append("</tbody>")
    unit = METRICS[metric][0]
    legend = f"{_words(metric)} in {unit}" + (
        f"; below it {_words(beside)} ({METRICS[beside][0]})" if beside else ""
    )
    legend += f"; columns: {columns}; {DASH} not available"
    after = f'<p class="frt-note">{escape(legend)}.</p>' + "".join(
        f'<p class="frt-note">† {escape(note)}.</p>' for note in notes
    )
    return wrap(
        f"{colgroups}<thead><tr>{corner}{top}</tr><tr>{second}</tr></thead>{''.join(body)}", caption, after
    )


def _head(name, title) -> str:
    first, _, pairs = title.partition(", ")
    small = f"<small>{escape(pairs)}</small>" if pairs else ""
    return f'<th scope="col" class="{_classes(name)}">{first}{small}</th>'


def _cell(name, lines) -> str:
    if not lines:
        return f'<td class="{_classes(name)}">{DASH}</td>'
    number, _, interval = lines[0].partition(" ")
    html = escape(number) + (f"<small>{escape(interval)}</small>" if interval else "")
    html += "".join(f"<small>{escape(line)}</small>" for line in lines[1:])
    return f'<td class="{_classes(name)}">{html}</td>'


def _classes(name) -> str:
    return {"paper": "frt-paper frt-first", "published": "frt-published", "live": "frt-live"}[name]


def _words(metric) -> str:
    return metric.replace("_", " ")


def _text(rows, heads, cells, titles, notes, caption, show) -> str:
    """The same as aligned text: one line a row, cells as paper | published | live."""
    lines = [["", *[show(head) for head in heads]]]
    for row in rows:
        label = " · ".join(show(name) for name in row)
        lines.append(
            [label]
            + [
                " | ".join("; ".join(cells[name].get((row, head), [DASH])) for name in COLUMN_NAMES)
                for head in heads
            ]
        )
    order = " | ".join(titles[name] for name in COLUMN_NAMES)
    return "\n".join([caption, f"cells: {order}", grid(lines), *[f"† {note}." for note in notes]])


def grid(lines: list[list[str]]) -> str:
    """Cells of text as aligned columns."""
    widths = [max(len(line[k]) for line in lines) for k in range(len(lines[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in lines
    )


def _plain_row(line, numeric) -> str:
    number, text = "<td>", '<td class="frt-text">'
    cells = [
        (number if is_number else text) + f"{escape(cell)}</td>"
        for cell, is_number in zip(line[1:], numeric[1:])
    ]
    return f'<th scope="row">{escape(line[0])}</th>' + "".join(cells)


def _plain(value, digits) -> str:
    if value is None or value is pd.NA or value is pd.NaT or (isinstance(value, float) and np.isnan(value)):
        return DASH
    if isinstance(value, (float, np.floating)):
        return f"{value:.{digits}f}"
    return str(value)


def with_interval(row: Mapping, how: str) -> str:
    """The value of a result row and, if it has one, its interval, formatted as ``how`` says."""
    value, low, high = (f"{row[name]:{how}}" for name in ("value", "ci_low", "ci_high"))
    return f"{value} [{low}, {high}]" if np.isfinite(row["ci_low"]) else value
