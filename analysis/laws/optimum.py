"""What follows from a law: the loss anywhere, and the best size for a compute budget, with intervals, for any form."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from scalespec.analysis.laws.bootstrap import of_law
from scalespec.analysis.laws.form import Cost, Form
from scalespec.analysis.laws.law import Array, Law, Param
from scalespec.analysis.laws.registry import form_of_law

_GRID = 161
_HALVINGS = 80
_GOLDEN = 0.5 * (5**0.5 - 1)


def loss_with_ends(law: Law, *variables: Any) -> tuple[Array, Array, Array]:
    """The fitted loss at each point of the variables of its form, [points] each, and both ends of its interval; NaN without draws.

    The interval is that of the law: of the mean over runs, without the noise of a single one. Raises ValueError for a law
    that has no parameters or is none of the loss.
    """
    loss = form_of_law(law).loss
    if loss is None:
        raise ValueError(f"law {law.id}: the form {law.form} is no law of the loss")
    if not law.params:
        raise ValueError(f"law {law.id}: has no parameters ({', '.join(sorted(law.status))})")
    at = [np.atleast_1d(np.asarray(values, dtype=np.float64)) for values in variables]
    return of_law(law, lambda p: loss(p, *at))


def predict(law: Law, n: Any, d: Any) -> list[Param]:
    """The fitted loss at each (n, d) with its interval (of the mean, without the noise of a single run)."""
    return [_param(*three) for three in zip(*loss_with_ends(law, n, d), strict=True)]


def optimum(law: Law, c: float) -> dict[str, Param]:
    """`n`, `d` and `loss` that the law expects to be best for `c` FLOP, with intervals.

    On C = k·N^s·D^t as the law was fitted (C = 6ND where it was given no count), in closed form where the form has one, else
    by search. Of a law of the best size alone only `n` is there. Raises ValueError for a law from which no best size follows.
    """
    form, cost = form_of_law(law), Cost.of(law)
    if not law.params or not (form.best or form.of_size_and_data):
        raise ValueError(f"law {law.id}: no best size follows from it ({law.form}, {', '.join(sorted(law.status))})")

    def best(p: Mapping[str, Any]) -> dict[str, Any]:
        found = form.best(p, c, cost) if form.best else _search(form, p, c, cost)
        return found if form.loss is None else {**found, "loss": form.loss(p, found["n"], found["d"])}

    names = ("n", "d", "loss") if form.loss is not None else ("n",)
    out = {}
    for name in names:
        value, lo, hi = of_law(law, lambda p, name=name: best(p)[name])  # type: ignore[misc]
        if not np.isfinite(value[0]):
            raise ValueError(f"law {law.id}: it has no best size inside N ≥ 1, D ≥ 1 for {c:.3g} FLOP")
        out[name] = _param(value[0], lo[0], hi[0])
    return out


def _search(form: Form, params: Mapping[str, Any], c: float, cost: Cost) -> dict[str, Any]:
    """The lowest loss along the budget: a coarse look, then golden sections; NaN where it lies at an end.

    `params` are numbers, or columns [B, 1]; the answers have that shape.
    """
    assert form.loss is not None
    loss, log_c = form.loss, float(np.log(c / cost.k))

    def data(x: Any) -> Any:
        return np.exp((log_c - cost.s * x) / cost.t)

    grid = np.linspace(0.0, log_c / cost.s, _GRID)
    seen = np.atleast_2d(loss(params, np.exp(grid), data(grid)))
    lowest = np.argmin(np.where(np.isfinite(seen), seen, np.inf), axis=1)
    inside = (lowest > 0) & (lowest < _GRID - 1)
    at = np.clip(lowest, 1, _GRID - 2)
    shape = np.shape(next(iter(params.values())))
    low, high = grid[at - 1].reshape(shape), grid[at + 1].reshape(shape)
    for _ in range(_HALVINGS):
        left, right = high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)
        falls = loss(params, np.exp(left), data(left)) > loss(params, np.exp(right), data(right))
        low, high = np.where(falls, left, low), np.where(falls, high, right)
    x = np.where(inside.reshape(shape), 0.5 * (low + high), np.nan)
    return {"n": np.exp(x), "d": data(x)}


def _param(value: float, lo: float, hi: float) -> Param:
    return Param(float(value)) if np.isnan(lo) else Param(float(value), float(lo), float(hi))
