"""The compute-efficient frontier of finished runs: the best loss and the best model size for each compute budget.

Seeds are averaged first and each size's losses are smoothed over compute before any minimum is taken: the minimum of noisy
runs is biased low by several percent (expected minimum of normal variables). A budget counts only where the best size
has measured neighbours on both sides; nothing is read outside the range that a size was trained for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from analysis.laws import bootstrap, forms
from analysis.laws.huber import minimise
from analysis.laws.law import Array, Evidence, FitStatus, Law, Param, positive
from analysis.laws.noise import default_delta, seed_noise

BUDGETS = 13
"""Budgets, evenly spaced in ln C, at which the frontier is read."""
HALF_WINDOW = 2
"""Sizes on either side of the best that enter the parabola in ln N."""
_LEAST_BUDGETS = 4
_NARROW = 4.0


@dataclass(frozen=True)
class Frontier:
    """The frontier of one data set, or of B resampled ones."""

    c: Array
    """[G] budgets in FLOP."""
    n: Array
    """[B, G] best size; NaN where it is not bracketed."""
    loss: Array
    """[B, G] loss at the best size; NaN where it is not bracketed."""


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
    cells = _Cells.of(n, c)
    curves = _smooth(cells, *cells.means(np.log(loss), weights), np.log(at))
    log_n, log_loss = _vertices(np.log(cells.sizes), curves)
    return Frontier(at, np.exp(log_n), np.exp(log_loss))


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


def _vertices(log_sizes: Array, curves: Array) -> tuple[Array, Array]:
    """Vertex of the parabola in ln N through the sizes around the best, [B, G] each; NaN where it is not bracketed."""
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
    return (
        np.where(good, centre + shift, np.nan).reshape(b, g),
        np.where(good, value, np.nan).reshape(b, g),
    )


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
    smooth, minimum, fit) is repeated in every draw. Both laws carry their points in `diagnostics["points"]`. Raises
    ValueError on values that are not positive numbers.
    """
    n, c, loss = positive("n", n), positive("c", c), positive("loss", loss)
    names = tuple(str(k) for k in keys) if keys is not None else tuple(str(i) for i in range(len(loss)))
    family, count = bootstrap.codes(families if families is not None else names, len(loss))
    delta = delta if delta is not None else default_delta(seed_noise(loss, n, c))
    at = budgets(n, c)
    read = trace(n, c, loss, at) if len(at) else Frontier(at, np.empty((1, 0)), np.empty((1, 0)))
    used = np.isfinite(read.n[0])
    rng = np.random.default_rng(seed)
    draws: Frontier | None = None
    if used.sum() >= _LEAST_BUDGETS and count >= bootstrap.MINIMUM_FAMILIES and resamples >= bootstrap.MINIMUM_DRAWS:
        weights, _ = bootstrap.family_weights(family, count, resamples, rng)
        draws = trace(n, c, loss, at, weights)
    points = {
        "c": at[used],
        "n": read.n[0, used],
        "loss": read.loss[0, used],
        **_point_intervals(read, draws, used, count, level),
        "not_bracketed_c": at[~used],
    }
    make = partial(
        _law,
        n_points=len(loss),
        n_used=len(loss) if used.sum() >= _LEAST_BUDGETS else 0,
        level=level,
        resampling=_resampling(draws, count, families is not None),
        delta=delta,
        points=points,
        families=count,
    )
    if used.sum() < _LEAST_BUDGETS:
        few = frozenset({FitStatus.TOO_FEW_POINTS})
        return make("frontier", "loss", {}, few, {}), make("n_opt", "n_opt", {}, few, {})
    return _loss_law(read, draws, used, count, delta, level, make), _size_law(read, draws, used, count, level, make)


def _resampling(draws: Frontier | None, count: int, labelled: bool) -> str:
    unit = "families" if labelled else "points"
    if draws is None:
        return f"none: {count} {unit}, or fewer than {_LEAST_BUDGETS} bracketed budgets"
    return f"{len(draws.n)} bootstrap draws over {count} {unit}, the whole reading repeated in each"


def _point_intervals(read: Frontier, draws: Frontier | None, used: Any, count: int, level: float) -> dict[str, Any]:
    if draws is None:
        return {}
    out: dict[str, Any] = {}
    for name in ("n", "loss"):
        estimate, spread = np.log(getattr(read, name)[0, used]), np.log(getattr(draws, name)[:, used])
        wide = np.exp(bootstrap.widen(estimate, spread, count))
        ends = [bootstrap.interval(float(np.exp(e)), wide[:, i], level) for i, e in enumerate(estimate)]
        out[f"{name}_lo"], out[f"{name}_hi"] = [p.lo for p in ends], [p.hi for p in ends]
    out["bracketed_share"] = np.isfinite(draws.n[:, used]).mean(axis=0)
    return out


