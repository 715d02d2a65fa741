"""The parametric law L(N, D) = E + A·N^−α + B·D^−β, and the best N and D for a compute budget."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from scalespec.analysis.laws import forms
from scalespec.analysis.laws.bootstrap import of_law
from scalespec.analysis.laws.fitting import fit
from scalespec.analysis.laws.law import Array, Law, Param, positive


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
        forms.chinchilla,
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


def chinchilla_loss(params: Mapping[str, Any], n: Any, d: Any) -> Any:
    """E + A·N^−α + B·D^−β; `params` holds numbers or arrays that broadcast against `n` and `d`."""
    return params["E"] + params["A"] * n ** -params["alpha"] + params["B"] * d ** -params["beta"]


def values(law: Law) -> dict[str, float]:
    """The estimates alone, by name."""
    return {name: p.value for name, p in law.params.items()}


def predict(law: Law, n: Any, d: Any) -> list[Param]:
    """The fitted loss at each (n, d) with its interval (of the mean, without the noise of a single run)."""
    value, lo, hi = of_law(law, lambda p: chinchilla_loss(p, np.asarray(n, float), np.asarray(d, float)))
    return [_param(*three) for three in zip(value, lo, hi, strict=True)]


def optimum(law: Law, c: float) -> dict[str, Param]:
    """N, D and loss that the law expects to be best for `c` FLOP, with intervals.

    Minimises A·N^−α + B·D^−β on k·N^s·D^t = C: N = (αA·t/(βB·s))^(t/(sβ+tα)) · (C/k)^(β/(sβ+tα)); with s = t = 1 and k = 6
    this is eq. 4 of https://arxiv.org/abs/2203.15556.
    """
    cost = law.diagnostics
    s, t, k = cost["cost_n_exponent"], cost["cost_d_exponent"], cost["cost_factor"]

    def best(p: Mapping[str, Any]) -> dict[str, Any]:
        total = s * p["beta"] + t * p["alpha"]
        g = p["alpha"] * p["A"] * t / (p["beta"] * p["B"] * s)
        n = g ** (t / total) * (c / k) ** (p["beta"] / total)
        d = g ** (-s / total) * (c / k) ** (p["alpha"] / total)
        return {"n": n, "d": d, "loss": chinchilla_loss(p, n, d)}

    def one(name: str) -> Param:
        value, lo, hi = of_law(law, lambda p: best(p)[name])
        return _param(value[0], lo[0], hi[0])

    return {name: one(name) for name in ("n", "d", "loss")}


def _param(value: float, lo: float, hi: float) -> Param:
    return Param(float(value)) if np.isnan(lo) else Param(float(value), float(lo), float(hi))
