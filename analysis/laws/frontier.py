"""Reading the compute-efficient frontier of finished runs: the best loss and the best model size for each compute budget.

Seeds are averaged first and each size's losses are smoothed over compute before any minimum is taken: the minimum of noisy
runs is biased low by several percent (expected minimum of normal variables). A budget counts only where the best size
has measured neighbours on both sides; nothing is read outside the range that a size was trained for.

Shapes: B weightings of the table (one of ones, or bootstrap draws), G budgets, S sizes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from scalespec.analysis.laws.isoflop import Profile
from scalespec.analysis.laws.law import Array

BUDGETS = 13
"""Budgets, evenly spaced in ln C, at which the frontier is read."""
HALF_WINDOW = 2
"""Sizes on either side of the best that enter the parabola in ln N."""


@dataclass(frozen=True)
class Frontier:
    """The frontier of one data set, or of B resampled ones."""

    c: Array
    """[G] budgets in FLOP."""
    n: Array
    """[B, G] best size; NaN where it is not bracketed."""
    loss: Array
    """[B, G] loss at the best size; NaN where it is not bracketed."""
    lowest: Array
    """[B, G] trained size with the lowest smoothed loss, bracketed or not."""
    why: np.ndarray[Any, np.dtype[np.str_]]
    """[B, G] bracketed | smallest | largest (the best size trained for this budget is at that end) | flat (no minimum)"""


@dataclass(frozen=True)
class _Cells:
    """The distinct (size, budget) pairs of a table."""

    sizes: Array
    size: np.ndarray[Any, np.dtype[np.int64]]
    log_c: Array
    index: np.ndarray[Any, np.dtype[np.int64]]

    @classmethod
    def of(cls, n: Array, c: Array) -> _Cells:
        pairs, index = np.unique(np.column_stack([n, c]), axis=0, return_inverse=True)
        sizes, size = np.unique(pairs[:, 0], return_inverse=True)
        return cls(sizes, size.ravel(), np.log(pairs[:, 1]), index.ravel())

    def means(self, values: Array, weights: Array) -> tuple[Array, Array]:
        """Weighted mean of `values` [n] in each cell and the weight there, both [B, cells]."""
        # [n, cells], 1 where a point is in a cell: sums over cells are then products with the weights, for all B at once
        member = np.zeros((len(values), len(self.size)))
        member[np.arange(len(values)), self.index] = 1
        total = weights @ member
        return (weights * values) @ member / np.maximum(total, 1e-300), total

    def ranges(self) -> tuple[Array, Array]:
        """Smallest and largest ln C of each size."""
        low = np.array([self.log_c[self.size == s].min() for s in range(len(self.sizes))])
        high = np.array([self.log_c[self.size == s].max() for s in range(len(self.sizes))])
        return low, high


def budgets(n: Array, c: Array, count: int = BUDGETS) -> Array:
    """Budgets at which at least three sizes were trained, evenly spaced in ln C; empty where there are none."""
    low, high = _Cells.of(n, c).ranges()
    if len(low) < 3:
        return np.empty(0)
    # three sizes are the fewest with a smaller and a larger neighbour; a thousandth of the range is finer than any budget
    fine = np.linspace(low.min(), high.max(), 1001)
    covered = fine[((fine[:, None] >= low) & (fine[:, None] <= high)).sum(axis=1) >= 3]
    return np.exp(np.linspace(covered[0], covered[-1], count)) if len(covered) > 1 else np.empty(0)


def trace(n: Array, c: Array, loss: Array, at: Array, weights: Array | None = None) -> Frontier:
    """The frontier at the budgets `at` [G], for the table weighted by each row of `weights` [B, points]."""
    weights = np.ones((1, len(loss))) if weights is None else weights
    if not len(at):
        nothing = np.empty((len(weights), 0))
        return Frontier(at, nothing, nothing, nothing, nothing.astype(str))
    cells = _Cells.of(n, c)
    curves = _smooth(cells, *cells.means(np.log(loss), weights), np.log(at))
    log_n, log_loss, lowest, why = _vertices(np.log(cells.sizes), curves)
    return Frontier(at, np.exp(log_n), np.exp(log_loss), np.exp(lowest), why)


def smoothed_profiles(n: Array, c: Array, loss: Array) -> list[Profile]:
    """The IsoFLOP profiles behind the frontier: at each budget the smoothed loss of every size trained for it."""
    at = budgets(n, c)
    if not len(at):
        return []
    cells = _Cells.of(n, c)
    curves = _smooth(cells, *cells.means(np.log(loss), np.ones((1, len(loss)))), np.log(at))
    log_n, log_loss, _, why = _vertices(np.log(cells.sizes), curves)
    out = []
    for g, budget in enumerate(at):
        known = np.isfinite(curves[0, :, g])
        best = (float(np.exp(log_n[0, g])), float(np.exp(log_loss[0, g])))
        status = {"bracketed": "interior", "flat": "not_convex"}.get(str(why[0, g]), str(why[0, g]))
        out.append(Profile(float(budget), cells.sizes[known], np.exp(curves[0, known, g]), *best, status))
    return out


def along(n: Array, c: Array, values: Array, frontier: Frontier) -> Array:
    """`values` (positive: an error rate, a loss) read at the frontier's own size and budget [G], smoothed the same way."""
    cells = _Cells.of(n, c)
    curves = _smooth(cells, *cells.means(np.log(values), np.ones((1, len(values)))), np.log(frontier.c))[0]
    log_sizes = np.log(cells.sizes)
    out = np.full(len(frontier.c), np.nan)
    for g, size in enumerate(np.log(frontier.n[0])):
        known = np.isfinite(curves[:, g])
        if np.isfinite(size) and known.sum() >= 2:
            out[g] = np.exp(np.interp(size, log_sizes[known], curves[known, g]))
    return out