def _loss_law(
    read: Frontier, draws: Frontier | None, used: Any, count: int, delta: float, level: float, make: Any
) -> Law:
    c, loss = read.c[used], read.loss[0, used]
    problem = forms.power({"c": c}, loss, variable="c", floor=True)
    solve = partial(minimise, problem.model, delta=delta, lower=problem.lower, upper=problem.upper)
    tried = solve(np.log(loss), np.ones((1, len(c))), problem.starts)
    best = int(np.argmin(tried.objective))
    theta = tried.theta[best]
    estimate = {name: float(v[0]) for name, v in problem.params(theta[None]).items()}
    spread: dict[str, Array] = {}
    if draws is not None:
        values = draws.loss[:, used]
        seen = np.isfinite(values)
        enough = seen.sum(axis=1) >= _LEAST_BUDGETS
        if enough.sum() >= bootstrap.MINIMUM_DRAWS:
            logs = np.log(np.where(seen, values, 1.0))[enough]
            refits = solve(logs, seen[enough].astype(np.float64), np.tile(theta, (int(enough.sum()), 1)))
            wide = np.clip(bootstrap.widen(theta, refits.theta, count), problem.lower, problem.upper)
            spread = problem.params(wide)
    params = {name: bootstrap.interval(v, spread.get(name), level) for name, v in estimate.items()}
    room = 1e-6 * (problem.upper - problem.lower)
    hit = [
        name
        for name, x, lo, hi, r in zip(problem.names, theta, problem.lower, problem.upper, room, strict=True)
        if x <= lo + r or x >= hi - r
    ]
    status = _shape_status(c, params["gamma"], bool(tried.converged[best]), bool(hit))
    residuals = np.log(loss) - problem.model.log_loss(theta[None])[0]
    evidence = Evidence(spread, residuals, tuple(f"{x:.4g}" for x in c), columns={"c": c, "loss": loss})
    extra = {"at_bound": hit, "residual_sd": float(residuals.std()), "c_range": float(c.max() / c.min())}
    return make("frontier", "loss", params, status, extra, evidence, float(tried.objective[best]))


def _size_law(read: Frontier, draws: Frontier | None, used: Any, count: int, level: float, make: Any) -> Law:
    c, n = read.c[used], read.n[0, used]
    x = np.log(c) - np.log(c).mean()

    def line(log_n: Array) -> Array:
        """(intercept, slope) of ln N on centred ln C over the budgets that are bracketed [B, 2]."""
        seen = np.isfinite(log_n)
        weight = seen.astype(np.float64)
        y = np.where(seen, log_n, 0.0)
        total = np.maximum(weight.sum(axis=1), 1)
        mean_x, mean_y = (weight * x).sum(axis=1) / total, (weight * y).sum(axis=1) / total
        away = weight * (x - mean_x[:, None])
        slope = (away * y).sum(axis=1) / np.maximum((away * x).sum(axis=1), 1e-300)
        slope = np.where(seen.sum(axis=1) >= _LEAST_BUDGETS, slope, np.nan)
        return np.column_stack([mean_y - slope * mean_x, slope])

    def named(lines: Array) -> dict[str, Array]:
        return {"a": lines[:, 1], "G": np.exp(lines[:, 0] - lines[:, 1] * np.log(c).mean())}

    fitted = line(np.log(n)[None])[0]
    spread: dict[str, Array] = {}
    if draws is not None:
        spread = named(bootstrap.widen(fitted, line(np.log(draws.n[:, used])), count))
    params = {k: bootstrap.interval(float(v[0]), spread.get(k), level) for k, v in named(fitted[None]).items()}
    residuals = np.log(n) - fitted[0] - fitted[1] * x
    evidence = Evidence(spread, residuals, tuple(f"{v:.4g}" for v in c), columns={"c": c, "n": n})
    status = _shape_status(c, params["a"], True, False)
    return make("n_opt", "n_opt", params, status, {"c_range": float(c.max() / c.min())}, evidence)


def _shape_status(c: Array, exponent: Param, converged: bool, at_bound: bool) -> frozenset[FitStatus]:
    status = {FitStatus.CONVERGED if converged else FitStatus.NOT_CONVERGED}
    if at_bound:
        status.add(FitStatus.AT_BOUND)
    if c.max() / c.min() < _NARROW:
        status.add(FitStatus.TOO_NARROW)
    if exponent.lo is not None and exponent.hi is not None and exponent.hi > 3 * max(exponent.lo, 1e-300):
        status.add(FitStatus.FLAT_BASIN)
    return frozenset(status)


def _law(
    form: str,
    target: str,
    params: dict[str, Param],
    status: frozenset[FitStatus],
    extra: dict[str, Any],
    evidence: Evidence | None = None,
    objective: float | None = None,
    *,
    points: dict[str, Any],
    families: int,
    **common: Any,
) -> Law:
    return Law(
        id=form,
        form=form,
        target=target,
        params=params,
        status=status,
        objective=objective,
        n_column="n",
        c_column="c",
        diagnostics={"families": families, "points": {k: np.asarray(v).tolist() for k, v in points.items()}, **extra},
        evidence=evidence,
        **common,
    )
