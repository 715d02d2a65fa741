"""Intervals from resampling whole families: runs that share a trunk, a seed or a curve are not independent.

Where every model size was trained with several seeds, families are resampled within their size: the sizes are a choice and not
a sample, and a draw without one of them would be another study. Resampling m families with replacement understates a spread by
√((m−1)/m), and percentiles ignore that the spread itself is estimated; every quantity is therefore widened about its estimate
by √(m/(m−1)) and by the ratio of Student's quantile to the normal one: the expanded percentile interval of Hesterberg 2015
(https://arxiv.org/abs/1411.5279). The parameters of a draw are never widened together: they lie on a bent valley, and a
prediction from widened parameters would leave it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy.special import ndtri, stdtrit

from scalespec.analysis.laws.law import Array, Law, Param

MINIMUM_FAMILIES = 6
"""Fewer families than this are not resampled: percentiles over so few clusters cover far less than they promise."""
MINIMUM_DRAWS = 50

_SOME_HAVE_NONE: dict[str, Any] = {"divide": "ignore", "over": "ignore", "invalid": "ignore"}
"""Around what follows from draws: one with an exponent at zero has no best size, say. Such draws are left out, not warned of."""

Ints = np.ndarray[tuple[int, ...], np.dtype[np.int64]]
Bools = np.ndarray[tuple[int, ...], np.dtype[np.bool_]]


@dataclass(frozen=True)
class Clusters:
    """What is resampled together."""

    unit: str
    """In words: 240 points, 18 families, 18 families within their size."""
    family: Ints
    """[n] the cluster of each point, 0 … k−1."""
    strata: tuple[Ints, ...]
    """Clusters that may stand in for one another; together 0 … k−1."""

    @classmethod
    def of(cls, families: Sequence[Any] | None, keys: Sequence[str], sizes: Array | None = None) -> Clusters:
        """Families where there are at least six, else single points, which then says that what a family shares is missing.

        `sizes` [n] are model sizes; families are resampled within their size where each size has two at least. Raises
        ValueError where `families` has not one label a point.
        """
        if families is None:
            return cls.alone(len(keys))
        names, family = np.unique(np.asarray(families).astype(str), return_inverse=True)
        if family.size != len(keys):
            raise ValueError(f"families: {family.size} labels for {len(keys)} points; give one label a point")
        if len(names) < MINIMUM_FAMILIES:
            few = f"{len(keys)} points ({len(names)} families are too few: what a family shares is not in it)"
            return replace(cls.alone(len(keys)), unit=few)
        family = family.ravel()
        if sizes is not None:
            of_family = [tuple(np.unique(sizes[family == f])) for f in range(len(names))]
            groups = [
                np.array([f for f in range(len(names)) if of_family[f] == size]) for size in sorted(set(of_family))
            ]
            if len(groups) > 1 and min(map(len, groups)) >= 2:
                return cls(f"{len(names)} families, within their size", family, tuple(groups))
        return cls(f"{len(names)} families", family, (np.arange(len(names)),))

    @classmethod
    def alone(cls, size: int) -> Clusters:
        """`size` points, each for itself."""
        points = np.arange(size)
        return cls(f"{size} points", points, (points,))

    @property
    def count(self) -> int:
        """Number of clusters k."""
        return sum(map(len, self.strata))

    def weights(
        self, resamples: int, rng: np.random.Generator, usable: Callable[[Array], Bools] | None = None
    ) -> tuple[Array, int]:
        """How often each point enters each draw [≤ resamples, n], and the number of rejected draws.

        `usable` sees the weights and says which draws can be fitted at all (with few clusters some hold two sizes only).
        """
        kept: list[Array] = []
        rejected = have = 0
        for _ in range(20):
            times = np.zeros((resamples, self.count))
            for group in self.strata:
                times[:, group] = rng.multinomial(len(group), np.full(len(group), 1 / len(group)), size=resamples)
            weights = times[:, self.family]
            good = np.ones(len(weights), dtype=np.bool_) if usable is None else usable(weights)
            taken = weights[good][: resamples - have]
            kept.append(taken)
            have += len(taken)
            rejected += int((~good).sum())
            if have >= resamples:
                break
        return np.concatenate(kept), rejected

    def widening(self, level: float) -> float:
        """Factor by which an interval for few clusters is wider than the percentiles of its draws. Raises on a bad level."""
        if not 0 < level < 1:
            raise ValueError(f"level: {level} is outside (0, 1); write 0.95 for 95 %")
        less = np.array([len(group) - 1 for group in self.strata])
        tail = (1 + level) / 2
        student = stdtrit(max(less.sum(), 1), tail) / ndtri(tail)
        return float(student * np.sqrt(1 + np.mean(1 / np.maximum(less, 1))))


def ends(value: Any, draws: Array, level: float, widening: float, *, log: bool) -> tuple[Array, Array]:
    """Both ends of the widened percentile interval of `value` [...], from the finite ones of `draws` [B, ...]; NaN without any.

    `log` widens in the logarithm, where zero is not finite; otherwise an end below zero is zero where every draw is positive.
    """
    with np.errstate(**_SOME_HAVE_NONE):
        seen = np.log(draws) if log else np.asarray(draws)
        finite = np.where(np.isfinite(seen), seen, np.nan)
        nothing = np.isnan(finite).all(axis=0)
        finite = np.where(nothing, 0.0, finite)  # numpy warns of a column without numbers
        lo, hi = np.nanquantile(finite, [(1 - level) / 2, (1 + level) / 2], axis=0)
        middle = np.log(value) if log else value
        lo, hi = middle + (lo - middle) * widening, middle + (hi - middle) * widening
        if log:
            lo, hi = np.exp(lo), np.exp(hi)
        else:
            lo = np.maximum(lo, np.where(np.nanmin(finite, axis=0) >= 0, 0.0, -np.inf))
    return np.where(nothing, np.nan, lo), np.where(nothing, np.nan, hi)


def interval(value: float, draws: Array | None, level: float, widening: float = 1.0, *, log: bool = False) -> Param:
    """The interval of one number; none where fewer than fifty draws are finite."""
    if draws is None or np.isfinite(draws).sum() < MINIMUM_DRAWS:
        return Param(float(value))
    lo, hi = ends(value, draws, level, widening, log=log)
    return Param(float(value), float(lo), float(hi))


def intervals(
    estimate: Mapping[str, float],
    draws: Mapping[str, Array],
    level: float,
    widening: float,
    decades: Collection[str] = (),
) -> dict[str, Param]:
    """The interval of every parameter; of those in `decades` in the logarithm."""
    return {name: interval(v, draws.get(name), level, widening, log=name in decades) for name, v in estimate.items()}


def of_law(law: Law, quantity: Callable[[Mapping[str, Any]], Any], *, log: bool = True) -> tuple[Array, Array, Array]:
    """What follows from a law: `quantity` of its parameters [...] and both ends of its interval; NaN without draws.

    `quantity` is called with numbers, and with one column [B, 1] a parameter.
    """
    with np.errstate(**_SOME_HAVE_NONE):
        value = np.atleast_1d(np.asarray(quantity({name: p.value for name, p in law.params.items()}), dtype=np.float64))
        if law.evidence is None or not law.evidence.draws:
            nothing = np.full(value.shape, np.nan)
            return value, nothing, nothing
        spread = quantity({name: draw[:, None] for name, draw in law.evidence.draws.items()})
    spread = np.broadcast_to(spread, (len(spread), *value.shape))
    return value, *ends(value, spread, law.level, law.evidence.widening, log=log)
