"""Many robust fits at once: every start, every bootstrap draw and every left-out point is a row of one array.

The objective of row b is Σ_i w_bi · Huber_δ(f_i(θ_b) − ln L_i), the *sum* over points: with a mean and default tolerances
an optimizer stops early and returns a wrong law (https://arxiv.org/abs/2404.10102, a = .45 instead of .51). Newton steps use
the exact Hessian of the Huber objective, damped by the iteratively reweighted one, which is positive definite, so that a step
is safe far from the minimum and quadratic near it (Nocedal & Wright, Numerical Optimization, ch. 10 and 16.7 for the bounds).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np

from scalespec.analysis.laws.law import Array

_CELLS = 15_000  # rows times points worked on together: their Jacobians then stay in a core's cache
_ITERATIONS = 300
_TOLERANCE = 1e-13  # of the objective that one more Newton step could still gain
_ROUNDING = 1e-27  # the same, a point, where the data are exact and the objective is rounding error
NEAR = 1e-4  # share of a range within which a parameter that pushes outwards is put on its bound


class Model(Protocol):
    """A law in ln L over n points with p parameters."""

    def log_loss(self, theta: Array) -> Array:
        """[B, p] → ln of the fitted loss [B, n]."""
        ...

    def derivatives(self, theta: Array) -> tuple[Array, Array, Array | None]:
        """[B, p] → ln loss [B, n], Jacobian [B, p, n] and what `curvature` needs (None: no second derivatives)."""
        ...

    def curvature(self, parts: Array, jacobian: Array, v: Array) -> Array:
        """Σ_i v_bi ∇²f_i [B, p, p]."""
        ...


@dataclass(frozen=True)
class SumOfPowers:
    """L = u·E + Σ_k exp(c_k + Σ_j powers[k, i, j] γ_j), with θ = (c_1 … c_K, E, γ_1 … γ_q); no E without a `unit` u.

    Amplitudes are fitted as logarithms because they are positive and span decades; the floor is fitted as it is, because in its
    logarithm the valley towards a small floor is long and bent.
    """

    powers: Array
    """[K, n, q]: logarithms of the variables, signed."""
    unit: float | None = None
    """Loss that one unit of E stands for; None: a law without floor."""

    @property
    def size(self) -> int:
        """Number of parameters p."""
        k, _, q = self.powers.shape
        return int(k + q + (self.unit is not None))

    def terms(self, theta: Array) -> Array:
        """The power terms [B, K, n]."""
        k, n, q = self.powers.shape
        z = np.repeat(theta[:, :k, None], n, axis=2)
        for term in range(k):
            for j in range(q):
                if self.powers[term, :, j].any():
                    z[:, term] += theta[:, j - q, None] * self.powers[term, :, j]
        return np.asarray(np.exp(np.minimum(z, 700.0, out=z), out=z))

    def _loss(self, theta: Array, terms: Array) -> Array:
        loss = terms.sum(axis=1)
        if self.unit is not None:
            loss += self.unit * theta[:, len(self.powers), None]
        return np.asarray(np.maximum(loss, 1e-300))

    def log_loss(self, theta: Array) -> Array:
        return np.asarray(np.log(self._loss(theta, self.terms(theta))))

    def derivatives(self, theta: Array) -> tuple[Array, Array, Array | None]:
        shares = self.terms(theta)
        loss = self._loss(theta, shares)
        shares /= loss[:, None]
        k, _, q = self.powers.shape
        jacobian = np.empty((theta.shape[0], self.size, self.powers.shape[1]))
        jacobian[:, :k] = shares
        if self.unit is not None:
            jacobian[:, k] = self.unit / loss
        for j in range(q):
            used = [term for term in range(k) if self.powers[term, :, j].any()]
            jacobian[:, j - q] = sum(shares[:, term] * self.powers[term, :, j] for term in used)
        return np.log(loss), jacobian, shares

    def curvature(self, parts: Array, jacobian: Array, v: Array) -> Array:
        k, n, _ = self.powers.shape
        p = self.size
        within = (parts * v[:, None]).reshape(len(v), k * n) @ self._outer
        return np.asarray(within.reshape(-1, p, p) - (jacobian * v[:, None]) @ jacobian.transpose(0, 2, 1))

    @cached_property
    def _outer(self) -> Array:
        """Gradient of each term's logarithm times itself, [K·n, p·p]."""
        k, n, q = self.powers.shape
        slope = np.zeros((k, n, self.size))
        slope[np.arange(k), :, np.arange(k)] = 1
        slope[:, :, self.size - q :] = self.powers
        return np.asarray((slope[..., :, None] * slope[..., None, :]).reshape(k * n, -1))


