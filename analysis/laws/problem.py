"""A law as a problem for the solver: model, bounds, starts, and the way back to the parameters people quote.

Logarithms of the variables are centred, so that the problem is well scaled in any unit; every amplitude is fitted as its
logarithm. Starts come from variable projection (Golub & Pereyra 1973): on a grid of exponents the amplitudes are the solution
of a non-negative linear problem, so no start depends on the units and none lies on a plateau.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from scalespec.analysis.laws.law import Array
from scalespec.analysis.laws.models import Model, SumOfPowers

EXPONENT = (1e-3, 4.0)
"""Bounds of an exponent. Published ones lie between .03 and 1.8."""
FLOOR = 1e-4
"""Lower bound of a floor E as a share of the smallest loss: below it a floor cannot be told from none."""
_GRID = (0.05, 0.1, 0.2, 0.3, 0.45, 0.7, 1.0, 1.6)


@dataclass(frozen=True)
class Problem:
    """What `fitting.fit` needs to know about one law on one data set."""

    model: Model
    starts: Array
    """[S, p]"""
    lower: Array
    upper: Array
    names: tuple[str, ...]
    """Name of each coordinate of θ, for the statement that it is at its bound."""
    params: Callable[[Array], dict[str, Array]]
    """[B, p] → parameter name → [B]"""
    distinct: Mapping[str, int]
    """Variable → distinct values without which the law is not determined."""
    minimum: int = 6
    """Points without which no parameters are returned."""


Columns = Mapping[str, Array]


def sum_of_powers(
    powers: Array,
    loss: Array,
    names: tuple[str, ...],
    exponents: int,
    params: Callable[[Array], dict[str, Array]],
    distinct: Mapping[str, int],
    minimum: int = 6,
) -> Problem:
    """Bounds and starts; a law with a name "E" has a floor, in units of the smallest loss."""
    grid = np.array(list(itertools.product(_GRID, repeat=exponents)))
    smallest, largest = float(loss.min()), float(loss.max())
    bounds = {
        name: (np.log(smallest) - 25, np.log(largest) + 25) if name != "E" else (FLOOR, largest / smallest)
        for name in names[:-exponents]
    }
    lower, upper = np.array([*bounds.values(), *[EXPONENT] * exponents]).T
    model = SumOfPowers(powers, smallest if "E" in names else None)
    return Problem(
        model=model,
        starts=_projected_starts(model, loss, grid),
        lower=lower,
        upper=upper,
        names=names,
        params=params,
        distinct=distinct,
        minimum=minimum,
    )


def _projected_starts(model: SumOfPowers, loss: Array, grid: Array) -> Array:
    """θ for every row of exponents: the amplitudes and floor that fit the relative loss best without being negative."""
    k = len(model.powers)
    terms = np.exp(np.einsum("knq,bq->bkn", model.powers, grid))
    if model.unit is not None:
        terms = np.concatenate([terms, np.full((len(grid), 1, len(loss)), model.unit)], axis=1)
    size = terms.shape[1]
    # a term that the projection switches off starts small rather than absent, so that it can come back
    small = 1e-2 * loss.min() / terms.mean(axis=2)
    terms = terms / loss
    gram = terms @ terms.transpose(0, 2, 1)
    moment = terms.sum(axis=2)
    best = np.full(len(grid), np.inf)
    amplitude = np.zeros((len(grid), size))
    for count in range(1, size + 1):
        for chosen in itertools.combinations(range(size), count):
            pick = np.array(chosen)
            sub = gram[:, pick][:, :, pick] + 1e-12 * np.eye(count)
            x = np.linalg.solve(sub, moment[:, pick, None])[..., 0]
            misfit = np.where((x > 0).all(axis=1), len(loss) - (x * moment[:, pick]).sum(axis=1), np.inf)
            better = misfit < best
            best[better] = misfit[better]
            amplitude[better] = 0
            amplitude[np.ix_(np.flatnonzero(better), pick)] = x[better]
    amplitude = np.maximum(amplitude, small)
    return np.concatenate([np.log(amplitude[:, :k]), amplitude[:, k:], grid], axis=1)


def centred(values: Array) -> tuple[Array, float]:
    """Logarithms of `values` [n] about their mean, and that mean."""
    logs = np.log(values)
    mean = float(logs.mean())
    return logs - mean, mean
