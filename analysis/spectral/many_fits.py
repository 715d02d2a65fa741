"""The fits of many samples of one size at once: resamples of a spectrum, draws of a null.

The scan is that of `power_law`, candidate by candidate in the order of a lower bound; here every step is taken for all samples
together, which for a hundred small ones is several times faster and gives the same numbers.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from scalespec.analysis.spectral.power_law import FLAT, PROBES, SLACK, SMALL_SAMPLE, SMALL_TAIL, Floats, Ints, Rule, fit

AT_ONCE = 2**18
"""Elements of the largest array: what fits into a core's cache."""


ALONE = 1024
"""Larger samples are fitted one by one: their tails differ in length, and what is left of a tail would cost more than is saved."""


class Fits(NamedTuple):
    """One entry a sample; NaN, and a tail of 0, where none has a finite exponent."""

    alpha: Floats
    D: Floats
    tail: Ints


class _Scans(NamedTuple):
    logs: Floats
    """samples × n"""
    start: Ints
    size: Ints
    alpha: Floats
    """samples × candidates; NaN where there is no candidate"""
    two_sided: bool


def fits(samples: Floats, rule: Rule) -> Fits:
    """`power_law.fit` of every row of `samples` (samples × n, positive, each row ascending)."""
    count, n = samples.shape
    if n > ALONE:
        return _one_by_one(samples, rule)
    out = Fits(np.full(count, np.nan), np.full(count, np.nan), np.zeros(count, dtype=np.intp))
    small = rule.small_sample and n < SMALL_SAMPLE
    least = min(n, SMALL_TAIL) if small else rule.min_tail
    start = np.arange(max(0, min(n - 1, n - least + 1)))
    if n < 2 or not len(start):
        return out
    rows = max(1, AT_ONCE // (n * PROBES[0]))
    for at in range(0, count, rows):
        part = slice(at, at + rows)
        scans = _candidates(samples[part], start, rule, small)
        best, distance = _search(scans)
        found = np.flatnonzero(best >= 0)
        alpha, D, tail = (column[part] for column in out)
        alpha[found], D[found], tail[found] = scans.alpha[found, best[found]], distance[found], scans.size[best[found]]
    return out


def _one_by_one(samples: Floats, rule: Rule) -> Fits:
    found = [fit(values, rule) for values in samples]
    alpha, D = (np.array([np.nan if one is None else getattr(one, name) for one in found]) for name in ("alpha", "D"))
    return Fits(alpha, D, np.array([0 if one is None else one.tail for one in found], dtype=np.intp))


def _candidates(samples: Floats, start: Ints, rule: Rule, small: bool) -> _Scans:
    logs, size = np.log(samples), samples.shape[1] - start
    sums = np.cumsum(logs[:, ::-1], axis=1)[:, ::-1][:, start]
    with np.errstate(divide="ignore", invalid="ignore"):
        alpha = 1 + (size - small) / (sums - size * logs[:, start])
        none = ~(np.isfinite(alpha) & (alpha > 1))
    none |= ~(logs[:, -1:] - logs[:, :1] > FLAT)
    if rule.distinct:
        none[:, 1:] |= ~(logs[:, 1:] > logs[:, :-1])[:, : len(start) - 1]
    alpha[none] = np.nan
    return _Scans(logs, start, size, alpha, rule.two_sided)


def _search(scans: _Scans) -> tuple[Ints, Floats]:
    """The best candidate of each sample, −1 without one, and its distance."""
    samples = len(scans.logs)
    sample, candidate = np.nonzero(np.isfinite(scans.alpha))
    best, distance = np.full(samples, -1, dtype=np.intp), np.full(samples, np.inf)
    if not len(sample):
        return best, distance
    bounds = np.full(scans.alpha.shape, np.inf)
    bounds[sample, candidate] = _bounds(scans, sample, candidate, PROBES[0])
    some = np.flatnonzero(np.isfinite(scans.alpha).any(axis=1))
    best[some] = np.argmin(bounds[some], axis=1)
    distance[some] = _distances(scans, some, best[some])
    for probes in PROBES[1:]:
        sample, candidate = np.nonzero(bounds <= distance[:, None] + SLACK)
        finer = _bounds(scans, sample, candidate, probes)
        bounds[sample, candidate] = np.maximum(finer, bounds[sample, candidate])
    while True:
        following = np.argmin(bounds, axis=1)
        lowest = bounds[np.arange(samples), following]
        left = np.flatnonzero(np.isfinite(lowest) & (lowest <= distance + SLACK))
        if not len(left):
            return best, distance
        chosen = following[left]
        bounds[left, chosen] = np.inf
        new = _distances(scans, left, chosen)
        nearer = (new < distance[left]) | ((new == distance[left]) & (chosen < best[left]))
        best[left[nearer]], distance[left[nearer]] = chosen[nearer], new[nearer]


def _bounds(scans: _Scans, sample: Ints, candidate: Ints, probes: int) -> Floats:
    """A lower bound of each pair's distance: its value at `probes` evenly spaced positions of the tail."""
    start, size = scans.start[candidate, None], scans.size[candidate, None]
    k = ((np.arange(probes) + 0.5) / probes * size).astype(np.intp)
    row = scans.logs.ravel()
    first = (sample * scans.logs.shape[1])[:, None] + start
    gap = row[first + k]
    gap -= row[first]
    gap *= 1 - scans.alpha[sample, candidate][:, None]
    return _largest(gap, k, size, scans.two_sided)


def _distances(scans: _Scans, sample: Ints, candidate: Ints) -> Floats:
    start, size = scans.start[candidate], scans.size[candidate, None]
    low = int(start.min())
    logs = scans.logs[sample, low:]
    gap = np.maximum(logs - logs[np.arange(len(sample)), start - low][:, None], 0.0)  # left of the tail all is 0
    gap *= 1 - scans.alpha[sample, candidate][:, None]
    k = np.maximum(np.arange(low, scans.logs.shape[1]) - start[:, None], 0)
    return _largest(gap, k, size, scans.two_sided)


def _largest(exponent: Floats, k: NDArray[np.intp], size: NDArray[np.intp], two_sided: bool) -> Floats:
    """Largest difference between the fitted distribution 1 − e^exponent and the empirical one; overwrites `exponent`."""
    gap = np.expm1(exponent, out=exponent)
    np.negative(gap, out=gap)
    gap -= k / size
    if two_sided:
        other = np.abs(gap - 1 / size)
        return np.maximum(np.abs(gap, out=gap), other).max(axis=1)  # type: ignore[no-any-return]
    return np.abs(gap, out=gap).max(axis=1)  # type: ignore[no-any-return]
