"""The study's own sections, each key defined once; those of a run (`data`, `optim`, `schedule`, `train`) are in `trainables.spec`."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Annotated, Any

from scalespec.orchestrator.study.checks import Overrides
from scalespec.trainables.keys import key
from scalespec.trainables.spec import DataConfig, OptimConfig, ScheduleConfig, TrainConfig

neutral = functools.partial(key, hashed=False)
"""Defines a key that changes no run's numbers, as all of these."""

NAME = (r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", "at most 64 letters, digits, dots, underscores and hyphens")


@dataclass(frozen=True)
class Ladder:
    """start, start·factor, start·factor² …"""

    start: Any = neutral("First value.")
    factor: Any = neutral("From each value to the next, such as sqrt(2) or 1/2.")
    count: int = neutral("How many values.", least=1, most=1000)


Axis = list[Any] | Ladder


@dataclass(frozen=True)
class Point:
    """The axes that every study has. Further axes are options of the task, or dotted keys such as `optim.lr`."""

    width: float = neutral("Widths of the model; the task rounds them.", least=1, most=2**24)
    data_fraction: Fraction = neutral(
        "Shares of the training data, exact; each is a prefix of the seed's order.", default=Fraction(1), over=0, most=1
    )
    seed: int = neutral(
        "Each gives three streams of random numbers: initialisation, order, dropout.", default=0, least=0
    )


@dataclass(frozen=True)
class Spectra:
    """Spectral metrics of the weights."""

    profile: str = neutral(
        "WeightWatcher's definitions, or our own.", default="ww-0.7.7", choices=("ww-0.7.7", "native")
    )
    every: str = neutral(
        "Which analysis weights are analysed.", default="checkpoint", choices=("checkpoint", "last", "never")
    )
    vectors: bool = neutral("Whether singular vectors are followed too.", default=False)


@dataclass(frozen=True)
class Resources:
    """What the study may use, and its price."""

    price_per_hour: float | None = neutral(
        "Of one lane (one worker group); null: costs are not shown.", default=None, unit="USD", least=0
    )
    cpus_per_worker: int = neutral("CPUs, and threads, of one worker.", default=1, least=1)


@dataclass(frozen=True)
class Tracking:
    """Where MLflow is."""

    uri: str | None = neutral(
        "Server or store; null: a store in the study folder, where that is a local disk.", default=None
    )


@dataclass(frozen=True)
class Tune:
    """A key tuned before the stage's grid: rounds of values by a factor, until the best has worse ones on both sides."""

    key: str = neutral("What is tuned: a dotted key that is a number, or an option of the task.", default="optim.lr")
    factor: float = neutral("From one value to the next.", default=2.0, over=1, most=100)
    count: int = neutral("Values of the first round, around the one that is written.", default=3, least=3, most=100)
    rounds: int = neutral(
        "At most so many rounds; then the outermost value is the winner, and said to be.", default=4, least=1, most=100
    )
    seed: tuple[int, ...] = neutral("Seeds of the runs that tune.", default=(0,), least=0)
    data_fraction: tuple[Fraction, ...] = neutral(
        "Shares of the data of the runs that tune.", default=(Fraction(1),), over=0, most=1
    )


@dataclass(frozen=True)
class Read:
    """A value that an earlier stage gives."""

    reading: str = neutral("Name of the reading.")
    of: str = neutral("Name of an earlier stage.")
    times: float = neutral("Factor on what was read.", default=1.0, over=0)


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One stage as written. It has exactly one of `grid`, `tune` (with the `grid` of its final runs) and `adaptive`."""

    name: str = neutral("Of the stage.", pattern=NAME)
    role: str | None = neutral(
        "Laws read the runs of result stages only; null: result for the last stage, probe before it.",
        default=None,
        choices=("probe", "result"),
    )
    grid: Mapping[str, Axis] | None = neutral("Its axes.", default=None)
    tune: Tune | None = neutral("What is tuned before its grid.", default=None)
    adaptive: Mapping[str, Any] | None = neutral("Runs chosen by what they would teach; not built yet.", default=None)
    task: Mapping[str, Any] | None = neutral("Options of the task that differ in this stage.", default=None)
    data: Annotated[Mapping[str, Any], Overrides(DataConfig, Read)] | None = neutral("Keys that differ.", default=None)
    optim: Annotated[Mapping[str, Any], Overrides(OptimConfig, Read)] | None = neutral(
        "Keys that differ.", default=None
    )
    schedule: Annotated[Mapping[str, Any], Overrides(ScheduleConfig, Read)] | None = neutral(
        "Keys that differ.", default=None
    )
    train: Annotated[Mapping[str, Any], Overrides(TrainConfig, Read)] | None = neutral(
        "Keys that differ.", default=None
    )
