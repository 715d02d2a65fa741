"""From a study to its runs: axes are expanded, widths rounded, options checked, data read and identified."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from pydantic import ValidationError

from scalespec.orchestrator.errors import InputError
from scalespec.orchestrator.study.checks import checked, plain, value_of
from scalespec.orchestrator.study.numbers import fraction, number
from scalespec.orchestrator.study.sections import Axis, Ladder, Point
from scalespec.orchestrator.study.study import Study
from scalespec.trainables.errors import TaskError
from scalespec.trainables.family import steps_of
from scalespec.trainables.keys import AUTO, Key, keys_of, shown
from scalespec.trainables.loop import LOOP_VERSION
from scalespec.trainables.prepared import Prepared, check_model
from scalespec.trainables.rules.scaling import scaled_optim
from scalespec.trainables.spec import SECTIONS, RunSpec, Scalar
from scalespec.trainables.task import Task, born_options, checked_options, task_class

MAX_RUNS = 100_000

FAR = 1 / 3
"""A width that rounding changes by more than this share was not meant."""

OWN = keys_of(Point)
"""The axes that every study has."""


@dataclass(frozen=True)
class Grid:
    """The runs of a study, with the data and counts behind them."""

    runs: tuple[RunSpec, ...]
    prepared: Mapping[tuple[Any, ...], Prepared]
    """By `data_key`: runs with equal options and data share one."""

    def of(self, spec: RunSpec) -> Prepared:
        return self.prepared[data_key(spec)]

    def families(self) -> dict[str, list[RunSpec]]:
        """Runs by family, each family from its smallest data fraction up."""
        out: dict[str, list[RunSpec]] = {}
        for spec in sorted(self.runs, key=lambda spec: spec.data_fraction):
            out.setdefault(spec.family_key, []).append(spec)
        return out


def data_key(spec: RunSpec) -> tuple[Any, ...]:
    """What a task's data depends on."""
    return (spec.task, tuple(spec.options.items()), spec.data)


def warning_of(spec: RunSpec) -> str:
    """What a plan says of a run whose numbers depend on how it is executed; empty for all others."""
    if not spec.random_forward or spec.train.workers == 1:
        return ""
    return f"the model draws random numbers of its own, so train.workers ({spec.train.workers}) is part of the key"


def expand(study: Study, *, gpus: bool = False, prepared: dict[tuple[Any, ...], Prepared] | None = None) -> Grid:
    """Every run of a study of one stage, in the order of its axes.

    `gpus`: whether they will train on GPUs (for `precision: auto`). `prepared`: data read before, by `data_key`; what is read
    here is added.

    Raises InputError naming the key, for an axis that does not exist, values that collide or cannot be, too many runs,
    a task or data that cannot be used, and for a study with a `design`: see `study.stage_study`.
    """
    if study.design:
        raise InputError("design: a study in stages is expanded stage by stage")
    name = study.task["name"]
    try:
        task = task_class(name)
        axes = {key: _axis(key, values, study, task) for key, values in study.grid.items()}
        axes = {**{key: [found.default] for key, found in OWN.items()}, **axes}
        axes = {key: axes[key] for key in (*(k for k in ("data_fraction", "seed") if k not in study.grid), *study.grid)}
        if (count := math.prod(map(len, axes.values()))) > MAX_RUNS:
            raise InputError(f"grid: {count:,} runs; at most {MAX_RUNS:,} in one study")
        points = _Points(study, task, gpus, {} if prepared is None else prepared)
        runs = [points.spec(dict(zip(axes, values, strict=True))) for values in itertools.product(*axes.values())]
        runs = _with_counts(runs, points.prepared)
    except TaskError as error:
        raise InputError(str(error)) from error
    if len({spec.run_key for spec in runs}) != len(runs):
        raise InputError("grid: two points of the grid are the same run; remove the axis that changes nothing")
    return Grid(tuple(runs), points.prepared)


