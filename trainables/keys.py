"""One definition of a key: its type and default as a dataclass field, its bounds, unit and meaning as the field's metadata.

Everything else reads it from here: the checks of the study file and of a task's options, the JSON schema, the reference page,
MLflow's parameters, and what of a run is hashed.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
import types
import typing
from collections.abc import Mapping
from dataclasses import MISSING, dataclass
from fractions import Fraction
from typing import Any

AUTO: Any = "auto"
"""The value that the planner resolves, where a key allows it."""

LARGEST = 2**63 - 1
"""Whole numbers must fit in the tables' 64 bits."""

SCALARS = (bool, int, float, str, Fraction)


@dataclass(frozen=True)
class Key:
    """What a field says of itself. A field without metadata has its name, type and default only."""

    name: str
    kind: Any
    """int, float, str, bool or Fraction; a tuple of these; a dataclass with keys of its own; whatever else was written."""
    optional: bool = False
    """Whether None is a value."""
    default: Any = dataclasses.field(default_factory=lambda: MISSING)
    born: Any = dataclasses.field(default_factory=lambda: MISSING)
    """The value at which the key leaves a run's identity as it is: its default when it was introduced. Never edited after."""
    says: str = ""
    unit: str = ""
    least: float | None = None
    over: float | None = None
    most: float | None = None
    below: float | None = None
    choices: tuple[str, ...] = ()
    pattern: tuple[str, str] | None = None
    """A regular expression for the whole text, and in words what it asks for."""
    auto: bool = False
    hashed: bool = True
    axis: bool = True

    @property
    def is_section(self) -> bool:
        return dataclasses.is_dataclass(self.kind)

    @property
    def is_number(self) -> bool:
        return self.kind in (int, float, Fraction)

    @property
    def items(self) -> tuple[Any, ...]:
        """Types of a tuple's items; (X, ...) for any number of one type; empty for what is no tuple."""
        return typing.get_args(self.kind) if typing.get_origin(self.kind) is tuple else ()

    @property
    def wanted(self) -> str:
        """In words, the values that it takes."""
        if self.choices:
            words = f"one of {', '.join(self.choices)}" if len(self.choices) > 1 else self.choices[0]
        elif self.items and self.items[-1] is ...:
            words = f"a list, each {self._item(0).wanted}"
        elif self.items:
            words = f"a list of {len(self.items)}, each {self._item(0).wanted}"
        elif self.pattern:
            words = self.pattern[1]
        else:
            named = {bool: "true or false", int: "a whole number", float: "a number", Fraction: "a fraction"}
            words = named.get(self.kind, "text" if self.kind is str else "a plain value")
            words += self._range()
        return " or ".join(
            [*([AUTO] if self.auto and AUTO not in self.choices else []), words, *(["null"] * self.optional)]
        )

    def _range(self) -> str:
        low = (
            f"of at least {self.least:,}"
            if self.least is not None
            else f"above {self.over:g}"
            if self.over is not None
            else ""
        )
        high = (
            f"at most {self.most:,}"
            if self.most is not None
            else f"below {self.below:g}"
            if self.below is not None
            else ""
        )
        return "".join(f" {part}" for part in (" and ".join(filter(None, (low, high))),) if part)

    def _item(self, i: int) -> Key:
        kinds = self.items
        return dataclasses.replace(self, kind=kinds[0] if kinds[-1] is ... else kinds[i], optional=False, auto=False)

    def check(self, value: Any) -> Any:
        """The value in the key's own type. Raises ValueError with a sentence that names what is wanted and what was given."""
        if (value is None and self.optional) or (self.auto and value == AUTO and isinstance(value, str)):
            return value
        if self.items:
            count = len(self.items)
            if isinstance(value, list | tuple) and (self.items[-1] is ... or len(value) == count):
                return tuple(self._item(i).check(item) for i, item in enumerate(value))
        elif (typed := self._typed(value)) is not None:
            return typed
        raise ValueError(f"must be {self.wanted}, not {shown(value)}")

    def _typed(self, value: Any) -> Any:
        """The value in the key's type, or None where it is of another or out of bounds."""
        if self.kind not in SCALARS:
            return value if isinstance(value, bool | int | float | str) else None
        if self.kind is bool or isinstance(value, bool):
            return value if self.kind is bool and isinstance(value, bool) else None
        if self.kind is str:
            fits = isinstance(value, str) and (not self.choices or value in self.choices)
            return value if fits and (not self.pattern or re.fullmatch(self.pattern[0], value)) else None
        if not isinstance(value, int | float | Fraction):
            return None
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"must be a finite number, not {value}")
        if self.kind is int:
            if value != int(value):
                return None
            if not -LARGEST <= value <= LARGEST:
                raise ValueError(f"must fit in 64 bits, which {shown(value)} does not")
        inside = (
            (self.least is None or value >= self.least)
            and (self.over is None or value > self.over)
            and (self.most is None or value <= self.most)
            and (self.below is None or value < self.below)
        )
        try:
            return self.kind(value) if inside else None
        except OverflowError:
            raise ValueError(f"must be a finite number, not {shown(value)}") from None


