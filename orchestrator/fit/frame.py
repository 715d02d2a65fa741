"""`scalespec.fit`: a law of anyone's DataFrame. Bad rows are left out with a reason and a bad fit is a status: neither raises."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from scalespec.analysis.fitted import FittedLaw
from scalespec.analysis.laws.law import Exclusion
from scalespec.analysis.laws.registry import AUTO
from scalespec.orchestrator.errors import InputError
from scalespec.orchestrator.fit import verb
from scalespec.orchestrator.fit.user_tables import column_of


def fit(
    df: pd.DataFrame,
    n: str | None = None,
    d: str | None = None,
    c: str | None = None,
    *,
    loss: str,
    form: str = AUTO,
    unique: str | None = None,
    family: str | None = None,
    unit: str | None = None,
    delta: float | None = None,
    resamples: int = 400,
    seed: int = 0,
    level: float = 0.95,
) -> FittedLaw:
    """A law of the table `df`; every argument in the first two lines names a column.

    `n` parameters, `d` samples or tokens, `c` FLOP: any two, the third follows from C = 6ND; the form `power` takes one. `unique`:
    distinct samples, for `data_constrained`. Rows with one `family` share noise (a trunk, a seed) and are resampled together.
    `unit` of the loss: nats, bits or bpb. `delta`: Huber threshold on ln loss (default: measured, or 1e-3). `form`: a name of
    `analysis.laws.FORMS`, `-` and `_` alike; `auto` is Chinchilla's.

    Rows whose values are not positive numbers are left out and named in `excluded`; too few of the others are a status. Raises
    InputError, a ValueError, in one line: a column that is not there or has no numbers, an unknown form or unit.
    """
    columns = verb.Columns(loss, n, d, c, unique, family)
    verb.check_columns(columns, form, prefix="")
    if unit is not None and unit not in verb.UNITS:
        raise InputError(f"unit {unit}: not one of {', '.join(verb.UNITS)}")
    numbers = {name: _numbers(df, name, column) for name, column in columns.named().items() if name != "family"}
    bad = np.column_stack([~(np.isfinite(values) & (values > 0)) for values in numbers.values()])
    good: NDArray[np.bool_] = np.asarray(~bad.any(axis=1))
    named = [getattr(columns, name) for name in numbers]
    left_out = tuple(
        Exclusion(str(df.index[int(row)]), f"{named[int(bad[row].argmax())]} is not a positive number")
        for row in np.flatnonzero(~good)
    )
    data = pd.DataFrame({name: values[good] for name, values in numbers.items()}, index=df.index[good])
    if family is not None:
        data["family"] = column_of(df, "family", family).astype(str).to_numpy()[good]
    if len(numbers.keys() & set(verb.VARIABLES)) > 1:
        verb.third(data)
    law = verb.certify(data, form=form, delta=delta, resamples=resamples, prefix="", seed=seed, level=level)
    said = verb.labels(columns, unit)
    used: dict[str, Any] = {
        f"{name}_column": said[name] for name in verb.VARIABLES if getattr(law, f"{name}_column") is not None
    }
    law = replace(law, target=loss, excluded=left_out, n_points=len(df), **used)
    return FittedLaw.of(law, data, said)


def _numbers(df: pd.DataFrame, name: str, column: str) -> Any:
    """A column as floats [rows], NaN where a value is no number."""
    found = column_of(df, name, column)
    values = pd.to_numeric(found, errors="coerce").to_numpy(dtype=np.float64, na_value=np.nan)
    if len(values) and np.isnan(values).all():
        raise InputError(f"{name} {column}: no numbers in this column (first value: {found.iloc[0]!r})")
    return values
