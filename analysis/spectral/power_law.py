"""Power-law fits of a spectrum's tail: the exact scan over xmin, pruned, and the Hill estimate with a fixed tail.

The scan follows Clauset, Shalizi & Newman (https://arxiv.org/abs/0706.1062) as WeightWatcher 0.7.7 uses it: the maximum
likelihood exponent for every candidate xmin, and the candidate with the smallest Kolmogorov–Smirnov distance D.

Why it is fast and still exact: a maximum over a few probe positions of the tail is a lower bound of D. Candidates are
visited in the order of that bound, and the visit ends where the bound passes the best D found, so no candidate that could
win is left out. Typically a handful of the n candidates is evaluated in full.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.intp]

WW_CUT = 1e-5
"""WeightWatcher fits only eigenvalues above this absolute value, so its alpha depends on the scale of the weights."""

SMALL_SAMPLE, SMALL_TAIL = 20, 8
"""Below 20 points WeightWatcher 0.7.7 takes the (m − 1) estimator and tails of at least 8 points."""

PROBES = (8, 64)
"""Probe positions a tail, coarse then fine."""

FLAT = 1e-9
"""A log range below this holds no tail: the exponent would be made of rounding errors."""

SLACK = 1e-14
"""Bounds and distances are the same expression at the same points, but need not round alike."""


@dataclass(frozen=True)
class Fit:
    """A fitted tail x ≥ xmin with density ∝ x^−alpha."""

    alpha: float
    xmin: float
    xmax: float
    D: float
    """Kolmogorov–Smirnov distance of the tail from the fit, by the rule of the scan."""
    sigma: float
    """(alpha − 1)/√tail: the standard error at a known xmin. The choice of xmin adds about as much again."""
    tail: int
    """Points in the tail."""


@dataclass(frozen=True)
class Rule:
    """How a scan measures distance and which tails it may choose."""

    two_sided: bool = False
    """Both limits of the empirical distribution at each point; False: the left limit only, as WeightWatcher."""
    min_tail: int = 2
    small_sample: bool = False
    """The (m − 1) estimator and tails ≥ 8 below 20 points."""
    distinct: bool = False
    """Only the first of equal values starts a tail; a resample has a third fewer candidates then."""


WW_RULE = Rule(small_sample=True)
NATIVE_RULE = Rule(two_sided=True, min_tail=10)
"""Clauset et al. warn of small tails; below 10 points the distance itself is mostly noise."""


class Scan(NamedTuple):
    """Every candidate of one sample: position, tail size and exponent, with the sorted logarithms."""

    logs: Floats
    start: Ints
    size: Ints
    alpha: Floats
    two_sided: bool


def fit(values: Floats, rule: Rule = WW_RULE) -> Fit | None:
    """The best power-law tail of `values` (1-D, positive, ascending), or None where no candidate has a finite exponent.

    Ties go to the smallest xmin, as in a plain argmin.
    """
    scan = candidates(values, rule)
    if scan is None:
        return None
    best, distance = _search(scan)
    i, m, alpha = int(scan.start[best]), int(scan.size[best]), float(scan.alpha[best])
    return Fit(alpha, float(values[i]), float(values[-1]), distance, (alpha - 1) / m**0.5, m)


def candidates(values: Floats, rule: Rule) -> Scan | None:
    """All candidate tails of `values` under `rule`, or None where there are none."""
    n = len(values)
    if n < 2:
        return None
    logs = np.log(values)
    if not logs[-1] - logs[0] > FLAT:
        return None
    small = rule.small_sample and n < SMALL_SAMPLE
    least = min(n, SMALL_TAIL) if small else rule.min_tail
    start = np.arange(max(0, min(n - 1, n - least + 1)))
    if rule.distinct:
        start = start[np.concatenate(([True], logs[1:] > logs[:-1]))[: len(start)]]
    size = n - start
    sums = np.cumsum(logs[::-1])[::-1][start]
    with np.errstate(divide="ignore", invalid="ignore"):
        alpha = 1 + (size - small) / (sums - size * logs[start])
    valid = np.isfinite(alpha) & (alpha > 1)
    if not valid.all():
        start, size, alpha = start[valid], size[valid], alpha[valid]
    return Scan(logs, start, size, alpha, rule.two_sided) if len(start) else None


def near_optimal(values: Floats, rule: Rule, best: Fit, slack: float = 1.05) -> Floats:
    """The exponents of all candidates whose D is within `slack` times the best: how much the choice of xmin decides."""
    scan = candidates(values, rule)
    if scan is None:
        return np.empty(0)
    limit = slack * best.D
    kept = _survivors(scan, limit)
    return np.array([scan.alpha[c] for c in kept if _distance(scan, int(c)) <= limit])


def profile(values: Floats, rule: Rule) -> tuple[Floats, Floats, Floats]:
    """(xmin, D, alpha) of every candidate: the strip under a spectrum's picture. O(n²)."""
    scan = candidates(values, rule)
    if scan is None:
        return np.empty(0), np.empty(0), np.empty(0)
    distances = np.array([_distance(scan, c) for c in range(len(scan.start))])
    return values[scan.start], distances, scan.alpha


