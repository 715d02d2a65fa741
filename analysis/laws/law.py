"""What every fit returns: `Law`, its parameters with intervals, and a status that says why not to believe it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


class FitStatus(StrEnum):
    """What happened to a fit. A fit can carry several; `converged` alone is the only clean one."""

    CONVERGED = "converged"
    """The gradient vanishes at the best point found."""
    AT_BOUND = "at_bound"
    """A parameter ended on its bound, as a floor E at zero: read it as a limit, not as a value."""
    DID_NOT_MOVE = "did_not_move"
    """The optimizer returned its starting point although the gradient there is not zero."""
    FLAT_BASIN = "flat_basin"
    """Very different parameters fit almost equally well: predictions may hold, exponents do not."""
    TOO_FEW_POINTS = "too_few_points"
    """Fewer points, or fewer distinct sizes, than the form needs: there are no parameters."""
    TOO_NARROW = "too_narrow"
    """A variable spans less than a factor of four: its exponent is an extrapolation of local slope."""
    NOT_CONVERGED = "not_converged"
    """The optimizer stopped before the gradient vanished, or too many resamples could not be fitted."""


@dataclass(frozen=True)
class Param:
    """An estimate with the ends of its interval; None where no interval could be computed."""

    value: float
    lo: float | None = None
    hi: float | None = None

    def __float__(self) -> float:
        return self.value

    def __str__(self) -> str:
        if self.lo is None or self.hi is None:
            return f"{self.value:.4g}"
        return f"{self.value:.4g} [{self.lo:.4g}, {self.hi:.4g}]"


@dataclass(frozen=True)
class Exclusion:
    """A point that was offered and left out."""

    key: str
    reason: str


@dataclass(frozen=True)
class Evidence:
    """The arrays behind a law. They stay in memory; `laws.json` carries their summary in `diagnostics`."""

    draws: Mapping[str, Array]
    """Parameter name → one value a bootstrap draw, as refitted."""
    residuals: Array
    """ln(observed) − ln(fitted), one a used point, in the order given."""
    keys: tuple[str, ...]
    """The names of the used points."""
    widening: float = 1.0
    """By how much an interval is wider than the percentiles of its draws; `bootstrap.of_law` applies it."""
    influence: Mapping[str, Array] = field(default_factory=dict)
    """Parameter name → change of the estimate when that one point is left out, exactly refitted."""
    columns: Mapping[str, Array] = field(default_factory=dict)
    """Variable name (`n`, `d`, `c`, `loss` …) → its values at the used points."""


@dataclass(frozen=True)
class Law:
    """One fitted law: an entry of `laws.json`."""

    id: str
    """Name of the fit within the study."""
    form: str
    """chinchilla, power, kaplan, frontier …"""
    target: str
    """The column that was fitted."""
    params: Mapping[str, Param]
    level: float
    """Confidence level of the intervals."""
    resampling: str
    """What was resampled for the intervals, in words."""
    n_points: int
    """Points offered."""
    n_used: int
    """Points that entered the fit."""
    status: frozenset[FitStatus]
    n_column: str | None = None
    d_column: str | None = None
    c_column: str | None = None
    excluded: tuple[Exclusion, ...] = ()
    objective: float | None = None
    """Sum over points of the Huber loss of the log residual."""
    delta: float | None = None
    """Huber threshold on the log residual: 0.01 is a relative error of 1 %."""
    diagnostics: Mapping[str, Any] = field(default_factory=dict)
    """JSON-able numbers; names are explained in the guide's page "Reading a fit"."""
    evidence: Evidence | None = field(default=None, compare=False, repr=False)

    def __getitem__(self, name: str) -> float:
        """The estimate of parameter `name`. Raises KeyError where the law does not have it."""
        return self.params[name].value

    @property
    def values(self) -> dict[str, float]:
        """The estimates alone, by name."""
        return {name: p.value for name, p in self.params.items()}

    @property
    def clean(self) -> bool:
        """True where nothing but `converged` is to be said."""
        return self.status == {FitStatus.CONVERGED}

    def to_json(self) -> dict[str, Any]:
        """The entry of `laws.json`: plain numbers, no NaN, statuses in a fixed order."""
        return {
            "id": self.id,
            "form": self.form,
            "target": self.target,
            "n_column": self.n_column,
            "d_column": self.d_column,
            "c_column": self.c_column,
            "params": {
                name: {"value": _plain(p.value), "lo": _plain(p.lo), "hi": _plain(p.hi)}
                for name, p in self.params.items()
            },
            "level": self.level,
            "resampling": self.resampling,
            "n_points": self.n_points,
            "n_used": self.n_used,
            "excluded": [{"key": e.key, "reason": e.reason} for e in self.excluded],
            "objective": _plain(self.objective),
            "delta": _plain(self.delta),
            "status": [status.value for status in FitStatus if status in self.status],
            "diagnostics": _plain(self.diagnostics),
        }

    @classmethod
    def from_json(cls, entry: Mapping[str, Any]) -> Law:
        """The law of an entry of `laws.json`, without `evidence`. Raises ValueError naming a missing or unknown key."""
        known = set(cls.__dataclass_fields__) - {"evidence"}
        if known != set(entry):
            raise ValueError(
                f"law entry: missing or unknown keys {sorted(known ^ set(entry))}; expected {sorted(known)}"
            )
        return cls(
            **{
                **entry,
                "params": {name: Param(**p) for name, p in entry["params"].items()},
                "excluded": tuple(Exclusion(**e) for e in entry["excluded"]),
                "status": frozenset(FitStatus(s) for s in entry["status"]),
            }
        )


def _plain(value: Any) -> Any:
    """JSON-able: numpy scalars and arrays as Python numbers and lists, a number that is not finite as None."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray | Sequence) and not isinstance(value, str):
        return [_plain(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def positive(name: str, values: Any) -> Array:
    """`values` as a float array [n]. Raises ValueError naming the column where one is NaN, infinite, zero or negative."""
    array = np.asarray(values, dtype=np.float64).ravel()
    bad = ~(np.isfinite(array) & (array > 0))
    if bad.any():
        first = int(np.flatnonzero(bad)[0])
        raise ValueError(
            f"{name}: {int(bad.sum())} of {array.size} values are not positive numbers "
            f"(first: {array[first]} at position {first}); drop or correct these rows"
        )
    return array
