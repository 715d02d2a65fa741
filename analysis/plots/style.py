"""The look that every figure shares: sizes, one sequential map, labels with units, SVG that stays text.

Figures are built without pyplot, so that they can be made in any thread and leave no global state.
"""

from __future__ import annotations

import functools
import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.colors import Colormap, ListedColormap, LogNorm
from matplotlib.figure import Figure
from matplotlib.layout_engine import PlaceHolderLayoutEngine

HALF, FULL = 3.3, 6.8
"""Widths in inches of a one-column and a two-column figure."""

GREY, QUIET, EXCLUDED = "#666666", "#bbbbbb", "#c1440e"
DARK = "#433e85"
"""A point of the sequential map, for data of one colour."""

RC = {
    "svg.fonttype": "none",
    "svg.hashsalt": "scalespec",
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.labelsize": 8,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "lines.linewidth": 1.2,
    "lines.markersize": 4,
    "figure.dpi": 150,
}


@contextmanager
def figure(
    width: float = FULL, height: float = 2.8, columns: int = 1, rows: int = 1
) -> Iterator[tuple[Figure, list[Axes]]]:
    """A figure and its axes, row by row, under the shared style."""
    with mpl.rc_context(RC):
        fig = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasAgg(fig)
        yield fig, list(np.atleast_1d(fig.subplots(rows, columns)).ravel())


def to_svg(fig: Figure) -> str:
    """The figure as an SVG element, without XML header or date: equal figures are equal text."""
    with mpl.rc_context(RC):
        buffer = io.StringIO()
        lay_out(fig)
        # savefig would draw the figure once more before, to find out what is laid out already
        FigureCanvasSVG(fig).print_svg(buffer, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def lay_out(fig: Figure) -> None:
    """Gives everything its place, once: extents are known then, and later drawing moves nothing."""
    engine = fig.get_layout_engine()
    if engine is not None and not isinstance(engine, PlaceHolderLayoutEngine):
        engine.execute(fig)
        fig.set_layout_engine("none")


def save(fig: Figure, path: str) -> None:
    """Writes the figure in the format of the path's ending. Raises OSError."""
    with mpl.rc_context(RC):
        fig.savefig(path)


@functools.cache
def sizes_map() -> Colormap:
    """Viridis from light to dark: the largest, most expensive curve has the most contrast."""
    return ListedColormap(mpl.colormaps["viridis"](np.linspace(0.85, 0.05, 256)))


def size_colors(values: Sequence[float]) -> list[tuple[float, float, float, float]]:
    """One colour a value, on a log scale, dark = large."""
    return list(_size_colors(tuple(map(float, values))))


@functools.lru_cache(maxsize=64)
def _size_colors(values: tuple[float, ...]) -> list[tuple[float, float, float, float]]:
    lo, hi = min(values), max(values)
    places = LogNorm(lo, hi if hi > lo else lo * 1.001)(np.array(values))
    return list(map(tuple, sizes_map()(places).tolist()))
