"""The log of asks: each is committed before it runs and never decided again.

`asks/000003.json` holds one ask. A later one may supersede earlier ones: a stage whose definition or reading has changed asks
under a new number. What is in force follows from the numbers alone, so whoever reads a study needs neither its task nor its data.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pyarrow as pa

from scalespec.analysis import tables
from scalespec.orchestrator.design.ask import Ask, Decided
from scalespec.orchestrator.store.folder import StudyStore
from scalespec.trainables.keys import restored
from scalespec.trainables.spec import SECTIONS, RunSpec

FOLDER = "asks"

FACTS = [name for name in Decided.__dataclass_fields__ if name not in ("points", "left")]
"""What is written as it is."""


def read(store: StudyStore) -> list[Decided]:
    """Every committed ask, by number. A file that is no ask is passed over."""
    out = []
    for name in store.files.names(FOLDER):
        number, _, ending = name.partition(".")
        if ending == "json" and number.isdigit():
            found = store.read_json(f"{FOLDER}/{name}")
            if isinstance(found, dict):
                try:
                    out.append(from_json(found))
                except (KeyError, TypeError, ValueError):
                    continue
    return out


def in_force(asks: Iterable[Decided]) -> list[Decided]:
    """Those that no later one supersedes."""
    asks = list(asks)
    gone = {number for ask in asks for number in ask.supersedes}
    return [ask for ask in asks if ask.number not in gone]


def specs(asks: Iterable[Decided]) -> list[RunSpec]:
    """The runs of the asks in force, each once, in the order in which they were first asked for."""
    return list({spec.run_key: spec for ask in in_force(asks) for spec in ask.points}.values())


def roles(asks: Iterable[Decided]) -> dict[str, str]:
    """run_key → role. A run that any stage wants as a result is one."""
    out: dict[str, str] = {}
    for ask in in_force(asks):
        for spec in ask.points:
            if ask.role == "result" or spec.run_key not in out:
                out[spec.run_key] = ask.role
    return out


def commit(store: StudyStore, ask: Ask, asks: Sequence[Decided], dependents: Iterable[str] = ()) -> Decided:
    """Commits an ask under the next free number, superseding what it replaces. Returns it as committed.

    It replaces the asks of its stage from its round on, and all asks of `dependents`, the stages that read it.
    """
    others = set(dependents)
    old = [
        one.number
        for one in in_force(asks)
        if one.stage in others or (one.stage == ask.stage and one.round >= ask.round)
    ]
    number = max((one.number for one in asks), default=0)
    while True:
        number += 1
        values = {name: getattr(ask, name) for name in Ask.__dataclass_fields__}
        made = Decided(**values, number=number, supersedes=tuple(old))
        if store.files.create(f"{FOLDER}/{number:06d}.json", json.dumps(to_json(made), allow_nan=False).encode()):
            return made


def to_json(ask: Decided) -> dict[str, Any]:
    """What the points have in common stands once: ten thousand runs of a grid differ in a few fields."""
    points = [spec.to_json() for spec in ask.points]
    first = points[0] if points else {}
    shared = {key: value for key, value in first.items() if all(point[key] == value for point in points)}
    rest = [
        {"run_key": spec.run_key} | {key: value for key, value in point.items() if key not in shared}
        for spec, point in zip(ask.points, points, strict=True)
    ]
    facts = {name: getattr(ask, name) for name in FACTS}
    facts |= {"read": dict(ask.read), "seen": list(ask.seen), "supersedes": list(ask.supersedes)}
    return {"schema_version": 1, **facts, "shared": shared, "points": rest}


def from_json(data: Mapping[str, Any]) -> Decided:
    """The inverse of `to_json`. Raises KeyError, TypeError or ValueError for another shape."""
    sections: dict[str, Any] = {}

    def section(name: str, value: Any) -> Any:
        """Equal sections are read once and are one object."""
        if name not in SECTIONS:
            return value
        text = f"{name} {json.dumps(value)}"
        if text not in sections:
            sections[text] = restored(SECTIONS[name], value)
        return sections[text]

    shared = {name: section(name, value) for name, value in data["shared"].items()}
    points = []
    for point in data["points"]:
        own = {name: section(name, value) for name, value in point.items() if name != "run_key"}
        points.append(RunSpec.from_json({**shared, **own}))
    facts = {name: data[name] for name in FACTS}
    facts |= {"seen": tuple(data["seen"]), "supersedes": tuple(data["supersedes"])}
    return Decided(**facts, points=tuple(points))


def retire(store: StudyStore, asks: Sequence[Decided], stages: Iterable[str]) -> list[Decided]:
    """Supersedes the asks of stages that the study no longer has. Returns the new state of the log."""
    known, out = set(stages), list(asks)
    for name in sorted({ask.stage for ask in in_force(asks)} - known):
        if any(ask.points for ask in in_force(out) if ask.stage == name):
            out.append(commit(store, replace(Ask(stage=name), why="the study no longer has this stage"), out))
    return out


def table(asks: Iterable[Decided]) -> pa.Table:
    """`asks.parquet`: which stage asked for which run."""
    rows = [
        {"stage": ask.stage, "ask": ask.number, "round": ask.round, "role": ask.role, "run_key": spec.run_key, "why": ask.why}
        for ask in in_force(asks)
        for spec in ask.points
    ]  # fmt: skip
    return tables.from_rows(rows, tables.ASKS)
