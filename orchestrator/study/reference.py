"""The reference page of the study file, made from the definitions of its keys: `docs/reference/keys.md`."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from scalespec.analysis.readings import READINGS
from scalespec.orchestrator.study.checks import plain
from scalespec.orchestrator.study.sections import Entry, Ladder, Point, Read, Tune
from scalespec.orchestrator.study.study import Study
from scalespec.trainables.keys import SCALARS, Key, keys_of, shown
from scalespec.trainables.task import BUILT_IN, task_class

HEAD = """# The study file

Every key, as `scalespec schema` tells it to editors. Numbers may be text such as `1e-3`, `1/2` or `sqrt(2)`. A key with a value under *born*
is part of a run's key only where it has another value; *always* is part of it in every run; the others change no number. An
*axis* may stand in `grid:`, dotted (`optim.lr: [1e-3, 2e-3]`).
"""

COLUMNS = "| key | values | default | unit | born | axis | meaning |\n|---|---|---|---|---|---|---|\n"


def markdown() -> str:
    """The page."""
    parts = [HEAD, _table("The study", "", Study)]
    parts += [
        _table(f"`{key.name}`", _first_line(key.kind), key.kind) for key in keys_of(Study).values() if key.is_section
    ]
    parts.append(_table("`grid`", "A list, one value, or a ladder, for each axis.", Point))
    parts.append(_table("A ladder", _first_line(Ladder), Ladder))
    parts.append(_table("A stage of `design`", _first_line(Entry), Entry))
    parts.append(_table("`tune`", _first_line(Tune), Tune))
    parts.append(_table("A reading", _first_line(Read), Read))
    known = "\n".join(f"* `{reading.name}`: {reading.says}" for reading in READINGS.values())
    parts.append(f"The readings:\n\n{known}\n")
    for name in sorted(BUILT_IN):
        parts.append(_table(f"Options of the task `{name}`", "", task_class(name).Options))
    return "\n".join(parts)


def _first_line(cls: Any) -> str:
    return (cls.__doc__ or "").strip().splitlines()[0]


def _table(title: str, says: str, cls: Any) -> str:
    return f"## {title}\n\n{says}{chr(10) * 2 if says else ''}{COLUMNS}{''.join(_rows(cls, ''))}"


def _rows(cls: Any, prefix: str) -> Iterator[str]:
    for key in keys_of(cls).values():
        if key.is_section and cls not in (Study, Entry):
            yield from _rows(key.kind, f"{prefix}{key.name}.")
        else:
            yield _row(key, prefix)


def _row(key: Key, prefix: str) -> str:
    scalar = (key.items[0] if key.items else key.kind) in SCALARS
    needed = key.default is dataclasses.MISSING
    born = "" if not key.hashed else "*always*" if key.born is dataclasses.MISSING else f"`{_written(key.born)}`"
    default = (
        "*needed*" if needed else "" if key.is_section or key.default in ({}, ()) else f"`{_written(key.default)}`"
    )
    cells = [
        f"`{prefix}{key.name}`",
        key.wanted if scalar else "",
        default,
        key.unit,
        born,
        "yes" if key.axis else "",
        key.says,
    ]
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |\n"


def _written(value: Any) -> str:
    value = plain(value)
    if value is None or isinstance(value, bool):
        return shown(value)
    return f"[{', '.join(map(_written, value))}]" if isinstance(value, list) else str(value)