@dataclass(frozen=True)
class InLoss:
    """A model of ln L as one of L itself, for laws that their authors fitted to the loss and not to its logarithm."""

    model: Model

    def log_loss(self, theta: Array) -> Array:
        """The fitted loss [B, n]: the solver compares it with losses instead of logarithms."""
        return np.asarray(np.exp(self.model.log_loss(theta)))

    def derivatives(self, theta: Array) -> tuple[Array, Array, Array | None]:
        logs, jacobian, _ = self.model.derivatives(theta)
        loss = np.exp(logs)
        return loss, jacobian * loss[:, None], None

    def curvature(self, parts: Array, jacobian: Array, v: Array) -> Array:
        raise NotImplementedError("derivatives() offers no second derivatives")


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
    at = np.arange(rows)
    theta, w, damping = final.theta.copy(), np.ascontiguousarray(weights), np.full(rows, 1e-2)
    steps, refused = np.zeros(rows), np.zeros(rows)
    near = NEAR * (upper - lower)
    floor = _ROUNDING * log_loss.shape[1]
    objective = (w * huber(model.log_loss(theta) - log_loss, delta)).sum(axis=1)
    for iteration in range(_ITERATIONS + 1):
        fitted, jacobian, state = model.derivatives(theta)
        residual = fitted - log_loss
        size = np.abs(residual)
        reweight = w * np.minimum(1, delta / np.maximum(size, delta))
        psi = reweight * residual
        gradient = (jacobian @ psi[..., None])[..., 0]
        low, high = (theta <= lower + near) & (gradient > 0), (theta >= upper - near) & (gradient < 0)
        snap = np.where(low, lower - theta, np.where(high, upper - theta, 0))
        free = ~(low | high)
        safe = _ridged((jacobian * reweight[:, None]) @ jacobian.transpose(0, 2, 1))
        inside = gradient * free
        gain = -0.5 * (inside * _solve(safe, gradient, free, np.zeros_like(theta))).sum(axis=1)
        done = gain <= _TOLERANCE * objective + floor
        stop = done | (damping > 1e12) | (iteration == _ITERATIONS)
        if stop.any():
            ended = at[stop]
            final.theta[ended], final.objective[ended], final.steps[ended] = theta[stop], objective[stop], steps[stop]
            final.gradient[ended] = np.abs(inside[stop]).max(axis=1)
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
        exact = (jacobian * (w * (size <= delta))[:, None]) @ jacobian.transpose(0, 2, 1)
        if state is not None:
            exact += model.curvature(state, jacobian, psi)
        step = _bounded_step(exact + damping[:, None, None] * safe, gradient, free, snap, lower - theta, upper - theta)
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
        refused = np.where(better, 0, refused + 1)
        factor = np.where(better, np.where(ratio > 0.75, 0.1, np.where(ratio > 0.25, 0.5, 2.0)), 4.0**refused)
        damping = np.maximum(damping * factor, 1e-9)
    return final


def _ridged(hessian: Array) -> Array:
    """`hessian` with a ridge against exact singularity."""
    diagonal = np.arange(hessian.shape[1])
    scale = hessian[:, diagonal, diagonal]
    hessian[:, diagonal, diagonal] = scale * (1 + 1e-12) + 1e-14 * scale.max(axis=1, keepdims=True) + 1e-300
    return hessian


def _solve(hessian: Array, gradient: Array, free: NDArrayBool, fixed: Array) -> Array:
    """The Newton step of the free parameters, given the steps `fixed` of the others."""
    held = ~free
    scale = hessian[:, np.arange(hessian.shape[1]), np.arange(hessian.shape[1])].max(axis=1)
    matrix = hessian * (free[:, :, None] & free[:, None, :])
    matrix[:, np.arange(hessian.shape[1]), np.arange(hessian.shape[1])] += held * scale[:, None]
    right = np.where(free, -gradient - (hessian @ (fixed * held)[..., None])[..., 0], fixed * scale[:, None])
    return np.asarray(np.linalg.solve(matrix, right[..., None])[..., 0])


def _bounded_step(hessian: Array, gradient: Array, free: NDArrayBool, fixed: Array, down: Array, up: Array) -> Array:
    """A Newton step in which a parameter that would cross a bound goes to it, and the others make the best of that."""
    step = _solve(hessian, gradient, free, fixed)
    below, above = free & (step < down), free & (step > up)
    crossing = (below | above).any(axis=1)
    if crossing.any():
        low, high = below[crossing], above[crossing]
        fixed = np.where(low, down[crossing], np.where(high, up[crossing], fixed[crossing]))
        step[crossing] = _solve(hessian[crossing], gradient[crossing], free[crossing] & ~low & ~high, fixed)
    return step
