"""Kaplan's laws: L(N), L(D) without a floor, and the joint L(N, D) of models trained to early stopping."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from scalespec.analysis.laws.fitting import fit
from scalespec.analysis.laws.form import Form, Parameter
from scalespec.analysis.laws.law import Array, Law
from scalespec.analysis.laws.problem import EXPONENT, Columns, Problem


def kaplan_loss(params: Mapping[str, Any], n: Any, d: Any) -> Any:
    """[(Nc/N)^(α_N/α_D) + Dc/D]^α_D (https://arxiv.org/abs/2001.08361, eq. 1.5)."""
    ratio = params["alpha_n"] / params["alpha_d"]
    return ((params["n_c"] / n) ** ratio + params["d_c"] / d) ** params["alpha_d"]


def fit_kaplan(n: Any, d: Any, loss: Any, **options: Any) -> Law:
    """Fits Kaplan's L(N, D); `options` as in `fitting.fit`.

    The form has no irreducible loss, so it must fall below any real loss when extrapolated; it describes runs stopped at their
    best, not single-epoch runs.
    """
    return fit(FORM, {"n": n, "d": d}, loss, **options)


@dataclass(frozen=True)
class _Joint:
    """ln L = q · ln(exp(u − r·x_n) + exp(v − x_d)), θ = (u, v, r, q): r = α_N/α_D, q = α_D."""

    x_n: Array
    x_d: Array

    def _split(self, theta: Array) -> tuple[Array, Array]:
        """ln of the sum, and the share of the first term, [B, n] each."""
        u, v, r, _ = theta.T[:, :, None]
        first, second = u - r * self.x_n, v - self.x_d
        total = np.logaddexp(first, second)
        return total, np.exp(first - total)

    def log_loss(self, theta: Array) -> Array:
        return theta[:, 3, None] * self._split(theta)[0]

    def derivatives(self, theta: Array) -> tuple[Array, Array, Array | None]:
        total, share = self._split(theta)
        q = theta[:, 3, None]
        jacobian = np.stack([q * share, q * (1 - share), -q * share * self.x_n, total], axis=1)
        return q * total, jacobian, np.stack([total, share], axis=1)

    def curvature(self, parts: Array, jacobian: Array, v: Array) -> Array:
        share = parts[:, 1]
        slope = np.stack(
            [np.ones_like(self.x_n), -np.ones_like(self.x_n), -self.x_n]
        )  # of ln(first/second) in (u, v, r)
        out = np.zeros((len(v), 4, 4))
        q_b = jacobian[:, 0] / np.maximum(share, 1e-300)  # q again, [B, n]
        out[:, :3, :3] = np.einsum("bn,in,jn->bij", v * q_b * share * (1 - share), slope, slope)
        cross = np.einsum("bn,bin->bi", v, jacobian[:, :3] / np.maximum(q_b, 1e-300)[:, None])
        out[:, :3, 3] = out[:, 3, :3] = cross
        return out


def problem(columns: Columns, loss: Array) -> Problem:
    """θ = (u, v, r, q) of `_Joint`."""
    log_n, log_d = np.log(columns["n"]), np.log(columns["d"])
    mean_n, mean_d = float(log_n.mean()), float(log_d.mean())
    x_n, x_d = log_n - mean_n, log_d - mean_d
    level = float(np.log(loss).mean())

    def params(theta: Array) -> dict[str, Array]:
        u, v, r, q = theta.T
        return {
            "alpha_n": r * q,
            "alpha_d": q,
            "n_c": np.exp(np.minimum(u / r + mean_n, 700.0)),
            "d_c": np.exp(np.minimum(v + mean_d, 700.0)),
        }

    grid = list(itertools.product((0.3, 0.7, 1.0, 2.0), (0.03, 0.08, 0.2, 0.5), (-2.0, 0.0, 2.0)))
    starts = np.array([(level / q - np.log(2) + t / 2, level / q - np.log(2) - t / 2, r, q) for r, q, t in grid])
    wide = 60 + np.abs(starts[:, :2]).max()
    return Problem(
        model=_Joint(x_n, x_d),
        starts=starts,
        lower=np.array([-wide, -wide, 0.02, EXPONENT[0]]),
        upper=np.array([wide, wide, 50.0, EXPONENT[1]]),
        names=("n_c", "d_c", "alpha_n/alpha_d", "alpha_d"),
        params=params,
        distinct={"n": 3, "d": 3},
    )


FORM = Form(
    name="kaplan",
    title="Kaplan's law for L(N, D)",
    equation="[(Nc/N)^(α_N/α_D) + Dc/D]^α_D",
    source="https://arxiv.org/abs/2001.08361",
    variables=("n", "d"),
    parameters={
        "alpha_n": Parameter("α_N", "with unlimited data the loss falls as N^−α_N"),
        "alpha_d": Parameter("α_D", "with unlimited size the loss falls as D^−α_D"),
        "n_c": Parameter("Nc", "size at which the loss would be one with unlimited data", "parameters", decades=True),
        "d_c": Parameter("Dc", "data at which the loss would be one with unlimited size", "samples", decades=True),
    },
    exponents=("alpha_n", "alpha_d"),
    problem=problem,
    loss=kaplan_loss,
    slopes={"n": "alpha_n", "d": "alpha_d"},
    cards=("alpha_n", "alpha_d"),
)
