"""The compute-efficient frontier of finished runs: the best loss and the best model size for each compute budget.

Seeds are averaged first and each size's losses are smoothed over compute before any minimum is taken: the minimum of noisy
runs is biased low by several percent (expected minimum of normal variables). A budget counts only where the best size
has measured neighbours on both sides; nothing is read outside the range that a size was trained for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from scalespec.analysis.laws import bootstrap, forms
from scalespec.analysis.laws.fitting import FLAT, NARROW, bounds_hit
from scalespec.analysis.laws.huber import Solution, minimise
from scalespec.analysis.laws.isoflop import Profile
from scalespec.analysis.laws.law import Array, Evidence, FitStatus, Law, Param, positive
from scalespec.analysis.laws.noise import default_delta, seed_noise

BUDGETS = 13
"""Budgets, evenly spaced in ln C, at which the frontier is read."""
HALF_WINDOW = 2
"""Sizes on either side of the best that enter the parabola in ln N."""
_LEAST_BUDGETS = 4


@dataclass(frozen=True)
class Frontier:
    """The frontier of one data set, or of B resampled ones."""

    c: Array
    """[G] budgets in FLOP."""
    n: Array
    """[B, G] best size; NaN where it is not bracketed."""
    loss: Array
    """[B, G] loss at the best size; NaN where it is not bracketed."""
    lowest: Array
    """[B, G] trained size with the lowest smoothed loss, bracketed or not."""
    why: np.ndarray[Any, np.dtype[np.str_]]
    """[B, G] bracketed | smallest | largest (the best size trained for this budget is at that end) | flat (no minimum)"""


@dataclass(frozen=True)
class _Cells:
    """The distinct (size, budget) pairs of a table."""

    sizes: Array
    size: np.ndarray[Any, np.dtype[np.int64]]
    log_c: Array
    index: np.ndarray[Any, np.dtype[np.int64]]

    @classmethod
    def of(cls, n: Array, c: Array) -> _Cells:
        pairs, index = np.unique(np.column_stack([n, c]), axis=0, return_inverse=True)
        sizes, size = np.unique(pairs[:, 0], return_inverse=True)
        return cls(sizes, size.ravel(), np.log(pairs[:, 1]), index.ravel())

    def means(self, values: Array, weights: Array) -> tuple[Array, Array]:
        """Weighted mean of `values` [n] in each cell and the weight there, both [B, cells]."""
        member = np.zeros((len(values), len(self.size)))
        member[np.arange(len(values)), self.index] = 1
        total = weights @ member
        return (weights * values) @ member / np.maximum(total, 1e-300), total

    def ranges(self) -> tuple[Array, Array]:
        """Smallest and largest ln C of each size."""
        low = np.array([self.log_c[self.size == s].min() for s in range(len(self.sizes))])
        high = np.array([self.log_c[self.size == s].max() for s in range(len(self.sizes))])
        return low, high


def budgets(n: Array, c: Array, count: int = BUDGETS) -> Array:
    """Budgets at which at least three sizes were trained, evenly spaced in ln C; empty where there are none."""
    low, high = _Cells.of(n, c).ranges()
    if len(low) < 3:
        return np.empty(0)
    fine = np.linspace(low.min(), high.max(), 1001)
    covered = fine[((fine[:, None] >= low) & (fine[:, None] <= high)).sum(axis=1) >= 3]
    return np.exp(np.linspace(covered[0], covered[-1], count)) if len(covered) > 1 else np.empty(0)


def trace(n: Array, c: Array, loss: Array, at: Array, weights: Array | None = None) -> Frontier:
    """The frontier at the budgets `at` [G], for the table weighted by each row of `weights` [B, points]."""
    weights = np.ones((1, len(loss))) if weights is None else weights
    if not len(at):
        nothing = np.empty((len(weights), 0))
        return Frontier(at, nothing, nothing, nothing, nothing.astype(str))
    cells = _Cells.of(n, c)
    curves = _smooth(cells, *cells.means(np.log(loss), weights), np.log(at))
    log_n, log_loss, lowest, why = _vertices(np.log(cells.sizes), curves)
    return Frontier(at, np.exp(log_n), np.exp(log_loss), np.exp(lowest), why)


def smoothed_profiles(n: Array, c: Array, loss: Array) -> list[Profile]:
    """The IsoFLOP profiles behind the frontier: at each budget the smoothed loss of every size trained for it."""
    at = budgets(n, c)
    if not len(at):
        return []
    cells = _Cells.of(n, c)
    curves = _smooth(cells, *cells.means(np.log(loss), np.ones((1, len(loss)))), np.log(at))
    log_n, log_loss, _, why = _vertices(np.log(cells.sizes), curves)
    out = []
    for g, budget in enumerate(at):
        known = np.isfinite(curves[0, :, g])
        best = (float(np.exp(log_n[0, g])), float(np.exp(log_loss[0, g])))
        status = {"bracketed": "interior", "flat": "not_convex"}.get(str(why[0, g]), str(why[0, g]))
        out.append(Profile(float(budget), cells.sizes[known], np.exp(curves[0, known, g]), *best, status))
    return out


def along(n: Array, c: Array, values: Array, frontier: Frontier) -> Array:
    """`values` (positive: an error rate, a loss) read at the frontier's own size and budget [G], smoothed the same way."""
    cells = _Cells.of(n, c)
    curves = _smooth(cells, *cells.means(np.log(values), np.ones((1, len(values)))), np.log(frontier.c))[0]
    log_sizes = np.log(cells.sizes)
    out = np.full(len(frontier.c), np.nan)
    for g, size in enumerate(np.log(frontier.n[0])):
        known = np.isfinite(curves[:, g])
        if np.isfinite(size) and known.sum() >= 2:
            out[g] = np.exp(np.interp(size, log_sizes[known], curves[known, g]))
    return out


