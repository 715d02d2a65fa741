"""The over-training law: one exponent for size and data, as models trained far past compute-optimal follow it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from scalespec.analysis.laws.chinchilla import best_of_powers
from scalespec.analysis.laws.fitting import fit
from scalespec.analysis.laws.form import Cost, Form, Parameter
from scalespec.analysis.laws.law import Array, Law
from scalespec.analysis.laws.problem import Columns, Problem, centred, sum_of_powers

LEAST_SQUARES = 1e6
"""A Huber threshold that no residual reaches."""


def one_exponent_loss(params: Mapping[str, Any], n: Any, d: Any) -> Any:
    """E + A·N^−η + B·(√6·D)^−η."""
    return params["E"] + params["A"] * n ** -params["eta"] + params["B"] * (6**0.5 * d) ** -params["eta"]


def fit_one_exponent(n: Any, d: Any, loss: Any, **options: Any) -> Law:
    """L = E + A·N^−η + B·(√6·D)^−η, five points at least (https://arxiv.org/abs/2403.08540, eq. 4 with M = D/N).

    By least squares in the loss itself, as its authors fit it, unless `options` say otherwise.
    """
    return fit(FORM, {"n": n, "d": d}, loss, **options)


def problem(columns: Columns, loss: Array) -> Problem:
    """θ = (ln A, ln B, E/unit, η).

    The authors write the law in C = 6ND and the token multiplier M = D/N, as A·N^−η + B·6^(−η/2)·(M·N)^−η.
    """
    x_n, mean_n = centred(columns["n"])
    log_d = np.log(columns["d"]) + 0.5 * np.log(6)
    mean_d = float(log_d.mean())
    powers = np.zeros((2, len(loss), 1))
    powers[0, :, 0], powers[1, :, 0] = -x_n, -(log_d - mean_d)
    unit = float(loss.min())

    def params(theta: Array) -> dict[str, Array]:
        eta = theta[:, 3]
        return {
            "E": theta[:, 2] * unit,
            "A": np.exp(theta[:, 0] + eta * mean_n),
            "B": np.exp(theta[:, 1] + eta * mean_d),
            "eta": eta,
        }

    return sum_of_powers(powers, loss, ("A", "B", "E", "eta"), 1, params, {"n": 3, "d": 3}, minimum=5)


def _best(params: Mapping[str, Any], c: Any, cost: Cost) -> dict[str, Any]:
    eta = params["eta"]
    as_powers = {"alpha": eta, "beta": eta, "A": params["A"], "B": params["B"] * 6 ** (-0.5 * eta)}
    return best_of_powers(as_powers, c, cost)


FORM = Form(
    name="one_exponent",
    title="Law for L(N, D) with one exponent",
    equation="E + A·N^−η + B·(√6·D)^−η",
    source="https://arxiv.org/abs/2403.08540",
    variables=("n", "d"),
    parameters={
        "E": Parameter("E", "the floor of the loss", "loss"),
        "A": Parameter("A", "the part of the loss that size removes, at N = 1", "loss", decades=True),
        "B": Parameter("B", "the part of the loss that data remove, at √6·D = 1", "loss", decades=True),
        "eta": Parameter("η", "the loss falls with size and with data to the power −η"),
    },
    exponents=("eta",),
    problem=problem,
    loss=one_exponent_loss,
    best=_best,
    slopes={"n": "eta", "d": "eta"},
    cards=("eta", "E"),
    residual="loss",
    delta=LEAST_SQUARES,
)
