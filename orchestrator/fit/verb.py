"""`scalespec fit`: a certified fit of anyone's table, in any form of the registry."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from scalespec.analysis import laws
from scalespec.analysis.laws import FORMS, Form, Law
from scalespec.orchestrator.errors import InputError
from scalespec.orchestrator.fit.user_tables import column_of, positive_numbers

VARIABLES = ("n", "d", "c")
MIN_POINTS = 6
UNITS = {"nats": 1.0, "bits": math.log(2), "bpb": math.log(2)}
"""Unit of a loss → nats (a token, or for bpb a byte)."""
FIGURES = (".svg", ".png", ".pdf")
PLAUSIBLE = (1 / 30, 30.0)
"""C / 6ND of a transformer under the published ways of counting lies well inside (https://arxiv.org/abs/2406.19146)."""


@dataclass(frozen=True)
class Columns:
    """Which columns of the table are what. Two of n, d, c; the third follows from C = 6ND. A power law takes just one."""

    loss: str
    n: str | None = None
    d: str | None = None
    c: str | None = None
    unique: str | None = None
    family: str | None = None
    """Runs of one family share noise (a trunk, a seed), so intervals resample them together."""

    def named(self) -> dict[str, str]:
        """Option → column, of those given."""
        return {name: column for name, column in vars(self).items() if column is not None}


def points(
    frame: pd.DataFrame, columns: Columns, drop_highest: int = 0, form: str = "chinchilla"
) -> tuple[pd.DataFrame, str]:
    """Columns n, d, c, unique, loss as numbers, and in words what was derived and left out. Raises InputError."""
    check_columns(columns, form)
    given = {name: column for name, column in columns.named().items() if name in VARIABLES}
    out = pd.DataFrame({"loss": positive_numbers(frame, "--loss", columns.loss)})
    for name, column in given.items():
        out[name] = positive_numbers(frame, f"--{name}", column)
    if columns.unique is not None:
        out["unique"] = positive_numbers(frame, "--unique", columns.unique)
    if columns.family is not None:
        out["family"] = column_of(frame, "--family", columns.family).astype(str).to_numpy()
    said = third(out) if len(given) > 1 else ""
    if drop_highest:
        out = out.drop(index=out["loss"].nlargest(drop_highest, keep="first").index)
        said = "; ".join(filter(None, [said, f"without the {drop_highest} highest losses"]))
    if len(out) < MIN_POINTS:
        raise InputError(f"{len(out)} points; at least {MIN_POINTS} are needed")
    return out, said


def check_columns(columns: Columns, form: str, prefix: str = "--") -> None:
    """Raises InputError where the columns given are not those that the form reads; `prefix` is that of an option's name."""
    asked = form_of(form, prefix)
    given = [name for name in VARIABLES if getattr(columns, name) is not None]
    n, d, c, unique = (f"{prefix}{name}" for name in (*VARIABLES, "unique"))
    if asked.one_variable and len(given) != 1:
        raise InputError(f"{prefix}form {form}: give one of {n}, {d} and {c}, the variable of the law")
    if not asked.one_variable and len(given) < 2:
        raise InputError(f"give two of {n}, {d} and {c}; the third follows from C = 6ND")
    if "unique" in asked.variables and columns.unique is None:
        raise InputError(f"{prefix}form {form}: give {unique}, the column of distinct samples")
    if "unique" not in asked.variables and columns.unique is not None:
        knowing = " and ".join(name for name, one in FORMS.items() if "unique" in one.variables)
        raise InputError(f"{unique}: only the form {knowing} knows repeated data")


def third(out: pd.DataFrame) -> str:
    """Adds the missing one of n, d, c to a table of the others, in place; what was done, in words."""
    if "d" not in out:
        out["d"] = out["c"] / (6 * out["n"])
        return "D = C / 6N"
    if "n" not in out:
        out["n"] = out["c"] / (6 * out["d"])
        return "N = C / 6D"
    if "c" not in out:
        out["c"] = 6 * out["n"] * out["d"]
        return "C = 6ND"
    ratio = float("nan") if out.empty else float(np.median(out["c"] / (6 * out["n"] * out["d"])))
    said = f"N, D and C as given, C = {ratio:.3g} × 6ND"
    if not PLAUSIBLE[0] < ratio < PLAUSIBLE[1]:
        said += (
            " (right for a CNN; a transformer's would be near 1: are they parameters, tokens and FLOP in single units?)"
        )
    return said


def form_of(name: str, prefix: str = "--") -> Form:
    """The form of that name, for a table. Raises InputError naming all."""
    try:
        found = laws.form_of(name)
        if found.fittable:
            return found
        raise ValueError(f"{name}: is read from a study, not fitted to a table")
    except ValueError as error:
        raise InputError(f"{prefix}form {error}") from None


def certify(
    data: pd.DataFrame,
    *,
    form: str = "chinchilla",
    delta: float | None = None,
    resamples: int = 400,
    prefix: str = "--",
    **more: Any,
) -> Law:
    """The fit of `points`' table; `more` are further options of `analysis.laws.fitting.fit`."""
    asked = form_of(form, prefix)
    if delta is not None and not asked.huber:
        raise InputError(f"{prefix}delta: the form {form} has no Huber threshold")
    options: dict[str, Any] = {"resamples": resamples, "keys": [str(at) for at in data.index], **more}
    if delta is not None:
        options["delta"] = delta
    if "family" in data:
        options["families"] = list(data["family"])
    try:
        return laws.fit_form(asked, {str(name): data[name] for name in data}, data["loss"], **options)
    except ValueError as error:
        raise InputError(str(error)) from error


def listing(found: Sequence[Law]) -> str:
    """The laws as the JSON list of `laws.json`."""
    return json.dumps([law.to_json() for law in found], indent=1, allow_nan=False)


def write(found: Sequence[Law], path: str) -> None:
    """Writes that list."""
    try:
        Path(path).write_text(listing(found) + "\n")
    except OSError as error:
        raise InputError(f"--out {path}: {error.strerror}") from error


def check_request(unit: str | None, plot: str | None) -> None:
    """Says what is wrong with --unit and --plot before anything is computed."""
    if unit is not None and unit not in UNITS:
        raise InputError(f"--unit {unit}: not one of {', '.join(UNITS)}")
    if plot is not None and Path(plot).suffix not in FIGURES:
        raise InputError(f"--plot {plot}: the name of a figure ends in one of {', '.join(FIGURES)}")


def labels(columns: Columns, unit: str | None = None) -> dict[str, str]:
    """What the axes of a picture say: the user's own names."""
    loss = columns.loss if unit is None else f"{columns.loss} ({unit})"
    return {
        "n": columns.n or "N = C / 6D",
        "d": columns.d or "D = C / 6N",
        "c": columns.c or "C = 6ND",
        "loss": loss,
    }


def draw(law: Law, data: pd.DataFrame, columns: Columns, path: str, unit: str | None = None) -> None:
    """Draws the points, the law and what it misses, as SVG, PNG or PDF."""
    from scalespec.analysis.plots.laws import Labels
    from scalespec.analysis.plots.pictures import law_figure
    from scalespec.analysis.plots.style import save

    try:
        save(law_figure(law, data, Labels(**labels(columns, unit))), path)
    except OSError as error:
        raise InputError(f"--plot {path}: {error.strerror}") from error


def in_nats(law: Law, unit: str | None) -> str:
    """The floor E in nats, in words, where the losses are in another unit; empty otherwise."""
    if unit is None or UNITS[unit] == 1 or "E" not in law.params:
        return ""
    return f"E in nats per {'byte' if unit == 'bpb' else 'token'}: {law['E'] * UNITS[unit]:.4g}"
