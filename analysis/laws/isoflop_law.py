"""The law of the best size, N_opt = G·C^a, through the minima of IsoFLOP profiles."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from scalespec.analysis.laws import bootstrap
from scalespec.analysis.laws.fitting import NARROW
from scalespec.analysis.laws.form import Cost, Form, Parameter, range_of
from scalespec.analysis.laws.isoflop import SAME_BUDGET, Method, Profile, averaged, budgets_of, minimum, profiles
from scalespec.analysis.laws.law import Array, Evidence, FitStatus, Law, positive
from scalespec.analysis.laws.noise import seed_noise

_LEAST_BUDGETS = 3

SIZE_PARAMETERS = {
    "a": Parameter("a", "the best size grows with compute as C^a"),
    "G": Parameter("G", "the best size at C = 1", "parameters", decades=True),
}


def fit_isoflop(
    n: Any,
    c: Any,
    loss: Any,
    *,
    method: Method = "akima",
    tolerance: float = SAME_BUDGET,
    families: Sequence[Any] | None = None,
    noise: float | None = None,
    resamples: int = 400,
    seed: int = 0,
    level: float = 0.95,
) -> tuple[Law, list[Profile]]:
    """N_opt = G·C^a from the minima of IsoFLOP profiles, and the profiles.

    Draws resample `families` [points] where there are at least six; otherwise they add normal noise of `noise` on ln L (default:
    the spread between seeds, or, with one run a cell, the scatter about local parabolas). As in
    https://arxiv.org/abs/2406.19146 a budget whose optimum lies at the edge in more than half of the draws is dropped and the
    line is weighted by the inverse variance of each optimum, at least a third of the grid spacing.
    """
    n, c, loss = positive("n", n), positive("c", c), positive("loss", loss)
    found = profiles(n, c, loss, method=method, tolerance=tolerance)
    group = budgets_of(c, tolerance) if len(c) else np.empty(0, dtype=np.int64)
    rng = np.random.default_rng(seed)
    clusters = bootstrap.Clusters.of(families, [str(i) for i in range(len(n))], n) if families is not None else None
    sd = noise if noise is not None else _noise(found, seed_noise(loss, n, c).sd if len(loss) else float("nan"))
    if clusters is not None and clusters.count >= bootstrap.MINIMUM_FAMILIES:
        unit = clusters.unit
        weights, _ = clusters.weights(resamples, rng)
        shaken = np.zeros_like(weights)
    else:
        # too few families to resample: each draw is the same table with fresh noise on every loss, a parametric bootstrap
        clusters = None
        unit = f"noise of {100 * sd:.2g} % on the loss"
        weights, shaken = np.ones((resamples, len(n))), sd * rng.standard_normal((resamples, len(n)))
    # ln N_opt [draws, budgets]: the whole reading of a budget (average its seeds, find the minimum) repeated in every draw;
    # NaN where a draw has its minimum at an edge
    draws = np.full((resamples, len(found)), np.nan)
    for g, profile in enumerate(found):
        if profile.status == "interior":
            mine = group == g
            for b in range(resamples):
                sizes, mean = averaged(n[mine], np.log(loss[mine]) + shaken[b, mine], weights[b, mine])
                draws[b, g] = np.log(minimum(sizes, np.exp(mean), method)[0])
    # a minimum that is inside the grid by luck is at its edge in many draws
    bracketed = np.isfinite(draws).mean(axis=0) if resamples else np.ones(len(found))
    used = np.array([p.status == "interior" for p in found], dtype=np.bool_) & (bracketed > 0.5)
    found = [Profile(**{**vars(p), "used": bool(u)}) for p, u in zip(found, used, strict=True)]
    return _law(found, draws, used, clusters, unit, resamples, level, len(n)), found


def _noise(found: list[Profile], seeds: float) -> float:
    """The spread between seeds, or the scatter of each budget about the parabola through the points around its best."""
    if np.isfinite(seeds):
        return seeds
    # up to seven points about each minimum, less the three that the parabola takes; pooled over budgets by their degrees
    squares = degrees = 0.0
    for p in found:
        best = int(np.argmin(p.loss))
        near = slice(max(best - 3, 0), best + 4)
        x, y = np.log(p.n[near]), np.log(p.loss[near])
        if len(x) > 3:
            squares += float(((y - np.polyval(np.polyfit(x, y, 2), x)) ** 2).sum())
            degrees += len(x) - 3
    return float(np.sqrt(squares / degrees)) if degrees else 0.0


def _law(
    found: list[Profile],
    draws: Array,
    used: Any,
    clusters: bootstrap.Clusters | None,
    unit: str,
    resamples: int,
    level: float,
    points: int,
) -> Law:
    inside = [p for p in found if p.used]
    table: dict[str, list[Any]] = {
        "c": [p.c for p in inside],
        "n": [p.n_opt for p in inside],
        "loss": [p.loss_opt for p in inside],
    }
    why = [p.status if p.status != "interior" else "unstable" for p in found if not p.used]
    rest = [p for p in found if not p.used]
    missed = {
        reason: {
            "c": [p.c for p, w in zip(rest, why, strict=True) if w == reason],
            "n": [float(p.n[p.loss.argmin()]) for p, w in zip(rest, why, strict=True) if w == reason],
        }
        for reason in sorted(set(why))
    }
    common: dict[str, Any] = {
        "id": "isoflop",
        "form": "isoflop",
        "target": "n_opt",
        "level": level,
        "n_points": points,
        "n_column": "n",
        "c_column": "c",
    }
    if used.sum() < _LEAST_BUDGETS:
        return Law(
            params={},
            resampling="none: fewer than three bracketed budgets",
            n_used=0,
            status=frozenset({FitStatus.TOO_FEW_POINTS}),
            diagnostics={"points": table, "not_bracketed": missed},
            **common,
        )
    # ln N_opt = ln G + a·ln C by weighted least squares. The weight is one over the variance of each minimum between draws;
    # a third of the grid spacing is the least that is believed of a minimum, however little it moved
    # (https://arxiv.org/abs/2406.19146). ln C is centred, so that height and slope are nearly independent.
    log_c = np.log([p.c for p in found])[used]
    x = log_c - log_c.mean()
    y = np.log([p.n_opt for p in found])[used]
    spacing = np.array([np.diff(np.log(p.n)).mean() for p, u in zip(found, used, strict=True) if u])
    spread = np.nanstd(draws[:, used], axis=0) if resamples else np.zeros(int(used.sum()))
    weight = 1 / np.maximum(spread, spacing / 3) ** 2
    estimate = _lines(x, y[None], weight)[0]
    lines = _lines(x, draws[:, used], weight)
    centre = log_c.mean()
    values = {"a": lines[:, 1], "G": np.exp(lines[:, 0] - lines[:, 1] * centre)}
    # noise that was added has as many draws as one likes: only resampled families are widened for being few
    widening = clusters.widening(level) if clusters is not None else 1.0
    estimated = {"a": estimate[1], "G": float(np.exp(estimate[0] - estimate[1] * centre))}
    params = bootstrap.intervals(estimated, values, level, widening, FORM.decades)
    wide = float(np.exp(np.ptp(log_c)))
    status = {FitStatus.CONVERGED} | ({FitStatus.TOO_NARROW} if wide < NARROW else set())
    places = zip(y, np.flatnonzero(used), strict=True)
    ends = [bootstrap.interval(np.exp(v), np.exp(draws[:, g]), level, widening, log=True) for v, g in places]
    table["n_lo"] = [p.lo for p in ends]
    table["n_hi"] = [p.hi for p in ends]
    residuals = y - estimate[0] - estimate[1] * x
    return Law(
        params=params,
        resampling=f"{resamples} draws over {unit}",
        n_used=sum(len(p.n) for p in found if p.used),
        status=frozenset(status),
        diagnostics={
            "points": table,
            "not_bracketed": missed,
            "c_range": wide,
            "residual_sd": float(residuals.std(ddof=2)) if len(x) > 2 else 0.0,
        },
        evidence=Evidence(
            values, residuals, tuple(f"{p.c:.4g}" for p in inside), widening, columns={"c": np.exp(log_c)}
        ),
        **common,
    )


def _lines(x: Array, y: Array, weight: Array) -> Array:
    """(height at x = 0, slope) of the weighted line through each row of `y` [B, g]; gaps in a row are left out."""
    # slope = Σ w (x − x̄) y / Σ w (x − x̄)², with its own x̄ for each row, since rows miss different budgets
    seen = np.isfinite(y)
    w = weight * seen
    filled = np.where(seen, y, 0.0)
    total = np.maximum(w.sum(axis=1), 1e-300)
    mean_x, mean_y = (w * x).sum(axis=1) / total, (w * filled).sum(axis=1) / total
    away = x - mean_x[:, None]
    slope = (w * away * filled).sum(axis=1) / np.maximum((w * away**2).sum(axis=1), 1e-300)
    slope = np.where(seen.sum(axis=1) >= 2, slope, np.nan)
    return np.column_stack([mean_y - slope * mean_x, slope])


def _fit(variables: Mapping[str, Any], loss: Any, *, keys: Any = None, **options: Any) -> Law:
    # a profile is named by its budget, so there are no names of points to keep
    return fit_isoflop(variables["n"], variables["c"], loss, **options)[0]


def best_size(params: Mapping[str, Any], c: Any, cost: Cost) -> dict[str, Any]:
    """G·C^a; such a law says nothing of the loss."""
    return {"n": params["G"] * c ** params["a"]}


def size_headline(law: Law, points: str) -> str:
    """What a law of the best size says first."""
    return (
        f"The best model size grows as C^a with a = {range_of(law.params['a'])} over the bracketed budgets of {points}"
    )


FORM = Form(
    name="isoflop",
    title="Best size for a compute budget",
    equation="N = G·C^a",
    source="https://arxiv.org/abs/2203.15556",
    variables=("n", "c"),
    parameters=SIZE_PARAMETERS,
    exponents=("a",),
    fit=_fit,
    best=best_size,
    cards=("a",),
    huber=False,
    headline=size_headline,
    picture="isoflop",
)
