"""The laws as problems for the solver: model, bounds, starts, and the way back to the parameters people quote.

Logarithms of the variables are centred, so that the problem is well scaled in any unit; every amplitude is fitted as its
logarithm. Starts come from variable projection (Golub & Pereyra 1973): on a grid of exponents the amplitudes are the solution
of a non-negative linear problem, so no start depends on the units and none lies on a plateau.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from scalespec.analysis.laws.huber import Model, SumOfPowers
from scalespec.analysis.laws.law import Array

EXPONENT = (1e-3, 4.0)
"""Bounds of an exponent. Published ones lie between .03 and 1.8."""
FLOOR = 1e-4
"""Lower bound of a floor E as a share of the smallest loss: below it a floor cannot be told from none."""
_GRID = (0.05, 0.1, 0.2, 0.3, 0.45, 0.7, 1.0, 1.6)


@dataclass(frozen=True)
class Problem:
    """What `fitting.fit` needs to know about one law on one data set."""

    form: str
    model: Model
    starts: Array
    """[S, p]"""
    lower: Array
    upper: Array
    names: tuple[str, ...]
    """Name of each coordinate of θ, for the statement that it is at its bound."""
    exponents: tuple[str, ...]
    """The parameters whose interval decides whether the basin is flat."""
    params: Callable[[Array], dict[str, Array]]
    """[B, p] → parameter name → [B]"""
    distinct: Mapping[str, int]
    """Variable → distinct values without which the law is not determined."""
    minimum: int = 6
    """Points without which no parameters are returned."""


Columns = Mapping[str, Array]


def chinchilla(columns: Columns, loss: Array) -> Problem:
    """L = E + A·N^−α + B·D^−β (https://arxiv.org/abs/2203.15556, approach 3)."""
    x_n, mean_n = _centred(columns["n"])
    x_d, mean_d = _centred(columns["d"])
    powers = np.zeros((2, len(loss), 2))
    powers[0, :, 0], powers[1, :, 1] = -x_n, -x_d
    unit = float(loss.min())

    def params(theta: Array) -> dict[str, Array]:
        c_a, c_b, e, alpha, beta = theta.T
        return {
            "E": e * unit,
            "A": np.exp(c_a + alpha * mean_n),
            "B": np.exp(c_b + beta * mean_d),
            "alpha": alpha,
            "beta": beta,
            "a": beta / (alpha + beta),
            "b": alpha / (alpha + beta),
        }

    return _sum_of_powers(
        "chinchilla", powers, loss, ("A", "B", "E", "alpha", "beta"), 2, params, ("alpha", "beta"), {"n": 3, "d": 3}
    )


def power(columns: Columns, loss: Array, *, variable: str, floor: bool) -> Problem:
    """L = K·x^−γ, with a floor E + … where asked. Kaplan's L(N) and L(D) are the form without floor."""
    x, mean = _centred(columns[variable])
    powers = np.zeros((1, len(loss), 1))
    powers[0, :, 0] = -x
    unit = float(loss.min())

    def params(theta: Array) -> dict[str, Array]:
        gamma = theta[:, -1]
        log_k = theta[:, 0] + gamma * mean
        out = {"K": np.exp(log_k), "gamma": gamma}
        # x_c is where the power reaches one: Kaplan's Nc and Dc (https://arxiv.org/abs/2001.08361, eq. 1.1)
        return {"E": theta[:, 1] * unit, **out} if floor else {**out, "x_c": np.exp(np.minimum(log_k / gamma, 700.0))}

    names = ("K", "E", "gamma") if floor else ("K", "gamma")
    form = "power" if floor else "pure_power"
    return _sum_of_powers(form, powers, loss, names, 1, params, ("gamma",), {variable: 4 if floor else 2})


def overtrained(columns: Columns, loss: Array) -> Problem:
    """L = E + A·N^−η + B·(√6·D)^−η: over-trained models, one exponent for both terms (https://arxiv.org/abs/2403.08540).

    The authors write it in C = 6ND and the token multiplier M = D/N, as A·N^−η + B·6^(−η/2)·(M·N)^−η.
    """
    x_n, mean_n = _centred(columns["n"])
    log_d = np.log(columns["d"]) + 0.5 * np.log(6)
    mean_d = float(log_d.mean())
    powers = np.zeros((2, len(loss), 1))
    powers[0, :, 0], powers[1, :, 0] = -x_n, -(log_d - mean_d)
    unit = float(loss.min())

    def params(theta: Array) -> dict[str, Array]:
        eta = theta[:, 3]
        return {
            "E": theta[:, 2] * unit,
            "A": np.exp(theta[:, 0] + eta * mean_n),
            "B": np.exp(theta[:, 1] + eta * mean_d),
            "eta": eta,
        }

    names = ("A", "B", "E", "eta")
    return _sum_of_powers("overtrained", powers, loss, names, 1, params, ("eta",), {"n": 3, "d": 3}, minimum=5)


def _sum_of_powers(
    form: str,
    powers: Array,
    loss: Array,
    names: tuple[str, ...],
    exponents: int,
    params: Callable[[Array], dict[str, Array]],
    quoted: tuple[str, ...],
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
        form=form,
        model=model,
        starts=_projected_starts(model, loss, grid),
        lower=lower,
        upper=upper,
        names=names,
        exponents=quoted,
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


def _centred(values: Array) -> tuple[Array, float]:
    logs = np.log(values)
    mean = float(logs.mean())
    return logs - mean, mean
