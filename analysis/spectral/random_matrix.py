"""What random matrix theory says of a spectrum: the Marchenko–Pastur bulk and what stands out of it, the distance from the
shuffled spectrum, the trace-log condition, and windows of fixed aspect ratio."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import rel_entr

from scalespec.analysis.spectral.esd import Array, eigenvalues
from scalespec.analysis.spectral.power_law import Floats, hill

BANDWIDTH, GRID, VANISHING = 0.1, 1000, 0.01
"""WeightWatcher's density estimate: triangular kernel of this half width, on 1000 points, and ignored below 0.01."""

TOLERANCE, MOST_CALLS = 1e-4, 200
"""Of the simplex, in sigma and in the objective: those of `scipy.optimize.fmin`."""

OUTSIDE = 1000.0
"""Residual where the bulk does not cover the mode or passes the data."""


@dataclass(frozen=True)
class Bulk:
    """A Marchenko–Pastur bulk fitted to a spectrum."""

    sigma: float
    """Standard deviation of the elements, of the spectrum scaled to mean 1."""
    scale: float
    """W_scale: its square turns eigenvalues into the scaled ones."""
    lower: float
    """bulk_min, in the units of the eigenvalues."""
    upper: float
    """bulk_max, in the units of the eigenvalues."""
    softrank: float
    """upper / max λ"""
    spikes: int
    """Eigenvalues above the upper edge by more than the square root of WeightWatcher's Tracy–Widom width."""


def fit_bulk(values: Floats, N: int, M: int) -> Bulk | None:
    """WeightWatcher's fit of the bulk's width: least squares between the density of `values` and Marchenko–Pastur's law.

    The density is evaluated once in closed form, where WeightWatcher estimates it anew at each of some 230 calls of the
    objective; grid, objective and final simplex are the same. For N = M the quarter circle is fitted to singular values,
    with its support fixed to [0, 2]: there sigma only scales the height. None where no density reaches WeightWatcher's floor.
    """
    scale_squared = len(values) / float(values.sum())
    x = values * scale_squared
    Q, top = N / M, float(x[-1])
    root = Q**-0.5
    objective = _Misfit(np.sqrt(x) if Q == 1 else x, Q)
    if not len(objective.x):
        return None
    unit = top**0.5 / (1 + root)
    grid = np.arange(0.05 * unit, 2.0 * unit, 0.01 * unit)
    sigma = _simplex(objective, float(grid[int(np.argmin(objective.along(grid)))]))
    upper, lower = (sigma * (1 + root)) ** 2, (sigma * (1 - root)) ** 2
    width = root * upper ** (2 / 3) * M ** (-2 / 3)
    spikes = int(np.count_nonzero(x > upper + width**0.5))
    return Bulk(sigma, scale_squared**0.5, lower / scale_squared, upper / scale_squared, upper / top, spikes)


class _Misfit:
    """Sum of squared differences between the kernel density and the law of width s, over the points with density.

    Multiplied out, Σ(m − y)² = Σy² − 2Σmy + Σm²: the data's part is summed once, and what depends on s are two products of
    a vector with constants.
    """

    def __init__(self, x: Floats, Q: float) -> None:
        grid = np.linspace(0, x[-1] + 0.5, GRID)
        density = triangular_density(x, grid, BANDWIDTH)
        kept = density > VANISHING
        self.x, self.Q = grid[kept], Q
        if not kept.any():
            return
        y = density[kept]
        self.outside = OUTSIDE * OUTSIDE * len(self.x)
        self.mode, self.last = float(self.x[np.argmax(y)]), float(self.x[-1])
        self.squares = float(y @ y)
        if Q == 1:
            circle = np.sqrt(np.maximum(4 - self.x**2, 0)) / np.pi
            self.circle_squares, self.circle_y = float(circle @ circle), float(circle @ y)
        else:
            root = Q**-0.5
            self.low, self.high = (1 - root) ** 2, (1 + root) ** 2
            inverse = 1 / np.maximum(self.x, self.x[self.x > 0][0])  # at 0 itself the law is 0
            self.weights, self.inverse_squares = y * inverse, inverse * inverse

    def __call__(self, s: float) -> float:
        square = s * s
        if self.Q == 1:
            return float(self._circle(square))
        a, b = square * self.low, square * self.high
        if b < self.mode or b > self.last or a > self.mode:
            return self.outside
        first, last = self.x.searchsorted((a, b))
        x = self.x[first:last]
        product = (b - x) * (x - a)
        height = self.Q / (2 * np.pi * square)
        cross = float(np.sqrt(np.maximum(product, 0, out=product)) @ self.weights[first:last])
        return self.squares - 2 * height * cross + height**2 * float(product @ self.inverse_squares[first:last])

    def along(self, s: Floats) -> Floats:
        """The same at every width of an array."""
        square = s * s
        if self.Q == 1:
            return np.asarray(self._circle(square))
        found = np.full(len(s), self.outside)
        a, b = square * self.low, square * self.high
        covering = np.flatnonzero((b >= self.mode) & (b <= self.last) & (a <= self.mode))
        if not len(covering):
            return found
        height = self.Q / (2 * np.pi * square[covering])
        product = b[covering, None] - self.x
        product *= self.x - a[covering, None]
        np.maximum(product, 0, out=product)
        squares = product @ self.inverse_squares
        cross = np.sqrt(product, out=product) @ self.weights
        found[covering] = self.squares - 2 * height * cross + height**2 * squares
        return found

    def _circle(self, square: Any) -> Any:
        return self.squares - 2 * self.circle_y / square + self.circle_squares / square**2


