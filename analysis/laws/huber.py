"""Many robust fits at once: every start, every bootstrap draw and every left-out point is a row of one array.

The objective of row b is Σ_i w_bi · Huber_δ(f_i(θ_b) − ln L_i), the *sum* over points: with a mean and default tolerances
an optimizer stops early and returns a wrong law (https://arxiv.org/abs/2404.10102, a = .45 instead of .51). Newton steps use
the exact Hessian of the Huber objective, damped by the iteratively reweighted one, which is positive definite, so that a step
is safe far from the minimum and quadratic near it (Nocedal & Wright, Numerical Optimization, ch. 10 and 16.7 for the bounds).

Shapes: B rows, p parameters, n points. Rows never see each other: they are together only because numpy is faster so.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from scalespec.analysis.laws.law import Array
from scalespec.analysis.laws.models import Model

_CELLS = 15_000  # rows times points worked on together: their Jacobians then stay in a core's cache
_ITERATIONS = 300  # what has not ended by then is `not_converged`
_TOLERANCE = 1e-13  # of the objective that one more Newton step could still gain
_ROUNDING = 1e-27  # the same, a point, where the data are exact and the objective is rounding error
NEAR = 1e-4  # share of a range within which a parameter that pushes outwards is put on its bound


@dataclass(frozen=True)
class Solution:
    """The end of every row."""

    theta: Array
    """[B, p]"""
    objective: Array
    """[B]: sum of Huber losses."""
    gradient: Array
    """[B]: largest component of the gradient that the bounds leave free."""
    converged: NDArrayBool
    """[B]: a further Newton step would gain less than 1e-13 of the objective."""
    steps: Array
    """[B]: accepted steps."""


NDArrayBool = np.ndarray[tuple[int, ...], np.dtype[np.bool_]]


def huber(residual: Array, delta: float) -> Array:
    """Huber loss of each residual: ½r² within δ, δ(|r| − ½δ) beyond."""
    size = np.abs(residual)
    return np.asarray(np.where(size <= delta, 0.5 * residual**2, delta * (size - 0.5 * delta)))


def minimise(
    model: Model, log_loss: Array, weights: Array, starts: Array, delta: float, lower: Array, upper: Array
) -> Solution:
    """Minimises every row from its start within the bounds.

    `log_loss` and `weights` are [n], [1, n] or [B, n], `starts` [B, p], `lower` and `upper` [p].
    """
    rows, n = len(starts), log_loss.shape[-1]
    weights, log_loss = np.broadcast_to(weights, (rows, n)), np.broadcast_to(log_loss, (rows, n))
    together = max(32, _CELLS // max(n, 1))
    cuts = [slice(at, at + together) for at in range(0, rows, together)]
    parts = [_chunk(model, log_loss[cut], weights[cut], starts[cut], delta, lower, upper) for cut in cuts]
    return Solution(
        *(np.concatenate([getattr(part, name) for part in parts]) for name in Solution.__dataclass_fields__)
    )


def _chunk(
    model: Model, log_loss: Array, weights: Array, starts: Array, delta: float, lower: Array, upper: Array
) -> Solution:
    rows = len(starts)
    final = Solution(
        np.clip(starts, lower, upper), np.zeros(rows), np.zeros(rows), np.zeros(rows, dtype=np.bool_), np.zeros(rows)
    )
    # rows that have ended leave the arrays below; `at` [B] says which of the original rows the remaining ones are
    at = np.arange(rows)
    theta, w, damping = final.theta.copy(), np.ascontiguousarray(weights), np.full(rows, 1e-2)
    steps, refused = np.zeros(rows), np.zeros(rows)
    near = NEAR * (upper - lower)
    floor = _ROUNDING * log_loss.shape[1]
    objective = (w * huber(model.log_loss(theta) - log_loss, delta)).sum(axis=1)  # Φ [B]
    for iteration in range(_ITERATIONS + 1):
        # 1. The gradient. Huber's loss has the derivative ψ(r) = r inside δ and ±δ beyond, which is r·min(1, δ/|r|): a
        #    least-squares residual of smaller weight. So ∇Φ = Σ_i w_i ψ(r_i) ∇f_i = J ψ, [B, p].
        fitted, jacobian, state = model.derivatives(theta)
        residual = fitted - log_loss
        size = np.abs(residual)
        reweight = w * np.minimum(1, delta / np.maximum(size, delta))
        psi = reweight * residual
        gradient = (jacobian @ psi[..., None])[..., 0]

        # 2. Bounds (projected Newton: Bertsekas 1982, https://doi.org/10.1137/0320018). A parameter near a bound that the
        #    gradient pushes outwards is put on it (`snap` is the way there) and takes no part in the step; if the gradient
        #    turns later, it is free again. "Near" because an exact touch would be waited for in ever smaller steps.
        low, high = (theta <= lower + near) & (gradient > 0), (theta >= upper - near) & (gradient < 0)
        snap = np.where(low, lower - theta, np.where(high, upper - theta, 0))
        free = ~(low | high)

        # 3. The safe Hessian J W Jᵀ [B, p, p] of the reweighted least-squares problem: positive definite everywhere, and
        #    in a linear model above the Huber objective's own, so that its step is never too long (Holland & Welsch 1977).
        safe = _ridged((jacobian * reweight[:, None]) @ jacobian.transpose(0, 2, 1))

        # 4. When to stop: the gain ½ gᵀ H⁻¹ g that a Newton step still promises, relative to Φ. Unlike |g| it does not
        #    depend on the units of the parameters, nor on the number of points.
        inside = gradient * free
        gain = -0.5 * (inside * _solve(safe, gradient, free, np.zeros_like(theta))).sum(axis=1)
        done = gain <= _TOLERANCE * objective + floor
        stop = done | (damping > 1e12) | (iteration == _ITERATIONS)
        if stop.any():
            ended = at[stop]
            final.theta[ended], final.objective[ended], final.steps[ended] = theta[stop], objective[stop], steps[stop]
            final.gradient[ended] = np.abs(inside[stop]).max(axis=1)
            # a row that stopped because no step was accepted any more has converged where little was left to gain
            final.converged[ended] = (gain <= 1e-8 * objective + floor)[stop]
            go = ~stop
            if not go.any():
                break
            at, theta, w, damping, steps, objective = (x[go] for x in (at, theta, w, damping, steps, objective))
            log_loss, refused = log_loss[go], refused[go]
            residual, size, psi, jacobian, free, snap, gradient, safe = (
                x[go] for x in (residual, size, psi, jacobian, free, snap, gradient, safe)
            )
            state = state[go] if state is not None else None

        # 5. The exact Hessian Σ_i w_i [ψ′(r_i) ∇f_i ∇f_iᵀ + ψ(r_i) ∇²f_i], with ψ′ = 1 inside δ and 0 beyond. It gives
        #    quadratic convergence near the minimum but may be indefinite far from it, so λ times the safe one is added
        #    (Levenberg 1944, Marquardt 1963): λ → 0 is Newton, a large λ a short step downhill.
        exact = (jacobian * (w * (size <= delta))[:, None]) @ jacobian.transpose(0, 2, 1)
        if state is not None:
            exact += model.curvature(state, jacobian, psi)
        step = _bounded_step(exact + damping[:, None, None] * safe, gradient, free, snap, lower - theta, upper - theta)

        # 6. Is the step any good? What the quadratic model promised, −gᵀs − ½ sᵀHs, against what Φ really fell by.
        slope = (gradient * step).sum(axis=1)
        promised = -slope - 0.5 * (step * (exact @ step[..., None])[..., 0]).sum(axis=1)
        trial = np.clip(theta + step, lower, upper)
        found = (w * huber(model.log_loss(trial) - log_loss, delta)).sum(axis=1)
        found = np.where(np.isfinite(found), found, np.inf)
        ratio = np.where(promised > 0, (objective - found) / np.where(promised > 0, promised, 1), 0)
        better = (slope < 0) & (found < objective)
        theta = np.where(better[:, None], trial, theta)
        objective = np.where(better, found, objective)
        steps = steps + better

        # 7. The next λ (Nocedal & Wright, algorithm 4.1 with λ for the radius): much smaller where the model was right
        #    (ratio > ¾), smaller where it was fair, larger where it was poor. After k refusals running ×4^k, so that a
        #    row in a bad place finds its scale in a few tries.
        refused = np.where(better, 0, refused + 1)
        factor = np.where(better, np.where(ratio > 0.75, 0.1, np.where(ratio > 0.25, 0.5, 2.0)), 4.0**refused)
        damping = np.maximum(damping * factor, 1e-9)
    return final


def _ridged(hessian: Array) -> Array:
    """`hessian` [B, p, p], changed in place, with a ridge against exact singularity.

    Relative to each diagonal element, so that it means the same in any unit; a little of the largest, for a parameter whose
    own is zero because nothing depends on it.
    """
    diagonal = np.arange(hessian.shape[1])
    scale = hessian[:, diagonal, diagonal]
    hessian[:, diagonal, diagonal] = scale * (1 + 1e-12) + 1e-14 * scale.max(axis=1, keepdims=True) + 1e-300
    return hessian


def _solve(hessian: Array, gradient: Array, free: NDArrayBool, fixed: Array) -> Array:
    """The Newton step [B, p] of the free parameters, given the steps `fixed` [B, p] of the others.

    With F free and X held: H_FF s_F = −g_F − H_FX s_X. Rows differ in which parameters are free, so instead of small systems of
    different size all solve one of size p, in which a held parameter has the equation (scale · s = scale · its fixed step).
    """
    held = ~free
    scale = hessian[:, np.arange(hessian.shape[1]), np.arange(hessian.shape[1])].max(axis=1)
    matrix = hessian * (free[:, :, None] & free[:, None, :])
    matrix[:, np.arange(hessian.shape[1]), np.arange(hessian.shape[1])] += held * scale[:, None]
    right = np.where(free, -gradient - (hessian @ (fixed * held)[..., None])[..., 0], fixed * scale[:, None])
    return np.asarray(np.linalg.solve(matrix, right[..., None])[..., 0])


def _bounded_step(hessian: Array, gradient: Array, free: NDArrayBool, fixed: Array, down: Array, up: Array) -> Array:
    """A Newton step in which a parameter that would cross a bound goes to it, and the others make the best of that.

    Cutting the whole step at the first bound would crawl along it; clipping one coordinate alone would leave the valley. One
    correction is enough: who crosses a bound in the second solve is clipped by the caller and corrected in the next step.
    """
    step = _solve(hessian, gradient, free, fixed)
    below, above = free & (step < down), free & (step > up)
    crossing = (below | above).any(axis=1)
    if crossing.any():
        low, high = below[crossing], above[crossing]
        fixed = np.where(low, down[crossing], np.where(high, up[crossing], fixed[crossing]))
        step[crossing] = _solve(hessian[crossing], gradient[crossing], free[crossing] & ~low & ~high, fixed)
    return step
