"""The study file: YAML to a checked, frozen `Study`. Every complaint names the file, the line and the key."""

from __future__ import annotations

import ast
import difflib
import math
import operator
import os
import re
from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, Tag, ValidationError, model_validator

from scalespec.orchestrator.errors import InputError

MAX_BYTES = 1 << 20
"""A study is a page of text; 430 bytes of YAML anchors can fill a memory, so size is capped and anchors are refused."""

_OPERATORS: Mapping[type, Any] = {ast.Mult: operator.mul, ast.Div: operator.truediv, ast.Pow: operator.pow}


def number(value: Any) -> Any:
    """A number, or text such as `1e-3`, `1/2`, `sqrt(2)`, `2**0.5` as the number it means. Raises ValueError otherwise."""
    if not isinstance(value, str):
        return value
    try:
        return _evaluate(ast.parse(value.strip(), mode="eval").body)
    except (SyntaxError, ValueError, ZeroDivisionError, OverflowError) as error:
        raise ValueError(f"{value!r} is not a number; write it as 0.001, 1e-3, 1/2 or sqrt(2)") from error


def _evaluate(node: ast.expr) -> int | float:
    match node:
        case ast.Constant(value=bool()):
            raise ValueError
        case ast.Constant(value=int() | float() as constant):
            return constant
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_evaluate(operand)
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
            a, b = _evaluate(left), _evaluate(right)
            if isinstance(op, ast.Pow) and abs(b) > 64:
                raise ValueError
            return _OPERATORS[type(op)](a, b)  # type: ignore[no-any-return]
        case ast.Call(func=ast.Name(id="sqrt"), args=[argument], keywords=[]):
            return math.sqrt(_evaluate(argument))
    raise ValueError


def fraction(value: Any) -> Fraction:
    """An exact rational from 1, 0.25, `1/3` or `0.1`. Raises ValueError otherwise."""
    try:
        if isinstance(value, bool):
            raise ValueError
        return Fraction(str(value)) if isinstance(value, float | str) else Fraction(value)
    except (ValueError, TypeError, ZeroDivisionError) as error:
        raise ValueError(f"{value!r} is not a fraction; write it as 1/4 or 0.25") from error


