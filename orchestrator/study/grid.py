"""From a study to its runs: axes are expanded, widths rounded, options checked, data read and identified."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

from pydantic import ValidationError

from scalespec.orchestrator.errors import InputError
from scalespec.orchestrator.study.file import Ladder, Study, fraction, number
from scalespec.trainables.errors import TaskError
from scalespec.trainables.family import steps_of
from scalespec.trainables.loop import LOOP_VERSION
from scalespec.trainables.prepared import Prepared, check_model
from scalespec.trainables.rules.scaling import scaled_optim
from scalespec.trainables.spec import DataConfig, OptimConfig, Reference, RunSpec, Scalar, ScheduleConfig, TrainConfig
from scalespec.trainables.task import checked_options, task_class

SECTIONS = ("optim", "schedule", "data", "train")
MAX_RUNS = 100_000


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


def expand(study: Study, *, gpus: bool = False) -> Grid:
    """Every run of a study, in the order of its axes. `gpus`: whether the runs will train on GPUs (for `precision: auto`).

    Raises InputError naming the key, for an axis that does not exist, values that collide or cannot be, too many runs,
    a task or data that cannot be used.
    """
    name = study.task["name"]
    try:
        task = task_class(name)
        axes = {key: _axis(key, values, task.round_width) for key, values in study.grid.items()}
        axes = {"data_fraction": [Fraction(1)], "seed": [0], **axes}
        _check_axes(axes, study, list(task.Options.__dataclass_fields__))  # type: ignore[attr-defined]
        prepared: dict[tuple[Any, ...], Prepared] = {}
        runs = []
        for values in itertools.product(*axes.values()):
            spec = _spec(study, dict(zip(axes, values, strict=True)), task, gpus)
            key = data_key(spec)
            if key not in prepared:
                prepared[key] = Prepared.load(name, spec.options, spec.data)
            runs.append(_checked(replace(spec, data_identity=prepared[key].data.identity), prepared[key]))
        for spec in {(data_key(spec), spec.width, spec.optim.width_rule): spec for spec in runs}.values():
            check_model(spec, prepared[data_key(spec)])
    except TaskError as error:
        raise InputError(str(error)) from error
    if len({spec.run_key for spec in runs}) != len(runs):
        raise InputError("grid: two points of the grid are the same run; remove the axis that changes nothing")
    return Grid(tuple(runs), prepared)


def _axis(key: str, values: Sequence[Any] | Ladder, round_width: Any) -> list[Any]:
    try:
        if isinstance(values, Ladder):
            values = _ladder(values, exact=key == "data_fraction")
        if key == "data_fraction":
            out: list[Any] = [fraction(value) for value in values]
            if any(not 0 < value <= 1 for value in out):
                raise ValueError("every fraction must lie in (0, 1]")
        elif key == "width":
            out = [round_width(float(number(value))) for value in values]
            if any(value < 1 for value in out):
                raise ValueError("every width must be at least 1")
        elif key == "seed":
            out = [number(value) for value in values]
            if any(not isinstance(value, int) or isinstance(value, bool) or value < 0 for value in out):
                raise ValueError("seeds are whole numbers from 0")
        else:
            out = list(values)
            if any(not isinstance(value, int | float | str | bool | None) for value in out):
                raise ValueError("an axis is a list of plain values")
    except (ValueError, TypeError) as error:
        raise InputError(f"grid.{key}: {error}") from error
    if not out:
        raise InputError(f"grid.{key}: has no values")
    doubles = sorted({str(value) for value in out if out.count(value) > 1})
    if doubles:
        after = " after rounding by the task" if key == "width" else ""
        raise InputError(
            f"grid.{key}: {', '.join(doubles)} occurs more than once{after}; take a larger factor or fewer values"
        )
    return out


def _ladder(ladder: Ladder, *, exact: bool) -> list[Any]:
    read = fraction if exact else lambda value: float(number(value))
    start, factor = read(ladder.start), read(ladder.factor)
    return [start * factor**i for i in range(ladder.count)]


def _check_axes(axes: Mapping[str, Sequence[Any]], study: Study, options: Sequence[str]) -> None:
    count = 1
    for key, values in axes.items():
        count *= len(values)
        section, dot, leaf = key.partition(".")
        if key in ("width", "data_fraction", "seed"):
            continue
        if dot and section == "task":
            raise InputError(f"grid.{key}: write a task option without `task.`, as grid.{leaf}")
        if dot and section in SECTIONS:
            known = [
                name
                for name, field in getattr(study, section).__class__.model_fields.items()
                if field.annotation is not dict
            ]
            if leaf in known and leaf not in ("reference", "betas", "workers", "checkpoints"):
                continue
            raise InputError(f"grid.{key}: {section} has no scalar key {leaf!r}")
        if key not in options:
            raise InputError(
                f"grid.{key}: not an option of task {study.task['name']} ({', '.join(options)}) nor a dotted key such as optim.lr"
            )
    if count > MAX_RUNS:
        raise InputError(f"grid: {count:,} runs; at most {MAX_RUNS:,} in one study")


def _spec(study: Study, point: Mapping[str, Any], task: Any, gpus: bool) -> RunSpec:
    """The run at one point of the grid, its data not yet identified."""
    sections = {section: getattr(study, section).model_dump() for section in SECTIONS}
    options: dict[str, Scalar] = {key: value for key, value in study.task.items() if key != "name"}
    further: dict[str, Scalar] = {}
    for key, value in point.items():
        section, dot, leaf = key.partition(".")
        if dot:
            sections[section][leaf] = value
        elif key not in ("width", "data_fraction", "seed"):
            options[key] = value
        if key not in ("width", "data_fraction", "seed"):
            further[key] = value
    try:
        optim, schedule, data, train = (
            type(getattr(study, section)).model_validate(sections[section])
            for section in ("optim", "schedule", "data", "train")
        )
    except ValidationError as error:
        first = error.errors()[0]
        raise InputError(
            f"grid: {'.'.join(map(str, first['loc']))}: {first['msg']}, not {first.get('input')!r}"
        ) from None
    precision = {"auto": "bf16" if gpus else "fp32"}.get(train.precision, train.precision)
    return RunSpec(
        study=study.name,
        task=study.task["name"],
        task_version=task.VERSION,
        loop_version=LOOP_VERSION,
        width=point["width"],
        data_fraction=point["data_fraction"],
        seed=point["seed"],
        options=checked_options(study.task["name"], task, options),
        data=DataConfig(**data.model_dump()),
        data_identity="",
        optim=OptimConfig(**{**optim.model_dump(), "reference": Reference(**optim.reference.model_dump())}),
        schedule=ScheduleConfig(**schedule.model_dump()),
        train=TrainConfig(
            epochs=train.epochs,
            precision=precision,
            checkpoints=train.checkpoints,
            workers=1 if train.workers == "auto" else train.workers,
            reuse_trunk=train.reuse_trunk,
            resume_every_s=train.resume_every_s,
            stall_timeout_s=train.stall_timeout_s,
        ),
        axes=further,
    )


def _checked(spec: RunSpec, prepared: Prepared) -> RunSpec:
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
    except ValueError as error:
        raise InputError(f"optim: {error}") from error
    if any(not 0 <= beta < 1 for beta in betas):
        raise InputError(f"optim.batch_rule: gives betas {betas} at batch size {batch}")
    return spec
