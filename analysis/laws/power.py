"""Power laws in one variable, with or without a floor, and the over-training law of one shared exponent."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from scalespec.analysis.laws import forms
from scalespec.analysis.laws.fitting import fit
from scalespec.analysis.laws.law import Law

LEAST_SQUARES = 1e6
"""A Huber threshold that no residual reaches."""


def fit_power(x: Any, loss: Any, *, variable: str = "n", floor: bool = True, **options: Any) -> Law:
    """L = E + K·x^−γ, or K·x^−γ without `floor`, in `variable` n, d or c.

    Without a floor the law also has x_c, where it reaches one: Kaplan's Nc and Dc (https://arxiv.org/abs/2001.08361). `options`
    are those of `fitting.fit`: families, keys, delta, resamples, seed, level.
    """
    return fit(partial(forms.power, variable=variable, floor=floor), {variable: x}, loss, **options)


def power_loss(params: Mapping[str, Any], x: Any) -> Any:
    """E + K·x^−γ; E is zero where `params` has none."""
    return params.get("E", 0.0) + params["K"] * x ** -params["gamma"]


def fit_overtrained(n: Any, d: Any, loss: Any, **options: Any) -> Law:
    """L = E + A·N^−η + B·(√6·D)^−η, five points at least (https://arxiv.org/abs/2403.08540, eq. 4 with M = D/N).

    By least squares in the loss itself, as its authors fit it, unless `options` say otherwise.
    """
    return fit(forms.overtrained, {"n": n, "d": d}, loss, **{"residual": "loss", "delta": LEAST_SQUARES, **options})


def overtrained_loss(params: Mapping[str, Any], n: Any, d: Any) -> Any:
    """E + A·N^−η + B·(√6·D)^−η."""
    return params["E"] + params["A"] * n ** -params["eta"] + params["B"] * (6**0.5 * d) ** -params["eta"]