def _axis(name: str, written: Axis, study: Study, task: type[Task]) -> list[Any]:
    """The values of an axis, in their own type."""
    check = _check_of(name, study, task)
    try:
        values = _ladder(written, exact=name == "data_fraction") if isinstance(written, Ladder) else written
        out = [check(value) for value in values]
    except ValueError as error:
        raise InputError(f"grid.{name}: {error}") from error
    except OverflowError as error:
        raise InputError(f"grid.{name}: a value of the ladder is too large; take a smaller factor or count") from error
    if not out:
        raise InputError(f"grid.{name}: has no values")
    if doubles := sorted(str(value) for value, times in Counter(out).items() if times > 1):
        after = " after rounding by the task" if name == "width" else ""
        raise InputError(
            f"grid.{name}: {', '.join(doubles)} occurs more than once{after}; take a larger factor or fewer values"
        )
    return out


def _check_of(name: str, study: Study, task: type[Task]) -> Callable[[Any], Any]:
    """What turns a written value of an axis into the value that it means. Raises InputError where there is no such axis."""
    section, dot, leaf = name.partition(".")
    if name == "width":
        return lambda value: _width(value, task.round_width)
    if name in OWN:
        return lambda value: value_of(OWN[name], value)
    if not dot:
        options = keys_of(task.Options)
        if name not in options:
            raise InputError(
                f"grid.{name}: not an option of task {study.task['name']} ({', '.join(options) or 'none'})"
                " nor a dotted key such as optim.lr"
            )
        return lambda value: value_of(options[name], value)
    if section == "task":
        raise InputError(f"grid.{name}: write a task option without `task.`, as grid.{leaf}")
    keys = keys_of(SECTIONS[section]) if section in SECTIONS else {}
    if leaf in keys and not keys[leaf].axis and not keys[leaf].hashed:
        raise InputError(f"grid.{name}: changes no number, so runs cannot differ in it; set it for the whole study")
    if leaf not in keys or not keys[leaf].axis:
        known = [key.name for key in keys.values() if key.axis] or [f"those of {', '.join(SECTIONS)}"]
        raise InputError(
            f"grid.{name}: {section} has no scalar key {leaf!r} that a grid can vary; known: {', '.join(known)}"
        )
    return lambda value: value_of(keys[leaf], value)


def _width(value: Any, round_width: Callable[[float], int]) -> int:
    wanted = value_of(OWN["width"], value)
    width = round_width(wanted)
    if not isinstance(width, int) or width < 1 or abs(width - wanted) > FAR * wanted:
        raise ValueError(f"{shown(value)} would become {width} by the task's rounding; take a width that it can have")
    return width


def _ladder(ladder: Ladder, *, exact: bool) -> list[Any]:
    read: Callable[[Any], Any] = fraction if exact else _float
    start, factor = read(ladder.start), read(ladder.factor)
    out = [start]
    for _ in range(ladder.count - 1):
        out.append(out[-1] * factor if exact else start * factor ** len(out))
        if exact and max(abs(out[-1].numerator), out[-1].denominator).bit_length() > 1024:
            raise ValueError(f"value {len(out)} of the ladder is too long a fraction; take a smaller count")
    return out


def _float(value: Any) -> float:
    try:
        return float(Key("", float).check(number(value)))
    except OverflowError as error:
        raise ValueError(f"{shown(value)} is too large") from error