Number = Annotated[float, BeforeValidator(number), Field(allow_inf_nan=False)]
Count = Annotated[int, BeforeValidator(number)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Ladder(Section):
    """start, start·factor, start·factor² …"""

    start: Any
    factor: Any
    count: Annotated[int, Field(ge=1, le=1000)]


Axis = Annotated[
    Annotated[list[Any], Tag("list")] | Annotated[Ladder, Tag("ladder")],
    Discriminator(lambda value: "list" if isinstance(value, list) else "ladder"),
]


class Data(Section):
    source: str
    path: str | None = None
    limit: Annotated[Count, Field(ge=1)] | None = None
    tokenizer: str | None = None


class ReferencePoint(Section):
    width: Annotated[Count, Field(ge=1)]
    batch_size: Annotated[Count, Field(ge=1)]


class Optim(Section):
    lr: Annotated[Number, Field(gt=0)]
    batch_size: Annotated[Count, Field(ge=1)]
    reference: ReferencePoint
    name: Literal["adamw", "adam", "sgd"] = "adamw"
    betas: tuple[Annotated[Number, Field(ge=0, lt=1)], Annotated[Number, Field(ge=0, lt=1)]] = (0.9, 0.99)
    eps: Annotated[Number, Field(gt=0)] = 1e-8
    weight_decay: Annotated[Number, Field(ge=0)] = 0.0
    grad_clip: Annotated[Number, Field(gt=0)] | None = 1.0
    width_rule: Literal["inverse_sqrt_fan_in", "mup", "none"] = "inverse_sqrt_fan_in"
    batch_rule: Literal["sqrt", "linear", "none", "inverse_sqrt"] = "sqrt"


class Schedule(Section):
    name: Literal["wsd", "cosine", "constant", "ramp"] = "wsd"
    warmup: Annotated[Count, Field(ge=0)] = 0
    cooldown: Annotated[Number, Field(gt=0, lt=1)] = 0.2


class Train(Section):
    epochs: Annotated[Count, Field(ge=1)] = 1
    checkpoints: Annotated[Count, Field(ge=2, le=1000)] = 8
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    workers: Literal["auto"] | Annotated[Count, Field(ge=1)] = "auto"
    reuse_trunk: bool = True
    resume_every_s: Annotated[Number, Field(gt=0)] = 30.0
    stall_timeout_s: Annotated[Number, Field(gt=0)] = 1800.0


class Spectra(Section):
    profile: Literal["ww-0.7.7", "native"] = "ww-0.7.7"
    every: Literal["checkpoint", "last", "never"] = "checkpoint"
    vectors: bool = False


class Resources(Section):
    price_per_hour: Annotated[Number, Field(ge=0)] | None = None
    """USD for an hour of one lane (one worker group)."""
    cpus_per_worker: Annotated[Count, Field(ge=1)] = 1


class Tracking(Section):
    uri: str | None = None


class Study(Section):
    """A whole study as written, checked; `scalespec.orchestrator.study.grid` turns it into runs."""

    name: Name
    task: dict[str, Any]
    """`name`, and the task's options."""
    data: Data
    grid: dict[str, Axis]
    optim: Optim
    schedule: Schedule = Schedule()
    train: Train = Train()
    spectra: Spectra = Spectra()
    report: bool = True
    resources: Resources = Resources()
    storage: str = "./results"
    tracking: Tracking = Tracking()

    @model_validator(mode="before")
    @classmethod
    def _task_by_name(cls, raw: Any) -> Any:
        if isinstance(raw, dict):
            task = raw.get("task")
            raw = {**raw, "task": {"name": task} if isinstance(task, str) else task}
            if isinstance(raw.get("grid"), dict):
                raw["grid"] = {
                    key: value if isinstance(value, list | dict) else [value] for key, value in raw["grid"].items()
                }
        return raw

    @model_validator(mode="after")
    def _complete(self) -> Study:
        if not isinstance(self.task.get("name"), str):
            raise ValueError("task: needs a name")
        if "width" not in self.grid:
            raise ValueError("grid: needs an axis `width`")
        return self


def load_study(path: str | os.PathLike[str], overrides: Sequence[str] = ()) -> Study:
    """The study in a YAML file, after `--set key=value` overrides. Raises InputError."""
    file = Path(path)
    try:
        if file.stat().st_size > MAX_BYTES:
            raise InputError(f"{path}: larger than 1 MiB; a study is a page of YAML")
        text = file.read_text(encoding="utf-8")
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
        study = Study.model_validate(raw)
    except ValidationError as error:
        raise InputError(_complaint(error, name, lines)) from None
    return study


def to_yaml(study: Study) -> str:
    """The study as YAML that `load_study` reads back as an equal study."""
    return yaml.safe_dump(study.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


Lines = dict[tuple[Any, ...], str]
"""Key path to where it was written: `12` for line 12, or `--set k=v`."""


def _read_yaml(text: str, name: str) -> tuple[dict[str, Any], Lines]:
    try:
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
                line = event.start_mark.line + 1 if event.start_mark else 1
                raise InputError(f"{name}:{line}: YAML anchors and aliases are not allowed; repeat the value")
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{name}:{mark.line + 1}" if mark else name
        raise InputError(f"{where}: not valid YAML: {getattr(error, 'problem', error)}") from None
    if not isinstance(node, yaml.MappingNode):
        raise InputError(f"{name}: empty, or not a mapping; see studies/quickstart.yaml for an example")
    lines: Lines = {}
    value = _plain(node, (), lines, name)
    assert isinstance(value, dict)
    return value, lines


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
    try:
        return yaml.SafeLoader("").construct_object(node)  # type: ignore[no-untyped-call]
    except (yaml.YAMLError, ValueError) as error:
        words = getattr(error, "problem", None) or str(error)
        raise InputError(f"{name}:{node.start_mark.line + 1}: {'.'.join(map(str, path))}: {words}") from None


def _apply(raw: dict[str, Any], lines: Lines, override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not re.fullmatch(r"[A-Za-z0-9_.]+", key):
        raise InputError(f"--set {override}: write it as key=value, such as --set grid.seed=[0]")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        raise InputError(f"--set {override}: the value is not valid YAML") from None
    # an axis may be dotted itself (grid.optim.lr), so everything after `grid.` is one key
    parts = ["grid", key.removeprefix("grid.")] if key.startswith("grid.") else key.split(".")
    if parts[0] == "task" and len(parts) == 2 and isinstance(raw.get("task"), str):
        raw["task"] = {"name": raw["task"]}
    place: Any = raw
    for depth, part in enumerate(parts[:-1], start=1):
        if part not in place:
            place[part], lines[tuple(parts[:depth])] = {}, f"--set {override}"
        place = place[part]
        if not isinstance(place, dict):
            raise InputError(f"--set {override}: {part} is not a section")
    place[parts[-1]] = value
    lines[tuple(parts)] = f"--set {override}"


def _complaint(error: ValidationError, name: str, lines: Lines) -> str:
    # an unknown key often explains a missing one, so it is said first
    first = min(error.errors(), key=lambda item: item["type"] != "extra_forbidden")
    keys = tuple(part for part in first["loc"] if part not in ("list", "ladder") and "[" not in str(part))
    path = keys
    while path and path not in lines:
        path = path[:-1]
    where = lines.get(path, "1")
    where = where if where.startswith("--set") else f"{name}:{where}"
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    return f"{where}: {'.'.join(map(str, keys)) or 'study'}: {_reason(first)}{more}"


def _reason(first: Any) -> str:
    if first["type"] == "extra_forbidden":
        near = difflib.get_close_matches(str(first["loc"][-1]), _known_keys(first["loc"][:-1]), n=1)
        return "unknown key" + (
            f"; did you mean {near[0]}?" if near else f"; known: {', '.join(_known_keys(first['loc'][:-1]))}"
        )
    if first["type"] == "missing":
        return "is needed and missing"
    message = str(first["msg"]).removeprefix("Value error, ")
    given = first.get("input")
    return message if isinstance(given, dict) or repr(given) in message else f"{message}, not {given!r}"


def _known_keys(path: Sequence[Any]) -> list[str]:
    model: Any = Study
    for part in path:
        found = model.model_fields.get(part)
        model = found.annotation if found else None
        if not (isinstance(model, type) and issubclass(model, BaseModel)):
            return []
    return list(model.model_fields)
