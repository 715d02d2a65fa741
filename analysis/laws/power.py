"""Power laws in one variable, with or without a floor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from scalespec.analysis.laws.fitting import fit
from scalespec.analysis.laws.form import Form, Parameter
from scalespec.analysis.laws.law import Array, Law
from scalespec.analysis.laws.problem import Columns, Problem, centred, sum_of_powers


def power_loss(params: Mapping[str, Any], x: Any) -> Any:
    """E + K·x^−γ; E is zero where `params` has none."""
    return params.get("E", 0.0) + params["K"] * x ** -params["gamma"]


def fit_power(x: Any, loss: Any, *, variable: str = "n", floor: bool = True, **options: Any) -> Law:
    """L = E + K·x^−γ, or K·x^−γ without `floor`, in `variable` n, d or c.

    Without a floor the law also has x_c, where it reaches one: Kaplan's Nc and Dc (https://arxiv.org/abs/2001.08361). `options`
    are those of `fitting.fit`: families, keys, delta, resamples, seed, level.
    """
    form = FORM if floor else replace(FORM, problem=partial(problem, floor=False))
    return fit(form, {variable: x}, loss, **options)


def problem(columns: Columns, loss: Array, *, floor: bool = True) -> Problem:
    """θ = (ln K, E/unit, γ), without E/unit where there is no floor; Kaplan's L(N) and L(D) are the form without."""
    (variable,) = columns
    x, mean = centred(columns[variable])
    powers = np.zeros((1, len(loss), 1))
    powers[0, :, 0] = -x
    unit = float(loss.min())

    def params(theta: Array) -> dict[str, Array]:
        gamma = theta[:, -1]
        log_k = theta[:, 0] + gamma * mean
        out = {"K": np.exp(log_k), "gamma": gamma}
        # x_c is where the power reaches one: Kaplan's Nc and Dc (https://arxiv.org/abs/2001.08361, eq. 1.1)
        return {"E": theta[:, 1] * unit, **out} if floor else {**out, "x_c": np.exp(np.minimum(log_k / gamma, 700.0))}

    names = ("K", "E", "gamma") if floor else ("K", "gamma")
    return sum_of_powers(powers, loss, names, 1, params, {variable: 4 if floor else 2})


FORM = Form(
    name="power",
    title="Law in one variable",
    equation="E + K·x^−γ",
    source="https://arxiv.org/abs/2001.08361",
    variables=("n", "d", "c"),
    one_variable=True,
    parameters={
        "E": Parameter("E", "the floor of the loss", "loss"),
        "K": Parameter("K", "the part of the loss above the floor, at x = 1", "loss", decades=True),
        "gamma": Parameter("γ", "the loss falls towards its floor as x^−γ"),
        "x_c": Parameter("x_c", "where a law without floor reaches one", "that of x", decades=True),
    },
    exponents=("gamma",),
    problem=problem,
    loss=power_loss,
    picture="power",
)
