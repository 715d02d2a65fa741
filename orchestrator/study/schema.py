"""The study file as JSON Schema, for editors and other tools; made from the definitions of its keys."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping
from typing import Any

from scalespec.orchestrator.study.checks import Overrides, plain
from scalespec.orchestrator.study.sections import Ladder, Point, Read
from scalespec.orchestrator.study.study import Study
from scalespec.trainables.keys import AUTO, SCALARS, Key, keys_of
from scalespec.trainables.spec import SECTIONS
from scalespec.trainables.task import BUILT_IN, task_class

TEXT_NUMBER = {"type": "string", "pattern": r"^[-+0-9.eE*/() ]*(sqrt\([-+0-9.eE*/() ]+\))?[-+0-9.eE*/() ]*$"}
"""`1e-3`, `1/2`, `sqrt(2)`: YAML 1.1 itself reads the first of them as text."""

PLAIN = {"type": ["string", "number", "boolean", "null"]}
OWN_TASK = {"type": "string", "pattern": r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$"}


def json_schema() -> dict[str, Any]:
    """Draft 2020-12. Options of the built-in tasks are in it; those of a user's own task may be anything plain."""
    out = _section(Study)
    out["properties"] |= {"task": _task(), "grid": _grid()}
    stage = out["properties"]["design"]["items"]
    stage["properties"] |= {
        "grid": _grid(),
        "task": {"type": "object", "additionalProperties": {"anyOf": [PLAIN, _section(Read)]}},
        "adaptive": False,
    }
    stage["required"] = ["name", "grid"]
    out["oneOf"] = [{"required": ["grid"]}, {"required": ["design"]}]
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "A study of scalespec", **out}


def _section(cls: type, *, partial: bool = False) -> dict[str, Any]:
    keys = keys_of(cls)
    needed = [key.name for key in keys.values() if key.default is dataclasses.MISSING and not partial]
    return {
        "type": "object",
        "additionalProperties": False,
        "properties": {key.name: _key(key, partial) for key in keys.values()},
        **({"required": needed} if needed else {}),
    }


def _key(key: Key, partial: bool) -> dict[str, Any]:
    """What a key may be, what it means and its default."""
    allowed = _kind(key, partial)
    if partial and key.is_number:
        allowed = {"anyOf": [allowed, _section(Read)]}
    if key.optional:
        allowed = {"anyOf": [allowed, {"type": "null"}]}
    said = {"description": key.says + (f" Unit: {key.unit}." if key.unit else "")} if key.says else {}
    default = plain(key.default)
    shown = {} if partial or key.default is dataclasses.MISSING or default is None else {"default": default}
    return {**allowed, **said, **shown}


def _kind(key: Key, partial: bool) -> dict[str, Any]:
    if key.is_section:
        return _section(key.kind, partial=partial)
    if key.kind in SCALARS:
        return _scalar(key)
    if key.items and key.items[0] in SCALARS:
        items = _scalar(dataclasses.replace(key, kind=key.items[0]))
        if key.items[-1] is ...:
            return {"anyOf": [items, {"type": "array", "items": items}]}
        return {"type": "array", "items": items, "minItems": len(key.items), "maxItems": len(key.items)}
    if key.items:
        return {"type": "array", "items": _section(key.items[0])}
    if (overrides := _overrides(key.kind)) is not None:
        return _section(overrides.section, partial=True)
    return {"type": "object"} if typing.get_origin(key.kind) is Mapping else {**PLAIN}


def _overrides(kind: Any) -> Overrides | None:
    return next((mark for mark in getattr(kind, "__metadata__", ()) if isinstance(mark, Overrides)), None)


def _scalar(key: Key) -> dict[str, Any]:
    if key.choices:
        return {"enum": list(key.choices)}
    if key.kind is bool:
        return {"type": "boolean"}
    if key.kind is str:
        return {"type": "string"} | ({"pattern": f"^{key.pattern[0]}$"} if key.pattern else {})
    bounds = {"minimum": key.least, "exclusiveMinimum": key.over, "maximum": key.most, "exclusiveMaximum": key.below}
    kind = {"type": "integer" if key.kind is int else "number"}
    number = kind | {word: bound for word, bound in bounds.items() if bound is not None}
    auto = [{"const": AUTO}] if key.auto else []
    return {"anyOf": [*auto, number, TEXT_NUMBER]}


def _task() -> dict[str, Any]:
    """A name, or a mapping; of a built-in task with its options and no others."""
    forms: list[dict[str, Any]] = [{"enum": sorted(BUILT_IN)}, OWN_TASK]
    for name in sorted(BUILT_IN):
        options = _section(task_class(name).Options)
        options["properties"] = {"name": {"const": name}, **options["properties"]}
        options["required"] = ["name", *options.get("required", [])]
        forms.append(options)
    own = {"type": "object", "properties": {"name": OWN_TASK}, "required": ["name"], "additionalProperties": PLAIN}
    return {"description": keys_of(Study)["task"].says, "anyOf": [*forms, own]}


def _grid() -> dict[str, Any]:
    """The axes: those that every study has, dotted keys, and options of the task."""
    axes = {name: _axis(key) for name, key in keys_of(Point).items()}
    for section, cls in SECTIONS.items():
        axes |= {f"{section}.{key.name}": _axis(key) for key in keys_of(cls).values() if key.axis}
    return {
        "description": keys_of(Study)["grid"].says,
        "type": "object",
        "properties": axes,
        "patternProperties": {r"^[A-Za-z_]\w*$": _axis(None)},
        "additionalProperties": False,
        "required": ["width"],
    }


def _axis(key: Key | None) -> dict[str, Any]:
    value = PLAIN if key is None else _scalar(key)
    value = {"anyOf": [value, {"type": "null"}]} if key is not None and key.optional else value
    said = {"description": key.says} if key is not None else {}
    ladder = _section(Ladder)
    ladder["properties"] |= {
        name: {**ladder["properties"][name], "type": ["number", "string"]} for name in ("start", "factor")
    }
    return {"anyOf": [value, {"type": "array", "items": value, "minItems": 1}, ladder], **said}
