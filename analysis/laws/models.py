"""Laws as the solver sees them: the logarithm of the loss over n points, with its derivatives, for many θ at once.

Shapes: B rows (starts, bootstrap draws, left-out points), p parameters, n points, K power terms, q exponents.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np

from scalespec.analysis.laws.law import Array


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
        z = np.repeat(theta[:, :k, None], n, axis=2)  # c_k of every point; the exponents' share is added below
        for term in range(k):
            for j in range(q):
                # most exponents belong to one term alone: a product with zeros would cost as much as one that counts
                if self.powers[term, :, j].any():
                    z[:, term] += theta[:, j - q, None] * self.powers[term, :, j]
        # e^700 is about the largest float: a wild step has a huge loss and is refused, an infinite one would spread NaN
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
        # With T_k the terms and s_k = T_k/L their shares of the loss [B, K, n]:
        #   ∂ln L/∂c_k = s_k,   ∂ln L/∂E = u/L,   ∂ln L/∂γ_j = Σ_k s_k · powers[k, ·, j].
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
        # ∇²ln L = ∇²L/L − ∇ln L ∇ln Lᵀ. Each term is the exponential of something linear in θ, so ∇²T_k = T_k g_k g_kᵀ with
        # the constant g_k = ∇ln T_k, and ∇²L/L = Σ_k s_k g_k g_kᵀ; the floor is linear and adds nothing. Summed over the
        # points with weights v, both parts are one matrix product each.
        k, n, _ = self.powers.shape
        p = self.size
        within = (parts * v[:, None]).reshape(len(v), k * n) @ self._outer
        return np.asarray(within.reshape(-1, p, p) - (jacobian * v[:, None]) @ jacobian.transpose(0, 2, 1))

    @cached_property
    def _outer(self) -> Array:
        """g_k g_kᵀ at every point, [K·n, p·p]: it does not depend on θ, so it is made once."""
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
        return loss, jacobian * loss[:, None], None  # ∂L = L · ∂ln L

    def curvature(self, parts: Array, jacobian: Array, v: Array) -> Array:
        raise NotImplementedError("derivatives() offers no second derivatives")