class _Points:
    """Makes the specs of a grid's points; every distinct section, set of options and batch is checked once."""

    def __init__(self, study: Study, task: type[Task], gpus: bool, prepared: dict[tuple[Any, ...], Prepared]) -> None:
        self.study, self.task = study, task
        self.precision = "bf16" if gpus else "fp32"
        self.prepared = prepared
        self.born = born_options(task)
        self.sections: dict[tuple[Any, ...], Any] = {}
        self.fitting: set[tuple[Any, ...]] = set()

    def spec(self, point: Mapping[str, Any]) -> RunSpec:
        """The run at one point."""
        further = {key: value for key, value in point.items() if key not in OWN}
        options = self._once("task", {key: value for key, value in further.items() if "." not in key}, self._options)
        made = {}
        for name in SECTIONS:
            values = {key.partition(".")[2]: value for key, value in further.items() if key.startswith(f"{name}.")}
            made[name] = self._once(name, values, partial(self._section, name))
        key = (self.study.task["name"], tuple(options.items()), made["data"])
        if key not in self.prepared:
            self.prepared[key] = Prepared.load(self.study.task["name"], options, made["data"])
        spec = RunSpec(
            study=self.study.name,
            task=self.study.task["name"],
            task_version=self.task.VERSION,
            loop_version=LOOP_VERSION,
            **{name: point[name] for name in OWN},
            options=options,
            unit=self.task.UNIT,
            **made,
            data_identity=self.prepared[key].data.identity,
            axes=further,
            born=self.born,
        )
        self._check_batches(spec, self.prepared[key])
        return spec

    def _once(self, name: str, values: Mapping[str, Any], make: Callable[[Mapping[str, Any]], Any]) -> Any:
        key = (name, *values.values())
        if key not in self.sections:
            self.sections[key] = make(values)
        return self.sections[key]

    def _options(self, values: Mapping[str, Any]) -> dict[str, Scalar]:
        written = {**{key: value for key, value in self.study.task.items() if key != "name"}, **values}
        known = keys_of(self.task.Options)
        for key, value in written.items():
            if isinstance(value, str) and key in known and known[key].is_number:
                try:
                    written[key] = number(value)
                except ValueError as error:
                    raise TaskError(
                        f"task {self.study.task['name']}: option {key} must be {known[key].wanted}; {error}"
                    ) from None
        return checked_options(self.study.task["name"], self.task, written)

    def _section(self, name: str, values: Mapping[str, Any]) -> Any:
        try:
            made = checked(SECTIONS[name], {**plain(getattr(self.study, name)), **values})
        except ValidationError as error:
            first = error.errors()[0]
            words = str(first["msg"]).removeprefix("Value error, ")
            raise InputError(f"grid: {name}.{'.'.join(map(str, first['loc']))}: {words}") from None
        if name == "optim":
            _check_reference(made.reference.width, self.task)
        if name == "train":
            made = replace(
                made,
                precision=self.precision if made.precision == AUTO else made.precision,
                workers=1 if made.workers == AUTO else made.workers,
            )
        return made

    def _check_batches(self, spec: RunSpec, prepared: Prepared) -> None:
        key = (spec.data_fraction, spec.optim, spec.train, prepared.data.train_examples)
        if key not in self.fitting:
            _check_batches(spec, prepared)
            self.fitting.add(key)


def _with_counts(runs: Sequence[RunSpec], prepared: Mapping[tuple[Any, ...], Prepared]) -> list[RunSpec]:
    """The runs, their models built once on the meta device, marked where those draw random numbers of their own."""
    out, seen = [], {}
    for spec in runs:
        data = data_key(spec)
        key = (data, spec.width, spec.optim.width_rule, spec.optim.reference.width)
        if key not in seen:
            check_model(spec, prepared[data])
            seen[key] = bool(getattr(prepared[data].counts(spec.width), "random_forward", False))
        out.append(replace(spec, random_forward=True) if seen[key] else spec)
    return out


def _check_reference(width: int, task: type[Task]) -> None:
    if (nearest := task.round_width(float(width))) != width:
        raise InputError(
            f"optim.reference.width: {width} is no width that the task's model can have; the nearest is {nearest}"
        )


def _check_batches(spec: RunSpec, prepared: Prepared) -> None:
    batch = spec.optim.batch_size
    steps = steps_of(prepared.data.train_examples, spec.data_fraction, spec.train.epochs, batch)
    if steps < 1:
        raise InputError(
            f"grid.data_fraction: {spec.data_fraction} of {prepared.data.train_examples:,} examples is less than one batch of {batch};"
            " take larger fractions or a smaller optim.batch_size"
        )
    if batch % spec.train.workers:
        raise InputError(f"train.workers: {spec.train.workers} does not divide optim.batch_size {batch}")
    try:
        betas = scaled_optim(spec.optim).betas
    except (ValueError, OverflowError) as error:
        raise InputError(f"optim: {error}") from error
    if any(not 0 <= beta < 1 for beta in betas):
        raise InputError(f"optim.batch_rule: gives betas {betas} at batch size {batch}")
