"""`scalespec fit`: a certified fit of anyone's table, in one of five forms."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scalespec.analysis import laws
from scalespec.analysis.laws import Law
from scalespec.orchestrator.errors import InputError
from scalespec.orchestrator.fit.user_tables import column_of, positive_numbers

if TYPE_CHECKING:
    from matplotlib.figure import Figure

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


@dataclass(frozen=True)
class Form:
    """One form of law: what it reads, how it is fitted and how it is drawn."""

    fit: Callable[..., Law]
    """Takes the table of `points` and the options of `analysis.laws.fitting.fit`."""
    draw: Callable[[Law, pd.DataFrame, Any], Figure]
    """Takes the law, the table and the labels of the axes."""
    one_variable: bool = False
    unique: bool = False
    delta: bool = True


def points(
    frame: pd.DataFrame, columns: Columns, drop_highest: int = 0, form: str = "chinchilla"
) -> tuple[pd.DataFrame, str]:
    """Columns n, d, c, unique, loss as numbers, and in words what was derived and left out. Raises InputError."""
    asked = form_of(form)
    given = {name: column for name, column in columns.named().items() if name in ("n", "d", "c")}
    if asked.one_variable and len(given) != 1:
        raise InputError(f"--form {form}: give one of --n, --d and --c, the variable of the law")
    if not asked.one_variable and len(given) < 2:
        raise InputError("give two of --n, --d and --c; the third follows from C = 6ND")
    if asked.unique != (columns.unique is not None):
        raise InputError(
            f"--form {form}: give --unique, the column of distinct samples"
            if asked.unique
            else "--unique: only the form data-constrained knows repeated data"
        )
    out = pd.DataFrame({"loss": positive_numbers(frame, "--loss", columns.loss)})
    for name, column in given.items():
        out[name] = positive_numbers(frame, f"--{name}", column)
    if columns.unique is not None:
        out["unique"] = positive_numbers(frame, "--unique", columns.unique)
    if columns.family is not None:
        out["family"] = column_of(frame, "--family", columns.family).astype(str).to_numpy()
    said = _third(out) if len(given) > 1 else ""
    if drop_highest:
        out = out.drop(index=out["loss"].nlargest(drop_highest, keep="first").index)
        said = "; ".join(filter(None, [said, f"without the {drop_highest} highest losses"]))
    if len(out) < MIN_POINTS:
        raise InputError(f"{len(out)} points; at least {MIN_POINTS} are needed")
    return out, said


def _third(out: pd.DataFrame) -> str:
    """Adds the missing one of n, d, c, in place; what was done, in words."""
    if "d" not in out:
        out["d"] = out["c"] / (6 * out["n"])
        return "D = C / 6N"
    if "n" not in out:
        out["n"] = out["c"] / (6 * out["d"])
        return "N = C / 6D"
    if "c" not in out:
        out["c"] = 6 * out["n"] * out["d"]
        return "C = 6ND"
    ratio = float(np.median(out["c"] / (6 * out["n"] * out["d"])))
    said = f"N, D and C as given, C = {ratio:.3g} × 6ND"
    if not PLAUSIBLE[0] < ratio < PLAUSIBLE[1]:
        said += (
            " (right for a CNN; a transformer's would be near 1: are they parameters, tokens and FLOP in single units?)"
        )
    return said


def form_of(name: str) -> Form:
    """The form of that name. Raises InputError naming all."""
    if name not in FORMS:
        raise InputError(f"--form {name}: not one of {', '.join(FORMS)}")
    return FORMS[name]


def certify(data: pd.DataFrame, *, form: str = "chinchilla", delta: float | None = None, resamples: int = 400) -> Law:
    """The fit of `points`' table."""
    asked = form_of(form)
    if delta is not None and not asked.delta:
        raise InputError(f"--delta: the form {form} has no Huber threshold")
    options: dict[str, Any] = {"resamples": resamples, "keys": [str(at) for at in data.index]}
    if delta is not None:
        options["delta"] = delta
    if "family" in data:
        options["families"] = list(data["family"])
    try:
        return asked.fit(data, **options)
    except ValueError as error:
        raise InputError(str(error)) from error


def write(law: Law, path: str) -> None:
    """Writes the law as JSON."""
    try:
        Path(path).write_text(json.dumps(law.to_json(), indent=1, allow_nan=False) + "\n")
    except OSError as error:
        raise InputError(f"--out {path}: {error.strerror}") from error


