"""Log axes with readable ticks, text that avoids the data, captions: what figures of scaling laws share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import BoundaryNorm, ListedColormap, LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from matplotlib.transforms import Bbox

from scalespec.analysis.plots.style import GREY, QUIET, lay_out, size_colors, sizes_map

MARKERS = ("o", "s", "D", "^", "v", "P", "X", "<", ">", "p")
"""Shape of a data budget, smallest first."""


NOTHING, ENDLESS = "–", "∞"
"""What a number that is missing, and one beyond all bounds, are written as."""


def count(value: float) -> str:
    """A number of parameters or samples: 30M, 1.4B."""
    if not np.isfinite(value):
        return _no_number(value)
    for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= 0.9995 * size:
            return f"{value / size:.3g}{letter}"
    return f"{value:.3g}"


def flop(value: float) -> str:
    """A number of FLOP: 10^18, 3·10^18; 0 of a run that never began."""
    if not np.isfinite(value):
        return _no_number(value)
    if value <= 0:
        return f"{value:.3g}".replace("-", "−")
    exponent = int(np.floor(np.log10(value) + 1e-9))
    mantissa = value / 10**exponent
    head = "" if abs(mantissa - 1) < 1e-6 else f"{mantissa:.2g}·"
    return head + "10" + str(exponent).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))


def _no_number(value: float) -> str:
    return NOTHING if np.isnan(value) else ENDLESS if value > 0 else f"−{ENDLESS}"


def log_axis(axes: Axes, which: str, label: str, name: Any = count) -> None:
    """A log axis with at least three labelled ticks: decades, or 1-2-5 below two decades, 1-3 below four."""
    (axes.set_xscale if which == "x" else axes.set_yscale)("log")
    axis = axes.xaxis if which == "x" else axes.yaxis
    low, high = sorted(axes.get_xlim() if which == "x" else axes.get_ylim())
    decades = np.log10(high / low) if low > 0 else 1.0  # an axis without a positive value has no decades
    subs: list[float] = [1.0, 2.0, 5.0] if decades < 2 else [1.0, 3.0] if decades < 4 else [1.0]
    if decades < 0.7:
        subs = np.arange(1.0, 10.0, 1.0 if decades > 0.3 else 0.5).tolist()
    axis.set_major_locator(LogLocator(base=10, subs=subs, numticks=12))
    axis.set_major_formatter(FuncFormatter(lambda value, _: name(value)))
    axis.set_minor_locator(
        LogLocator(base=10, subs=(2.0, 5.0), numticks=12)
    )  # all of 2 … 9 would be most of a drawing's time
    axis.set_minor_formatter(NullFormatter())
    if which == "x":
        axes.set_xlabel(label)
        axes.tick_params(axis="x", labelrotation=0)
        _thin(axes)
    else:
        axes.set_ylabel(label + ", log scale")


def _thin(axes: Axes) -> None:
    """Drops labels of an x axis until they cannot touch."""
    spec, figure = axes.get_subplotspec(), axes.get_figure(root=True)
    columns = spec.get_gridspec().ncols if spec is not None else 1
    most = max(3, int((figure.get_figwidth() if figure is not None else 3.3) / columns / 0.55))
    low, high = axes.get_xlim()
    ticks = [t for t in axes.xaxis.get_major_locator()() if low <= t <= high]
    if len(ticks) > most:
        step = -(-len(ticks) // most)
        axes.xaxis.set_major_locator(_Fixed(ticks[::step]))


class _Fixed(LogLocator):
    """Ticks at given places, whatever the limits."""

    def __init__(self, places: Sequence[float]) -> None:
        super().__init__()
        self.places = list(places)

    def __call__(self) -> Any:
        return np.array(self.places)


def boxes(figure: Figure, texts: Mapping[Axes, str]) -> None:
    """A white box with its text on each axes, in the corner where it covers the least data, top left first.

    To be called when all else is in the figure: the places of the axes are found for it once, and they stay.
    """
    if not texts:
        return
    lay_out(figure)
    for axes, text in texts.items():
        _box(axes, text)


def _box(axes: Axes, text: str) -> None:
    points = _markers(axes)
    best, fewest = None, np.inf
    for x, y, ha, va in (
        (0.03, 0.97, "left", "top"),
        (0.97, 0.97, "right", "top"),
        (0.03, 0.03, "left", "bottom"),
        (0.97, 0.03, "right", "bottom"),
        (0.5, 0.97, "center", "top"),
        (0.5, 0.03, "center", "bottom"),
    ):
        label = axes.text(
            x,
            y,
            text,
            transform=axes.transAxes,
            ha=ha,
            va=va,
            fontsize=7,
            zorder=5,
            bbox={"facecolor": "white", "edgecolor": QUIET, "linewidth": 0.5, "pad": 2.5},
        )
        frame = label.get_window_extent().padded(6)
        covered = sum(frame.contains(px, py) for px, py in points)
        if covered < fewest:
            if best is not None:
                best.remove()
            best, fewest = label, covered
        else:
            label.remove()


def _markers(axes: Axes) -> list[tuple[float, float]]:
    """Display positions of every marker, and of the vertices of every line, in `axes`."""
    found: list[tuple[float, float]] = []
    for line in axes.get_lines():
        xy = np.column_stack([np.asarray(line.get_xdata(), float), np.asarray(line.get_ydata(), float)])
        xy = xy[np.isfinite(xy).all(axis=1)]
        if len(xy) and line.get_transform().contains_branch(axes.transData):
            found += list(map(tuple, line.get_transform().transform(xy)))
    return found


def covered_markers(axes: Axes) -> int:
    """Markers under a text box of `axes`: a figure that hides data says so here."""
    figure = axes.get_figure(root=True)
    if figure is not None:
        figure.draw_without_rendering()
    frames: list[Bbox] = [text.get_window_extent() for text in axes.texts if text.get_text()]
    dots = [line for line in axes.get_lines() if line.get_marker() not in ("", "None", None)]
    points = []
    for line in dots:
        xy = np.column_stack([np.asarray(line.get_xdata(), float), np.asarray(line.get_ydata(), float)])
        points += [tuple(p) for p in line.get_transform().transform(xy[np.isfinite(xy).all(axis=1)])]
    return sum(any(frame.contains(*point) for frame in frames) for point in points)


def caption(figure: Figure, text: str) -> None:
    """A line of small grey text under the figure, broken to its width."""
    width = int(figure.get_figwidth() * 18.5)
    lines: list[str] = []
    for word in text.split(" "):
        if lines and len(lines[-1]) + len(word) < width:
            lines[-1] += " " + word
        else:
            lines.append(word)
    figure.supxlabel("\n".join(lines), fontsize=7, color=GREY, ha="left", x=0.01)


def size_bar(figure: Figure, axes: Any, sizes: Sequence[float], label: str, name: Any = count) -> None:
    """The colour bar of sizes or budgets: one block a value where they are few, continuous where they are many."""
    if len(sizes) > 14:
        bar = figure.colorbar(
            ScalarMappable(LogNorm(min(sizes), max(sizes)), sizes_map()), ax=axes, label=label, pad=0.02
        )
        bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: name(value)))
        bar.ax.yaxis.set_minor_formatter(NullFormatter())
        return
    blocks = ListedColormap(size_colors(sizes))
    norm = BoundaryNorm(np.arange(len(sizes) + 1) - 0.5, len(sizes))
    bar = figure.colorbar(ScalarMappable(norm, blocks), ax=axes, label=label, pad=0.02, ticks=range(len(sizes)))
    bar.ax.set_yticklabels([name(size) for size in sizes])
    bar.ax.tick_params(length=0)