def _simplex(f: Callable[[float], float], start: float) -> float:
    """The simplex method of Nelder & Mead on one variable, step by step as `scipy.optimize.fmin` takes it.

    scipy's own spends nine tenths of the time outside of a cheap `f`.
    """
    best, worst = start, 1.05 * start
    low, high, calls = f(best), f(worst), 2
    if high < low:
        best, worst, low, high = worst, best, high, low
    while calls < MOST_CALLS and not (abs(worst - best) <= TOLERANCE and abs(high - low) <= TOLERANCE):
        step, moved = best - worst, None
        reflected = f(2 * best - worst)
        calls += 2
        if reflected < low:
            expanded = f(3 * best - 2 * worst)
            moved = (3 * best - 2 * worst, expanded) if expanded < reflected else (2 * best - worst, reflected)
        elif reflected < high:
            contracted = f(1.5 * best - 0.5 * worst)
            moved = (1.5 * best - 0.5 * worst, contracted) if contracted <= reflected else None
        else:
            contracted = f(0.5 * best + 0.5 * worst)
            moved = (0.5 * best + 0.5 * worst, contracted) if contracted < high else None
        if moved is None:
            moved = (best - 0.5 * step, f(best - 0.5 * step))
            calls += 1
        worst, high = moved
        if high < low:
            best, worst, low, high = worst, best, high, low
    return best


def triangular_density(x: Floats, at: Floats, half_width: float) -> Floats:
    """Kernel density of sorted `x` at the points `at`, exactly: the kernel is linear on each side, so prefix sums do."""
    sums = np.concatenate(([0.0], np.cumsum(x)))
    left, mid, right = (np.searchsorted(x, at + shift) for shift in (-half_width, 0.0, half_width))
    rising = (mid - left) * (1 - at / half_width) + (sums[mid] - sums[left]) / half_width
    falling = (right - mid) * (1 + at / half_width) - (sums[right] - sums[mid]) / half_width
    return (rising + falling) / (len(x) * half_width)  # type: ignore[no-any-return]


def marchenko_pastur(x: Floats, Q: float, sigma: float = 1.0) -> Floats:
    """Density of the eigenvalues of WᵀW/N for independent elements of standard deviation sigma, Q = N/M ≥ 1."""
    root = 1 / np.sqrt(Q)
    a, b = (sigma * (1 - root)) ** 2, (sigma * (1 + root)) ** 2
    with np.errstate(divide="ignore", invalid="ignore"):
        density = Q / (2 * np.pi * sigma**2 * x) * np.sqrt((b - x) * (x - a))
    return np.where((x > a) & (x < b), density, 0.0)


def jensen_shannon(p: Floats, q: Floats) -> Floats:
    """√ of the Jensen–Shannon divergence in nats of sorted spectra of equal length [..., n], each divided by its sum: [...].

    WeightWatcher's rand_distance: it treats eigenvalues as if they were probabilities.
    """
    p, q = p / p.sum(axis=-1, keepdims=True), q / q.sum(axis=-1, keepdims=True)
    mix = (p + q) / 2
    divergence = (rel_entr(p, mix).sum(axis=-1) + rel_entr(q, mix).sum(axis=-1)) / 2
    return np.sqrt(np.maximum(divergence, 0.0))  # type: ignore[no-any-return]


def trace_log(values: Floats) -> tuple[int, int]:
    """(size, first index) of the tail whose rescaled eigenvalues have a product of just under 1.

    The ERG condition of SETOL (https://arxiv.org/abs/2507.17912), WeightWatcher's detX, by the sign of the cumulative sum of
    logarithms: the plain product, which WeightWatcher takes, over- or underflows above about 2000 eigenvalues. Like there,
    the first eigenvalue never enters, and no such tail means all of them.
    """
    n = len(values)
    if n < 2 or not values[0] < values[-1]:
        return 0, 0
    with np.errstate(divide="ignore"):
        sums = np.cumsum(np.log(values[:0:-1] * (n / values.sum())))
    under = np.flatnonzero(sums < 0)
    if not len(under):
        return n, 1
    size = int(under[0]) + 1
    return size, n - size


def windowed_hill(matrix: Array, columns: int = 128, ratio: int = 1, places: int = 4) -> float | None:
    """FARMS (https://arxiv.org/abs/2506.06280): the Hill estimate over windows of one size and aspect ratio.

    Windows of ratio·columns × columns at `places` evenly spaced offsets along each side; their eigenvalues are pooled, so
    that layers of different shapes compare. None for a matrix smaller than a window.
    """
    tall = matrix if matrix.shape[0] >= matrix.shape[1] else matrix.T
    rows = ratio * columns
    if tall.shape[0] < rows or tall.shape[1] < columns:
        return None
    pooled = [
        eigenvalues(tall[i : i + rows, j : j + columns])
        for i in _offsets(tall.shape[0] - rows, places)
        for j in _offsets(tall.shape[1] - columns, places)
    ]
    values = np.sort(np.concatenate(pooled))
    return hill(values[values > values[-1] * np.finfo(np.float64).eps * len(values)])


def _offsets(room: int, places: int) -> NDArray[np.int64]:
    return np.unique(np.linspace(0, room, places).round().astype(np.int64))
