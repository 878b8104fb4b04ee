"""Figures in one house style, shown with alternative text.

A figure has its own light ground, so that it reads the same on a light and on a dark page. The functions
return a matplotlib ``Figure`` that is not registered with pyplot: nothing is drawn twice by a notebook,
nothing stays open. Show it with :func:`show`, which needs the alternative text (myst-nb takes one from cell
metadata only, where it cannot tell what a run found).
"""

import base64
import io
from collections.abc import Sequence
from html import escape

import matplotlib
import numpy as np
from matplotlib.figure import Figure

# Okabe and Ito's colors, told apart by color-blind readers; line styles and markers repeat the distinction.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
LINES = ("-", "--", "-.", ":")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")

HOUSE = {
    "figure.facecolor": "#fbfbf9",
    "axes.facecolor": "#fbfbf9",
    "savefig.facecolor": "#fbfbf9",
    "text.color": "#222222",
    "axes.labelcolor": "#222222",
    "xtick.color": "#222222",
    "ytick.color": "#222222",
    "axes.edgecolor": "#666666",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#dddddd",
    "font.size": 10,
}


class Picture:
    """A finished figure as the output of a notebook cell: an ``<img>`` with its alternative text, no separate
    file."""

    def __init__(self, png: bytes, alt: str, width: int, caption: str):
        self.png, self.alt, self.width, self.caption = png, alt, width, caption

    def _repr_html_(self) -> str:
        data = base64.b64encode(self.png).decode()
        image = (
            f'<img src="data:image/png;base64,{data}" alt="{escape(self.alt, quote=True)}" '
            f'width="{self.width}" '
            'style="max-width:100%;height:auto;border-radius:6px">'
        )
        caption = (
            f'<figcaption style="color:inherit">{escape(self.caption)}</figcaption>' if self.caption else ""
        )
        return f'<figure style="margin:1em 0">{image}{caption}</figure>'

    def __repr__(self) -> str:
        return f"[figure: {self.alt}]"


def show(fig: Figure, alt: str, *, caption: str = "") -> Picture:
    """The figure as a cell's last expression, or for ``display``.

    Parameters
    ----------
    alt : what a reader who cannot see the figure should know: what is plotted, and what it shows.
    caption : plain text below the figure.

    Raises
    ------
    ValueError
        If ``alt`` has fewer than ten characters.
    """
    if len(alt.strip()) < 10:
        raise ValueError(f"alt = {alt!r}: a figure needs an alternative text of 10 characters or more")
    buffer = io.BytesIO()
    fig.savefig(buffer, format="png", dpi=160, bbox_inches="tight", metadata={"Software": None})
    png = buffer.getvalue()
    width = int.from_bytes(png[16:20], "big") * 100 // 160  # PNG header; 160 dots an inch shown as 100
    return Picture(png, alt.strip(), width, caption)


def new_figure(
    *, width: float = 6.4, height: float = 3.8, rows: int = 1, columns: int = 1
) -> tuple[Figure, np.ndarray]:
    """An empty figure in the house style (inches) and its axes, an array (rows, columns)."""
    with matplotlib.rc_context(HOUSE):
        fig = Figure(figsize=(width, height), layout="constrained")
        return fig, fig.subplots(rows, columns, squeeze=False)


def line_with_band(ax, x, y, low=None, high=None, *, label: str, style: int = 0, marker: bool = True) -> None:
    """A line with its confidence band on ``ax``; ``style`` numbers the lines of a figure (color, dashes,
    marker).

    Raises
    ------
    ValueError
        If x, y, low, high differ in length, or only one bound is given.
    """
    x, y = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    if (low is None) != (high is None):
        raise ValueError("low and high belong together: give both or neither")
    for name, values in (("y", y), ("low", low), ("high", high)):
        if values is not None and np.shape(values) != x.shape:
            raise ValueError(f"{name} has the shape {np.shape(values)}, x has {x.shape}")
    color = COLORS[style % len(COLORS)]
    ax.plot(
        x,
        y,
        LINES[style % len(LINES)],
        color=color,
        label=label,
        marker=MARKERS[style % len(MARKERS)] if marker else None,
        ms=4,
    )
    if low is not None:
        ax.fill_between(
            x, np.asarray(low, float), np.asarray(high, float), color=color, alpha=0.18, linewidth=0
        )


def lines(
    curves: dict, *, x_label: str, y_label: str, title: str = "", x_log: bool = False, y_range=None
) -> Figure:
    """Several curves with bands in one figure.

    Parameters
    ----------
    curves : label -> (x, y) or (x, y, low, high), such as hit rate against drop rate or number of steps.
    x_label, y_label : with units, e.g. ``"hit rate at FAR 1e-3 (%)"``.
    """
    fig, axes = new_figure()
    ax = axes[0, 0]
    for style, (label, curve) in enumerate(curves.items()):
        line_with_band(ax, *curve, label=label, style=style, marker=len(curve[0]) <= 30)
    _finish(ax, x_label, y_label, title)
    if x_log:
        ax.set_xscale("log")
    if y_range:
        ax.set_ylim(*y_range)
    if curves:
        ax.legend(frameon=False)
    return fig


