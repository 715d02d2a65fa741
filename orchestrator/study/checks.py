"""From definitions of keys to checks: pydantic models are generated from dataclasses, so that no key is listed twice."""

from __future__ import annotations

import dataclasses
import functools
import types
import typing
from collections.abc import Mapping
from fractions import Fraction
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Discriminator, PlainValidator, Tag, create_model

from scalespec.orchestrator.study.numbers import fraction, number
from scalespec.trainables.keys import AUTO, SCALARS, Key, keys_of


@dataclasses.dataclass(frozen=True)
class Overrides:
    """Marks a mapping in which any key of `section` may stand; a number may be a mapping with the keys of `reading`."""

    section: type
    reading: type | None = None


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


def checked(cls: type, raw: Any) -> Any:
    """The dataclass from plain values. Raises pydantic's ValidationError, whose places are key paths."""
    return _instance(cls, model_of(cls).model_validate(raw))


@functools.cache
def model_of(cls: type) -> type[Section]:
    """The pydantic model with the keys of a dataclass."""
    fields: dict[str, Any] = {}
    for key in keys_of(cls).values():
        fields[key.name] = (annotation(key), ... if key.default is dataclasses.MISSING else key.default)
    return create_model(cls.__name__, __base__=Section, **fields)


def annotation(key: Key) -> Any:
    """What pydantic checks of a key."""
    if key.kind in SCALARS or (key.items and key.items[0] in SCALARS):
        return Annotated[Any, PlainValidator(functools.partial(value_of, key))]
    found = _adapted(key.kind)
    return found | None if key.optional else found


def value_of(key: Key, raw: Any) -> Any:
    """A value as written in the key's own type. Raises ValueError with the sentence that is shown."""
    if key.auto and raw == AUTO:
        return raw
    parse = {int: number, float: number, Fraction: fraction}.get(key.items[0] if key.items else key.kind)
    if parse is not None and raw is not None:
        if key.items and key.items[-1] is ... and not isinstance(raw, list | tuple):
            raw = [raw]
        many = key.items and isinstance(raw, list | tuple)
        try:
            raw = [parse(item) for item in raw] if many else raw if key.items else parse(raw)
        except ValueError as error:
            raise ValueError(f"must be {key.wanted}; {error}") from None
    return key.check(raw)


def _adapted(kind: Any) -> Any:
    """pydantic's type for what is no scalar: sections, mappings and tuples of them, a list or a section, overrides."""
    arguments = typing.get_args(kind)
    if dataclasses.is_dataclass(kind):
        return Annotated[model_of(kind), AfterValidator(functools.partial(_instance, kind))]  # type: ignore[arg-type]
    if isinstance(overrides := arguments[-1] if arguments else None, Overrides):
        return Annotated[_partial_of(overrides), AfterValidator(_written)]
    origin = typing.get_origin(kind)
    if origin is Mapping:
        return dict[str, _adapted(arguments[1])]  # type: ignore[misc]
    if origin is tuple:
        return tuple[_adapted(arguments[0]), ...]  # type: ignore[misc]
    if origin in (types.UnionType, typing.Union) and any(typing.get_origin(part) is list for part in arguments):
        section = next(part for part in arguments if dataclasses.is_dataclass(part))
        return Annotated[
            Annotated[list[Any], Tag("[list]")] | Annotated[_adapted(section), Tag("[section]")],
            Discriminator(lambda value: "[list]" if isinstance(value, list) else "[section]"),
        ]
    return kind


@functools.cache
def _partial_of(overrides: Overrides) -> type[Section]:
    """The model in which every key of a section may be absent, and a number may be a reading."""
    fields: dict[str, Any] = {}
    for key in keys_of(overrides.section).values():
        if key.is_section:
            nested = _partial_of(Overrides(key.kind))
            fields[key.name] = (Annotated[nested, AfterValidator(_written)], None)
        elif overrides.reading is not None and key.is_number:
            fields[key.name] = (_or_reading(key, overrides.reading), None)
        else:
            fields[key.name] = (annotation(key), None)
    return create_model(overrides.section.__name__, __base__=Section, **fields)


def _or_reading(key: Key, reading: type) -> Any:
    return Annotated[
        Annotated[annotation(key), Tag("[value]")] | Annotated[_adapted(reading), Tag("[reading]")],
        Discriminator(lambda value: "[reading]" if isinstance(value, dict | reading) else "[value]"),
    ]


def _written(model: BaseModel) -> dict[str, Any]:
    """Only what was given."""
    return {name: getattr(model, name) for name in type(model).model_fields if name in model.model_fields_set}


def _instance(cls: Any, model: BaseModel) -> Any:
    return cls(**{name: getattr(model, name) for name in type(model).model_fields})


def plain(value: Any) -> Any:
    """A dataclass as what YAML and JSON write: mappings, lists, texts and numbers."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {name: plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return str(value) if isinstance(value, Fraction) else value
