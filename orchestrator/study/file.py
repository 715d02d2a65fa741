"""The study file: YAML to a checked, frozen `Study`. Every complaint names the file, the line and the key."""

from __future__ import annotations

import dataclasses
import difflib
import os
import re
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from scalespec.orchestrator.errors import InputError
from scalespec.orchestrator.study.checks import Overrides, checked, plain
from scalespec.orchestrator.study.sections import Ladder
from scalespec.orchestrator.study.stages import Stage, StageError, definition
from scalespec.orchestrator.study.study import Study, check_whole, stage_study
from scalespec.trainables.keys import keys_of, shown

__all__ = ["Ladder", "Stage", "Study", "definition", "load_study", "parse_study", "stage_study", "to_yaml"]

MAX_BYTES = 1 << 20
"""A study is a page of text; 430 bytes of YAML anchors can fill a memory, so size is capped and anchors are refused."""

DEEPEST = 20
"""Levels of nesting; PyYAML takes seconds for thousands."""

PLAIN_INTEGER = re.compile(r"[-+]?(0|[1-9][0-9_]*|0x[0-9a-fA-F_]+|0b[01_]+)")
"""YAML 1.1 reads 010 as eight and 1:30 as ninety: those are refused rather than guessed."""


def load_study(path: str | os.PathLike[str], overrides: Sequence[str] = ()) -> Study:
    """The study in a YAML file, after `--set key=value` overrides. Raises InputError."""
    file = Path(path)
    try:
        if file.stat().st_size > MAX_BYTES:
            raise InputError(f"{path}: larger than 1 MiB; a study is a page of YAML")
        text = file.read_text(encoding="utf-8")
    except IsADirectoryError as error:
        raise InputError(f"{path}: is a folder; give the study's YAML file, such as {file / 'study.yaml'}") from error
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start})") from error
    return parse_study(text, str(path), overrides)


def parse_study(text: str, name: str, overrides: Sequence[str] = ()) -> Study:
    """As `load_study`, from text; `name` stands in messages."""
    raw, lines = _read_yaml(text, name)
    for override in overrides:
        _apply(raw, lines, override)
    try:
        study: Study = checked(Study, _spelled_out(raw))
        check_whole(study)
    except ValidationError as error:
        raise InputError(_complaint(error, name, lines)) from None
    except StageError as error:
        raise InputError(f"{_where(error.place, name, lines)}: {_dotted(error.place)}: {error}") from None
    return study


def to_yaml(study: Study) -> str:
    """The study as YAML that `load_study` reads back as an equal study."""
    raw = plain(study)
    raw["design"] = [{key: value for key, value in entry.items() if value is not None} for entry in raw["design"]]
    raw = {key: value for key, value in raw.items() if key not in ("grid", "design") or value}
    return yaml.safe_dump(raw, sort_keys=False, allow_unicode=True)


def _spelled_out(raw: dict[str, Any]) -> dict[str, Any]:
    """The short forms in full: a task by its name, an axis of one value."""
    if isinstance(raw.get("task"), str):
        raw["task"] = {"name": raw["task"]}
    stages = raw.get("design")
    for place in [raw, *(stages if isinstance(stages, list) else [])]:
        if isinstance(place, dict) and isinstance(place.get("grid"), dict):
            place["grid"] = {
                key: value if isinstance(value, list | dict) else [value] for key, value in place["grid"].items()
            }
    return raw


Lines = dict[tuple[Any, ...], str]
"""Key path to where it was written: `12` for line 12, or `--set k=v`."""


def _read_yaml(text: str, name: str) -> tuple[dict[str, Any], Lines]:
    lines: Lines = {}
    value = _read(text, name, lines)
    if not isinstance(value, dict):
        raise InputError(f"{name}: empty, or not a mapping; see studies/quickstart.yaml for an example")
    return value, lines


def _read(text: str, name: str, lines: Lines) -> Any:
    """Any plain value, and where each part of it was written."""
    try:
        depth = 0
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            line = event.start_mark.line + 1 if event.start_mark else 1
            if depth > DEEPEST:
                raise InputError(f"{name}:{line}: nested too deeply for a study")
            if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
                raise InputError(f"{name}:{line}: YAML anchors and aliases are not allowed; repeat the value")
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        return None if node is None else _plain(node, (), lines, name)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{name}:{mark.line + 1}" if mark else name
        raise InputError(f"{where}: not valid YAML: {getattr(error, 'problem', error)}") from None


