"""The figure of any law, from the kind of picture that its form names."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pandas as pd
from matplotlib.figure import Figure

from scalespec.analysis.laws.law import Law
from scalespec.analysis.laws.registry import form_of_law
from scalespec.analysis.laws.study import as_runs
from scalespec.analysis.plots.laws import (
    STUDY,
    Labels,
    frontier_figure,
    isoflop_figure,
    power_figure,
    repetition_figure,
    surface_figure,
)

Draw = Callable[[Law, pd.DataFrame, Labels], Figure]


def law_figure(law: Law, points: pd.DataFrame, labels: Labels = STUDY) -> Figure:
    """The points, the law and what it misses.

    `points` has the columns that the law was fitted to, of n, d, c, unique and loss. Raises ValueError for a form without a
    picture of its own.
    """
    kind = form_of_law(law).picture
    if kind is None:
        raise ValueError(f"law {law.id}: the form {law.form} has no picture of its own")
    return KINDS[kind](law, points, labels)


def _surface(law: Law, points: pd.DataFrame, labels: Labels) -> Figure:
    return surface_figure(_runs(points), [law], labels=labels)


def _frontier(law: Law, points: pd.DataFrame, labels: Labels) -> Figure:
    return frontier_figure(_runs(points), [law], labels=labels)


def _isoflop(law: Law, points: pd.DataFrame, labels: Labels) -> Figure:
    return isoflop_figure(_runs(points), [law], labels=labels)


def _power(law: Law, points: pd.DataFrame, labels: Labels) -> Figure:
    variable = next(name for name in ("n", "d", "c") if getattr(law, f"{name}_column") is not None)
    label = getattr(labels, variable)
    return power_figure(points[variable], points["loss"], law, label=label, loss_label=labels.loss)


def _repetition(law: Law, points: pd.DataFrame, labels: Labels) -> Figure:
    return repetition_figure(points["n"], points["d"], points["unique"], points["loss"], law, labels=labels)


def _runs(points: pd.DataFrame) -> pd.DataFrame:
    c = points["c"] if "c" in points else 6 * points["n"] * points["d"]
    d = points["d"] if "d" in points else c / (6 * points["n"])
    return as_runs(points["n"], d, c, points["loss"], keys=list(points.index))


KINDS: Mapping[str, Draw] = {
    "surface": _surface,
    "power": _power,
    "repetition": _repetition,
    "isoflop": _isoflop,
    "frontier": _frontier,
}
