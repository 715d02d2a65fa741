"""Readings: named functions from the tables of one stage to a number that a later stage uses.

A reading is a pure function: the same tables give the same value. What was measured is given to three significant digits, so that
what is asked for does not hang on the last bit; a whole number, such as a batch size, is exact.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

Tables = Mapping[str, pd.DataFrame]
"""`runs`, `curves` and `spectra_summary`, restricted to the runs of one stage."""

Function = Callable[[Tables], "ReadingValue"]

DIGITS = 3

LEFT_BY = 0.02
"""The averaged loss has left its best where it ends above it by this share: more than an average over fifty batches wavers."""


class ReadingError(ValueError):
    """The tables do not give the value; the message says why and what to change."""


@dataclass(frozen=True)
class ReadingValue:
    """A value, and the width and batch size at which it holds, where it is a rate. An int stays as it is, a float is rounded."""

    value: float
    width: int | None = None
    batch_size: int | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.value, int):
            object.__setattr__(self, "value", float(f"{self.value:.{DIGITS}g}"))

    def times(self, factor: float) -> ReadingValue:
        """The same, multiplied; again to three digits, or exact where a whole number stays one."""
        product = self.value * factor
        whole = isinstance(self.value, int) and float(product).is_integer()
        return replace(self, value=int(product) if whole else product)


@dataclass(frozen=True)
class Reading:
    """A registered reading: `function` raises ReadingError where the tables do not give the value."""

    name: str
    function: Function
    needs: tuple[str, ...]
    """Names of the tables that it reads."""
    says: str


READINGS: dict[str, Reading] = {}
"""Every reading by its name in a study file."""


def reading(name: str, *, needs: Sequence[str], says: str) -> Callable[[Function], Function]:
    """Registers a function of a stage's tables under a name. `says`: one plain sentence."""

    def register(function: Function) -> Function:
        READINGS[name] = Reading(name, function, tuple(needs), says)
        return function

    return register


@reading("lr", needs=("runs",), says="Effective peak learning rate of the stage's finished runs, which must be one.")
def peak_rate(tables: Tables) -> ReadingValue:
    """`lr` of `runs`: after the batch rule, at the reference width."""
    runs = tables["runs"]
    done = runs[runs["status"] == "done"]
    if done.empty:
        raise ReadingError("lr: no run of the stage has finished")
    return ReadingValue(_one(done, "lr"), _reference_width(done), int(_one(done, "batch_size")))


@reading(
    "onset_lr",
    needs=("runs", "curves"),
    says="Of a ramp: the learning rate where the averaged training loss leaves its running best for good.",
)
def onset_rate(tables: Tables) -> ReadingValue:
    """The rate at the last logged step at which `train_loss_ema` is its running best; of several runs, the median.

    A diverged run counts. Raises ReadingError for a run whose loss ends at its best, or so near that noise explains it.
    """
    runs, curves = tables["runs"], tables["curves"]
    runs = runs[runs["status"].isin(("done", "diverged"))]
    if runs.empty:
        raise ReadingError("onset_lr: no run of the stage has finished or diverged")
    if set(runs["schedule"]) != {"ramp"}:
        raise ReadingError("onset_lr: needs runs with schedule.name: ramp")
    found = [_onset(run, curves[curves["run_key"] == run.run_key]) for run in runs.itertuples()]
    return ReadingValue(float(np.median(found)), _reference_width(runs), int(_one(runs, "batch_size")))


def _onset(run: Any, curves: pd.DataFrame) -> float:
    at = curves.pivot_table(index="step", columns="metric", values="value")
    if not {"train_loss_ema", "lr"} <= set(at.columns):
        raise ReadingError(f"onset_lr: run {run.run_key} has no curve of train_loss_ema and lr")
    both = at[["train_loss_ema", "lr"]].replace([np.inf, -np.inf], np.nan).dropna().sort_index()
    if len(both) < 2:
        raise ReadingError(f"onset_lr: run {run.run_key} has fewer than two logged steps")
    loss = both["train_loss_ema"].to_numpy()
    best = int(len(loss) - 1 - np.argmin(loss[::-1]))
    if run.status != "diverged" and loss[-1] <= (1 + LEFT_BY) * loss[best]:
        raise ReadingError(
            f"onset_lr: the loss of run {run.run_key} does not leave its best; raise the ramp's optim.lr"
        )
    return float(both["lr"].iloc[best])


@reading(
    "alpha_median",
    needs=("runs", "spectra_summary"),
    says="Median of alpha_median at the last step of the stage's runs.",
)
def alpha_median(tables: Tables) -> ReadingValue:
    """The median over finished runs of `spectra_summary.alpha_median` at each run's last step."""
    runs, summary = tables["runs"], tables["spectra_summary"]
    done = runs.loc[runs["status"] == "done", "run_key"]
    rows = summary[summary["run_key"].isin(done)].dropna(subset=["alpha_median"]).sort_values("step")
    last = rows.groupby("run_key").tail(1)
    if last.empty:
        raise ReadingError("alpha_median: no finished run of the stage has spectra with a trusted layer")
    return ReadingValue(float(last["alpha_median"].median()))


def _one(runs: pd.DataFrame, column: str) -> float:
    values = sorted({float(f"{value:.6g}") for value in runs[column]})
    if len(values) != 1:
        raise ReadingError(
            f"the runs of the stage have {len(values)} values of {column} ({values[0]:g} to {values[-1]:g})"
        )
    return values[0]


def _reference_width(runs: pd.DataFrame) -> int:
    """Where the rates of `runs` hold: the width rule carries them from there."""
    return int(_one(runs, "reference_width"))
