"""IsoFLOP profiles: the losses of a budget's sizes, and the best size among them.

A minimum counts only where measured points lie higher on both sides. A parabola through every point of a wide or lopsided grid
is biased by up to tens of percent, and read an exponent of 1.21 where the authors found 0.84, so the minimum is
that of an Akima spline, or of a parabola through the five points around it (https://arxiv.org/abs/2406.19146,
https://arxiv.org/abs/2603.22339).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from scalespec.analysis.laws.law import Array, positive

Method = Literal["akima", "parabola"]
SAME_BUDGET = 0.05
"""Neighbouring budgets closer than this in ln C are one budget; a gap opens a new one, so no bucket edge can split a group."""
_HALF_WINDOW = 2
"""Sizes on either side of the best that enter the parabola."""


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
    """Best size, loss there and status of one profile with ascending sizes `n` [k] and `loss` [k].

    Both methods work in (ln N, ln L), where published valleys are close to symmetric, and neither looks past the neighbours of the
    lowest loss: what the far ends of a profile do says nothing of its bottom.
    """
    # three points are any parabola's own and say nothing of noise
    if len(n) < 4:
        return float("nan"), float("nan"), "too_few"
    x, y = np.log(n), np.log(loss)
    best = int(np.argmin(y))
    if best in (0, len(x) - 1):
        return float("nan"), float("nan"), "smallest" if best == 0 else "largest"
    if method == "akima":
        from scipy.interpolate import Akima1DInterpolator  # half a second that only this method needs

        # Akima's spline (https://doi.org/10.1145/321607.321609) goes through every point and, unlike a cubic spline, does
        # not ring beside an outlier. Its minimum is at a root of its derivative or at the lowest point itself.
        curve = Akima1DInterpolator(x, y)
        roots = curve.derivative().roots(extrapolate=False)
        candidates = np.append(roots[(roots > x[best - 1]) & (roots < x[best + 1])], x[best])
        values = curve(candidates)
        at = int(np.argmin(values))
        return float(np.exp(candidates[at])), float(np.exp(values[at])), "interior"
    # y = q·x² + m·x + k about the lowest point: its vertex is −m/2q, the loss there k − m²/4q = k + m·shift/2
    window = slice(max(best - _HALF_WINDOW, 0), best + _HALF_WINDOW + 1)
    quadratic, slope, constant = np.polyfit(x[window] - x[best], y[window], 2)
    shift = -slope / (2 * quadratic) if quadratic > 0 else np.inf
    if not x[window][0] < x[best] + shift < x[window][-1]:
        return float("nan"), float("nan"), "not_convex"
    return float(np.exp(x[best] + shift)), float(np.exp(constant + slope * shift / 2)), "interior"


def budgets_of(c: Array, tolerance: float = SAME_BUDGET) -> np.ndarray[Any, np.dtype[np.int64]]:
    """The budget of each point as 0 … g−1 in ascending order."""
    # sorted by compute, a new budget begins wherever the step in ln C is larger than `tolerance`; the running count of such
    # steps, put back into the order of the table, is the label
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
        sizes, mean = averaged(n[mine], np.log(loss[mine]), np.ones(int(mine.sum())))
        out.append(
            Profile(float(np.exp(np.log(c[mine]).mean())), sizes, np.exp(mean), *minimum(sizes, np.exp(mean), method))
        )
    return out


def averaged(n: Array, log_loss: Array, weight: Array) -> tuple[Array, Array]:
    """Distinct sizes with a weight, and the weighted mean of ln L at each: seeds are averaged before any minimum is taken."""
    sizes, index = np.unique(n, return_inverse=True)
    total = np.bincount(index, weight, minlength=len(sizes))
    mean = np.bincount(index, weight * log_loss, minlength=len(sizes)) / np.maximum(total, 1e-300)
    return sizes[total > 0], mean[total > 0]