def _smooth(cells: _Cells, mean: Array, weight: Array, log_at: Array) -> Array:
    """Quadratic in ln C through the cell means of each size, read at `log_at` inside the size's own range: [B, S, G].

    `mean` and `weight` [B, cells] are ln L averaged over seeds and the number of runs behind it. A quadratic bends once, which is
    all that a loss towards its floor does over a few decades; it averages the noise of a size's budgets before they compete,
    and lets sizes that were trained for different budgets be compared at one. With two cells it is a line, with one a point.
    """
    low, high = cells.ranges()
    curves = np.full((len(mean), len(cells.sizes), len(log_at)), np.nan)
    for s in range(len(cells.sizes)):
        mine = cells.size == s
        x = cells.log_c[mine]
        degree = min(2, len(x) - 1)
        # centred and scaled to about one, so that the normal equations below are well conditioned whatever the FLOP
        centre, scale = x.mean(), max(float(np.ptp(x)), 1e-12)
        basis = np.vander((x - centre) / scale, degree + 1)  # [cells of s, degree + 1]
        w = weight[:, mine]
        # a draw without enough cells of this size has no curve of it
        present = (w > 0).sum(axis=1) > degree
        # weighted least squares, a system of size ≤ 3 a draw: (Xᵀ W X) b = Xᵀ W y
        normal = np.einsum("bj,jp,jq->bpq", w, basis, basis) + 1e-12 * np.eye(degree + 1)
        moment = np.einsum("bj,jp->bp", w * mean[:, mine], basis)
        fitted = np.linalg.solve(normal, moment[..., None])[..., 0] @ np.vander((log_at - centre) / scale, degree + 1).T
        # never beyond what the size was trained for: a quadratic extrapolates to anything
        inside = (log_at >= low[s] - 1e-9) & (log_at <= high[s] + 1e-9)
        curves[:, s] = np.where(present[:, None] & inside, fitted, np.nan)
    return curves


def _vertices(log_sizes: Array, curves: Array) -> tuple[Array, Array, Array, Any]:
    """Vertex of the parabola in ln N through the sizes around the best, the lowest size, and why there is no vertex, [B, G] each.

    `log_sizes` [S] ascending; `curves` [B, S, G] of ln L, NaN where a size was not trained for a budget. ln N and ln L are those of
    approach 2 in https://arxiv.org/abs/2203.15556, but the window is local: a parabola through all of a wide or lopsided set
    of sizes has its vertex elsewhere (https://arxiv.org/abs/2603.22339).
    """
    b, sizes, g = curves.shape
    # every (draw, budget) pair is a row of its own from here on: [R = B·G, S]
    flat = curves.transpose(0, 2, 1).reshape(-1, sizes)
    known = np.isfinite(flat)
    rank = np.cumsum(known, axis=1) - 1  # position of a size among those trained for this budget
    best = np.argmin(np.where(known, flat, np.inf), axis=1)
    place = rank[np.arange(len(flat)), best]
    last = known.sum(axis=1) - 1
    # the lowest loss at the smallest or largest size says only on which side the optimum is
    interior = (place >= 1) & (place <= last - 1)
    window = known & (np.abs(rank - place[:, None]) <= HALF_WINDOW)

    # y = q·x² + m·x + k with x = ln N − ln N_lowest, least squares over the window: one 3 × 3 system a row, entries
    # Σ_window x^(i+j); rows without an interior minimum get the unit matrix, so that no system is singular
    centre = log_sizes[best]
    x = log_sizes[None, :] - centre[:, None]
    w = window.astype(np.float64)
    y = np.where(window, flat, 0.0)
    powers = np.stack([x**2, x, np.ones_like(x)], axis=2)
    normal = np.einsum("rs,rsp,rsq->rpq", w, powers, powers) + 1e-14 * np.eye(3)
    moment = np.einsum("rs,rsp->rp", w * y, powers)
    normal[~interior] = np.eye(3)
    quadratic, slope, constant = np.linalg.solve(normal, moment[..., None])[..., 0].T

    # the vertex −m/2q and the loss k − m²/4q there; it counts where the parabola opens upwards and its vertex lies between
    # sizes of the window: beyond them it would be an extrapolation
    with np.errstate(divide="ignore", invalid="ignore"):
        shift = -slope / (2 * quadratic)
        value = constant - slope**2 / (4 * quadratic)
    first = np.where(window, x, np.inf).min(axis=1)
    final = np.where(window, x, -np.inf).max(axis=1)
    good = interior & (quadratic > 0) & (shift > first) & (shift < final)
    why = np.select([good, place <= 0, place >= last], ["bracketed", "smallest", "largest"], "flat")
    log_n, log_loss = np.where(good, centre + shift, np.nan), np.where(good, value, np.nan)
    return log_n.reshape(b, g), log_loss.reshape(b, g), centre.reshape(b, g), why.reshape(b, g)