def key(
    says: str,
    *,
    default: Any = MISSING,
    born: Any = MISSING,
    unit: str = "",
    least: float | None = None,
    over: float | None = None,
    most: float | None = None,
    below: float | None = None,
    choices: tuple[str, ...] = (),
    pattern: tuple[str, str] | None = None,
    auto: bool = False,
    hashed: bool = True,
    axis: bool | None = None,
) -> Any:
    """A dataclass field with its definition; `says` is one plain sentence.

    A key that is `hashed` and has a default needs `born`, the default of the day on which it is introduced: a run's identity
    holds only what differs from it, so that a new key renames no run. Editing a `born` renames runs; a default may change.
    A key that is not hashed is recorded and changes no number. `axis`: whether a grid may vary it, by default all that is hashed.
    """
    if hashed and default is not MISSING and born is MISSING:
        raise TypeError(f"a hashed key with a default needs `born`: {says}")
    told = {
        "says": says,
        "unit": unit,
        "born": born,
        "least": least,
        "over": over,
        "most": most,
        "below": below,
        "choices": choices,
        "pattern": pattern,
        "auto": auto,
        "hashed": hashed,
        "axis": hashed if axis is None else axis,
    }
    metadata = {name: value for name, value in told.items() if value is not MISSING}
    if isinstance(default, dict):
        return dataclasses.field(default_factory=default.copy, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def keys_of(cls: Any) -> Mapping[str, Key]:
    """The keys of a dataclass by name, in order. Fields of a user's own dataclass need no metadata."""
    return _keys_of(cls)


@functools.cache
def _keys_of(cls: Any) -> Mapping[str, Key]:
    try:
        hints = typing.get_type_hints(cls, include_extras=True)
    except (NameError, TypeError):  # annotations that only a type checker can resolve
        hints = {}
    out = {}
    for field in dataclasses.fields(cls):
        default = field.default if field.default_factory is MISSING else field.default_factory()
        kind = hints.get(field.name, type(default) if default not in (MISSING, None) else Any)
        kind, optional, choices = _parted(kind)
        told = {name: value for name, value in field.metadata.items() if name in _TOLD}
        if choices and not told.get("choices"):
            told["choices"] = choices
        made = Key(field.name, kind, optional or default is None, default, **told)
        scalar = made.kind in SCALARS or not (made.is_section or made.items)
        out[field.name] = dataclasses.replace(made, axis=made.axis and scalar)
    return out


_TOLD = {field.name for field in dataclasses.fields(Key)} - {"name", "kind", "optional", "default"}


def _parted(kind: Any) -> tuple[Any, bool, tuple[str, ...]]:
    """A type without its None, whether it had one, and the texts of a Literal."""
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        rest = [part for part in typing.get_args(kind) if part is not type(None)]
        optional = len(rest) < len(typing.get_args(kind))
        if len(rest) > 1:
            return typing.Union[tuple(rest)], optional, ()  # noqa: UP007 - made from a list
        return _parted(rest[0])[0], optional, _parted(rest[0])[2]
    if typing.get_origin(kind) is typing.Literal and all(isinstance(value, str) for value in typing.get_args(kind)):
        return str, False, typing.get_args(kind)
    return kind, False, ()


def choices_of(cls: type, name: str) -> tuple[str, ...]:
    """The values that a key can have, where they are names."""
    return keys_of(cls)[name].choices


def shown(value: object) -> str:
    """A value as a message shows it: as YAML writes it, on one line, cut where it is long."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    try:
        text = str(value) if isinstance(value, Fraction) else repr(value)
    except ValueError:  # Python prints no integer beyond 4,300 digits
        text = "a number of thousands of digits"
    return text if len(text) <= 60 else text[:57] + "…"


_AS_THEY_ARE = frozenset({str, int, bool, type(None)})


def canonical(value: Any) -> Any:
    """A value as it is hashed: numbers by what they are and not by how they are written, so 1.0 is 1 and −0.0 is 0."""
    if type(value) in _AS_THEY_ARE:  # most values: asking what a Fraction is takes longer than all the rest
        return value
    if isinstance(value, float):
        return int(value) if value.is_integer() else value
    if isinstance(value, Fraction):
        return str(value)
    if isinstance(value, list | tuple):
        return [canonical(item) for item in value]
    return value


@functools.lru_cache(maxsize=4096)
def differing(config: Any) -> Mapping[str, Any]:
    """What of a frozen dataclass enters the identity: hashed keys whose value is not the one that they were born with.

    Ten thousand runs share a few sections, so each is looked at once.
    """
    out: dict[str, Any] = {}
    for found in keys_of(type(config)).values():
        value = getattr(config, found.name)
        if found.is_section:
            if inner := differing(value):
                out[found.name] = inner
        elif found.hashed and not is_born(found, value):
            out[found.name] = canonical(value)
    return out


def is_born(found: Key, value: Any) -> bool:
    """Whether a value leaves the identity as it is."""
    return found.born is not MISSING and canonical(value) == canonical(found.born)


def restored(cls: type, data: Mapping[str, Any]) -> Any:
    """The dataclass from a plain mapping of this or another version: what is missing is what it was born as.

    Raises TypeError naming the keys that this version does not know, or one that is needed and missing.
    """
    known = keys_of(cls)
    if unknown := sorted(set(data) - set(known)):
        raise TypeError(f"{cls.__name__}: unknown {', '.join(unknown)}; another version of scalespec has written it")
    values = {}
    for name, found in known.items():
        if name in data:
            value = data[name]
            values[name] = restored(found.kind, value) if found.is_section else tuple(value) if found.items else value
        elif found.born is not MISSING or found.default is not MISSING:
            values[name] = found.default if found.born is MISSING else found.born
        else:
            raise TypeError(f"{cls.__name__}: {name} is missing")
    return cls(**values)
