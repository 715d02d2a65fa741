"""The parametric law L(N, D) = E + A·N^−α + B·D^−β (https://arxiv.org/abs/2203.15556)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from scalespec.analysis.laws.fitting import fit
from scalespec.analysis.laws.form import Cost, Form, Parameter, range_of
from scalespec.analysis.laws.law import Array, Law, positive
from scalespec.analysis.laws.problem import Columns, Problem, centred, sum_of_powers


def chinchilla_loss(params: Mapping[str, Any], n: Any, d: Any) -> Any:
    """E + A·N^−α + B·D^−β; `params` holds numbers or arrays that broadcast against `n` and `d`."""
    return params["E"] + params["A"] * n ** -params["alpha"] + params["B"] * d ** -params["beta"]


def fit_chinchilla(
    n: Any,
    d: Any,
    loss: Any,
    *,
    c: Any | None = None,
    families: Sequence[Any] | None = None,
    keys: Sequence[str] | None = None,
    delta: float | None = None,
    resamples: int = 400,
    seed: int = 0,
    level: float = 0.95,
    influence: bool = True,
) -> Law:
    """Fits L(N, D) = E + A·N^−α + B·D^−β by the sum of Huber losses on ln L.

    `n` parameters, `d` samples or tokens, `loss` in any unit, all [points]. With `c` (FLOP) the law also carries the exponents
    of the optimum under that count: C = k·N^s·D^t is fitted to the table, since C = 6ND need not hold. Parameters: E, A, B,
    alpha, beta, a = β/(α+β), b = α/(α+β); with `c` also n_opt_exponent, d_opt_exponent, frontier_exponent.
    Source: https://arxiv.org/abs/2203.15556, as re-fitted in https://arxiv.org/abs/2404.10102.
    """
    columns: dict[str, Any] = {"n": n, "d": d}
    s, t, k, misfit = (1.0, 1.0, 6.0, 0.0) if c is None else cost_exponents(n, d, c)

    def derived(p: dict[str, Array]) -> dict[str, Array]:
        if c is None:
            return {}
        total = s * p["beta"] + t * p["alpha"]
        return {
            "n_opt_exponent": p["beta"] / total,
            "d_opt_exponent": p["alpha"] / total,
            "frontier_exponent": p["alpha"] * p["beta"] / total,
        }

    law = fit(
        FORM,
        columns,
        loss,
        families=families,
        keys=keys,
        delta=delta,
        resamples=resamples,
        seed=seed,
        level=level,
        influence=influence,
        derived=derived,
    )
    cost = {"cost_n_exponent": s, "cost_d_exponent": t, "cost_factor": k, "cost_misfit": misfit}
    return replace(law, diagnostics={**law.diagnostics, **cost}) if law.params else law


def cost_exponents(n: Any, d: Any, c: Any) -> tuple[float, float, float, float]:
    """(s, t, k, misfit) of C = k·N^s·D^t by least squares in logarithms; misfit is the largest |ln| residual."""
    n, d, c = positive("n", n), positive("d", d), positive("c", c)
    design = np.column_stack([np.log(n), np.log(d), np.ones(len(n))])
    coefficients, *_ = np.linalg.lstsq(design, np.log(c), rcond=None)
    misfit = np.abs(design @ coefficients - np.log(c)).max() if len(n) else 0.0
    s, t, log_k = coefficients
    return float(s), float(t), float(np.exp(log_k)), float(misfit)


def best_of_powers(params: Mapping[str, Any], c: Any, cost: Cost) -> dict[str, Any]:
    """The `n` and `d` that minimise A·N^−α + B·D^−β on k·N^s·D^t = C.

    N = (αA·t/(βB·s))^(t/(sβ+tα)) · (C/k)^(β/(sβ+tα)); with s = t = 1 and k = 6 this is eq. 4 of
    https://arxiv.org/abs/2203.15556.
    """
    s, t, k = cost.s, cost.t, cost.k
    total = s * params["beta"] + t * params["alpha"]
    g = params["alpha"] * params["A"] * t / (params["beta"] * params["B"] * s)
    n = g ** (t / total) * (c / k) ** (params["beta"] / total)
    d = g ** (-s / total) * (c / k) ** (params["alpha"] / total)
    return {"n": n, "d": d}


def problem(columns: Columns, loss: Array) -> Problem:
    """θ = (ln A, ln B, E/unit, α, β), amplitudes at the mean of ln N and ln D, E in units of the smallest loss."""
    x_n, mean_n = centred(columns["n"])
    x_d, mean_d = centred(columns["d"])
    powers = np.zeros((2, len(loss), 2))
    powers[0, :, 0], powers[1, :, 1] = -x_n, -x_d
    unit = float(loss.min())

    def params(theta: Array) -> dict[str, Array]:
        c_a, c_b, e, alpha, beta = theta.T
        return {
            "E": e * unit,
            "A": np.exp(c_a + alpha * mean_n),
            "B": np.exp(c_b + beta * mean_d),
            "alpha": alpha,
            "beta": beta,
            "a": beta / (alpha + beta),
            "b": alpha / (alpha + beta),
        }

    return sum_of_powers(powers, loss, ("A", "B", "E", "alpha", "beta"), 2, params, {"n": 3, "d": 3})


def _fit(variables: Mapping[str, Any], loss: Any, **options: Any) -> Law:
    n, d, c = (np.asarray(variables[name], dtype=np.float64) if name in variables else None for name in ("n", "d", "c"))
    # with C = 6ND the exponents of the optimum are a and b already
    counted = c if c is not None and n is not None and d is not None and not np.allclose(c, 6 * n * d) else None
    return fit_chinchilla(n, d, loss, c=counted, **options)


def _headline(law: Law, points: str) -> str:
    say = {name: range_of(p) for name, p in law.params.items()}
    counted = f", and as C^{say['n_opt_exponent']} for the FLOP given" if "n_opt_exponent" in say else ""
    return (
        f"From {points}, the loss falls as N^−α with α = {say['alpha']} and as D^−β with β = {say['beta']} towards a floor "
        f"E = {say['E']}; the best model size then grows as C^a with a = {say['a']} where C = 6ND{counted}"
    )


FORM = Form(
    name="chinchilla",
    title="Law for L(N, D)",
    equation="E + A·N^−α + B·D^−β",
    source="https://arxiv.org/abs/2203.15556",
    variables=("n", "d"),
    parameters={
        "E": Parameter("E", "the floor of the loss", "loss"),
        "A": Parameter("A", "the part of the loss that size removes, at N = 1", "loss", decades=True),
        "B": Parameter("B", "the part of the loss that data remove, at D = 1", "loss", decades=True),
        "alpha": Parameter("α", "the loss falls with size as N^−α"),
        "beta": Parameter("β", "the loss falls with data as D^−β"),
        "a": Parameter("a", "the best size grows as C^a where C = 6ND"),
        "b": Parameter("b", "the best amount of data grows as C^b where C = 6ND"),
        "n_opt_exponent": Parameter("a for the FLOP given", "the best size grows with the counted FLOP to this power"),
        "d_opt_exponent": Parameter("b for the FLOP given", "the best data grow with the counted FLOP to this power"),
        "frontier_exponent": Parameter("γ", "the best loss falls towards E with the counted FLOP to this power"),
    },
    exponents=("alpha", "beta"),
    problem=problem,
    fit=_fit,
    loss=chinchilla_loss,
    best=best_of_powers,
    slopes={"n": "alpha", "d": "beta"},
    cards=("alpha", "beta", "E", "a"),
    headline=_headline,
)
