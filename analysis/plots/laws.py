"""Pictures of scaling laws: the frontier, the surface with its residuals, IsoFLOP profiles, backtests and drift.

Data are markers and models are lines: solid where fitted, dashed beyond. Colour is size (dark = large), shape is the data
budget; bands and bars come from the bootstrap draws a law carries in memory, and the caption says what was resampled.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from scalespec.analysis.laws.backtest import Backtest
from scalespec.analysis.laws.data_constrained import data_constrained_loss
from scalespec.analysis.laws.frontier import smoothed_profiles
from scalespec.analysis.laws.isoflop import profiles
from scalespec.analysis.laws.law import Law
from scalespec.analysis.laws.power import power_loss
from scalespec.analysis.laws.registry import form_of, form_of_law
from scalespec.analysis.laws.study import C, D, N, usable
from scalespec.analysis.plots import parts
from scalespec.analysis.plots.axes import MARKERS, boxes, caption, flop, log_axis, size_bar
from scalespec.analysis.plots.style import DARK, FULL, GREY, HALF, QUIET, figure, size_colors


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
    loss_law, size_law = parts.find(laws, "frontier"), parts.find(laws, "n_opt")
    with figure(FULL, 3.1, columns=2) as (fig, (left, right)):
        texts: dict[Axes, str] = {}
        sizes = parts.sizes_of(good)
        left.set_xscale("log")
        parts.runs_by_size(left, good, C, target, sizes)
        found = loss_law.diagnostics["points"] if loss_law else {"c": []}
        if loss_law and found["c"]:
            parts.stars(left, found, "loss")
            if loss_law.params:
                parts.curve(left, loss_law, np.array(found["c"]), power_loss)
        log_axis(left, "x", labels.c, flop)
        left.set_ylabel(labels.loss)
        parts.failed(left, runs, excluded, C)
        if loss_law and loss_law.params:
            texts[left] = f"γ = {parts.interval(loss_law.params['gamma'])}\nE = {parts.interval(loss_law.params['E'])}"
        if size_law and found["c"]:
            right.set_xscale("log")
            right.set_yscale("log")
            parts.stars(right, found, "n")
            if size_law.params:
                parts.curve(right, size_law, np.array(found["c"]), lambda p, c: p["G"] * c ** p["a"])
        else:
            parts.say(right, "no budget has its best size\ninside the sizes trained")
        parts.edges(right, loss_law)
        if len(right.lines):
            log_axis(right, "x", labels.c, flop)
            log_axis(right, "y", "best N")
        if size_law and size_law.params:
            texts[right] = f"a = {parts.interval(size_law.params['a'])}"
        size_bar(fig, [left, right], sizes, labels.n)
        caption(fig, parts.law_caption(good, excluded, loss_law))
        boxes(fig, texts)
    return fig


def surface_figure(
    runs: pd.DataFrame, laws: Sequence[Law], *, target: str = "val_loss", labels: Labels = STUDY
) -> Figure:
    """Loss against D and against N with the fitted parametric law, and the residuals under each."""
    good, excluded = usable(runs, target)
    law = parts.surface_of(laws)
    with figure(FULL, 4.0, columns=2, rows=2) as (fig, axes):
        texts: dict[Axes, str] = {}
        if (grid := axes[0].get_gridspec()) is not None:
            grid.set_height_ratios([3, 1])
        sizes, amounts = parts.sizes_of(good), np.unique(good[D].to_numpy(dtype=np.float64))
        for column, (x, label) in enumerate(((D, labels.d), (N, labels.n))):
            top, strip = axes[column], axes[column + 2]
            parts.runs_by_size(top, good, x, target, sizes)
            if law and law.params:
                parts.surface_lines(top, law, x, sizes, amounts)
                parts.residual_strip(strip, law, good, x, target, sizes)
            else:
                parts.say(strip, "no law")
            log_axis(top, "x", "")
            log_axis(strip, "x", label)
            strip.set_xlim(top.get_xlim())
            top.tick_params(labelbottom=False)
            parts.failed(top, runs, excluded, x)
        axes[0].set_ylabel(labels.loss)
        axes[2].set_ylabel("observed / fitted − 1")
        if law and law.params:
            for axis, variable in ((axes[0], "d"), (axes[1], "n")):
                if variable in (slopes := form_of_law(law).slopes):
                    texts[axis] = parts.exponent(law, slopes[variable])
        size_bar(fig, axes, sizes, labels.n)
        caption(fig, parts.law_caption(good, excluded, law))
        boxes(fig, texts)
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
    law = parts.find(laws, "isoflop")
    found = profiles(n, c, loss) if law else smoothed_profiles(n, c, loss)
    law = law or parts.find(laws, "n_opt")
    with figure(FULL, 3.1, columns=2) as (fig, (left, right)):
        texts: dict[Axes, str] = {}
        budgets = [p.c for p in found]
        colors = size_colors(budgets) if budgets else []
        for axis in (left, right) if found else ():
            axis.set_xscale("log")
        for p, color in zip(found, colors, strict=True):
            parts.profile(left, right, p, color)
        inside = np.array([p.c for p in found if p.status == "interior"])
        fitted = law if law and law.params and len(inside) else None
        if fitted:
            right.set_yscale("log")
            parts.size_intervals(right, fitted)
            parts.curve(right, fitted, inside, lambda q, x: q["G"] * x ** q["a"])
        if found:
            log_axis(left, "x", labels.n)
            log_axis(right, "x", labels.c, flop)
            log_axis(right, "y", "best N")
            size_bar(fig, [left, right], budgets, labels.c, flop)
        else:
            parts.say(left, "no budget is shared by three sizes")
        left.set_ylabel(labels.loss)
        if fitted:
            texts[right] = f"a = {parts.interval(fitted.params['a'])}"
        caption(
            fig,
            parts.law_caption(good, excluded, law)
            + f" {len(inside)} of {len(found)} budgets are bracketed (△ ▽: not).",
        )
        boxes(fig, texts)
    return fig


def backtest_figure(tests: Sequence[Backtest], *, labels: Labels = STUDY) -> Figure:
    """Held-out runs (●) with their prediction (×), its interval and the signed error; mean errors beside the baselines."""
    with figure(FULL, 3.2, columns=3) as (fig, (losses, errors, compared)):
        for test, color in zip(tests, parts.shades(len(tests)), strict=True):
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
            parts.errors_beside_baselines(compared, tests)
            handles = [Line2D([], [], marker="x", linestyle="", color=c) for c in parts.shades(len(tests))]
            fig.legend(handles, [t.name for t in tests], loc="outside upper left", ncols=2)
        else:
            for axes in (losses, errors, compared):
                parts.say(axes, "too few runs\nto hold any out")
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
    known = rolling[0].law if rolling else full
    form = form_of_law(known) if known is not None else form_of("auto")
    with figure(FULL, 3.6, columns=3, rows=2) as (fig, axes):
        reach = [float(t.c.max() / t.ratio) for t in rolling]
        for name, axis in zip(form.cards, axes, strict=False):
            for x, test in zip(reach, rolling, strict=True):
                parts.with_bar(axis, x, test.law.params[name], "black", "o")
            if full is not None and name in full.params:
                axis.axhline(full[name], color=GREY, linewidth=0.8, linestyle="--")
            axis.set_ylabel(form.symbol(name))
            if rolling:
                log_axis(axis, "x", "", flop)
        for axis in axes[len(form.cards) : 4]:
            axis.set_axis_off()
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


def power_figure(x: Any, loss: Any, law: Law, *, label: str, loss_label: str = STUDY.loss) -> Figure:
    """Loss against one variable [points] with the fitted power law, and the residuals under it."""
    x, loss = np.asarray(x, dtype=np.float64), np.asarray(loss, dtype=np.float64)
    with figure(HALF, 3.6, rows=2) as (fig, (top, strip)):
        texts: dict[Axes, str] = {}
        if (grid := top.get_gridspec()) is not None:
            grid.set_height_ratios([3, 1])
        top.set_xscale("log")
        top.plot(x, loss, "o", color=DARK, markersize=3.5, markeredgewidth=0)
        strip.set_xscale("log")
        if law.params:
            parts.curve(top, law, x, power_loss)
            strip.plot(
                x,
                loss / power_loss(law.values, x) - 1,
                "o",
                color=DARK,
                markersize=3,
                markeredgewidth=0,
            )
            strip.yaxis.set_major_formatter(lambda value, _: f"{100 * value:+.3g} %")
            strip.axhline(0, color=GREY, linewidth=0.8)
            texts[top] = "\n".join(filter(None, [parts.exponent(law, "gamma"), _floor(law)]))
        else:
            parts.say(strip, "no law")
        strip.set_xlim(top.get_xlim())
        log_axis(top, "x", "")
        log_axis(strip, "x", label)
        top.tick_params(labelbottom=False)
        top.set_ylabel(loss_label)
        strip.set_ylabel("obs. / fit − 1")
        caption(fig, parts.law_caption(pd.DataFrame({"loss": loss}), (), law))
        boxes(fig, texts)
    return fig


def repetition_figure(n: Any, d: Any, unique: Any, loss: Any, law: Law, *, labels: Labels = STUDY) -> Figure:
    """Loss against samples, one line a size and an amount of unique data, and what the law misses against repetition."""
    n, d, unique, loss = (np.asarray(values, dtype=np.float64) for values in (n, d, unique, loss))
    with figure(FULL, 3.1, columns=2) as (fig, (left, right)):
        texts: dict[Axes, str] = {}
        sizes = sorted(set(n))
        shade = dict(zip(sizes, size_colors(sizes), strict=True))
        amounts = sorted(set(unique))
        shape = {u: MARKERS[i] for i, u in enumerate(amounts)} if len(amounts) <= len(MARKERS) else {}
        error = loss / data_constrained_loss(law.values, n, d, unique) - 1 if law.params else None
        for size, amount in sorted(set(zip(n, unique, strict=True))):
            mine = (n == size) & (unique == amount)
            style = {"color": shade[size], "markersize": 4, "markeredgewidth": 0}
            left.plot(d[mine], loss[mine], shape.get(amount, "o"), **style)
            if error is not None:
                at = np.geomspace(d[mine].min(), d[mine].max(), 40)
                fitted = data_constrained_loss(law.values, size, at, amount)
                left.plot(at, fitted, "-", color=shade[size], linewidth=0.8)
                right.plot(np.maximum(d / unique, 1)[mine], error[mine], shape.get(amount, "o"), **style)
        log_axis(left, "x", labels.d)
        left.set_ylabel(labels.loss)
        if error is not None:
            right.axhline(0, color=GREY, linewidth=0.8)
            right.yaxis.set_major_formatter(lambda value, _: f"{100 * value:+.3g} %")
            log_axis(right, "x", "epochs, D / unique samples", lambda v: f"{v:.3g}")
            right.set_ylabel("observed / fitted − 1")
            texts[left] = f"R_D* = {parts.interval(law.params['r_d'])}\nR_N* = {parts.interval(law.params['r_n'])}"
        else:
            parts.say(right, "no law")
        size_bar(fig, [left, right], sizes, labels.n)
        said = parts.law_caption(pd.DataFrame({"loss": loss}), (), law)
        caption(fig, said + (" Marker: unique samples." if shape else ""))
        boxes(fig, texts)
    return fig


def _floor(law: Law) -> str:
    return f"E = {parts.interval(law.params['E'])}" if "E" in law.params else ""
