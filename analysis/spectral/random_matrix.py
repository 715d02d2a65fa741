"""What random matrix theory says of a spectrum: the Marchenko–Pastur bulk and what stands out of it, the distance from the
shuffled spectrum, the trace-log condition, and windows of fixed aspect ratio."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import optimize

from scalespec.analysis.spectral.esd import Array, eigenvalues
from scalespec.analysis.spectral.power_law import Floats, hill

BANDWIDTH, GRID, VANISHING = 0.1, 1000, 0.01
"""WeightWatcher's density estimate: triangular kernel of this half width, on 1000 points, and ignored below 0.01."""

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
    start = grid[int(np.argmin([objective(s) for s in grid]))]
    sigma = float(optimize.fmin(lambda p: objective(p[0]), start, disp=False)[0])
    upper, lower = (sigma * (1 + root)) ** 2, (sigma * (1 - root)) ** 2
    width = root * upper ** (2 / 3) * M ** (-2 / 3)
    spikes = int(np.count_nonzero(x > upper + width**0.5))
    return Bulk(sigma, scale_squared**0.5, lower / scale_squared, upper / scale_squared, upper / top, spikes)


class _Misfit:
    """Sum of squared differences between the kernel density and the law of width s, over the points with density."""

    def __init__(self, x: Floats, Q: float) -> None:
        grid = np.linspace(0, x[-1] + 0.5, GRID)
        density = triangular_density(x, grid, BANDWIDTH)
        kept = density > VANISHING
        self.x, self.y, self.Q = grid[kept], density[kept], Q
        if not kept.any():
            return
        self.mode, self.last = self.x[np.argmax(self.y)], self.x[-1]
        self.circle = np.sqrt(np.maximum(4 - self.x**2, 0)) / np.pi

    def __call__(self, s: float) -> float:
        if self.Q == 1:
            return float(np.sum((self.circle / (s * s) - self.y) ** 2))
        root = 1 / np.sqrt(self.Q)
        a, b = (s * (1 - root)) ** 2, (s * (1 + root)) ** 2
        if b < self.mode or b > self.last or a > self.mode:
            return OUTSIDE * OUTSIDE * len(self.x)
        inside = slice(*np.searchsorted(self.x, (a, b)))
        x = self.x[inside]
        residual = -self.y
        residual[inside] += self.Q / (2 * np.pi * s * s) * np.sqrt(np.maximum((b - x) * (x - a), 0)) / x
        return float(np.sum(residual * residual))


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


def jensen_shannon(p: Floats, q: Floats) -> float:
    """√ of the Jensen–Shannon divergence in nats of two sorted spectra of equal length, each divided by its sum.

    WeightWatcher's rand_distance: it treats eigenvalues as if they were probabilities.
    """
    p, q = p / p.sum(), q / q.sum()
    mix = (p + q) / 2
    divergence = (_relative_entropy(p, mix) + _relative_entropy(q, mix)) / 2
    return float(np.sqrt(max(divergence, 0.0)))


def _relative_entropy(p: Floats, q: Floats) -> float:
    kept = p > 0
    return float(np.sum(p[kept] * np.log(p[kept] / q[kept])))


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
