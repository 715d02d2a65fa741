"""The laws of the frontier: L*(C) = E + K·C^−γ and N_opt(C) = G·C^a through the budgets that `frontier` could read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from scalespec.analysis.laws import bootstrap, power
from scalespec.analysis.laws.fitting import FLAT, NARROW, bounds_hit
from scalespec.analysis.laws.form import Form, Parameter
from scalespec.analysis.laws.frontier import Frontier, budgets, trace
from scalespec.analysis.laws.huber import Solution, minimise
from scalespec.analysis.laws.isoflop_law import SIZE_PARAMETERS, best_size, size_headline
from scalespec.analysis.laws.law import Array, Evidence, FitStatus, Law, Param, positive
from scalespec.analysis.laws.noise import default_delta, seed_noise

_LEAST_BUDGETS = 4
"""Bracketed budgets without which there is no law: a floor, an amplitude and an exponent take three."""


def fit_frontier(
    n: Any,
    c: Any,
    loss: Any,
    *,
    families: Sequence[Any] | None = None,
    keys: Sequence[str] | None = None,
    delta: float | None = None,
    resamples: int = 400,
    seed: int = 0,
    level: float = 0.95,
) -> tuple[Law, Law]:
    """The frontier L*(C) = E + K·C^−γ and N_opt(C) = G·C^a of finished runs.

    `n` parameters, `c` FLOP, `loss`, all [points]; `families` [points] are resampled together and the whole reading (average,
    smooth, minimum, fit) is repeated in every draw. Both laws carry their points in `diagnostics["points"]` and the budgets
    without a bracketed minimum in `diagnostics["not_bracketed"]`. Raises ValueError on values that are not positive numbers.
    """
    n, c, loss = positive("n", n), positive("c", c), positive("loss", loss)
    names = tuple(str(k) for k in keys) if keys is not None else tuple(str(i) for i in range(len(loss)))
    clusters = bootstrap.Clusters.of(families, names, n)
    # The budgets are fixed by the table and are the same in every draw; what a draw changes is which of them are bracketed,
    # and where. Only those that the whole table brackets enter a law: a draw may lack some of them, never add others.
    at = budgets(n, c)
    read = trace(n, c, loss, at)
    used = np.isfinite(read.n[0])
    draws: Frontier | None = None
    enough = clusters.count >= bootstrap.MINIMUM_FAMILIES and resamples >= bootstrap.MINIMUM_DRAWS
    if used.sum() >= _LEAST_BUDGETS and enough:
        weights, _ = clusters.weights(resamples, np.random.default_rng(seed))
        draws = trace(n, c, loss, at, weights)
    delta = delta if delta is not None else default_delta(seed_noise(loss, n, c))
    reading = _Reading(read, draws, used, clusters, level, delta, len(loss))
    return reading.loss_law(), reading.size_law()


@dataclass(frozen=True)
class _Reading:
    """A frontier, its resampled copies, and the two laws they give."""

    read: Frontier
    draws: Frontier | None
    used: np.ndarray[Any, np.dtype[np.bool_]]
    clusters: bootstrap.Clusters
    level: float
    delta: float
    n_points: int

    @property
    def c(self) -> Array:
        return np.asarray(self.read.c[self.used])

    def loss_law(self) -> Law:
        if self.used.sum() < _LEAST_BUDGETS:
            return self._none("frontier", "loss")
        c, loss = self.c, self.read.loss[0, self.used]
        problem = power.problem({"c": c}, loss)

        def solve(logs: Array, weights: Array, starts: Array) -> Solution:
            return minimise(problem.model, logs, weights, starts, self.delta, problem.lower, problem.upper)

        # the budgets are points of a power law in C like any other; the bootstrap is not, since they share their runs: the
        # loss of each draw's own reading is refitted [B, G], with weight 0 where a draw did not bracket a budget
        tried = solve(np.log(loss), np.ones((1, len(c))), problem.starts)
        best = int(np.argmin(tried.objective))
        theta = tried.theta[best]
        spread: dict[str, Array] = {}
        if self.draws is not None:
            seen = np.isfinite(self.draws.loss[:, self.used])
            enough = seen.sum(axis=1) >= _LEAST_BUDGETS
            logs = np.log(np.where(seen, self.draws.loss[:, self.used], 1.0))[enough]
            refits = solve(logs, seen[enough].astype(np.float64), np.tile(theta, (int(enough.sum()), 1)))
            spread = problem.params(refits.theta)
        residuals = np.log(loss) - problem.model.log_loss(theta[None])[0]
        hit = bounds_hit(problem, theta)
        return self._law(
            "frontier",
            "loss",
            {name: float(v[0]) for name, v in problem.params(theta[None]).items()},
            spread,
            residuals,
            {"at_bound": hit, "gradient": float(tried.gradient[best])},
            {FitStatus.AT_BOUND} if hit else set(),
            bool(tried.converged[best]),
            float(tried.objective[best]),
        )

    def size_law(self) -> Law:
        if self.used.sum() < _LEAST_BUDGETS:
            return self._none("n_opt", "n_opt")
        # ln N_opt = ln G + a·ln C, a straight line by least squares. ln C is centred, so that height and slope are nearly
        # independent and ln G, the height at C = 1, is taken once at the end.
        c, log_n = self.c, np.log(self.read.n[:, self.used])
        centre = float(np.log(c).mean())
        fitted = _lines(np.log(c) - centre, log_n)[0]

        def named(lines: Array) -> dict[str, Array]:
            return {"a": lines[:, 1], "G": np.exp(lines[:, 0] - lines[:, 1] * centre)}

        spread: dict[str, Array] = {}
        if self.draws is not None:
            lines = _lines(np.log(c) - centre, np.log(self.draws.n[:, self.used]))
            spread = named(lines)
        residuals = log_n[0] - fitted[0] - fitted[1] * (np.log(c) - centre)
        estimate = {name: float(v[0]) for name, v in named(fitted[None]).items()}
        return self._law("n_opt", "n_opt", estimate, spread, residuals, {}, set(), True, None)

    def _law(
        self,
        form: str,
        target: str,
        estimate: dict[str, float],
        spread: dict[str, Array],
        residuals: Array,
        extra: dict[str, Any],
        status: set[FitStatus],
        converged: bool,
        objective: float | None,
    ) -> Law:
        widening = self.clusters.widening(self.level)
        decades = FORM.decades | SIZE.decades
        params = bootstrap.intervals(estimate, spread, self.level, widening, decades)
        exponent = params.get("gamma", params.get("a", Param(float("nan"))))
        reach = float(self.c.max() / self.c.min())
        status = status | {FitStatus.CONVERGED if converged else FitStatus.NOT_CONVERGED}
        if reach < NARROW:
            status.add(FitStatus.TOO_NARROW)
        if exponent.lo is not None and exponent.hi is not None and exponent.hi > FLAT * max(exponent.lo, 1e-300):
            status.add(FitStatus.FLAT_BASIN)
        return Law(
            id=form,
            form=form,
            target=target,
            params=params,
            level=self.level,
            resampling=self._resampling(),
            n_points=self.n_points,
            n_used=self.n_points,
            status=frozenset(status),
            n_column="n",
            c_column="c",
            objective=objective,
            delta=self.delta if objective is not None else None,
            diagnostics={
                **extra,
                "residual_sd": float(residuals.std()),
                "c_range": reach,
                "families": self.clusters.count,
                "points": self._points(),
                "not_bracketed": self._not_bracketed(),
            },
            evidence=Evidence(
                draws=spread,
                residuals=residuals,
                keys=tuple(f"{x:.4g}" for x in self.c),
                widening=widening,
                columns={"c": self.c, "n": self.read.n[0, self.used], "loss": self.read.loss[0, self.used]},
            ),
        )

    def _none(self, form: str, target: str) -> Law:
        return Law(
            id=form,
            form=form,
            target=target,
            params={},
            level=self.level,
            resampling=self._resampling(),
            n_points=self.n_points,
            n_used=0,
            status=frozenset({FitStatus.TOO_FEW_POINTS}),
            n_column="n",
            c_column="c",
            diagnostics={"points": self._points(), "not_bracketed": self._not_bracketed()},
        )

    def _resampling(self) -> str:
        if self.draws is None:
            return f"none: {self.clusters.unit}, {int(self.used.sum())} bracketed budgets"
        return f"{len(self.draws.n)} bootstrap draws over {self.clusters.unit}, the whole reading repeated in each"

    def _points(self) -> dict[str, Any]:
        """The bracketed budgets with their best size and loss, and the intervals of both."""
        read, used = self.read, self.used
        out: dict[str, Any] = {name: getattr(read, name)[0, used].tolist() for name in ("n", "loss")}
        out["c"] = self.c.tolist()
        if self.draws is not None:
            widening = self.clusters.widening(self.level)
            for name in ("n", "loss"):
                value, draws = getattr(read, name)[0, used], getattr(self.draws, name)[:, used]
                pairs = enumerate(value)
                ends = [bootstrap.interval(v, draws[:, i], self.level, widening, log=True) for i, v in pairs]
                out[f"{name}_lo"], out[f"{name}_hi"] = [p.lo for p in ends], [p.hi for p in ends]
        return out

    def _not_bracketed(self) -> dict[str, dict[str, list[float]]]:
        """Reason → the budgets without a minimum inside the sizes trained for them, and the lowest size there."""
        why, c, n = self.read.why[0], self.read.c, self.read.lowest[0]
        return {
            str(reason): {"c": c[why == reason].tolist(), "n": n[why == reason].tolist()}
            for reason in np.unique(why[~self.used])
        }


def _lines(x: Array, y: Array) -> Array:
    """(height at x = 0, slope) of the line through each row of `y` [B, G]; NaN with fewer than four finite values."""
    # slope = Σ w (x − x̄) y / Σ w (x − x̄)², with its own x̄ for each row, since rows miss different budgets
    seen = np.isfinite(y)
    weight = seen.astype(np.float64)
    filled = np.where(seen, y, 0.0)
    total = np.maximum(weight.sum(axis=1), 1)
    mean_x, mean_y = (weight * x).sum(axis=1) / total, (weight * filled).sum(axis=1) / total
    away = weight * (x - mean_x[:, None])
    slope = (away * filled).sum(axis=1) / np.maximum((away * x).sum(axis=1), 1e-300)
    slope = np.where(seen.sum(axis=1) >= _LEAST_BUDGETS, slope, np.nan)
    return np.column_stack([mean_y - slope * mean_x, slope])


FORM = Form(
    name="frontier",
    title="Best loss for a compute budget",
    equation="E + K·C^−γ",
    source="https://arxiv.org/abs/2203.15556",
    variables=("c",),
    parameters={
        "E": Parameter("E", "the floor of the best loss", "loss"),
        "K": Parameter("K", "the part of the best loss above the floor, at C = 1", "loss", decades=True),
        "gamma": Parameter("γ", "the best loss falls towards its floor as C^−γ"),
    },
    exponents=("gamma",),
    loss=power.power_loss,
    slopes={"c": "gamma"},
    cards=("gamma", "E"),
    picture="frontier",
)

SIZE = Form(
    name="n_opt",
    title="Best size for a compute budget",
    equation="N = G·C^a",
    source="https://arxiv.org/abs/2203.15556",
    variables=("n", "c"),
    parameters=SIZE_PARAMETERS,
    exponents=("a",),
    best=best_size,
    cards=("a",),
    headline=size_headline,
    picture="isoflop",
)
