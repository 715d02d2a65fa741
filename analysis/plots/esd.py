"""One spectrum: density with fit and null, tail probability, and how the fit depends on xmin."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from scalespec.analysis.plots.axes import caption, log_axis
from scalespec.analysis.plots.style import FULL, GREY, QUIET, figure
from scalespec.analysis.spectral import NATIVE, WW, fit_columns
from scalespec.analysis.spectral.metrics import EPS
from scalespec.analysis.spectral.power_law import NATIVE_RULE, WW_CUT, WW_RULE, Floats, profile
from scalespec.analysis.spectral.random_matrix import marchenko_pastur

DATA, FIT, NULL = "#0072b2", "#d55e00", "#000000"
"""Blue, vermilion, black of Okabe & Ito's palette: told apart by colour-blind readers and in print."""

BINS_PER_DECADE = 12
MOST_BINS = 60
MOST_POINTS = 150
"""Of the bulk in a curve; the tail is drawn whole."""
SPAN = 1e-4
"""Smaller shares of the largest eigenvalue are off the left edge: a hard edge's smallest values would take half the axis."""

STRIP_ALPHA = 12.0
"""The strip's axis of alpha ends here; above it the exponent is that of a handful of points."""


def esd_figure(row: Mapping[str, Any]) -> Figure:
    """The spectrum of one layer, a row of `analysis.tables.SPECTRA` with its eigenvalues.

    The fit is scaled by n_tail/n, so that it lies on the bars; the null is Marchenko–Pastur's law at the same mean eigenvalue.
    Raises ValueError for a row without eigenvalues.
    """
    values = np.asarray(row.get("eigenvalues") if row.get("eigenvalues") is not None else [], dtype=np.float64)
    values = np.sort(values[values > EPS * len(values) * values.max(initial=0)])
    if len(values) < 2:
        raise ValueError(f"layer {row.get('layer')} has no stored eigenvalues")
    with figure(FULL, 2.5, columns=3) as (fig, (density, tail, strip)):
        fit = _fit_of(row)
        _density(density, values, row, fit)
        _tail(tail, values, row, fit)
        _strip(strip, values, row, fit)
        fig.suptitle(_title(row, fit), fontsize=8, ha="left", x=0.01)
        caption(fig, _caption(row, values))
    return fig


def _fit_of(row: Mapping[str, Any]) -> dict[str, float] | None:
    columns = fit_columns(str(row["profile"]))
    if row.get("status") != "ok" or row.get(columns["alpha"]) is None:
        return None
    return {name: float(row[column]) for name, column in columns.items()}


def _title(row: Mapping[str, Any], fit: Mapping[str, float] | None) -> str:
    name = f"{row.get('layer')}  {row['rows']}×{row['cols']}"
    if fit is None:
        return f"{name}: no fit ({row.get('error') or row.get('status')})"
    interval = "" if row.get("alpha_lo") is None else f" [{row['alpha_lo']:.2f}, {row['alpha_hi']:.2f}]"
    text = f"{name}   α = {fit['alpha']:.2f}{interval}   D = {fit['D']:.3f}   tail {fit['num_pl_spikes']:.0f} from {fit['xmin']:.3g}"
    verdict = {True: "trusted", False: f"not trusted: {row.get('why')}"}.get(row.get("trusted"), "trust not computed")  # type: ignore[arg-type]
    return f"{text}\n{verdict}"


def _caption(row: Mapping[str, Any], values: Floats) -> str:
    scale = (
        "half the squared singular values" if row["profile"] == WW and row["kind"] == "conv2d" else "λ = σ², unscaled"
    )
    interval = (
        "" if row.get("alpha_lo") is None else " Interval: 5–95 % of a bootstrap over eigenvalues, xmin chosen anew."
    )
    hidden = int(np.count_nonzero(values < values[-1] * SPAN))
    count = f"{len(values)} eigenvalues" + (f", {hidden} of them left of the axes" if hidden else "")
    return f"Profile {row['profile']}; {count}, {scale}. Null: Marchenko–Pastur at the same mean.{interval}"


def _null(row: Mapping[str, Any], values: Floats) -> tuple[Floats, Floats] | None:
    """(λ, density) of independent elements at the layer's mean eigenvalue."""
    long, short = max(row["rows"], row["cols"]), min(row["rows"], row["cols"])
    Q, mean = long / short, float(values.mean())
    a, b = (1 - Q**-0.5) ** 2, (1 + Q**-0.5) ** 2
    x = np.geomspace(max(a, 1e-3 * b) * (1 + 1e-9), b * (1 - 1e-9), 400)
    return x * mean, marchenko_pastur(x, Q) / mean


