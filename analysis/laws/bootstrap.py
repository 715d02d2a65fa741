"""Intervals from resampling whole families: runs that share a trunk, a seed or a curve are not independent.

Resampling k families with replacement understates a spread by √((k−1)/k); draws are therefore widened about the estimate by
√(k/(k−1)) (Davison & Hinkley, Bootstrap Methods, 1997, sec. 2.3 and 3.8), in the coordinates of the solver.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from analysis.laws.law import Array, Param

MINIMUM_FAMILIES = 6
"""Fewer families than this are not resampled: percentiles over so few clusters cover far less than they promise."""
MINIMUM_DRAWS = 50


def clusters(families: Sequence[Any] | None, keys: Sequence[str]) -> tuple[str, NDArrayInt, int]:
    """What to resample: its name in words, the cluster of each point as 0 … k−1 [n], and k.

    Families where there are at least six, else single points, which then says that what a family shares is not in the interval.
    Raises ValueError where `families` has not one label a point.
    """
    points = np.arange(len(keys))
    if families is None:
        return f"{len(keys)} points", points, len(keys)
    found, index = np.unique(np.asarray(families).astype(str), return_inverse=True)
    if index.size != len(keys):
        raise ValueError(f"families: {index.size} labels for {len(keys)} points; give one label a point")
    if len(found) >= MINIMUM_FAMILIES:
        return f"{len(found)} families", index.ravel(), len(found)
    return (
        f"{len(keys)} points ({len(found)} families are too few: what a family shares is not in it)",
        points,
        len(keys),
    )


NDArrayInt = np.ndarray[tuple[int, ...], np.dtype[np.int64]]


def family_weights(
    family: NDArrayInt,
    count: int,
    resamples: int,
    rng: np.random.Generator,
    usable: Callable[[Array], np.ndarray[Any, np.dtype[np.bool_]]] | None = None,
) -> tuple[Array, int]:
    """How often each point enters each draw [≤ resamples, n], and the number of rejected draws.

    `usable` sees the weights and says which draws can be fitted at all (with k small, some draws contain two sizes only).
    """
    kept: list[Array] = []
    rejected = have = 0
    for _ in range(20):
        weights = rng.multinomial(count, np.full(count, 1 / count), size=resamples)[:, family].astype(np.float64)
        good = np.ones(len(weights), dtype=np.bool_) if usable is None else usable(weights)
        taken = weights[good][: resamples - have]
        kept.append(taken)
        have += len(taken)
        rejected += int((~good).sum())
        if have >= resamples:
            break
    return np.concatenate(kept), rejected


def widen(estimate: Array, draws: Array, count: int) -> Array:
    """`draws` [B, p] spread about `estimate` [p] by √(k/(k−1)) for k families."""
    return np.asarray(estimate + (draws - estimate) * np.sqrt(count / max(count - 1, 1)))


def interval(value: float, draws: Array | None, level: float) -> Param:
    """Percentile interval of the finite draws; none where there are too few."""
    finite = draws[np.isfinite(draws)] if draws is not None else np.empty(0)
    if len(finite) < MINIMUM_DRAWS:
        return Param(float(value))
    lo, hi = np.quantile(finite, [(1 - level) / 2, (1 + level) / 2])
    return Param(float(value), float(lo), float(hi))
