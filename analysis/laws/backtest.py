"""Is the law any good beyond its data? Runs are held out, predicted, and compared with predictions that need no law.

A law is judged by extrapolation, not by its fit (https://arxiv.org/abs/2209.06640); the cut is chosen by rule, before looking.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from scalespec.analysis.laws.isoflop import budgets_of
from scalespec.analysis.laws.law import Array, Law, positive
from scalespec.analysis.laws.registry import AUTO, fit_form, form_of

Mask = np.ndarray[tuple[int, ...], np.dtype[np.bool_]]


@dataclass(frozen=True)
class Table:
    """Runs as arrays [points]."""

    n: Array
    d: Array
    c: Array
    loss: Array
    families: tuple[str, ...] | None
    """Labels of points that are resampled together; None: every point alone."""
    keys: tuple[str, ...]

    @classmethod
    def of(
        cls, n: Any, d: Any, c: Any, loss: Any, families: Sequence[Any] | None = None, keys: Sequence[Any] | None = None
    ) -> Table:
        """Checked columns. Raises ValueError where a value is not a positive number."""
        n, d, c, loss = (positive(name, x) for name, x in (("n", n), ("d", d), ("c", c), ("loss", loss)))
        names = tuple(map(str, keys)) if keys is not None else tuple(map(str, range(len(n))))
        return cls(n, d, c, loss, tuple(map(str, families)) if families is not None else None, names)

    def __getitem__(self, mask: Mask) -> Table:
        at = np.flatnonzero(mask)
        families = tuple(self.families[i] for i in at) if self.families is not None else None
        return Table(self.n[at], self.d[at], self.c[at], self.loss[at], families, tuple(self.keys[i] for i in at))


@dataclass(frozen=True)
class Backtest:
    """One law fitted without some runs, and what it says about them."""

    name: str
    """What was held out, in words."""
    law: Law
    """Fitted to the rest."""
    keys: tuple[str, ...]
    """The runs held out, [t]."""
    c: Array
    """[t] FLOP."""
    actual: Array
    """[t] observed loss."""
    predicted: Array
    """[t]"""
    lo: Array
    """[t] lower end of the prediction interval of a single run; NaN without one."""
    hi: Array
    """[t]"""
    ratio: float
    """Largest held-out compute over the largest fitted one; 1 or less: not an extrapolation in compute."""
    baselines: dict[str, Array]
    """Name → prediction [t] that needs no scaling law."""

    @property
    def error(self) -> Array:
        """Signed relative error [t]: predicted / actual − 1."""
        return self.predicted / self.actual - 1

    def scores(self) -> dict[str, Any]:
        """MAPE, signed bias, largest error, coverage of the interval, and the MAPE of each baseline."""
        inside = (self.lo <= self.actual) & (self.actual <= self.hi)
        return {
            "name": self.name,
            "held_out": len(self.keys),
            "fitted": self.law.n_used,
            "ratio": self.ratio,
            "mape": float(np.abs(self.error).mean()),
            "bias": float(self.error.mean()),
            "max_error": float(np.abs(self.error).max()),
            "coverage": float(inside.mean()) if np.isfinite(self.lo).all() else None,
            "level": self.law.level,
            "in_sample_mape": self.law.diagnostics["mape"],
            "baselines": {k: float(np.abs(v / self.actual - 1).mean()) for k, v in self.baselines.items()},
        }


def backtest(
    table: Table, held_out: Mask, name: str, *, form: str = AUTO, seed: int = 0, **options: Any
) -> Backtest | None:
    """Fits a law of N and D to the runs not `held_out` [points] and predicts the others; None where it cannot be fitted.

    `options` are those of `fitting.fit`. The interval of a prediction combines the bootstrap draws of the law with residuals
    of the fit, scaled up for the five fitted parameters. Raises ValueError for a form that is no law of N and D.
    """
    tested = form_of(form)
    if not tested.of_size_and_data or tested.loss is None:
        raise ValueError(f"backtest: the form {form} is no law of N and D")
    held_out = np.asarray(held_out, dtype=np.bool_)
    if not held_out.any() or held_out.all():
        return None
    train, test = table[~held_out], table[held_out]
    known = {"families": train.families, "keys": train.keys, "seed": seed, "influence": False}
    law = fit_form(tested, {"n": train.n, "d": train.d}, train.loss, **known, **options)
    if not law.params:
        return None
    lo, hi = _prediction_interval(law, tested.loss, test, np.random.default_rng(seed))
    return Backtest(
        name=name,
        law=law,
        keys=test.keys,
        c=test.c,
        actual=test.loss,
        predicted=np.asarray(tested.loss(law.values, test.n, test.d)),
        lo=lo,
        hi=hi,
        ratio=float(test.c.max() / train.c.max()),
        baselines=baselines(train, test),
    )


def _prediction_interval(
    law: Law, loss: Callable[..., Any], test: Table, rng: np.random.Generator
) -> tuple[Array, Array]:
    evidence = law.evidence
    if evidence is None or not evidence.draws:
        nothing = np.full(len(test.n), np.nan)
        return nothing, nothing
    column = {name: draw[:, None] for name, draw in evidence.draws.items()}
    spread = np.log(loss(column, test.n, test.d))
    middle = np.log(loss(law.values, test.n, test.d))
    residuals = evidence.residuals * np.sqrt(law.n_used / max(law.n_used - 5, 1))
    one_run = middle + (spread - middle) * evidence.widening + rng.choice(residuals, size=spread.shape)
    lo, hi = np.exp(np.quantile(one_run, [(1 - law.level) / 2, (1 + law.level) / 2], axis=0))
    return lo, hi


def baselines(train: Table, test: Table) -> dict[str, Array]:
    """Predictions of `test` that need no scaling law: what a law has to beat."""
    last = train.loss[train.c >= 0.999 * train.c.max()].min()
    design, target = (np.column_stack([np.ones(len(t.n)), np.log(t.n), np.log(t.d)]) for t in (train, test))
    line, *_ = np.linalg.lstsq(design, np.log(train.loss), rcond=None)
    scale = np.maximum(design[:, 1:].std(axis=0), 1e-12)
    distance = (((target[:, None, 1:] - design[None, :, 1:]) / scale) ** 2).sum(axis=2)
    return {
        "last value": np.full(len(test.n), last),
        "power law without floor": np.exp(target @ line),
        "nearest run": train.loss[distance.argmin(axis=1)],
    }


def largest_budgets(c: Array, share: float = 0.2) -> Mask:
    """The runs above the (1 − share) quantile of compute."""
    return np.asarray(c > np.quantile(c, 1 - share))


def largest(values: Array) -> Mask:
    """The runs at the largest value of a variable, or at its largest tenth where the values are no grid."""
    return np.asarray(values >= 0.999 * np.quantile(values, 0.9, method="higher"))


def backtests(table: Table, **options: Any) -> list[Backtest]:
    """Holds out the largest 20 % of compute, the largest N, the largest D, and both at once: fits fail off the diagonal."""
    if not len(table.n):
        return []
    splits = {
        "the largest 20 % of compute": largest_budgets(table.c),
        "the largest N": largest(table.n),
        "the largest D": largest(table.d),
        "the largest N and the largest D": largest(table.n) | largest(table.d),
    }
    done = (backtest(table, mask, name, **options) for name, mask in splits.items())
    return [one for one in done if one is not None]


def rolling_origin(table: Table, *, target_share: float = 0.1, cuts: int = 5, **options: Any) -> list[Backtest]:
    """Always predicts the largest `target_share` of compute, from ever larger budgets.

    Budgets are cut at groups of `isoflop.budgets_of`, or at quantiles of compute where there are more groups than runs in two.
    The error against `ratio` and the drift of each coefficient are the two figures to read from it.
    """
    if len(table.n) < 8:
        return []
    target = table.c > np.quantile(table.c, 1 - target_share)
    below = np.sort(table.c[~target])
    ends = np.exp(np.quantile(np.log(below), np.linspace(0.3, 1, cuts)))
    group = budgets_of(table.c)
    out: list[Backtest] = []
    for end in np.unique(ends):
        train = (table.c <= end * (1 + 1e-9)) & ~target
        whole = np.isin(group, np.unique(group[train]))  # a budget is fitted entirely or not at all
        kept = np.asarray((whole & ~target) | target)
        one = backtest(table[kept], target[kept], f"fitted up to {end:.2g} FLOP", **options)
        if one is not None and (not out or one.law.n_used > out[-1].law.n_used):
            out.append(one)
    return out
