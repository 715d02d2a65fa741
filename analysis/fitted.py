"""A law as a notebook uses it: the loss anywhere, the best size for a budget, a forecast, the verdict and the picture."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scalespec.analysis.laws import optimum as best_of
from scalespec.analysis.laws import verdict as put_into_words
from scalespec.analysis.laws.law import Law, Param
from scalespec.analysis.laws.optimum import loss_with_ends
from scalespec.analysis.laws.registry import form_of_law

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Best:
    """What a law expects to be best for a compute budget."""

    n: Param
    d: Param
    """NaN where the law is one of the best size alone."""
    loss: Param
    """NaN where the law is one of the best size alone."""

    def __getitem__(self, name: str) -> Param:
        return {"n": self.n, "d": self.d, "loss": self.loss}[name]


@dataclass(frozen=True)
class Forecast:
    """The loss that a law expects somewhere: floats for numbers, arrays [points] for arrays. Ends may be infinite, never None."""

    value: Any
    law_lo: Any
    """Lower end of the law's own interval: of the mean over many runs there. −∞ where the law carries no draws."""
    law_hi: Any
    lo: Any
    """Lower end of an interval for one new run. How far single runs fall from a law beyond its data cannot be read off its own
    draws, so without a calibration on held-out runs the ends are infinite."""
    hi: Any


@dataclass(frozen=True, eq=False)
class FittedLaw(Law):
    """A law with the points behind it."""

    points: pd.DataFrame | None = field(default=None, repr=False)
    """What was fitted, columns of n, d, c, unique and loss, one row a point; None: only what the law itself carries."""
    labels: Mapping[str, str] = field(default_factory=dict, repr=False)
    """n, d, c, loss → what the axes of its picture say; missing ones say what a study's do."""

    @classmethod
    def of(cls, law: Law, points: pd.DataFrame | None = None, labels: Mapping[str, str] | None = None) -> FittedLaw:
        """The same law, with its points."""
        return cls(**{one.name: getattr(law, one.name) for one in fields(Law)}, points=points, labels=labels or {})

    @property
    def verdict(self) -> str:
        """What the law says and why (not) to believe it, as one paragraph."""
        return put_into_words(self)

    def loss(self, n: Any = None, d: Any = None, *, c: Any = None, unique: Any = None) -> Any:
        """The fitted loss at the variables of the law's form; numbers or arrays.

        Raises ValueError naming a variable that is missing or not of the form, and for a law without parameters.
        """
        at = self._at(n=n, d=d, c=c, unique=unique)
        value = loss_with_ends(self, *at)[0]
        return value if any(np.ndim(x) for x in at) else float(value[0])

    def best(self, c: float) -> Best:
        """The best n and d for `c` FLOP and the loss there, each with its interval. Raises ValueError where none follows."""
        found = best_of(self, float(c))
        nothing = Param(math.nan)
        return Best(found["n"], found.get("d", nothing), found.get("loss", nothing))

    def forecast(self, n: Any = None, d: Any = None, *, c: Any = None, unique: Any = None) -> Forecast:
        """The loss to expect, with the law's interval and that of one new run. Raises ValueError as `loss` does."""
        at = self._at(n=n, d=d, c=c, unique=unique)
        value, lo, hi = loss_with_ends(self, *at)
        lo, hi = np.where(np.isnan(lo), -np.inf, lo), np.where(np.isnan(hi), np.inf, hi)
        unknown = np.full(value.shape, np.inf)
        ends = (value, lo, hi, -unknown, unknown)
        return Forecast(*(ends if any(np.ndim(x) for x in at) else (float(x[0]) for x in ends)))

    def plot(self) -> Figure:
        """The points, the law and what it misses. Raises ValueError where the form has no picture, or the points are not known."""
        from scalespec.analysis.plots.laws import STUDY, Labels
        from scalespec.analysis.plots.pictures import law_figure

        points = self.points
        if points is None:
            if self.evidence is None or "loss" not in self.evidence.columns:
                raise ValueError(f"law {self.id}: the points behind it are not known; take it from `load` or `fit`")
            points = pd.DataFrame(dict(self.evidence.columns), index=list(self.evidence.keys))
        return law_figure(self, points, Labels(**{**vars(STUDY), **self.labels}))

    def _at(self, **given: Any) -> list[Any]:
        form = form_of_law(self)
        known = {name: np.asarray(value, dtype=np.float64) for name, value in given.items() if value is not None}
        if form.loss is None:
            raise ValueError(f"law {self.id}: the form {form.name} is no law of the loss: {form.equation}")
        wanted = form.variables
        if form.one_variable:
            wanted = tuple(name for name in wanted if getattr(self, f"{name}_column") is not None)
        if set(known) != set(wanted):
            raise ValueError(
                f"law {self.id}: give {' and '.join(wanted)}, the variables of {form.name}: {form.equation}"
            )
        return [known[name] for name in wanted]