def _smooth(cells: _Cells, mean: Array, weight: Array, log_at: Array) -> Array:
    """Quadratic in ln C through the cell means of each size, read at `log_at` inside the size's own range: [B, sizes, G]."""
    low, high = cells.ranges()
    curves = np.full((len(mean), len(cells.sizes), len(log_at)), np.nan)
    for s in range(len(cells.sizes)):
        mine = cells.size == s
        x = cells.log_c[mine]
        degree = min(2, len(x) - 1)
        centre, scale = x.mean(), max(float(np.ptp(x)), 1e-12)
        basis = np.vander((x - centre) / scale, degree + 1)
        w = weight[:, mine]
        present = (w > 0).sum(axis=1) > degree
        normal = np.einsum("bj,jp,jq->bpq", w, basis, basis) + 1e-12 * np.eye(degree + 1)
        moment = np.einsum("bj,jp->bp", w * mean[:, mine], basis)
        fitted = np.linalg.solve(normal, moment[..., None])[..., 0] @ np.vander((log_at - centre) / scale, degree + 1).T
        inside = (log_at >= low[s] - 1e-9) & (log_at <= high[s] + 1e-9)
        curves[:, s] = np.where(present[:, None] & inside, fitted, np.nan)
    return curves


def _vertices(log_sizes: Array, curves: Array) -> tuple[Array, Array, Array, Any]:
    """Vertex of the parabola in ln N through the sizes around the best, the lowest size, and why there is no vertex, [B, G] each."""
    b, sizes, g = curves.shape
    flat = curves.transpose(0, 2, 1).reshape(-1, sizes)
    known = np.isfinite(flat)
    rank = np.cumsum(known, axis=1) - 1  # position of a size among those trained for this budget
    best = np.argmin(np.where(known, flat, np.inf), axis=1)
    place = rank[np.arange(len(flat)), best]
    last = known.sum(axis=1) - 1
    interior = (place >= 1) & (place <= last - 1)
    window = known & (np.abs(rank - place[:, None]) <= HALF_WINDOW)
    centre = log_sizes[best]
    x = log_sizes[None, :] - centre[:, None]
    w = window.astype(np.float64)
    y = np.where(window, flat, 0.0)
    powers = np.stack([x**2, x, np.ones_like(x)], axis=2)
    normal = np.einsum("rs,rsp,rsq->rpq", w, powers, powers) + 1e-14 * np.eye(3)
    moment = np.einsum("rs,rsp->rp", w * y, powers)
    normal[~interior] = np.eye(3)
    quadratic, slope, constant = np.linalg.solve(normal, moment[..., None])[..., 0].T
    with np.errstate(divide="ignore", invalid="ignore"):
        shift = -slope / (2 * quadratic)
        value = constant - slope**2 / (4 * quadratic)
    first = np.where(window, x, np.inf).min(axis=1)
    final = np.where(window, x, -np.inf).max(axis=1)
    good = interior & (quadratic > 0) & (shift > first) & (shift < final)
    why = np.select([good, place <= 0, place >= last], ["bracketed", "smallest", "largest"], "flat")
    log_n, log_loss = np.where(good, centre + shift, np.nan), np.where(good, value, np.nan)
    return log_n.reshape(b, g), log_loss.reshape(b, g), centre.reshape(b, g), why.reshape(b, g)


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
        problem = forms.power({"c": c}, loss, variable="c", floor=True)

        def solve(logs: Array, weights: Array, starts: Array) -> Solution:
            return minimise(problem.model, logs, weights, starts, self.delta, problem.lower, problem.upper)

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
        params = bootstrap.intervals(estimate, spread, self.level, widening)
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
    seen = np.isfinite(y)
    weight = seen.astype(np.float64)
    filled = np.where(seen, y, 0.0)
    total = np.maximum(weight.sum(axis=1), 1)
    mean_x, mean_y = (weight * x).sum(axis=1) / total, (weight * filled).sum(axis=1) / total
    away = weight * (x - mean_x[:, None])
    slope = (away * filled).sum(axis=1) / np.maximum((away * x).sum(axis=1), 1e-300)
    slope = np.where(seen.sum(axis=1) >= _LEAST_BUDGETS, slope, np.nan)
    return np.column_stack([mean_y - slope * mean_x, slope])
