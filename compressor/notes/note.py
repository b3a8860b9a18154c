"""What every note can do: become JSON, and be read back from reports of other versions, whatever they hold.

The fields of a note are its JSON keys, in this order. Writing leaves out what is None where None is the default.
Reading leaves out what has another type than the field: the default takes its place, else None or an empty value, and a
record that misses a number is left out as a whole.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from functools import cache
from types import NoneType, UnionType
from typing import Any, ClassVar, Self, Union, get_args, get_origin, get_type_hints

from compressor.errors import plain

# What the reader takes where a field without a default is missing or odd.
_EMPTY = {tuple: (), Mapping: {}, str: "", bool: False}


class _OddError(ValueError):
    """A value is not of the type that it should have."""


@dataclass(frozen=True, kw_only=True)
class Note:
    """A kind of thing that stages tell of themselves. Its fields are entries of a step's details.

    A kind with a `key` is one entry of that name instead, an object of its fields.
    """

    key: ClassVar[str] = ""

    @classmethod
    def entries(cls) -> tuple[str, ...]:
        """The names of its entries in the details."""
        return (cls.key,) if cls.key else tuple(item.name for item in fields(cls))

    def to_json(self) -> dict[str, Any]:
        """Its entries in the details, as JSON values."""
        told: dict[str, Any] = as_json(self)
        return {self.key: told} if self.key else told

    @classmethod
    def from_json(cls, details: Mapping[str, Any]) -> Self | None:
        """What `details` tell of this kind, without what is odd; None where they tell nothing, or not enough."""
        own = {name: details[name] for name in cls.entries() if name in details}
        given = own.get(cls.key) if cls.key else own
        try:
            found: Self | None = _record(cls, given) if given else None
        except ValueError:
            return None
        return found


def as_json(value: Any) -> Any:
    """`value` with records as objects, tuples as lists, and texts without the colours of a terminal."""
    if is_dataclass(value) and not isinstance(value, type):
        pairs = [(item, getattr(value, item.name)) for item in fields(value)]
        return {item.name: as_json(entry) for item, entry in pairs if entry is not None or item.default is not None}
    if isinstance(value, Mapping):
        return {str(key): as_json(entry) for key, entry in value.items()}
    if isinstance(value, str):
        return plain(value)
    return [as_json(entry) for entry in value] if isinstance(value, tuple | list) else value


@cache
def _hints(kind: type) -> Mapping[str, Any]:
    return get_type_hints(kind)


def _record(kind: Any, given: Any) -> Any:
    if not isinstance(given, Mapping):
        raise _OddError
    return kind(**{item.name: _field(item, _hints(kind)[item.name], given.get(item.name)) for item in fields(kind)})


def _field(item: Field[Any], hint: Any, value: Any) -> Any:
    try:
        return _value(hint, value)
    except ValueError:
        if item.default is not MISSING:
            return item.default
        kind = get_origin(hint) or hint
        if kind not in _EMPTY:
            raise
        return _EMPTY[kind]


def _value(hint: Any, value: Any) -> Any:
    """`value` as `hint` says. Raises _OddError where it is something else."""
    kind, parts = get_origin(hint), get_args(hint)
    if hint is Any:
        return value
    if kind in {Union, UnionType}:
        return _first_that_reads(parts, value)
    if value is None:
        raise _OddError
    if kind is tuple:
        if not isinstance(value, list | tuple):
            raise _OddError
        return tuple(_those_that_read(parts[0], value))
    if kind is Mapping:
        if not isinstance(value, Mapping):
            raise _OddError
        return dict(_pairs_that_read(parts, value))
    if is_dataclass(hint):
        return _record(hint, value)
    if hint in {int, float}:
        number = _number(value)
        return number if hint is float else round(number)
    return hint(value)


def _first_that_reads(kinds: tuple[Any, ...], value: Any) -> Any:
    for kind in kinds:
        if kind is not NoneType:
            try:
                return _value(kind, value)
            except ValueError:
                continue
    if NoneType in kinds:
        return None
    raise _OddError


def _those_that_read(kind: Any, values: Any) -> Iterator[Any]:
    for value in values:
        try:
            yield _value(kind, value)
        except ValueError:
            continue


def _pairs_that_read(kinds: tuple[Any, ...], values: Mapping[Any, Any]) -> Iterator[tuple[Any, Any]]:
    for key, value in values.items():
        try:
            yield _count(key) if kinds[0] is int else str(key), _value(kinds[1], value)
        except ValueError:
            continue


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise _OddError
    return float(value)


def _count(key: Any) -> int:
    """A key of a JSON object that counts something."""
    if not (isinstance(key, str) and key.isascii() and key.isdigit() and len(key) < 4):
        raise _OddError
    return int(key)
