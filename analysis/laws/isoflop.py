"""IsoFLOP profiles: the best model size at each compute budget, and how it grows with compute.

A minimum counts only where measured points lie higher on both sides. A parabola through every point of a wide or lopsided grid
is biased by up to tens of percent, and read an exponent of 1.21 where the authors found 0.84, so the minimum is
that of an Akima spline, or of a parabola through the five points around it (https://arxiv.org/abs/2406.19146,
https://arxiv.org/abs/2603.22339).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from scalespec.analysis.laws import bootstrap
from scalespec.analysis.laws.fitting import NARROW
from scalespec.analysis.laws.law import Array, Evidence, FitStatus, Law, positive
from scalespec.analysis.laws.noise import seed_noise

Method = Literal["akima", "parabola"]
SAME_BUDGET = 0.05
"""Neighbouring budgets closer than this in ln C are one budget; a gap opens a new one, so no bucket edge can split a group."""
_LEAST_BUDGETS = 3
_HALF_WINDOW = 2


@dataclass(frozen=True)
class Profile:
    """The runs of one budget and their best size."""

    c: float
    """Budget in FLOP: the geometric mean of its points."""
    n: Array
    """[k] distinct sizes, ascending."""
    loss: Array
    """[k] loss of each size; repeats are averaged in ln L."""
    n_opt: float
    """Best size; NaN where it is not bracketed."""
    loss_opt: float
    """Loss there; NaN where it is not bracketed."""
    status: str
    """interior | smallest | largest (the best size is at that end of the grid) | too_few (sizes) | not_convex"""
    used: bool = True
    """Whether it entered the law: an optimum at the edge in more than half of the draws does not."""


def minimum(n: Array, loss: Array, method: Method = "akima") -> tuple[float, float, str]:
    """Best size, loss there and status of one profile with ascending sizes `n` [k]."""
    if len(n) < 4:
        return float("nan"), float("nan"), "too_few"
    x, y = np.log(n), np.log(loss)
    best = int(np.argmin(y))
    if best in (0, len(x) - 1):
        return float("nan"), float("nan"), "smallest" if best == 0 else "largest"
    if method == "akima":
        from scipy.interpolate import Akima1DInterpolator  # half a second that only this method needs

        curve = Akima1DInterpolator(x, y)
        roots = curve.derivative().roots(extrapolate=False)
        candidates = np.append(roots[(roots > x[best - 1]) & (roots < x[best + 1])], x[best])
        values = curve(candidates)
        at = int(np.argmin(values))
        return float(np.exp(candidates[at])), float(np.exp(values[at])), "interior"
    window = slice(max(best - _HALF_WINDOW, 0), best + _HALF_WINDOW + 1)
    quadratic, slope, constant = np.polyfit(x[window] - x[best], y[window], 2)
    shift = -slope / (2 * quadratic) if quadratic > 0 else np.inf
    if not x[window][0] < x[best] + shift < x[window][-1]:
        return float("nan"), float("nan"), "not_convex"
    return float(np.exp(x[best] + shift)), float(np.exp(constant + slope * shift / 2)), "interior"


def budgets_of(c: Array, tolerance: float = SAME_BUDGET) -> np.ndarray[Any, np.dtype[np.int64]]:
    """The budget of each point as 0 … g−1 in ascending order."""
    order = np.argsort(c, kind="stable")
    opens = np.concatenate([[False], np.diff(np.log(c[order])) > tolerance])
    group = np.empty(len(c), dtype=np.int64)
    group[order] = np.cumsum(opens)
    return group


def profiles(n: Any, c: Any, loss: Any, *, method: Method = "akima", tolerance: float = SAME_BUDGET) -> list[Profile]:
    """The profile of each budget of a table [points], ascending. Raises ValueError on values that are not positive."""
    n, c, loss = positive("n", n), positive("c", c), positive("loss", loss)
    if not len(n):
        return []
    group = budgets_of(c, tolerance)
    out = []
    for g in range(group.max() + 1):
        mine = group == g
        sizes, mean = _averaged(n[mine], np.log(loss[mine]), np.ones(int(mine.sum())))
        out.append(
            Profile(float(np.exp(np.log(c[mine]).mean())), sizes, np.exp(mean), *minimum(sizes, np.exp(mean), method))
        )
    return out


def _averaged(n: Array, log_loss: Array, weight: Array) -> tuple[Array, Array]:
    """Distinct sizes with a weight, and the weighted mean of ln L at each."""
    sizes, index = np.unique(n, return_inverse=True)
    total = np.bincount(index, weight, minlength=len(sizes))
    mean = np.bincount(index, weight * log_loss, minlength=len(sizes)) / np.maximum(total, 1e-300)
    return sizes[total > 0], mean[total > 0]


def fit_isoflop(
    n: Any,
    c: Any,
    loss: Any,
    *,
    method: Method = "akima",
    tolerance: float = SAME_BUDGET,
    families: Sequence[Any] | None = None,
    noise: float | None = None,
    resamples: int = 400,
    seed: int = 0,
    level: float = 0.95,
) -> tuple[Law, list[Profile]]:
    """N_opt = G·C^a from the minima of IsoFLOP profiles, and the profiles.

    Draws resample `families` [points] where there are at least six; otherwise they add normal noise of `noise` on ln L (default:
    the spread between seeds, or, with one run a cell, the scatter about local parabolas). As in
    https://arxiv.org/abs/2406.19146 a budget whose optimum lies at the edge in more than half of the draws is dropped and the
    line is weighted by the inverse variance of each optimum, at least a third of the grid spacing.
    """
    n, c, loss = positive("n", n), positive("c", c), positive("loss", loss)
    found = profiles(n, c, loss, method=method, tolerance=tolerance)
    group = budgets_of(c, tolerance) if len(c) else np.empty(0, dtype=np.int64)
    rng = np.random.default_rng(seed)
    clusters = bootstrap.Clusters.of(families, [str(i) for i in range(len(n))], n) if families is not None else None
    sd = noise if noise is not None else _noise(found, seed_noise(loss, n, c).sd if len(loss) else float("nan"))
    if clusters is not None and clusters.count >= bootstrap.MINIMUM_FAMILIES:
        unit = clusters.unit
        weights, _ = clusters.weights(resamples, rng)
        shaken = np.zeros_like(weights)
    else:
        clusters = None
        unit = f"noise of {100 * sd:.2g} % on the loss"
        weights, shaken = np.ones((resamples, len(n))), sd * rng.standard_normal((resamples, len(n)))
    draws = np.full((resamples, len(found)), np.nan)
    for g, profile in enumerate(found):
        if profile.status == "interior":
            mine = group == g
            for b in range(resamples):
                sizes, mean = _averaged(n[mine], np.log(loss[mine]) + shaken[b, mine], weights[b, mine])
                draws[b, g] = np.log(minimum(sizes, np.exp(mean), method)[0])
    bracketed = np.isfinite(draws).mean(axis=0) if resamples else np.ones(len(found))
    used = np.array([p.status == "interior" for p in found], dtype=np.bool_) & (bracketed > 0.5)
    found = [Profile(**{**vars(p), "used": bool(u)}) for p, u in zip(found, used, strict=True)]
    return _law(found, draws, used, clusters, unit, resamples, level, len(n)), found


def _noise(found: list[Profile], seeds: float) -> float:
    """The spread between seeds, or the scatter of each budget about the parabola through the points around its best."""
    if np.isfinite(seeds):
        return seeds
    squares = degrees = 0.0
    for p in found:
        best = int(np.argmin(p.loss))
        near = slice(max(best - 3, 0), best + 4)
        x, y = np.log(p.n[near]), np.log(p.loss[near])
        if len(x) > 3:
            squares += float(((y - np.polyval(np.polyfit(x, y, 2), x)) ** 2).sum())
            degrees += len(x) - 3
    return float(np.sqrt(squares / degrees)) if degrees else 0.0


def _law(
    found: list[Profile],
    draws: Array,
    used: Any,
    clusters: bootstrap.Clusters | None,
    unit: str,
    resamples: int,
    level: float,
    points: int,
) -> Law:
    inside = [p for p in found if p.used]
    table: dict[str, list[Any]] = {
        "c": [p.c for p in inside],
        "n": [p.n_opt for p in inside],
        "loss": [p.loss_opt for p in inside],
    }
    why = [p.status if p.status != "interior" else "unstable" for p in found if not p.used]
    rest = [p for p in found if not p.used]
    missed = {
        reason: {
            "c": [p.c for p, w in zip(rest, why, strict=True) if w == reason],
            "n": [float(p.n[p.loss.argmin()]) for p, w in zip(rest, why, strict=True) if w == reason],
        }
        for reason in sorted(set(why))
    }
    common: dict[str, Any] = {
        "id": "isoflop",
        "form": "isoflop",
        "target": "n_opt",
        "level": level,
        "n_points": points,
        "n_column": "n",
        "c_column": "c",
    }
    if used.sum() < _LEAST_BUDGETS:
        return Law(
            params={},
            resampling="none: fewer than three bracketed budgets",
            n_used=0,
            status=frozenset({FitStatus.TOO_FEW_POINTS}),
            diagnostics={"points": table, "not_bracketed": missed},
            **common,
        )
    log_c = np.log([p.c for p in found])[used]
    x = log_c - log_c.mean()
    y = np.log([p.n_opt for p in found])[used]
    spacing = np.array([np.diff(np.log(p.n)).mean() for p in found])[used]
    spread = np.nanstd(draws[:, used], axis=0) if resamples else np.zeros(int(used.sum()))
    weight = 1 / np.maximum(spread, spacing / 3) ** 2
    estimate = _lines(x, y[None], weight)[0]
    lines = _lines(x, draws[:, used], weight)
    centre = log_c.mean()
    values = {"a": lines[:, 1], "G": np.exp(lines[:, 0] - lines[:, 1] * centre)}
    widening = clusters.widening(level) if clusters is not None else 1.0
    estimated = {"a": estimate[1], "G": float(np.exp(estimate[0] - estimate[1] * centre))}
    params = bootstrap.intervals(estimated, values, level, widening)
    wide = float(np.exp(np.ptp(log_c)))
    status = {FitStatus.CONVERGED} | ({FitStatus.TOO_NARROW} if wide < NARROW else set())
    places = zip(y, np.flatnonzero(used), strict=True)
    ends = [bootstrap.interval(np.exp(v), np.exp(draws[:, g]), level, widening, log=True) for v, g in places]
    table["n_lo"] = [p.lo for p in ends]
    table["n_hi"] = [p.hi for p in ends]
    residuals = y - estimate[0] - estimate[1] * x
    return Law(
        params=params,
        resampling=f"{resamples} draws over {unit}",
        n_used=sum(len(p.n) for p in found if p.used),
        status=frozenset(status),
        diagnostics={
            "points": table,
            "not_bracketed": missed,
            "c_range": wide,
            "residual_sd": float(residuals.std(ddof=2)) if len(x) > 2 else 0.0,
        },
        evidence=Evidence(
            values, residuals, tuple(f"{p.c:.4g}" for p in inside), widening, columns={"c": np.exp(log_c)}
        ),
        **common,
    )


def _lines(x: Array, y: Array, weight: Array) -> Array:
    """(height at x = 0, slope) of the weighted line through each row of `y` [B, g]; gaps in a row are left out."""
    seen = np.isfinite(y)
    w = weight * seen
    filled = np.where(seen, y, 0.0)
    total = np.maximum(w.sum(axis=1), 1e-300)
    mean_x, mean_y = (w * x).sum(axis=1) / total, (w * filled).sum(axis=1) / total
    away = x - mean_x[:, None]
    slope = (w * away * filled).sum(axis=1) / np.maximum((w * away**2).sum(axis=1), 1e-300)
    slope = np.where(seen.sum(axis=1) >= 2, slope, np.nan)
    return np.column_stack([mean_y - slope * mean_x, slope])
