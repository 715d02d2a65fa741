"""A whole study as written, and the plain study of one of its stages."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from scalespec.orchestrator.errors import InputError
from scalespec.orchestrator.study.checks import checked, plain
from scalespec.orchestrator.study.numbers import number
from scalespec.orchestrator.study.sections import NAME, Axis, Entry, Resources, Spectra, Tracking, neutral
from scalespec.orchestrator.study.stages import RATE, REFERENCE, Stage, StageError, stages_of
from scalespec.trainables.keys import keys_of
from scalespec.trainables.spec import SECTIONS, DataConfig, OptimConfig, ScheduleConfig, TrainConfig

if TYPE_CHECKING:  # pandas and pyarrow come with it, and a study is checked before anything is loaded
    from scalespec.analysis.readings import ReadingValue


@dataclass(frozen=True, kw_only=True)
class Study:
    """A whole study as written, checked; `scalespec.orchestrator.study.grid` turns it into runs."""

    name: str = neutral("Of the study, and of its folder.", pattern=NAME)
    task: Mapping[str, Any] = neutral(
        "A built-in task or `package.module:Class`; or a mapping of `name` and the task's options."
    )
    data: DataConfig = neutral("Where the examples come from.")
    grid: Mapping[str, Axis] = neutral("Axes; every combination of their values is a run.", default={})
    design: tuple[Entry, ...] = neutral("Stages, where later ones depend on results; instead of `grid`.", default=())
    optim: OptimConfig = neutral("The optimizer, and the rules that carry it to other widths and batches.")
    schedule: ScheduleConfig = neutral("The learning rate over a run.", default=ScheduleConfig())
    train: TrainConfig = neutral("How runs are executed.", default=TrainConfig())
    spectra: Spectra = neutral("Spectral metrics of the weights.", default=Spectra())
    report: bool = neutral("Whether a report is written.", default=True)
    resources: Resources = neutral("What the study may use.", default=Resources())
    storage: str = neutral("Folder or URI that every node sees.", default="./results")
    tracking: Tracking = neutral("Where MLflow is.", default=Tracking())

    @functools.cached_property
    def stages(self) -> tuple[Stage, ...]:
        """What it asks for, in order; a `grid` is one stage of that name. Raises StageError."""
        sections = {name: getattr(self, name) for name in SECTIONS}
        return stages_of(self.design, self.grid, self.task, sections)

    def value_of(self, name: str) -> Any:
        """What is written for a dotted key or an option of the task; the option's default where nothing is. Raises InputError."""
        section, dot, leaf = name.partition(".")
        if dot:
            return getattr(getattr(self, section), leaf)
        if name in self.task:
            return number(self.task[name])
        from scalespec.trainables.task import task_class  # loads torch

        options = keys_of(task_class(self.task["name"]).Options)
        if name not in options:
            raise InputError(f"tune.key: {name} is no option of task {self.task['name']}")
        return options[name].default

    def with_value(self, name: str, value: Any) -> Study:
        """The study with another value of a dotted key or an option of the task. Raises InputError where it cannot be."""
        section, dot, leaf = name.partition(".")
        if not dot:
            return dataclasses.replace(self, task={**self.task, name: value})
        raw = plain(getattr(self, section))
        return dataclasses.replace(self, **{section: _section(section, {**raw, leaf: value}, name)})

    @property
    def axes(self) -> tuple[str, ...]:
        """Names of the axes of all stages, in the order of their first use."""
        return tuple(dict.fromkeys(name for stage in self.stages for name in stage.grid))


def check_whole(study: Study) -> None:
    """What no single key can tell. Raises StageError."""
    name = study.task.get("name")
    if not isinstance(name, str) or not name:
        raise StageError(("task",), "needs a name")
    if study.grid and study.design:
        raise StageError(("design",), "and grid are both given; keep one")
    if not study.grid and not study.design:
        raise StageError(("grid",), "is needed and missing")
    if study.grid and "width" not in study.grid:
        raise StageError(("grid",), "needs an axis `width`")
    _ = study.stages


def stage_study(study: Study, stage: Stage, values: Mapping[str, ReadingValue]) -> Study:
    """The plain study of one stage: its grid, its overrides, and what it reads filled in.

    `values`: what was read, by the dotted key that takes it (`stage.readings`), its factor `times` included. Where `optim.lr`
    is read, `optim.reference` is where it was read: the rules scale from there. Raises InputError naming stage and key where a
    value cannot be.
    """
    raw = {name: plain(getattr(study, name)) for name in SECTIONS}
    raw["task"] = dict(study.task)
    for name, value in stage.overrides:
        _put(raw, name, plain(value))
    for reading in stage.readings:
        found = values[reading.key]
        section, _, leaf = reading.key.partition(".")
        whole = section in SECTIONS and keys_of(SECTIONS[section])[leaf].kind is int
        _put(raw, reading.key, round(found.value) if whole else found.value)
        if reading.key == RATE and found.width is not None and found.batch_size is not None:
            _put(raw, REFERENCE, {"width": found.width, "batch_size": found.batch_size})
    sections = {name: _section(name, raw[name], f"stage {stage.name}") for name in SECTIONS}
    return dataclasses.replace(study, grid=stage.grid, design=(), task=raw["task"], **sections)


def _section(name: str, raw: Mapping[str, Any], whose: str) -> Any:
    try:
        return checked(SECTIONS[name], raw)
    except ValidationError as error:
        first = error.errors()[0]
        words = str(first["msg"]).removeprefix("Value error, ")
        raise InputError(f"{whose}: {name}.{'.'.join(map(str, first['loc']))}: {words}") from None


def _put(raw: dict[str, Any], name: str, value: Any) -> None:
    *path, leaf = name.split(".")
    place = raw
    for part in path:
        place = place[part]
    place[leaf] = value