def distance_curves(panels: dict, *, y_label: str = "mean distance (L2)") -> Figure:
    """Distance against iteration, one panel a method, one line a network (Fig. 5 of paper 3).

    Parameters
    ----------
    panels : method -> {network: distances (steps,)}; the first iteration is number 1. The first network is
    the source.
    """
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    fig, axes = new_figure(width=3.2 * columns, height=2.6 * rows + 0.6, rows=rows, columns=columns)
    highest = max(float(np.max(values)) for curves in panels.values() for values in curves.values())
    lowest = min(float(np.min(values)) for curves in panels.values() for values in curves.values())
    room = 0.05 * (highest - lowest or 1.0)
    for ax, (method, curves) in zip(axes.flat, panels.items()):
        for style, (network, values) in enumerate(curves.items()):
            line_with_band(
                ax, np.arange(1, len(values) + 1), values, label=network, style=style, marker=False
            )
        _finish(ax, "iteration", y_label, method)
        ax.set_ylim(lowest - room, highest + room)
    for ax in list(axes.flat)[len(panels) :]:
        ax.remove()
    handles, names = axes[0, 0].get_legend_handles_labels()
    fig.legend(handles, names, loc="outside lower center", ncols=2, frameon=False)
    return fig


def roc(curves: dict, *, title: str = "", far_floor: float = 1e-4) -> Figure:
    """Verification accuracy as curves: label -> (false accept rate, true accept rate), both in [0, 1]; the x
    axis is logarithmic."""
    fig, axes = new_figure()
    ax = axes[0, 0]
    for style, (label, (far, tar)) in enumerate(curves.items()):
        far = np.maximum(np.asarray(far, dtype=float), far_floor)
        line_with_band(ax, far, tar, label=label, style=style, marker=False)
    _finish(ax, "false accept rate", "true accept rate", title)
    ax.set_xscale("log")
    ax.set_xlim(far_floor, 1)
    ax.set_ylim(-0.02, 1.02)
    ax.legend(frameon=False)
    return fig


def hit_matrix(
    values,
    *,
    sources: Sequence[str],
    targets: Sequence[str],
    title: str = "",
    label: str = "hit rate (%)",
    digits: int = 0,
) -> Figure:
    """A small matrix (sources, targets) of rates in percent, each cell with its number; NaN cells are left
    blank."""
    values = np.asarray(values, dtype=float)
    if values.shape != (len(sources), len(targets)):
        raise ValueError(
            f"values have the shape {values.shape}, {len(sources)} sources x {len(targets)} targets are named"
        )
    fig, axes = new_figure(width=2.4 + 0.8 * len(targets), height=1.4 + 0.5 * len(sources))
    ax = axes[0, 0]
    image = ax.imshow(values, cmap="cividis", vmin=0, vmax=100, aspect="auto")
    for i, j in np.argwhere(np.isfinite(values)):
        ax.text(
            j,
            i,
            f"{values[i, j]:.{digits}f}",
            ha="center",
            va="center",
            color="white" if values[i, j] < 55 else "black",
        )
    ax.set_xticks(range(len(targets)), targets, rotation=30, ha="right")
    ax.set_yticks(range(len(sources)), sources)
    ax.grid(False)
    _finish(ax, "target network", "source network", title)
    fig.colorbar(image, label=label)
    return fig


def image_strip(rows: dict, *, captions: Sequence[Sequence[str]] | None = None, size: float = 1.1) -> Figure:
    """Rows of pictures, such as sources, adversarial images and targets.

    Parameters
    ----------
    rows : row label -> uint8 images (n, 3, H, W), RGB; the same n in each row.
    captions : text below each picture, one list a row (empty strings for none).
    size : inches a picture.

    Raises
    ------
    ValueError
        For images that are not uint8 (n, 3, H, W), or rows of different lengths.
    """
    images = {label: np.asarray(row) for label, row in rows.items()}
    for label, row in images.items():
        if row.ndim != 4 or row.shape[1] != 3 or row.dtype != np.uint8:
            raise ValueError(
                f"row {label!r}: {row.dtype} of shape {row.shape}; needs uint8 (n, 3, height, width)"
            )
    counts = {len(row) for row in images.values()}
    if len(counts) != 1 or counts == {0}:
        raise ValueError(
            "rows must hold the same number of images (1 or more); "
            f"got {[len(row) for row in images.values()]}"
        )
    (count,) = counts
    below = 0.25 if captions else 0.0
    fig, axes = new_figure(
        width=size * count + 1.0, height=(size + below) * len(images), rows=len(images), columns=count
    )
    for i, (label, row) in enumerate(images.items()):
        for j, picture in enumerate(row):
            ax = axes[i, j]
            ax.imshow(picture.transpose(1, 2, 0), interpolation="nearest")
            ax.set(xticks=[], yticks=[])
            ax.grid(False)
            ax.spines[:].set_visible(False)
            if captions:
                ax.set_xlabel(captions[i][j], fontsize=8)
        axes[i, 0].set_ylabel(label, rotation=0, ha="right", va="center")
    return fig


def log_ticks(ax, values, *, most: int = 6) -> None:
    """A logarithmic x axis with some of the values themselves as ticks: those of a narrow range overprint one another."""
    ax.set_xscale("log")
    chosen = np.unique(np.asarray(values, dtype=float))
    apart = [chosen[0]]
    for value in chosen[1:]:
        if value >= apart[-1] * max(1.35, (chosen[-1] / chosen[0]) ** (1 / most)):
            apart.append(value)
    ax.set_xticks(apart, [f"{value:g}" for value in apart])
    ax.set_xticks([], minor=True)


def _finish(ax, x_label: str, y_label: str, title: str) -> None:
    if not x_label or not y_label:
        raise ValueError("a figure needs labels on both axes")
    ax.set_xlabel(x_label)
    ax.set_ylabel(y_label)
    if title:
        ax.set_title(title, fontsize=10)
