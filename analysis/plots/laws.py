"""Pictures of scaling laws: the frontier, the surface with its residuals, IsoFLOP profiles, backtests and drift.

Data are markers and models are lines: solid where fitted, dashed beyond. Colour is size (dark = large), shape is the data
budget; bands and bars come from the bootstrap draws a law carries in memory, and the caption says what was resampled.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from analysis.laws.backtest import Backtest
from analysis.laws.bootstrap import of_law
from analysis.laws.frontier import smoothed_profiles
from analysis.laws.isoflop import Profile, profiles
from analysis.laws.law import Law, Param
from analysis.laws.parametric import chinchilla_loss, values
from analysis.laws.power import power_loss
from analysis.laws.study import C, D, N, usable
from analysis.plots.axes import MARKERS, box, caption, flop, log_axis, size_bar
from analysis.plots.style import EXCLUDED, FULL, GREY, QUIET, figure, size_colors

_EXTRAPOLATE = 10.0


@dataclass(frozen=True)
class Labels:
    """What the axes say: quantity, convention and unit. The defaults are those of a study."""

    n: str = "N, weights in matmuls and convolutions"
    d: str = "D, samples processed"
    c: str = "C, counted training FLOP"
    loss: str = "validation loss (nats)"


STUDY = Labels()


def frontier_figure(
    runs: pd.DataFrame, laws: Sequence[Law], *, target: str = "val_loss", labels: Labels = STUDY
) -> Figure:
    """Loss against compute with the compute-efficient frontier, and the best size against compute.

    `runs` has the columns of `analysis.tables.RUNS`; the laws `frontier` and `n_opt` are drawn where `laws` has them.
    """
    good, excluded = usable(runs, target)
    loss_law, size_law = _find(laws, "frontier"), _find(laws, "n_opt")
    with figure(FULL, 3.1, columns=2) as (fig, (left, right)):
        sizes = _sizes(good)
        left.set_xscale("log")
        _runs_by_size(left, good, C, target, sizes)
        found = loss_law.diagnostics["points"] if loss_law else {"c": []}
        if loss_law and found["c"]:
            _stars(left, found, "loss")
            if loss_law.params:
                _curve(left, loss_law, np.array(found["c"]), power_loss)
        log_axis(left, "x", labels.c, flop)
        left.set_ylabel(labels.loss)
        _failed(left, runs, excluded, C)
        if loss_law and loss_law.params:
            box(left, f"γ = {_interval(loss_law.params['gamma'])}\nE = {_interval(loss_law.params['E'])}")
        if size_law and found["c"]:
            right.set_xscale("log")
            right.set_yscale("log")
            _stars(right, found, "n")
            if size_law.params:
                _curve(right, size_law, np.array(found["c"]), lambda p, c: p["G"] * c ** p["a"])
        else:
            _say(right, "no budget has its best size\ninside the sizes trained")
        _edges(right, loss_law)
        if len(right.lines):
            log_axis(right, "x", labels.c, flop)
            log_axis(right, "y", "best N")
        if size_law and size_law.params:
            box(right, f"a = {_interval(size_law.params['a'])}")
        size_bar(fig, [left, right], sizes, labels.n)
        caption(fig, _caption(good, excluded, loss_law))
    return fig


def surface_figure(
    runs: pd.DataFrame, laws: Sequence[Law], *, target: str = "val_loss", labels: Labels = STUDY
) -> Figure:
    """Loss against D and against N with the fitted parametric law, and the residuals under each."""
    good, excluded = usable(runs, target)
    law = _find(laws, "chinchilla")
    with figure(FULL, 4.0, columns=2, rows=2) as (fig, axes):
        if (grid := axes[0].get_gridspec()) is not None:
            grid.set_height_ratios([3, 1])
        sizes, amounts = _sizes(good), np.unique(good[D].to_numpy(dtype=np.float64))
        for column, (x, label) in enumerate(((D, labels.d), (N, labels.n))):
            top, strip = axes[column], axes[column + 2]
            _runs_by_size(top, good, x, target, sizes)
            if law and law.params:
                _surface_lines(top, law, x, sizes, amounts)
                _residual_strip(strip, law, good, x, target, sizes)
            else:
                _say(strip, "no law")
            log_axis(top, "x", "")
            log_axis(strip, "x", label)
            strip.set_xlim(top.get_xlim())
            top.tick_params(labelbottom=False)
            _failed(top, runs, excluded, x)
        axes[0].set_ylabel(labels.loss)
        axes[2].set_ylabel("observed / fitted − 1")
        if law and law.params:
            box(axes[0], f"β = {_interval(law.params['beta'])}")
            box(axes[1], f"α = {_interval(law.params['alpha'])}")
        size_bar(fig, axes, sizes, labels.n)
        caption(fig, _caption(good, excluded, law))
    return fig


def isoflop_figure(
    runs: pd.DataFrame, laws: Sequence[Law], *, target: str = "val_loss", labels: Labels = STUDY
) -> Figure:
    """Loss against size at each compute budget with its minimum, and the best size against compute.

    With a law `isoflop` the profiles are the budgets of the table; without, those of a grid, interpolated as for the frontier.
    A profile whose best size is at the edge keeps an open triangle there and stays out of the fit.
    """
    good, excluded = usable(runs, target)
    n, c, loss = (good[name].to_numpy(dtype=np.float64) for name in (N, C, target))
    law = _find(laws, "isoflop")
    found = profiles(n, c, loss) if law else smoothed_profiles(n, c, loss)
    law = law or _find(laws, "n_opt")
    with figure(FULL, 3.1, columns=2) as (fig, (left, right)):
        budgets = [p.c for p in found]
        colors = size_colors(budgets) if budgets else []
        for axis in (left, right) if found else ():
            axis.set_xscale("log")
        for p, color in zip(found, colors, strict=True):
            _profile(left, right, p, color)
        if found:
            log_axis(left, "x", labels.n)
            log_axis(right, "x", labels.c, flop)
            log_axis(right, "y", "best N")
            size_bar(fig, [left, right], budgets, labels.c, flop)
        else:
            _say(left, "no budget is shared by three sizes")
        left.set_ylabel(labels.loss)
        inside = np.array([p.c for p in found if p.status == "interior"])
        if law and law.params and len(inside):
            _size_intervals(right, law)
            _curve(right, law, inside, lambda q, x: q["G"] * x ** q["a"])
            box(right, f"a = {_interval(law.params['a'])}")
        caption(
            fig, _caption(good, excluded, law) + f" {len(inside)} of {len(found)} budgets are bracketed (△ ▽: not)."
        )
    return fig


def backtest_figure(tests: Sequence[Backtest], *, labels: Labels = STUDY) -> Figure:
    """Held-out runs (●) with their prediction (×), its interval and the signed error; mean errors beside the baselines."""
    with figure(FULL, 3.2, columns=3) as (fig, (losses, errors, compared)):
        for test, color in zip(tests, _shades(len(tests)), strict=True):
            known = np.isfinite(test.lo)
            for axes, scale in ((losses, np.ones(len(test.c))), (errors, 100 / test.actual)):
                shift = 100 if axes is errors else 0
                ends = (test.lo * scale - shift)[known], (test.hi * scale - shift)[known]
                axes.vlines(test.c[known], *ends, color=color, alpha=0.3, linewidth=1)
                axes.plot(test.c, test.predicted * scale - shift, "x", color=color, markersize=3.5, zorder=3)
            losses.plot(test.c, test.actual, "o", color="black", markersize=2.5, markeredgewidth=0)
        if tests:
            errors.axhline(0, color="black", linewidth=0.8)
            for axes in (losses, errors):
                log_axis(axes, "x", labels.c, flop)
            losses.set_ylabel(labels.loss)
            errors.set_ylabel("predicted / observed − 1 (%)")
            _errors_beside_baselines(compared, tests)
            handles = [Line2D([], [], marker="x", linestyle="", color=c) for c in _shades(len(tests))]
            fig.legend(handles, [t.name for t in tests], loc="outside upper left", ncols=2)
        else:
            for axes in (losses, errors, compared):
                _say(axes, "too few runs\nto hold any out")
        level = f"{100 * tests[0].law.level:g} %" if tests else ""
        ratios = ", ".join(f"×{t.ratio:.3g}" for t in tests)
        caption(
            fig,
            f"● observed, × predicted with the {level} prediction interval of a single run. Largest held-out compute over the "
            f"largest fitted: {ratios}.",
        )
    return fig


def coefficient_drift_figure(rolling: Sequence[Backtest], full: Law | None = None) -> Figure:
    """Each coefficient, with its interval, as the fitted budgets grow, and the error on the same largest budgets."""
    names = ("alpha", "beta", "a", "E")
    symbols = {"alpha": "α", "beta": "β", "a": "a = β/(α+β)", "E": "E"}
    with figure(FULL, 3.6, columns=3, rows=2) as (fig, axes):
        reach = [float(t.c.max() / t.ratio) for t in rolling]
        for name, axis in zip(names, axes, strict=False):
            for x, test in zip(reach, rolling, strict=True):
                _with_bar(axis, x, test.law.params[name], "black", "o")
            if full is not None and name in full.params:
                axis.axhline(full[name], color=GREY, linewidth=0.8, linestyle="--")
            axis.set_ylabel(symbols[name])
            if rolling:
                log_axis(axis, "x", "", flop)
        error = axes[4]
        ratios = [t.ratio for t in rolling]
        error.plot(ratios, [t.scores()["mape"] * 100 for t in rolling], "o-", color="black", label="the law")
        for style, name in zip(("s", "^", "v"), rolling[0].baselines if rolling else (), strict=False):
            error.plot(
                ratios,
                [100 * np.abs(t.baselines[name] / t.actual - 1).mean() for t in rolling],
                style + ":",
                color=QUIET,
                markeredgecolor=GREY,
                label=name,
            )
        if rolling:
            log_axis(error, "x", "extrapolation in compute", lambda v: f"×{v:.3g}")
            log_axis(error, "y", "mean error (%)", lambda v: f"{v:.3g}")
            axes[3].set_xlabel("largest fitted C (FLOP)")
            axes[5].legend(*error.get_legend_handles_labels(), loc="center left")
        axes[5].set_axis_off()
        held = len(rolling[0].keys) if rolling else 0
        caption(
            fig,
            f"Each fit predicts the same {held} runs of largest compute. Dashed: fitted to all runs. Bars: "
            + (f"{100 * rolling[0].law.level:g} %, {rolling[0].law.resampling}." if rolling else "none."),
        )
    return fig


def _find(laws: Sequence[Law], name: str) -> Law | None:
    return next((law for law in laws if law.id.split("/")[0] == name), None)


def _interval(p: Param) -> str:
    return f"{p.value:.2f}" if p.lo is None or p.hi is None else f"{p.value:.2f} [{p.lo:.2f}, {p.hi:.2f}]"


def _sizes(runs: pd.DataFrame) -> list[float]:
    return sorted(set(runs[N].astype(float))) or [1.0]


def _shades(k: int) -> list[Any]:
    return size_colors([float(i + 1) for i in range(k)]) if k else []


def _caption(good: pd.DataFrame, excluded: Sequence[Any], law: Law | None) -> str:
    seeds = len(set(good["seed"])) if "seed" in good else 0
    said = f"{len(good)} runs" + (
        f", {seeds} seeds." if seeds > 1 else ", 1 seed: no noise estimate." if seeds == 1 else "."
    )
    if excluded:
        said += f" {len(excluded)} runs left out (▲ on the frame)."
    if law is not None and law.params:
        known = any(p.lo is not None for p in law.params.values())
        said += f" {100 * law.level:g} % intervals: {law.resampling}." if known else f" No intervals: {law.resampling}."
        said += f" Status: {', '.join(s.value for s in type(next(iter(law.status))) if s in law.status)}."
        said += (
            f" Shaded: extrapolated, ×{_EXTRAPOLATE:g} in compute."
            if law.form in ("frontier", "n_opt", "isoflop")
            else ""
        )
    elif law is not None:
        said += f" No law {law.id}: {', '.join(sorted(law.status))}."
    return said


def _say(axes: Axes, text: str) -> None:
    axes.set_xticks([])
    axes.set_yticks([])
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", color=GREY, fontsize=8)


def _runs_by_size(axes: Axes, runs: pd.DataFrame, x: str, target: str, sizes: Sequence[float]) -> None:
    """Every seed a small dot; the mean of a cell a marker with its standard error where there are two seeds."""
    amounts = sorted(set(runs[D].astype(float)))
    shape = {d: MARKERS[i] for i, d in enumerate(amounts)} if len(amounts) <= len(MARKERS) else {}
    color = dict(zip(sizes, size_colors(sizes), strict=True))
    for (n, d), cell in runs.groupby([runs[N].astype(float), runs[D].astype(float)]):
        loss, at = cell[target].to_numpy(dtype=np.float64), float(cell[x].iloc[0])
        shade, marker = color[float(str(n))], shape.get(float(str(d)), "o")
        if len(loss) > 1:
            axes.plot([at] * len(loss), loss, ".", color=shade, markersize=2, alpha=0.6)
            error = loss.std(ddof=1) / np.sqrt(len(loss))
            axes.vlines(at, loss.mean() - error, loss.mean() + error, color=shade, linewidth=0.8)
        axes.plot(at, loss.mean(), marker, color=shade, markersize=4 if shape else 2.5, markeredgewidth=0)


def _failed(axes: Axes, runs: pd.DataFrame, excluded: Sequence[Any], x: str) -> None:
    """Runs without a usable loss, as hollow triangles on the upper frame at their own x."""
    keys = {e.key for e in excluded}
    left_out = runs[runs["run_key"].astype(str).isin(keys)]
    if len(left_out):
        axes.plot(
            left_out[x].astype(float),
            np.ones(len(left_out)),
            "^",
            transform=axes.get_xaxis_transform(),
            clip_on=False,
            markerfacecolor="none",
            markeredgecolor=EXCLUDED,
        )


def _stars(axes: Axes, points: Mapping[str, Any], what: str) -> None:
    c, y = np.array(points["c"]), np.array(points[what])
    if f"{what}_lo" in points:
        lo, hi = (np.array(points[f"{what}_{end}"], dtype=np.float64) for end in ("lo", "hi"))
        axes.vlines(c, lo, hi, color="black", linewidth=0.8)
    axes.plot(c, y, "*", color="white", markeredgecolor="black", markersize=7, markeredgewidth=0.7, zorder=4)


def _size_intervals(axes: Axes, law: Law) -> None:
    points = law.diagnostics["points"]
    if "n_lo" in points:
        rows = [(c, lo, hi) for c, lo, hi in zip(points["c"], points["n_lo"], points["n_hi"], strict=True) if lo and hi]
        if rows:
            axes.vlines(*np.array(rows).T, color="black", linewidth=0.8)


def _edges(axes: Axes, law: Law | None) -> None:
    """Budgets whose best size is the last one trained: open triangles pointing to where the optimum must be."""
    for why, at in (law.diagnostics["not_bracketed"] if law else {}).items():
        if why in ("smallest", "largest"):
            marker = "v" if why == "smallest" else "^"
            axes.plot(at["c"], at["n"], marker, markerfacecolor="none", markeredgecolor=EXCLUDED)


def _curve(axes: Axes, law: Law, x: Any, form: Callable[[Any, Any], Any]) -> None:
    """The law through `x`, dashed one decade beyond, with its band; the region beyond is shaded."""
    inside = np.geomspace(x.min(), x.max(), 60)
    beyond = np.geomspace(x.max(), x.max() * _EXTRAPOLATE, 40)
    low, high = axes.get_ylim()
    for at, style in ((inside, "-"), (beyond, "--")):
        line, lo, hi = of_law(law, partial(_at, form, at))
        if np.isfinite(lo).all():
            axes.fill_between(at, lo, hi, color="black", alpha=0.12, linewidth=0)
        axes.plot(at, line, style, color="black", zorder=3)
    axes.axvspan(x.max(), beyond[-1], color=QUIET, alpha=0.15, linewidth=0)
    axes.set_xlim(right=beyond[-1] if axes.get_xlim()[1] <= beyond[-1] else None)
    if axes.get_yscale() == "linear" and len(axes.collections) < 200:
        axes.set_ylim(min(low, form(values(law), beyond[-1])), high)


def _at(form: Callable[[Any, Any], Any], x: Any, params: Mapping[str, Any]) -> Any:
    return form(params, x)


def _surface_lines(axes: Axes, law: Law, x: str, sizes: Sequence[float], amounts: Any) -> None:
    """One fitted line a size (against D) or a data budget (against N); at most seven, spread over the values."""
    fixed = sizes if x == D else list(amounts)
    shown = [fixed[i] for i in sorted(set(np.linspace(0, len(fixed) - 1, min(7, len(fixed))).round().astype(int)))]
    color = dict(zip(sizes, size_colors(sizes), strict=True))
    varied = np.asarray(amounts if x == D else sizes, dtype=np.float64)
    for value in shown:
        at = np.geomspace(varied.min(), varied.max(), 60)
        n, d = (value, at) if x == D else (at, value)
        axes.plot(at, chinchilla_loss(values(law), n, d), "-", color=color[value] if x == D else GREY, linewidth=0.9)


def _residual_strip(axes: Axes, law: Law, runs: pd.DataFrame, x: str, target: str, sizes: Sequence[float]) -> None:
    n, d, loss = (runs[name].to_numpy(dtype=np.float64) for name in (N, D, target))
    error = loss / chinchilla_loss(values(law), n, d) - 1
    color = dict(zip(sizes, size_colors(sizes), strict=True))
    noise = law.diagnostics.get("seed_noise_sd")
    if noise:
        axes.axhspan(-2 * noise, 2 * noise, color=QUIET, alpha=0.3, linewidth=0)
    axes.axhline(0, color=GREY, linewidth=0.8)
    at = runs[x].to_numpy(dtype=np.float64)
    for size in sizes:
        axes.plot(at[n == size], error[n == size], "o", color=color[size], markersize=2.5, markeredgewidth=0)
    axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:+.3g} %")


def _profile(left: Axes, right: Axes, p: Profile, color: Any) -> None:
    left.plot(p.n, p.loss, "o", color=color, markersize=3.5, markeredgewidth=0)
    left.plot(p.n, p.loss, "-", color=color, linewidth=0.6, alpha=0.6)
    if p.status == "interior":
        left.plot(
            p.n_opt,
            p.loss_opt,
            "*",
            color="white",
            markeredgecolor="black",
            markersize=7,
            markeredgewidth=0.7,
            zorder=4,
        )
        right.plot(p.c, p.n_opt, "*", color=color, markeredgecolor="black", markersize=7, markeredgewidth=0.7, zorder=4)
    elif p.status in ("smallest", "largest"):
        at = 0 if p.status == "smallest" else -1
        marker = "v" if p.status == "smallest" else "^"
        left.plot(p.n[at], p.loss[at], marker, markerfacecolor="none", markeredgecolor=EXCLUDED, markersize=7)
        right.plot(p.c, p.n[at], marker, markerfacecolor="none", markeredgecolor=EXCLUDED)


def _errors_beside_baselines(axes: Axes, tests: Sequence[Backtest]) -> None:
    names = ["the law", *tests[0].baselines]
    for test, color in zip(tests, _shades(len(tests)), strict=True):
        scores = test.scores()
        errors = [scores["mape"], *scores["baselines"].values()]
        axes.plot([100 * e for e in errors], range(len(names)), "o", color=color)
    log_axis(axes, "x", "mean error (%), log scale", lambda v: f"{v:.3g}")
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)


def _with_bar(axes: Axes, x: float, p: Param, color: Any, marker: str) -> None:
    if p.lo is not None and p.hi is not None:
        axes.vlines(x, p.lo, p.hi, color=color, linewidth=0.8)
    axes.plot(x, p.value, marker, color=color)
