"""The runs of a study as they went: loss and accuracy against compute, with the compute-efficient frontier."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from scalespec.analysis.laws import Law, optimum
from scalespec.analysis.laws.registry import form_of_law
from scalespec.analysis.laws.study import C, D, N, extra_axes
from scalespec.analysis.plots.axes import MARKERS, flop, log_axis, size_bar
from scalespec.analysis.plots.laws import STUDY, Labels
from scalespec.analysis.plots.style import EXCLUDED, FULL, GREY, figure, size_colors

POINTS = 400
"""Points of one curve at most."""
ALL_POINTS = 12_000
"""Points of all curves of a figure together: about 200 kB of SVG."""
SINGLE = 60
"""With more runs than these, the seeds of a grid point are averaged where they share every step."""

Color = tuple[float, float, float, float]


@dataclass(frozen=True)
class Look:
    """One colour a model size and one marker a data fraction, the same on every figure of a study."""

    sizes: tuple[float, ...]
    fractions: tuple[float, ...]

    @classmethod
    def of(cls, runs: pd.DataFrame) -> Look:
        """Raises ValueError for a table without runs."""
        if not len(runs):
            raise ValueError("no run has a result yet")
        return cls(tuple(sorted(set(map(float, runs[N])))), tuple(sorted(set(map(float, runs["data_fraction"])))))

    def color(self, size: float) -> Color:
        return size_colors(self.sizes)[self.sizes.index(float(size))]

    def marker(self, fraction: float) -> str:
        return MARKERS[self.fractions.index(float(fraction)) % len(MARKERS)]


def fraction(value: float) -> str:
    """0.125 as `1/8`."""
    return str(Fraction(value).limit_denominator(4096))


def thin(frame: pd.DataFrame, most: int, by: str = C) -> pd.DataFrame:
    """At most `most` rows, evenly spaced in the logarithm of `by`, the first and the last among them."""
    if len(frame) <= most:
        return frame
    places = np.log(np.maximum(frame[by].to_numpy(dtype=float), 1e-300))
    wanted = np.linspace(places[0], places[-1], most)
    at = np.unique(np.append(np.clip(np.searchsorted(places, wanted), 0, len(frame) - 1), [0, len(frame) - 1]))
    return frame.iloc[at]


def curves_of(runs: pd.DataFrame, curves: pd.DataFrame, metric: str = "val_loss") -> pd.DataFrame:
    """The points that `curves_figure` draws: curve (a run_key), params_matmul, width, data_fraction, flops_train, samples, value, seeds.

    `runs` and `curves` have the columns of `analysis.tables`. A curve is a run, or with more than SINGLE runs the mean over the
    finished seeds of a grid point where they share all steps. Points at step 0 and losses that are not positive have no place on log axes.
    """
    axes = extra_axes(runs)
    known = runs[["run_key", N, "width", "data_fraction", "seed", "status", *axes]]
    points = curves[(curves["metric"] == metric) & (curves["flops"] > 0) & np.isfinite(curves["value"])]
    points = points[points["value"] > 0]
    points = points.rename(columns={"flops": C}).merge(known, on="run_key").sort_values(["run_key", C])
    most = max(2, min(POINTS, ALL_POINTS // max(1, points["run_key"].nunique())))
    out: list[pd.DataFrame] = []
    for _, cell in points.groupby(["width", "data_fraction", *axes], sort=True, dropna=False):
        done = cell[cell["status"] == "done"]
        by_run = {str(key): rows.assign(seeds=1) for key, rows in cell.groupby("run_key", sort=True)}
        if len(runs) > SINGLE and len({tuple(rows[C]) for _, rows in done.groupby("run_key")}) == 1:
            mean = done.groupby(C, as_index=False).agg({"value": "mean"})
            first = by_run[str(done["run_key"].iloc[0])]
            by_run = {key: rows for key, rows in by_run.items() if rows["status"].iloc[0] != "done"}
            by_run[str(first["run_key"].iloc[0])] = first.assign(
                value=mean["value"].to_numpy(), seeds=done["seed"].nunique()
            )
        out += [thin(rows.assign(curve=key), most) for key, rows in by_run.items()]
    columns = ["curve", N, "width", "data_fraction", C, D, "value", "seeds"]
    return pd.concat(out)[columns] if out else pd.DataFrame(columns=columns)


def curves_figure(
    runs: pd.DataFrame,
    curves: pd.DataFrame,
    laws: Sequence[Law] = (),
    *,
    labels: Labels = STUDY,
    points: pd.DataFrame | None = None,
) -> Figure:
    """Validation loss of every run against its compute, and the compute-efficient frontier with its power law.

    A run in mid-schedule is a thin line, a finished one a marker; the frontier is read from finished runs alone. Diverged and
    failed runs keep a hollow marker, ▲ on the frame where it lies off the scale. `points`: what `curves_of` gave, where it is known.
    Raises ValueError without a curve.
    """
    look = Look.of(runs)
    points = curves_of(runs, curves) if points is None else points
    if points.empty:
        raise ValueError("no run has logged a validation loss after step 0")
    with figure(FULL, 3.6) as (fig, (axes,)):
        for _, rows in points.groupby("curve", sort=True):
            axes.plot(rows[C], rows["value"], color=look.color(rows[N].iloc[0]), lw=0.7, alpha=0.55, zorder=1.5)
        _finished(axes, runs, "val_loss", look)
        good = runs[(runs["status"] == "done")]["run_key"]
        shown = points[points["curve"].isin(good)]
        _limits(axes, shown if len(shown) else points)
        _unfinished(axes, runs, points, look)
        _frontier(axes, laws, runs)
        log_axis(axes, "x", labels.c, flop)
        log_axis(axes, "y", labels.loss)
        _key(axes, look, runs)
        size_bar(fig, axes, look.sizes, labels.n)
        return fig


def accuracy_figure(runs: pd.DataFrame, laws: Sequence[Law] = (), *, labels: Labels = STUDY) -> Figure:
    """Validation accuracy of the finished runs against compute: every seed a marker, their mean a line for each size.

    A frontier law adds the accuracy along the compute-efficient frontier, which was chosen by loss.

    Raises ValueError where no finished run has an accuracy.
    """
    good = runs[(runs["status"] == "done") & runs["val_accuracy"].notna()]
    if good.empty:
        raise ValueError("no finished run has a validation accuracy")
    look = Look.of(runs)
    with figure(FULL, 3.0) as (fig, (axes,)):
        percent = good.assign(val_accuracy=100 * good["val_accuracy"])
        for size in look.sizes:
            means = percent[percent[N] == size].groupby(C)["val_accuracy"].mean()
            axes.plot(means.index, means, color=look.color(size), lw=0.9)
        _finished(axes, percent, "val_accuracy", look)
        found = next((law for law in laws if law.form == "frontier" and law.params), None)
        if found is not None and "accuracy" in found.diagnostics["points"]:
            points = found.diagnostics["points"]
            share = 100 * np.array(points["accuracy"], dtype=float)
            line: dict[str, Any] = {"color": "black", "ms": 6, "mew": 0, "lw": 1.1, "zorder": 4}
            axes.plot(points["c"], share, "*-", **line, label="along the frontier of the loss")
        axes.set_ylabel("validation accuracy (%)")
        log_axis(axes, "x", labels.c, flop)
        _key(axes, look, good)
        size_bar(fig, axes, look.sizes, labels.n)
        return fig


def _finished(axes: Axes, runs: pd.DataFrame, column: str, look: Look) -> None:
    good = runs[(runs["status"] == "done") & runs[column].notna()]
    dot: dict[str, Any] = {"ms": 4, "mec": "white", "mew": 0.4, "zorder": 3}
    for size in look.sizes:
        for fraction in look.fractions:
            rows = good[(good[N] == size) & (good["data_fraction"] == fraction)]
            if len(rows):
                axes.plot(rows[C], rows[column], look.marker(fraction), color=look.color(size), **dot)


def _limits(axes: Axes, points: pd.DataFrame) -> None:
    low, high = points["value"].min(), points["value"].max()
    left, right = points[C].min(), points[C].max()
    axes.set_xlim(left / 1.3, right * 1.3)
    axes.set_ylim(low / 1.05, high * 1.05)


def _unfinished(axes: Axes, runs: pd.DataFrame, points: pd.DataFrame, look: Look) -> None:
    """A hollow marker where each such run ended; ▲ on the frame where that is off the scale or was never measured."""
    top = axes.get_ylim()[1]
    last = points.groupby("curve").last()
    hollow: dict[str, Any] = {"mfc": "white", "mec": EXCLUDED, "mew": 1.0, "ms": 5, "clip_on": False, "zorder": 4}
    for _, run in runs[runs["status"] != "done"].iterrows():
        ended = last.loc[run["run_key"]] if run["run_key"] in last.index else None
        if ended is not None and ended["value"] <= top:
            axes.plot(ended[C], ended["value"], look.marker(run["data_fraction"]), **hollow)
        else:
            axes.plot(np.clip(run[C] if ended is None else ended[C], *axes.get_xlim()), top, "^", **hollow)


def _frontier(axes: Axes, laws: Sequence[Law], runs: pd.DataFrame) -> None:
    """The frontier law through its bracketed budgets, or the one that the parametric law implies; dashed is extrapolation."""
    low, high = axes.get_xlim()
    read = next((law for law in laws if law.form == "frontier" and law.params), None)
    whole = next((law for law in laws if form_of_law(law).of_size_and_data and law.params), None)
    if read is not None:
        points = read.diagnostics["points"]
        axes.plot(points["c"], points["loss"], "*", color="black", ms=6, mew=0, zorder=4, label="best size at a budget")
        inside = np.geomspace(min(points["c"]), max(points["c"]), 100)
        for x, style in ((np.geomspace(low, high, 200), (0, (4, 3))), (inside, "solid")):
            y = read["E"] + read["K"] * x ** -read["gamma"]
            axes.plot(x, y, color="black", lw=1.1, ls=style, zorder=2, label="frontier" if style == "solid" else None)
    elif whole is not None:
        x = np.geomspace(low, high, 200)
        bare = replace(whole, evidence=None)  # a line needs no intervals
        best = [{name: p.value for name, p in optimum(bare, float(c)).items()} for c in x]
        loss = np.array([point["loss"] for point in best])
        inside = np.array([_within(point["n"], runs[N]) and _within(point["d"], runs[D]) for point in best])
        axes.plot(x, loss, color="black", lw=1.1, ls=(0, (4, 3)), zorder=2, label="frontier that L(N, D) implies")
        axes.plot(x, np.where(inside, loss, np.nan), color="black", lw=1.1, zorder=2)


def _within(value: float, column: pd.Series) -> bool:
    return bool(column.min() <= value <= column.max())


def _key(axes: Axes, look: Look, runs: pd.DataFrame) -> None:
    handles: list[Any] = [
        axes.plot(
            [], [], look.marker(f), color=GREY, ms=4, label="all data" if f == 1 else f"{fraction(f)} of the data"
        )[0]
        for f in look.fractions[-6:]
    ]
    if (runs["status"] != "done").any():
        handles += axes.plot([], [], "o", mfc="white", mec=EXCLUDED, ms=4, label="diverged or failed")
    others = [line for line in axes.get_lines() if not str(line.get_label()).startswith("_") and line not in handles]
    place = {"loc": "outside upper left", "ncols": 6, "handletextpad": 0.3, "columnspacing": 1.0}
    axes.figure.legend(handles=[*handles, *others], **place)
