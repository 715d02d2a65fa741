"""The stages of a study: what each asks for, and which values it reads from earlier ones."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from pydantic import ValidationError

from scalespec.orchestrator.study.checks import checked, plain
from scalespec.orchestrator.study.sections import Axis, Entry, Read, Tune
from scalespec.trainables.keys import canonical, keys_of
from scalespec.trainables.spec import SECTIONS

RATE = "optim.lr"
REFERENCE = "optim.reference"


class Reading(NamedTuple):
    """A key of a stage that an earlier stage gives."""

    key: str
    """Dotted, such as `optim.lr`; of a task's option `task.NAME`."""
    reading: str
    of: str
    times: float


@dataclass(frozen=True)
class Stage:
    """One stage, checked against those before it."""

    name: str
    role: str
    """probe | result"""
    kind: str
    """grid | tune"""
    grid: Mapping[str, Axis]
    """Axes of the stage; of a `tune` stage those of its final runs."""
    tune: Tune | None = None
    overrides: tuple[tuple[str, Any], ...] = ()
    """Dotted key and value."""
    readings: tuple[Reading, ...] = ()
    base: tuple[tuple[str, Any], ...] = ()
    """What the study says for all stages: the dotted keys that can change a run, and their values."""


class StageError(ValueError):
    """What is wrong with the design; `place` is the path of the key in the study file."""

    def __init__(self, place: Sequence[Any], message: str) -> None:
        super().__init__(message)
        self.place = tuple(place)


def definition(stage: Stage) -> str:
    """The stage as canonical JSON, to be digested: it changes when an edit of the study can change what the stage asks for.

    The study's own sections are part of it where they reach a run; a stage's role, and what only says how runs are
    executed, is not.
    """
    said = {field.name: getattr(stage, field.name) for field in dataclasses.fields(stage) if field.name != "role"}
    for name in ("overrides", "base"):
        said[name] = dict(said[name])
    return json.dumps(_canonical(plain(said)), sort_keys=True, separators=(",", ":"))


def _canonical(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _canonical(item) for key, item in value.items()}
    return [_canonical(item) for item in value] if isinstance(value, list) else canonical(value)


def stages_of(
    entries: Sequence[Entry], grid: Mapping[str, Axis], task: Mapping[str, Any], sections: Mapping[str, Any]
) -> tuple[Stage, ...]:
    """The stages of a design; a grid alone is one stage of that name. Raises StageError."""
    base = tuple((f"task.{key}", value) for key, value in task.items()) + _reaching(sections)
    if not entries:
        return (Stage("grid", "result", "grid", grid, base=base),)
    out: list[Stage] = []
    for i, entry in enumerate(entries):
        place = ("design", i)
        if entry.name in {stage.name for stage in out}:
            raise StageError((*place, "name"), f"{entry.name!r} is the name of two stages; rename one")
        kind = _kind_of(entry, place)
        values = _flat(entry, place)
        readings = tuple(
            Reading(key, read.reading, read.of, read.times) for key, read in values.items() if isinstance(read, Read)
        )
        for reading in readings:
            _check_reading(reading, [stage.name for stage in out], [e.name for e in entries], place)
        if any(reading.key == RATE for reading in readings) and any(key.startswith(REFERENCE) for key in values):
            raise StageError(
                (*place, "optim", "reference"), "is where the rate is read from, as optim.lr is a reading; remove it"
            )
        role = entry.role or ("result" if i == len(entries) - 1 else "probe")
        overrides = tuple((key, value) for key, value in values.items() if not isinstance(value, Read))
        out.append(Stage(entry.name, role, kind, entry.grid or {}, entry.tune, overrides, readings, base))
    if not any(stage.role == "result" for stage in out):
        raise StageError(("design",), "no stage has role: result; laws would have nothing to read")
    return tuple(out)


def _kind_of(entry: Entry, place: Sequence[Any]) -> str:
    if entry.adaptive is not None:
        raise StageError((*place, "adaptive"), "is not built yet; use grid or tune")
    if entry.grid is None:
        raise StageError(place, f"stage {entry.name} needs a grid" + (" for its final runs" if entry.tune else ""))
    if "width" not in entry.grid:
        raise StageError((*place, "grid"), "needs an axis `width`")
    if entry.tune is None:
        return "grid"
    if entry.tune.key in entry.grid:
        raise StageError((*place, "tune", "key"), f"{entry.tune.key} is tuned and an axis of the grid; remove one")
    _check_tuned(entry.tune.key, (*place, "tune", "key"))
    return "tune"


def _check_tuned(name: str, place: Sequence[Any]) -> None:
    """Options of a task are known only where it is imported; dotted keys are known here."""
    section, dot, leaf = name.partition(".")
    if not dot:
        return
    key = keys_of(SECTIONS[section]).get(leaf) if section in SECTIONS else None
    if key is None or not key.axis or not key.is_number:
        raise StageError(place, f"{name} is not a number that can be tuned; take a key such as {RATE}")


def _check_reading(reading: Reading, earlier: Sequence[str], every: Sequence[str], place: Sequence[Any]) -> None:
    from scalespec.analysis.readings import READINGS  # brings pandas

    where = (*place, *reading.key.split("."))
    if reading.reading not in READINGS:
        raise StageError((*where, "reading"), f"unknown reading {reading.reading!r}; known: {', '.join(READINGS)}")
    if reading.of not in earlier:
        known = f"earlier stages are {', '.join(earlier)}" if earlier else "the first stage can read nothing"
        words = "is not an earlier stage" if reading.of in every else "is no stage"
        raise StageError((*where, "of"), f"{reading.of!r} {words}; {known}")


def _flat(entry: Entry, place: Sequence[Any]) -> dict[str, Any]:
    """Overrides by dotted key; readings among them as `Read`."""
    out: dict[str, Any] = {}
    for name, value in (entry.task or {}).items():
        if name == "name":
            raise StageError((*place, "task", "name"), "a stage cannot change the task")
        out[f"task.{name}"] = _option(value, (*place, "task", name))
    for section in SECTIONS:
        for name, value in (getattr(entry, section) or {}).items():
            nested = (
                {f"{section}.{name}.{inner}": item for inner, item in value.items()} if isinstance(value, dict) else {}
            )
            out |= nested or {f"{section}.{name}": value}
    return out


def _option(value: Any, place: Sequence[Any]) -> Any:
    if not isinstance(value, Mapping):
        return value
    try:
        return checked(Read, dict(value))
    except ValidationError as error:
        first = error.errors()[0]
        raise StageError((*place, *first["loc"]), str(first["msg"]).removeprefix("Value error, ")) from None


def _reaching(sections: Mapping[str, Any]) -> tuple[tuple[str, Any], ...]:
    """The keys that can change a run, dotted; a section inside a section counts whole."""
    return tuple(
        (f"{name}.{key.name}", plain(getattr(config, key.name)))
        for name, config in sections.items()
        for key in keys_of(type(config)).values()
        if key.hashed or key.axis
    )
