"""The law for repeated data: a token seen again is worth less, and so is a parameter beyond what unique data can use."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from scalespec.analysis.laws import chinchilla
from scalespec.analysis.laws.fitting import fit
from scalespec.analysis.laws.form import Form, Parameter
from scalespec.analysis.laws.law import Array, Law
from scalespec.analysis.laws.problem import Columns, Problem

_HALF_LIFE = (0.3, 1000.0)
"""Bounds of R_D* and R_N*, in repetitions. Published: 15.4 and 5.3."""


def effective_data(d: Any, unique: Any, r_star: Any) -> Any:
    """D′ = U + U·R*·(1 − e^(−R/R*)) with R = D/U − 1 repetitions (https://arxiv.org/abs/2305.16264, eq. 5)."""
    used = np.minimum(unique, d)
    repeats = np.maximum(np.minimum(d / used, 1e12) - 1, 0)
    return used + used * r_star * -np.expm1(-repeats / r_star)


def data_constrained_loss(params: Mapping[str, Any], n: Any, d: Any, unique: Any) -> Any:
    """E + A·N′^−α + B·D′^−β (https://arxiv.org/abs/2305.16264, eq. 6).

    D′ is `effective_data`; N′ is the same with the model size that is compute-optimal for the unique data in the place of U, as
    A·N^−α and B·D^−β put it: N_U = min(N, (U·G)^(β/α)·G), G = (αA/(βB))^(1/(α+β)).
    """
    used = np.minimum(unique, d)
    base = np.minimum(_optimal_size(params, used), n)
    return (
        params["E"]
        + params["A"] * effective_data(n, base, params["r_n"]) ** -params["alpha"]
        + params["B"] * effective_data(d, used, params["r_d"]) ** -params["beta"]
    )


def _optimal_size(params: Mapping[str, Any], used: Any) -> Any:
    """The N that C = 6ND spends best together with `used` samples."""
    alpha, beta = params["alpha"], params["beta"]
    log_g = (np.log(alpha * params["A"]) - np.log(beta * params["B"])) / (alpha + beta)
    return np.exp(np.clip((np.log(used) + log_g) * beta / alpha + log_g, -600.0, 600.0))


def fit_data_constrained(n: Any, d: Any, unique: Any, loss: Any, **options: Any) -> Law:
    """Fits E, A, B, alpha, beta and the half-lives r_d, r_n; `unique` distinct samples, [points]; `options` as in `fitting.fit`.

    Needs runs with and without repetition: with `unique` ≥ `d` everywhere nothing determines r_d, and the status says so.
    """
    return fit(FORM, {"n": n, "d": d, "unique": unique}, loss, **options)


@dataclass(frozen=True)
class _Repeated:
    """θ = (c_A, c_B, E/unit, ln r_d, ln r_n, α, β), amplitudes taken at the mean of ln N and ln D."""

    columns: Columns
    mean_n: float
    mean_d: float
    unit: float

    def params(self, theta: Array) -> dict[str, Array]:
        c_a, c_b, e, log_r_d, log_r_n, alpha, beta = theta.T
        return {
            "E": e * self.unit,
            "A": np.exp(c_a + alpha * self.mean_n),
            "B": np.exp(c_b + beta * self.mean_d),
            "alpha": alpha,
            "beta": beta,
            "r_d": np.exp(log_r_d),
            "r_n": np.exp(log_r_n),
        }

    def log_loss(self, theta: Array) -> Array:
        p = {name: value[:, None] for name, value in self.params(theta).items()}
        fitted = data_constrained_loss(p, self.columns["n"], self.columns["d"], self.columns["unique"])
        return np.asarray(np.log(np.maximum(fitted, 1e-300)))

    def derivatives(self, theta: Array) -> tuple[Array, Array, Array | None]:
        p = {name: value[:, None] for name, value in self.params(theta).items()}
        n, d, alpha, beta = self.columns["n"], self.columns["d"], p["alpha"], p["beta"]
        used = np.minimum(self.columns["unique"], d)
        best = _optimal_size(p, used)
        base = np.minimum(best, n)
        size, size_base, size_r = _effective_slopes(n, base, p["r_n"])
        data, _, data_r = _effective_slopes(d, used, p["r_d"])
        term_a, term_b = p["A"] * size**-alpha, p["B"] * data**-beta
        loss = p["E"] + term_a + term_b
        # of ln N_U in (c_A, c_B, α, β); zero where every parameter is still of use
        total = alpha + beta
        log_g = (np.log(alpha * p["A"]) - np.log(beta * p["B"])) / total
        reach = np.where(best < n, size_base, 0.0)
        inner = np.log(used) + log_g
        to_g = (1 + beta / alpha) / total
        slope_alpha = to_g * (1 / alpha + self.mean_n - log_g) - beta / alpha**2 * inner
        slope_beta = to_g * (-1 / beta - self.mean_d - log_g) + inner / alpha
        jacobian = np.empty((len(theta), 7, len(n)))
        jacobian[:, 0] = term_a * (1 - alpha * reach * to_g)
        jacobian[:, 1] = term_b + term_a * alpha * reach * to_g
        jacobian[:, 2] = self.unit
        jacobian[:, 3] = -term_b * beta * data_r
        jacobian[:, 4] = -term_a * alpha * size_r
        jacobian[:, 5] = term_a * (self.mean_n - np.log(size) - alpha * reach * slope_alpha)
        jacobian[:, 6] = term_b * (self.mean_d - np.log(data)) - term_a * alpha * reach * slope_beta
        return np.log(loss), jacobian / loss[:, None], None

    def curvature(self, parts: Array, jacobian: Array, v: Array) -> Array:
        raise NotImplementedError("derivatives() offers no second derivatives")


def _effective_slopes(d: Any, used: Any, r_star: Any) -> tuple[Any, Any, Any]:
    """`effective_data` x′, and the slopes of ln x′ in ln U and in ln R*."""
    effective = effective_data(d, used, r_star)
    seen = np.minimum(d / used, 1e12)
    left = np.exp(-np.maximum(seen - 1, 0) / r_star)
    to_base = used * (1 + r_star * (1 - left) - left * seen) / effective
    to_r = used * r_star * (1 - left - left * (seen - 1) / r_star) / effective
    return effective, to_base, to_r


def problem(columns: Columns, loss: Array) -> Problem:
    """θ of `_Repeated`: Chinchilla's starts, once with short and once with long half-lives."""
    plain = chinchilla.problem(columns, loss)
    model = _Repeated(
        columns, float(np.log(columns["n"]).mean()), float(np.log(columns["d"]).mean()), float(loss.min())
    )
    half = np.log(_HALF_LIFE)

    def with_half_lives(theta: Array, values: Any) -> Array:
        return np.insert(theta, [3, 3], values, axis=-1)

    starts = np.concatenate([with_half_lives(plain.starts[::4], np.log(r)) for r in ((5.0, 5.0), (40.0, 20.0))])
    return Problem(
        model=model,
        starts=starts,
        lower=with_half_lives(plain.lower, (half[0], half[0])),
        upper=with_half_lives(plain.upper, (half[1], half[1])),
        names=("A", "B", "E", "r_d", "r_n", "alpha", "beta"),
        params=model.params,
        distinct={"n": 3, "d": 3, "unique": 2},
        minimum=8,
    )


FORM = Form(
    name="data_constrained",
    title="Law for repeated data",
    equation="E + A·N′^−α + B·D′^−β",
    source="https://arxiv.org/abs/2305.16264",
    variables=("n", "d", "unique"),
    parameters={
        **{name: chinchilla.FORM.parameters[name] for name in ("E", "A", "B", "alpha", "beta")},
        "r_d": Parameter("R_D*", "after so many repetitions a sample is worth 1/e of a new one", decades=True),
        "r_n": Parameter("R_N*", "the same for parameters beyond what unique data can use", decades=True),
    },
    exponents=("alpha", "beta", "r_d"),
    problem=problem,
    loss=data_constrained_loss,
    slopes={"n": "alpha", "d": "beta"},
    cards=("alpha", "beta", "E", "r_d"),
    picture="repetition",
)
