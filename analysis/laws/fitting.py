"""One road for every parametric law: check, many starts, basins, influence, bootstrap over families, status.

The derivations of the steps stand where they are computed: the solver in `huber`, a law's derivatives in `models`, its starts in
`problem`, resampling and intervals in `bootstrap`, leaving points out in `influence`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np

from scalespec.analysis.laws import bootstrap
from scalespec.analysis.laws import influence as leaving_out
from scalespec.analysis.laws.form import Form
from scalespec.analysis.laws.huber import NEAR, Solution, minimise
from scalespec.analysis.laws.law import Array, Evidence, FitStatus, Law, Param, positive
from scalespec.analysis.laws.models import InLoss, Model
from scalespec.analysis.laws.noise import default_delta, seed_noise
from scalespec.analysis.laws.problem import Columns, Problem

NARROW = 4.0
"""A variable that spans less than this factor cannot show an exponent."""
FLAT = 3.0
"""An exponent whose interval spans more than this factor is not determined."""
SAME_BASIN = 1e-6
"""Relative difference of objectives below which two starts ended in the same basin."""


def fit(
    form: Form,
    columns: Columns,
    loss: Any,
    *,
    families: Sequence[Any] | None = None,
    keys: Sequence[str] | None = None,
    delta: float | None = None,
    resamples: int = 400,
    seed: int = 0,
    level: float = 0.95,
    influence: bool = True,
    residual: Literal["log", "loss"] | None = None,
    derived: Callable[[dict[str, Array]], dict[str, Array]] | None = None,
) -> Law:
    """Fits the law that `form.problem` makes of `columns` (name → [n]) and `loss` [n].

    `families` [n] labels the points that are resampled together (default: every point alone), `keys` [n] names the points,
    `delta` is the Huber threshold on ln loss (default: the form's, else `noise.default_delta`), `influence` refits without each
    point, `residual` says whether the objective sees ln loss or the loss itself (default: the form's; its threshold is then in
    units of loss), `derived` adds parameters that follow from the fitted ones. Raises ValueError on values that are not
    positive numbers; a bad fit is a status, not an error.
    """
    loss = positive("loss", loss)
    columns = {name: positive(name, values) for name, values in columns.items()}
    for name, values in columns.items():
        if len(values) != len(loss):
            raise ValueError(f"{name}: {len(values)} values for {len(loss)} losses; give one a point")
    if delta is not None and not (np.isfinite(delta) and delta > 0):
        raise ValueError(f"delta: {delta} is not a positive number; it is the Huber threshold on ln(loss), as 1e-3")
    names = tuple(str(key) for key in keys) if keys is not None else tuple(str(i) for i in range(len(loss)))
    if len(names) != len(loss):
        raise ValueError(f"keys: {len(names)} names for {len(loss)} points; give one a point")
    clusters = bootstrap.Clusters.of(families, names, columns.get("n"))

    # 1. The Huber threshold δ: where a residual stops being noise and starts being an outlier. The measured spread between
    #    seeds where cells repeat; the form's own where its authors chose one.
    noise = seed_noise(loss, *columns.values()) if len(loss) else None
    delta = delta if delta is not None else form.delta
    delta = delta if delta is not None else (default_delta(noise) if noise else None)
    common: dict[str, Any] = {
        "id": form.name,
        "form": form.name,
        "target": "loss",
        "level": level,
        "resampling": f"{resamples} bootstrap draws over {clusters.unit}",
        "n_points": len(loss),
        "delta": delta,
        **{f"{name}_column": name for name in columns if name in ("n", "d", "c")},
    }
    assert form.problem is not None
    problem = form.problem(columns, loss) if len(loss) else None
    if problem is None or delta is None or _too_few(problem, columns, loss):
        if problem:
            common["diagnostics"] = {
                "minimum_points": problem.minimum,
                "distinct": {name: len(np.unique(columns[name])) for name in problem.distinct},
                "minimum_distinct": dict(problem.distinct),
            }
        return Law(params={}, n_used=0, status=frozenset({FitStatus.TOO_FEW_POINTS}), **common)

    log_loss = np.log(loss)
    in_logs = (residual or form.residual) == "log"
    model: Model = problem.model if in_logs else InLoss(problem.model)
    observed = log_loss if in_logs else loss
    ones = np.ones((1, len(loss)))

    def solve(weights: Array, starts: Array) -> Solution:
        return minimise(model, observed, weights, starts, delta, problem.lower, problem.upper)

    def params_of(theta: Array) -> dict[str, Array]:
        values = problem.params(theta)
        return {**values, **derived(values)} if derived else values

    # 2. Every start [S, p] is followed to its own minimum, and the lowest is the fit: the objective is not convex, and one
    #    start finds what lies beside it. θ [p] are the solver's coordinates, `estimate` the parameters that people quote.
    tried = solve(ones, problem.starts)
    best = int(np.argmin(tried.objective))
    theta = tried.theta[best]
    estimate = {name: float(value[0]) for name, value in params_of(theta[None]).items()}
    residuals = (
        log_loss - problem.model.log_loss(theta[None])[0]
    )  # [n], relative: .01 is one percent, whatever was minimised

    # 3. The draws. Each resample of the families is a row of weights [B, n] (how often a point was drawn, zero included) on
    #    the same points, so all are refitted in one call, from the fit itself: a resample moves the minimum little.
    rng = np.random.default_rng(seed)
    enough = clusters.count >= bootstrap.MINIMUM_FAMILIES and resamples >= bootstrap.MINIMUM_DRAWS
    draws: dict[str, Array] = {}
    unsolved, rejected = 0.0, 0
    if enough:
        weights, rejected = clusters.weights(resamples, rng, _usable(problem, columns))
        if len(weights) >= bootstrap.MINIMUM_DRAWS:
            refits = solve(weights, np.tile(theta, (len(weights), 1)))
            unsolved = float(1 - refits.converged.mean())
            draws = params_of(refits.theta)
    if not draws:
        common["resampling"] = (
            "none asked for" if resamples < bootstrap.MINIMUM_DRAWS else f"{clusters.unit} are too few to resample"
        )

    # 4. Leaving points out, one at a time: [n] changes of every parameter.
    moved: dict[str, Array] = {}
    if influence:
        left_out = leaving_out.leave_one_out(problem, model, solve, theta, observed, delta, params_of)
        moved = {name: values - estimate[name] for name, values in left_out.items()}

    # 5. Intervals from the draws, and what a reader needs to judge the fit.
    widening = clusters.widening(level)
    params = bootstrap.intervals(estimate, draws, level, widening, form.decades)
    diagnostics = {
        "gradient": float(tried.gradient[best]),
        "starts": len(tried.objective),
        **_basins(tried, best, params_of),
        **_sensitivity(problem, theta),
        "residual_sd": float(residuals.std(ddof=min(len(theta), len(loss) - 1))),
        "residual_max": float(np.abs(residuals).max()),
        "mape": float(np.mean(np.abs(np.expm1(-residuals)))),
        "seed_noise_sd": noise.sd if noise and noise.cells else None,
        "seed_noise_cells": noise.cells if noise else 0,
        "families": clusters.count,
        "resamples": len(next(iter(draws.values()))) if draws else 0,
        "resamples_rejected": rejected,
        "resamples_unsolved": unsolved,
        "at_bound": bounds_hit(problem, theta),
        **{f"{name}_range": float(values.max() / values.min()) for name, values in columns.items()},
    }
    if influence:
        diagnostics["influence"] = leaving_out.most_influential(form.exponents, moved, params, names)
        diagnostics["left_out"] = leaving_out.left_out_sets(
            problem, form.exponents, solve, theta, loss, moved, params, names, params_of
        )
    return Law(
        params=params,
        n_used=len(loss),
        status=_status(form, tried, best, columns, params, diagnostics),
        objective=float(tried.objective[best]),
        diagnostics=diagnostics,
        evidence=Evidence(draws, residuals, names, widening, moved, {**columns, "loss": loss}),
        **common,
    )


def _too_few(problem: Problem, columns: Columns, loss: Array) -> bool:
    return len(loss) < problem.minimum or any(
        len(np.unique(columns[name])) < least for name, least in problem.distinct.items()
    )


def _usable(problem: Problem, columns: Columns) -> Callable[[Array], np.ndarray[Any, np.dtype[np.bool_]]]:
    """A draw can be fitted where each variable keeps the distinct values that the law needs."""
    # one column a distinct value, 1 where a point has it, [n, values]: weights @ indicators counts how often it was drawn
    indicators = {
        name: np.equal.outer(np.unique(columns[name]), columns[name]).T.astype(np.float64) for name in problem.distinct
    }

    def usable(weights: Array) -> np.ndarray[Any, np.dtype[np.bool_]]:
        good = np.ones(len(weights), dtype=np.bool_)
        for name, least in problem.distinct.items():
            good &= ((weights @ indicators[name]) > 0).sum(axis=1) >= least
        return good

    return usable


def _basins(tried: Solution, best: int, params_of: Callable[[Array], dict[str, Array]]) -> dict[str, Any]:
    """Share of starts that reached the best objective, and the best objective that is a different minimum.

    `next_basin` is that objective relative to the best: a second minimum within a percent, at other exponents, is a second law
    that the data cannot rule out. Starts that did not converge are no minimum.
    """
    lowest = tried.objective[best]
    same = tried.objective <= lowest * (1 + SAME_BASIN) + 1e-18
    out: dict[str, Any] = {"share_best": float(same.mean()), "next_basin": None, "next_basin_params": None}
    others = np.flatnonzero(~same & tried.converged)
    if len(others):
        second = int(others[np.argmin(tried.objective[others])])
        out["next_basin"] = float(tried.objective[second] / lowest) if lowest > 0 else None
        out["next_basin_params"] = {
            name: float(value[0]) for name, value in params_of(tried.theta[second : second + 1]).items()
        }
    return out


def _sensitivity(problem: Problem, theta: Array) -> dict[str, Any]:
    """Condition number of JJᵀ with unit diagonal in the centred coordinates, and the coordinates that change nothing.

    J [p, n] is the change of ln L at each point with each coordinate. With rows of unit length JJᵀ holds the cosines between
    them, so the number does not depend on units: 1 where every coordinate has its own trace in the data, huge where two cannot
    be told apart (Belsley, Kuh & Welsch 1980, ch. 3). A coordinate at its bound is no part of it.
    """
    _, jacobian, _ = problem.model.derivatives(theta[None])
    free = (theta > problem.lower) & (theta < problem.upper)
    norm = np.linalg.norm(jacobian[0], axis=1)
    dead = free & (norm <= 1e-9 * norm.max())
    unit = jacobian[0][free & ~dead] / norm[free & ~dead, None]
    return {
        "condition_number": float(np.linalg.cond(unit @ unit.T)) if len(unit) else None,
        "undetermined": [name for name, no in zip(problem.names, dead, strict=True) if no],
    }


def bounds_hit(problem: Problem, theta: Array) -> list[str]:
    """Names of the coordinates of `theta` [p] that ended on a bound."""
    room = NEAR * (problem.upper - problem.lower)
    hit = (theta <= problem.lower + room) | (theta >= problem.upper - room)
    return [name for name, at in zip(problem.names, hit, strict=True) if at]


def _status(
    form: Form,
    tried: Solution,
    best: int,
    columns: Columns,
    params: dict[str, Param],
    diagnostics: dict[str, Any],
) -> frozenset[FitStatus]:
    status = set()
    moved = tried.steps[best] > 0
    if not tried.converged[best]:
        status.add(FitStatus.NOT_CONVERGED if moved else FitStatus.DID_NOT_MOVE)
    if diagnostics["resamples_unsolved"] > 0.05:
        status.add(FitStatus.NOT_CONVERGED)
    if diagnostics["at_bound"]:
        status.add(FitStatus.AT_BOUND)
    if any(values.max() / values.min() < NARROW for values in columns.values()):
        status.add(FitStatus.TOO_NARROW)
    if diagnostics["undetermined"]:
        status.add(FitStatus.FLAT_BASIN)
    rival = diagnostics["next_basin"]
    near = rival is not None and rival < 1.01
    for name in form.exponents:
        p = params[name]
        wide = p.lo is not None and p.hi is not None and p.hi > FLAT * max(p.lo, 1e-300)
        far = near and abs(diagnostics["next_basin_params"][name] - p.value) > 0.1 * abs(p.value)
        if wide or far:
            status.add(FitStatus.FLAT_BASIN)
    if not status & {FitStatus.NOT_CONVERGED, FitStatus.DID_NOT_MOVE}:
        status.add(FitStatus.CONVERGED)
    return frozenset(status)