def _plain(node: yaml.Node, path: tuple[Any, ...], lines: Lines, name: str) -> Any:
    lines[path] = str(node.start_mark.line + 1)
    if not isinstance(node, yaml.ScalarNode) and node.tag not in ("tag:yaml.org,2002:map", "tag:yaml.org,2002:seq"):
        raise InputError(f"{name}:{node.start_mark.line + 1}: the tag {node.tag} is not allowed; write a plain value")
    if isinstance(node, yaml.MappingNode):
        out: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key = str(key_node.value)
            line = key_node.start_mark.line + 1
            if not isinstance(key_node, yaml.ScalarNode) or key_node.tag == "tag:yaml.org,2002:merge":
                raise InputError(f"{name}:{line}: only plain keys are allowed")
            if key in out:
                raise InputError(f"{name}:{line}: key {'.'.join(map(str, (*path, key)))} is given twice; keep one")
            out[key] = _plain(value_node, (*path, key), lines, name)
            lines[(*path, key)] = str(line)
        return out
    if isinstance(node, yaml.SequenceNode):
        return [_plain(item, (*path, i), lines, name) for i, item in enumerate(node.value)]
    odd = (node.tag == "tag:yaml.org,2002:int" and not PLAIN_INTEGER.fullmatch(node.value)) or (
        node.tag == "tag:yaml.org,2002:float" and ":" in node.value
    )
    if odd:
        raise InputError(
            f"{name}:{node.start_mark.line + 1}: {'.'.join(map(str, path))}: {shown(node.value)} is not decimal in YAML;"
            " write the number without leading zeros or colons, a text in quotes"
        )
    try:
        return yaml.SafeLoader("").construct_object(node)  # type: ignore[no-untyped-call]
    except (yaml.YAMLError, ValueError) as error:
        words = getattr(error, "problem", None) or str(error)
        raise InputError(f"{name}:{node.start_mark.line + 1}: {'.'.join(map(str, path))}: {words}") from None


def _apply(raw: dict[str, Any], lines: Lines, override: str) -> None:
    key, equals, text = override.partition("=")
    said = f"--set {override if len(override) <= 100 else override[:97] + '…'}"
    if not equals or not re.fullmatch(r"[A-Za-z0-9_.]+", key):
        raise InputError(f"{said}: write it as key=value, such as --set grid.seed=[0]")
    try:
        value = _read(text, "", {})
    except InputError as error:
        raise InputError(f"{said}: {str(error).lstrip(':0123456789 ')}") from None
    # an axis may be dotted itself (grid.optim.lr), so everything after `grid.` is one key
    parts = ["grid", key.removeprefix("grid.")] if key.startswith("grid.") else key.split(".")
    if parts[0] == "task" and len(parts) == 2 and isinstance(raw.get("task"), str):
        raw["task"] = {"name": raw["task"]}
    place: Any = raw
    for depth, part in enumerate(parts[:-1], start=1):
        if part not in place:
            place[part], lines[tuple(parts[:depth])] = {}, said
        place = place[part]
        if not isinstance(place, dict):
            raise InputError(f"{said}: {part} is not a section")
    place[parts[-1]] = value
    lines[tuple(parts)] = said


def _complaint(error: ValidationError, name: str, lines: Lines) -> str:
    # an unknown key often explains a missing one, so it is said first
    first = min(error.errors(), key=lambda item: item["type"] != "extra_forbidden")
    place = [part for part in first["loc"] if "[" not in str(part)]
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    return f"{_where(place, name, lines)}: {_dotted(place)}: {_reason(first, place)}{more}"


def _dotted(place: Sequence[Any]) -> str:
    return ".".join(map(str, place)) or "study"


def _where(place: Sequence[Any], name: str, lines: Lines) -> str:
    """File and line of a key, or of the section that it should stand in; or the override that gave it."""
    path = tuple(place)
    while path and path not in lines:
        path = path[:-1]
    where = lines.get(path, "1")
    return where if where.startswith("--set") else f"{name}:{where}"


def _reason(first: Any, place: Sequence[Any]) -> str:
    if first["type"] == "extra_forbidden":
        known = _known_keys(place[:-1])
        near = difflib.get_close_matches(str(place[-1]), known, n=1)
        return "unknown key" + (f"; did you mean {near[0]}?" if near else f"; known: {', '.join(known)}")
    if first["type"] == "missing":
        return "is needed and missing"
    if first["type"] in ("model_type", "dict_type"):
        return f"must be a section with keys of its own, not {shown(first.get('input'))}"
    if first["type"] in ("tuple_type", "list_type"):
        return f"must be a list, not {shown(first.get('input'))}"
    message = str(first["msg"]).removeprefix("Value error, ")
    given = first.get("input")
    named = isinstance(given, dict) or shown(given) in message or first["type"] == "value_error"
    return message if named else f"{message}, not {shown(given)}"


def _known_keys(path: Sequence[Any]) -> list[str]:
    kind: Any = Study
    for part in path:
        section, reading = _section_in(kind)
        if section is not None and part in keys_of(section):
            found = keys_of(section)[part]
            kind = reading if reading is not None and found.is_number else found.kind
        elif typing.get_origin(kind) in (Mapping, tuple):  # the part names an axis or counts a stage
            kind = typing.get_args(kind)[0 if typing.get_origin(kind) is tuple else 1]
        else:
            return []
    section, _ = _section_in(kind)
    return list(keys_of(section)) if section is not None else []


def _section_in(kind: Any) -> tuple[Any, Any]:
    """The dataclass that a type is, marks as overridden, or has as an alternative; and what a number in it may be instead."""
    if isinstance(kind, Overrides):
        return kind.section, kind.reading
    if dataclasses.is_dataclass(kind):
        return kind, None
    if typing.get_origin(kind) in (Mapping, tuple):
        return None, None
    parts = getattr(kind, "__metadata__", ()) or typing.get_args(kind)
    return next((found for part in parts if (found := _section_in(part))[0] is not None), (None, None))