def hill(values: Floats) -> float | None:
    """PL_Alpha_Hill: the exponent with xmin fixed at the upper median (https://arxiv.org/abs/2312.00359), or None.

    Deterministic and 50 to 200 times more repeatable than the scan, but its value for random weights depends on the shape.
    """
    found = float(hills(values[None])[0]) if len(values) >= 2 else np.nan
    return found if np.isfinite(found) else None


def hills(values: Floats) -> Floats:
    """The same of many spectra of one length [spectra, n ≥ 2]; NaN where there is none."""
    tail = np.log(values[:, values.shape[1] // 2 :])
    size = tail.shape[1]
    total = tail.sum(axis=1) - size * tail[:, 0]
    return np.where(total > FLAT, 1 + size / np.where(total > FLAT, total, 1.0), np.nan)


def _search(scan: Scan) -> tuple[int, float]:
    """Position of the candidate with the smallest distance, the first one of equals, and that distance."""
    kept = np.arange(len(scan.start))
    bound = _bounds(scan, kept, PROBES[0])
    first = int(np.argmin(bound))
    best = (_distance(scan, first), first)
    for probes in PROBES[1:]:
        near = bound <= best[0] + SLACK
        kept = kept[near]
        bound = np.maximum(_bounds(scan, kept, probes), bound[near])
    for at in np.argsort(bound, kind="stable"):
        if bound[at] > best[0] + SLACK:
            break
        c = int(kept[at])
        best = min(best, (_distance(scan, c), c))
    return best[1], best[0]


def _survivors(scan: Scan, limit: float) -> Ints:
    """Candidates whose bounds do not rule out a distance of at most `limit`."""
    kept = np.arange(len(scan.start))
    for probes in PROBES:
        kept = kept[_bounds(scan, kept, probes) <= limit + SLACK]
    return kept


def _bounds(scan: Scan, which: Ints, probes: int) -> Floats:
    """A lower bound of each candidate's distance: its value at `probes` evenly spaced positions of the tail."""
    start, size = scan.start[which, None], scan.size[which, None]
    k = ((np.arange(probes) + 0.5) / probes * size).astype(np.intp)
    cdf = -np.expm1((1 - scan.alpha[which, None]) * (scan.logs[start + k] - scan.logs[start]))
    gap = cdf - k / size
    if scan.two_sided:
        return np.maximum(np.abs(gap), np.abs(gap - 1 / size)).max(axis=1)  # type: ignore[no-any-return]
    return np.abs(gap).max(axis=1)  # type: ignore[no-any-return]


def _distance(scan: Scan, c: int) -> float:
    i, m = scan.start[c], scan.size[c]
    cdf = -np.expm1((1 - scan.alpha[c]) * (scan.logs[i:] - scan.logs[i]))
    gap = cdf - np.arange(m) / m
    if scan.two_sided:
        return float(max(np.abs(gap).max(), np.abs(gap - 1 / m).max()))
    return float(np.abs(gap).max())
