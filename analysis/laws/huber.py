"""Many robust fits at once: every start, every bootstrap draw and every left-out point is a row of one array.

The objective of row b is Σ_i w_bi · Huber_δ(f_i(θ_b) − ln L_i), the *sum* over points: with a mean and default tolerances
an optimizer stops early and returns a wrong law (https://arxiv.org/abs/2404.10102, a = .45 instead of .51). Newton steps use
the exact Hessian of the Huber objective, damped by the iteratively reweighted one, which is positive definite, so that a step
is safe far from the minimum and quadratic near it (Nocedal & Wright, Numerical Optimization, ch. 10 and 16.7 for the bounds).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from analysis.laws.law import Array

_ROWS = 64  # rows worked on together: their Jacobians then stay in a core's cache
_ITERATIONS = 400
_TOLERANCE = 1e-13  # of the objective that one more Newton step could still gain
_ROUNDING = 1e-27  # the same, a point, where the data are exact and the objective is rounding error


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
    """ln L = ln Σ_k exp(c_k + Σ_j powers[k, i, j] γ_j), with θ = (c_1 … c_K, γ_1 … γ_q)."""

    powers: Array
    """[K, n, q]: logarithms of the variables, signed; an all-zero block is a floor."""

    def _terms(self, theta: Array) -> Array:
        k, n, q = self.powers.shape
        z = np.repeat(theta[:, :k, None], n, axis=2)
        for term in range(k):
            for j in range(q):
                if self.powers[term, :, j].any():
                    z[:, term] += theta[:, k + j, None] * self.powers[term, :, j]
        return z

    def log_loss(self, theta: Array) -> Array:
        z = self._terms(theta)
        top = z.max(axis=1)
        return np.asarray(top + np.log(np.exp(z - top[:, None]).sum(axis=1)))

    def derivatives(self, theta: Array) -> tuple[Array, Array, Array | None]:
        z = self._terms(theta)
        top = z.max(axis=1)
        shares = np.exp(z - top[:, None])
        total = shares.sum(axis=1)
        shares /= total[:, None]
        k, _, q = self.powers.shape
        jacobian = np.empty((theta.shape[0], k + q, self.powers.shape[1]))
        jacobian[:, :k] = shares
        for j in range(q):
            used = [term for term in range(k) if self.powers[term, :, j].any()]
            jacobian[:, k + j] = sum(shares[:, term] * self.powers[term, :, j] for term in used)
        return top + np.log(total), jacobian, shares

    def curvature(self, parts: Array, jacobian: Array, v: Array) -> Array:
        k, n, q = self.powers.shape
        p = k + q
        unit = np.zeros((k, n, p))
        unit[np.arange(k), :, np.arange(k)] = 1
        unit[:, :, k:] = self.powers
        outer = (unit[..., :, None] * unit[..., None, :]).reshape(k * n, p * p)
        within = (parts * v[:, None]).reshape(len(v), k * n) @ outer
        return np.asarray(within.reshape(-1, p, p) - (jacobian * v[:, None]) @ jacobian.transpose(0, 2, 1))


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
    cuts = [slice(at, at + _ROWS) for at in range(0, rows, _ROWS)]
    parts = [_chunk(model, log_loss[cut], weights[cut], starts[cut], delta, lower, upper) for cut in cuts]
    return Solution(*(np.concatenate([getattr(part, name) for part in parts]) for name in Solution.__dataclass_fields__))


def _chunk(
    model: Model, log_loss: Array, weights: Array, starts: Array, delta: float, lower: Array, upper: Array
) -> Solution:
    rows = len(starts)
    final = Solution(
        np.clip(starts, lower, upper), np.zeros(rows), np.zeros(rows), np.zeros(rows, dtype=np.bool_), np.zeros(rows)
    )
    at = np.arange(rows)
    theta, w, damping = final.theta.copy(), np.ascontiguousarray(weights), np.full(rows, 1e-2)
    steps = np.zeros(rows)
    floor = _ROUNDING * log_loss.shape[1]
    objective = (w * huber(model.log_loss(theta) - log_loss, delta)).sum(axis=1)
    for iteration in range(_ITERATIONS + 1):
        fitted, jacobian, state = model.derivatives(theta)
        residual = fitted - log_loss
        size = np.abs(residual)
        reweight = w * np.minimum(1, delta / np.maximum(size, delta))
        psi = reweight * residual
        gradient = (jacobian @ psi[..., None])[..., 0]
        free = ~(((theta <= lower) & (gradient > 0)) | ((theta >= upper) & (gradient < 0)))
        gradient = gradient * free
        safe = _restrict((jacobian * reweight[:, None]) @ jacobian.transpose(0, 2, 1), free)
        gain = 0.5 * (gradient * np.linalg.solve(safe, gradient[..., None])[..., 0]).sum(axis=1)
        done = gain <= _TOLERANCE * objective + floor
        stop = done | (damping > 1e12) | (iteration == _ITERATIONS)
        if stop.any():
            ended = at[stop]
            final.theta[ended], final.objective[ended], final.steps[ended] = theta[stop], objective[stop], steps[stop]
            final.gradient[ended] = np.abs(gradient[stop]).max(axis=1)
            final.converged[ended] = (gain <= 1e-8 * objective + floor)[stop]
            go = ~stop
            if not go.any():
                break
            at, theta, w, damping, steps, objective = (x[go] for x in (at, theta, w, damping, steps, objective))
            log_loss = log_loss[go]
            residual, size, psi, jacobian, free, gradient, safe = (
                x[go] for x in (residual, size, psi, jacobian, free, gradient, safe)
            )
            state = state[go] if state is not None else None
        exact = (jacobian * (w * (size <= delta))[:, None]) @ jacobian.transpose(0, 2, 1)
        if state is not None:
            exact += model.curvature(state, jacobian, psi)
        exact = exact * (free[:, :, None] & free[:, None, :])
        step = -np.linalg.solve(exact + damping[:, None, None] * safe, gradient[..., None])[..., 0]
        downhill = (gradient * step).sum(axis=1) < 0
        trial = np.clip(theta + step, lower, upper)
        found = (w * huber(model.log_loss(trial) - log_loss, delta)).sum(axis=1)
        better = downhill & (found < objective)
        theta = np.where(better[:, None], trial, theta)
        objective = np.where(better, found, objective)
        steps = steps + better
        damping = np.where(better, np.maximum(damping * 0.2, 1e-9), damping * 5)
    return final


def _restrict(hessian: Array, free: NDArrayBool) -> Array:
    """`hessian` on the free parameters, the identity on the others, and a ridge against exact singularity."""
    out = hessian * (free[:, :, None] & free[:, None, :])
    diagonal = np.arange(out.shape[1])
    scale = out[:, diagonal, diagonal]
    out[:, diagonal, diagonal] = np.where(free, scale * (1 + 1e-12), 1) + 1e-14 * scale.max(axis=1, keepdims=True) + 1e-300
    return out
