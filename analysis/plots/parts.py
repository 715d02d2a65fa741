"""What figures of laws are made of: points by size, a law with its band, edges, residuals, a caption."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from scalespec.analysis.laws.backtest import Backtest
from scalespec.analysis.laws.bootstrap import of_law
from scalespec.analysis.laws.isoflop import Profile
from scalespec.analysis.laws.law import Law, Param
from scalespec.analysis.laws.registry import form_of_law
from scalespec.analysis.laws.study import D, N
from scalespec.analysis.plots.axes import MARKERS, log_axis
from scalespec.analysis.plots.style import EXCLUDED, GREY, QUIET, size_colors

_EXTRAPOLATE = 10.0


def find(laws: Sequence[Law], name: str) -> Law | None:
    return next((law for law in laws if law.id.split("/")[0] == name), None)


def surface_of(laws: Sequence[Law]) -> Law | None:
    """The first law of both N and D, with parameters or without."""
    return next((law for law in laws if form_of_law(law).of_size_and_data), None)


def loss_of(law: Law) -> Callable[..., Any]:
    """The loss that a law gives for its variables. Raises ValueError for a form that is no law of the loss."""
    loss = form_of_law(law).loss
    if loss is None:
        raise ValueError(f"law {law.id}: the form {law.form} is no law of the loss")
    return partial(loss, law.values)


def exponent(law: Law, name: str) -> str:
    return f"{form_of_law(law).symbol(name)} = {interval(law.params[name])}"


def interval(p: Param) -> str:
    return f"{p.value:.2f}" if p.lo is None or p.hi is None else f"{p.value:.2f} [{p.lo:.2f}, {p.hi:.2f}]"


def sizes_of(runs: pd.DataFrame) -> list[float]:
    return sorted(set(runs[N].astype(float))) or [1.0]


def shades(k: int) -> list[Any]:
    return size_colors([float(i + 1) for i in range(k)]) if k else []


def law_caption(good: pd.DataFrame, excluded: Sequence[Any], law: Law | None) -> str:
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
        if form_of_law(law).along_compute:
            said += f" Shaded: extrapolated, ×{_EXTRAPOLATE:g} in compute."
    elif law is not None:
        said += f" No law {law.id}: {', '.join(sorted(law.status))}."
    return said


def say(axes: Axes, text: str) -> None:
    axes.set_xticks([])
    axes.set_yticks([])
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", color=GREY, fontsize=8)


def runs_by_size(axes: Axes, runs: pd.DataFrame, x: str, target: str, sizes: Sequence[float]) -> None:
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


def failed(axes: Axes, runs: pd.DataFrame, excluded: Sequence[Any], x: str) -> None:
    """Runs without a usable loss, as hollow triangles on the upper frame at their own x; at its left end those that never began."""
    keys = {e.key for e in excluded}
    left_out = runs[runs["run_key"].astype(str).isin(keys)]
    if len(left_out):
        at = left_out[x].to_numpy(dtype=np.float64)
        axes.plot(
            np.where(at > 0, at, axes.get_xlim()[0]),
            np.ones(len(left_out)),
            "^",
            transform=axes.get_xaxis_transform(),
            clip_on=False,
            markerfacecolor="none",
            markeredgecolor=EXCLUDED,
        )


def stars(axes: Axes, points: Mapping[str, Any], what: str) -> None:
    c, y = np.array(points["c"]), np.array(points[what])
    if f"{what}_lo" in points:
        lo, hi = (np.array(points[f"{what}_{end}"], dtype=np.float64) for end in ("lo", "hi"))
        axes.vlines(c, lo, hi, color="black", linewidth=0.8)
    axes.plot(c, y, "*", color="white", markeredgecolor="black", markersize=7, markeredgewidth=0.7, zorder=4)


def size_intervals(axes: Axes, law: Law) -> None:
    points = law.diagnostics["points"]
    if "n_lo" in points:
        rows = [(c, lo, hi) for c, lo, hi in zip(points["c"], points["n_lo"], points["n_hi"], strict=True) if lo and hi]
        if rows:
            axes.vlines(*np.array(rows).T, color="black", linewidth=0.8)


def edges(axes: Axes, law: Law | None) -> None:
    """Budgets whose best size is the last one trained: open triangles pointing to where the optimum must be."""
    for why, at in (law.diagnostics["not_bracketed"] if law else {}).items():
        if why in ("smallest", "largest"):
            marker = "v" if why == "smallest" else "^"
            axes.plot(at["c"], at["n"], marker, markerfacecolor="none", markeredgecolor=EXCLUDED)


def curve(axes: Axes, law: Law, x: Any, form: Callable[[Any, Any], Any]) -> None:
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
        axes.set_ylim(min(low, form(law.values, beyond[-1])), high)


def _at(form: Callable[[Any, Any], Any], x: Any, params: Mapping[str, Any]) -> Any:
    return form(params, x)


def surface_lines(axes: Axes, law: Law, x: str, sizes: Sequence[float], amounts: Any) -> None:
    """One fitted line a size (against D) or a data budget (against N); at most seven, spread over the values."""
    fixed = sizes if x == D else list(amounts)
    shown = [fixed[i] for i in sorted(set(np.linspace(0, len(fixed) - 1, min(7, len(fixed))).round().astype(int)))]
    color = dict(zip(sizes, size_colors(sizes), strict=True))
    varied = np.asarray(amounts if x == D else sizes, dtype=np.float64)
    for value in shown:
        at = np.geomspace(varied.min(), varied.max(), 60)
        n, d = (value, at) if x == D else (at, value)
        axes.plot(at, loss_of(law)(n, d), "-", color=color[value] if x == D else GREY, linewidth=0.9)


def residual_strip(axes: Axes, law: Law, runs: pd.DataFrame, x: str, target: str, sizes: Sequence[float]) -> None:
    n, d, loss = (runs[name].to_numpy(dtype=np.float64) for name in (N, D, target))
    error = loss / loss_of(law)(n, d) - 1
    color = dict(zip(sizes, size_colors(sizes), strict=True))
    noise = law.diagnostics.get("seed_noise_sd")
    if noise:
        axes.axhspan(-2 * noise, 2 * noise, color=QUIET, alpha=0.3, linewidth=0)
    axes.axhline(0, color=GREY, linewidth=0.8)
    at = runs[x].to_numpy(dtype=np.float64)
    for size in sizes:
        axes.plot(at[n == size], error[n == size], "o", color=color[size], markersize=2.5, markeredgewidth=0)
    axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:+.3g} %")


def profile(left: Axes, right: Axes, p: Profile, color: Any) -> None:
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


def errors_beside_baselines(axes: Axes, tests: Sequence[Backtest]) -> None:
    names = ["the law", *tests[0].baselines]
    for test, color in zip(tests, shades(len(tests)), strict=True):
        scores = test.scores()
        errors = [scores["mape"], *scores["baselines"].values()]
        axes.plot([100 * e for e in errors], range(len(names)), "o", color=color)
    log_axis(axes, "x", "mean error (%), log scale", lambda v: f"{v:.3g}")
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)


def with_bar(axes: Axes, x: float, p: Param, color: Any, marker: str) -> None:
    if p.lo is not None and p.hi is not None:
        axes.vlines(x, p.lo, p.hi, color=color, linewidth=0.8)
    axes.plot(x, p.value, marker, color=color)