def check_request(unit: str | None, plot: str | None) -> None:
    """Says what is wrong with --unit and --plot before anything is computed."""
    if unit is not None and unit not in UNITS:
        raise InputError(f"--unit {unit}: not one of {', '.join(UNITS)}")
    if plot is not None and Path(plot).suffix not in FIGURES:
        raise InputError(f"--plot {plot}: the name of a figure ends in one of {', '.join(FIGURES)}")


def draw(law: Law, data: pd.DataFrame, columns: Columns, path: str, form: str, unit: str | None = None) -> None:
    """Draws the points, the law and what it misses, as SVG, PNG or PDF."""
    from scalespec.analysis.plots.laws import Labels
    from scalespec.analysis.plots.style import save

    loss = columns.loss if unit is None else f"{columns.loss} ({unit})"
    labels = Labels(n=columns.n or "N = C / 6D", d=columns.d or "D = C / 6N", c=columns.c or "C = 6ND", loss=loss)
    try:
        save(form_of(form).draw(law, data, labels), path)
    except OSError as error:
        raise InputError(f"--plot {path}: {error.strerror}") from error


def in_nats(law: Law, unit: str | None) -> str:
    """The floor E in nats, in words, where the losses are in another unit; empty otherwise."""
    if unit is None or UNITS[unit] == 1 or "E" not in law.params:
        return ""
    return f"E in nats per {'byte' if unit == 'bpb' else 'token'}: {law['E'] * UNITS[unit]:.4g}"


def _chinchilla(data: pd.DataFrame, **options: Any) -> Law:
    # with C = 6ND the exponents of the optimum are a and b already
    counted = data["c"] if not np.allclose(data["c"], 6 * data["n"] * data["d"]) else None
    return laws.fit_chinchilla(data["n"], data["d"], data["loss"], c=counted, **options)


def _kaplan(data: pd.DataFrame, **options: Any) -> Law:
    return laws.fit_kaplan(data["n"], data["d"], data["loss"], **options)


def _power(data: pd.DataFrame, **options: Any) -> Law:
    variable = _variable(data)
    return laws.fit_power(data[variable], data["loss"], variable=variable, **options)


def _data_constrained(data: pd.DataFrame, **options: Any) -> Law:
    return laws.fit_data_constrained(data["n"], data["d"], data["unique"], data["loss"], **options)


def _isoflop(data: pd.DataFrame, *, keys: Any, **options: Any) -> Law:
    return laws.fit_isoflop(data["n"], data["c"], data["loss"], **options)[0]


def _variable(data: pd.DataFrame) -> str:
    return next(name for name in ("n", "d", "c") if name in data)


def _runs(data: pd.DataFrame) -> pd.DataFrame:
    return laws.as_runs(data["n"], data["d"], data["c"], data["loss"])


def _surface_figure(law: Law, data: pd.DataFrame, labels: Any) -> Figure:
    from scalespec.analysis.plots.laws import surface_figure

    return surface_figure(_runs(data), [law], labels=labels)


def _isoflop_figure(law: Law, data: pd.DataFrame, labels: Any) -> Figure:
    from scalespec.analysis.plots.laws import isoflop_figure

    return isoflop_figure(_runs(data), [law], labels=labels)


def _power_figure(law: Law, data: pd.DataFrame, labels: Any) -> Figure:
    from scalespec.analysis.plots.laws import power_figure

    variable = _variable(data)
    return power_figure(data[variable], data["loss"], law, label=getattr(labels, variable), loss_label=labels.loss)


def _repetition_figure(law: Law, data: pd.DataFrame, labels: Any) -> Figure:
    from scalespec.analysis.plots.laws import repetition_figure

    return repetition_figure(data["n"], data["d"], data["unique"], data["loss"], law, labels=labels)


FORMS: Mapping[str, Form] = {
    "chinchilla": Form(_chinchilla, _surface_figure),
    "kaplan": Form(_kaplan, _surface_figure),
    "power": Form(_power, _power_figure, one_variable=True),
    "data-constrained": Form(_data_constrained, _repetition_figure, unique=True),
    "isoflop": Form(_isoflop, _isoflop_figure, delta=False),
}