def _density(axes: Axes, values: Floats, row: Mapping[str, Any], fit: Mapping[str, float] | None) -> None:
    low = max(values[0], values[-1] * SPAN)
    bins = int(np.clip(BINS_PER_DECADE * np.log10(values[-1] / low), 8, MOST_BINS))
    edges = np.geomspace(low, values[-1] * (1 + 1e-9), bins + 1)
    counts = np.histogram(values, edges)[0]
    heights = counts / (len(values) * np.diff(edges))
    axes.stairs(np.where(counts > 0, heights, np.nan), edges, color=DATA, fill=True, alpha=0.35, baseline=1e-300)
    null = _null(row, values)
    if null is not None:
        axes.plot(*null, color=NULL, lw=0.7)
    if fit is not None:
        x = np.array([fit["xmin"], values[-1]])
        share = fit["num_pl_spikes"] / len(values)
        axes.plot(x, share * (fit["alpha"] - 1) / fit["xmin"] * (x / fit["xmin"]) ** -fit["alpha"], color=FIT, ls="--")
        axes.axvspan(fit["xmin"], values[-1], color=FIT, alpha=0.08, lw=0)
        axes.axvline(fit["xmin"], color=FIT, lw=0.7)
    if row.get("max_rand_eval") is not None:
        axes.axvline(row["max_rand_eval"], color=GREY, lw=0.7, ls=":")
    shown = heights[counts > 0]
    axes.set_ylim(shown.min() / 3, shown.max() * 5)
    axes.set_xlim(low / 1.3, values[-1] * 1.3)
    log_axis(axes, "x", "eigenvalue λ", short)
    axes.set_yscale("log")
    axes.set_ylabel("density, log scale")


def _tail(axes: Axes, values: Floats, row: Mapping[str, Any], fit: Mapping[str, float] | None) -> None:
    n = len(values)
    shown = _thin(n, MOST_POINTS, n - min(n, 100))
    axes.plot(values[shown], 1 - shown / n, ".", color=DATA, ms=2.5, label="layer")
    null = _null(row, values)
    if null is not None:
        x, density = null
        mass = np.concatenate(([0.0], np.cumsum(np.diff(x) * (density[1:] + density[:-1]) / 2)))
        # the law starts below the grid: what is missing lies left of it
        axes.plot(x, np.maximum(mass[-1] - mass, 1e-12), color=NULL, lw=0.7, label="independent elements")
    if fit is not None:
        x = np.geomspace(fit["xmin"], values[-1], 50)
        share = fit["num_pl_spikes"] / n
        axes.plot(x, share * (x / fit["xmin"]) ** (1 - fit["alpha"]), color=FIT, ls="--", label="fit")
        axes.axvline(fit["xmin"], color=FIT, lw=0.7)
    if row.get("max_rand_eval") is not None:
        axes.axvline(row["max_rand_eval"], color=GREY, lw=0.7, ls=":", label="max λ of the shuffle")
    axes.set_xlim(max(values[0], values[-1] * SPAN) / 1.3, values[-1] * 1.3)
    axes.set_ylim(0.5 / n, 2)
    log_axis(axes, "x", "eigenvalue λ", short)
    axes.set_yscale("log")
    axes.set_ylabel("share ≥ λ, log scale")
    axes.legend(loc="lower left", handlelength=1.2)


def _strip(axes: Axes, values: Floats, row: Mapping[str, Any], fit: Mapping[str, float] | None) -> None:
    """D and alpha of every candidate xmin: where the choice of the tail is unstable, both curves say so."""
    rule = NATIVE_RULE if row["profile"] == NATIVE else WW_RULE
    kept = values if row["profile"] == NATIVE else values[values > WW_CUT]
    xmin, distance, alpha = profile(kept, rule)
    shown = _thin(len(xmin), MOST_POINTS, len(xmin) - min(len(xmin), 30))
    xmin, distance, alpha = xmin[shown], distance[shown], alpha[shown]
    axes.plot(xmin, distance, color=DATA, lw=0.8)
    axes.set_ylabel("D(xmin)", color=DATA)
    axes.set_ylim(0, min(1.0, 1.1 * float(np.max(distance, initial=0.1))))
    if row.get("D_null") is not None:
        axes.axhline(row["D_null"], color=QUIET, lw=0.7)
        axes.text(
            0.02,
            row["D_null"],
            "5 % of random",
            transform=axes.get_yaxis_transform(),
            fontsize=6,
            va="bottom",
            color=GREY,
        )
    right = axes.twinx()
    right.spines["right"].set_visible(True)
    right.plot(xmin, np.where(alpha <= STRIP_ALPHA, alpha, np.nan), color=FIT, lw=0.8)
    right.set_ylabel("α(xmin)", color=FIT)
    right.set_ylim(1, STRIP_ALPHA)
    if fit is not None:
        axes.axvline(fit["xmin"], color=FIT, lw=0.7)
    axes.set_xlim(max(kept[0], kept[-1] * SPAN) / 1.3, kept[-1] * 1.3)
    log_axis(axes, "x", "xmin", short)


def _thin(n: int, most: int, whole: int) -> NDArray[np.intp]:
    """Indices below n: evenly spaced up to `whole`, all of them from there on."""
    head = np.unique(np.linspace(0, whole, min(whole, most), endpoint=False).astype(np.intp))
    return np.concatenate((head, np.arange(whole, n)))


def short(value: float) -> str:
    """A tick label: 0.03, 3, 2e-5."""
    return (
        f"{value:g}" if 1e-3 <= value < 1e4 or value == 0 else f"{value:.0e}".replace("e-0", "e-").replace("e+0", "e")
    )
