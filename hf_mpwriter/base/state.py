"""State on disk and between processes: frozen dataclasses as JSON, loaded with their types.

    dataclass        {"field": value, ...}    exactly its fields, none missing, none unknown
    str              text, and bytes of a file name that are no UTF-8, as Python has them
    int, bool        as in JSON; a bool is no int
    StrEnum          its value
    float            a finite number; an int is taken
    X | None         null, or X
    tuple[X, ...]    [X, ...]; list[X] and frozenset[X] as well
    dict[str, X]     {"key": X, ...}

    a line           Name {"field": value, ...}    of one dataclass among several, on a pipe between two processes

A dataclass checks its values in `__post_init__`, by raising ValueError.

Invariants:
- What `dump` has written is what `load` returns, equal and of the same types; so with `to_line` and `from_line`.
- Damage of any kind is one exception, `DamagedError`. A power cut, a full disk or an editor can leave anything in the
  place of a file, so every caller of `load` expects it.
- What cannot be read is not damaged: its disk may come back. `is_damage` alone tells the two apart.
"""

from __future__ import annotations

import dataclasses
import errno
import functools
import json
import math
import types
import typing
from collections.abc import Callable
from enum import StrEnum
from typing import Any, TypeVar

from hf_mpwriter.system import disk
from hf_mpwriter.system.directory import Place
from hf_mpwriter.system.interrupts import ours

T = TypeVar("T")
Convert = Callable[[Any], Any]


class DamagedError(ValueError):
    """What was read is not what `dump` has written."""


def dump(obj: object) -> bytes:
    """A dataclass as JSON, in one line."""
    return json.dumps(obj, default=_encode, allow_nan=False).encode()


def _encode(obj: object) -> object:
    """What `json` does not know."""
    if isinstance(obj, frozenset):
        return sorted(obj)
    if dataclasses.is_dataclass(obj):
        kind: Any = type(obj)
        return {name: getattr(obj, name) for name in _fields(kind)}
    raise TypeError(f"{type(obj).__name__} is no state")


def load(cls: type[T], data: bytes) -> T:
    """The dataclass that `dump` has written."""
    try:
        kind: Any = cls
        loaded: T = _converter(kind)(json.loads(data))
    except ours(ValueError, OverflowError, RecursionError) as error:
        raise DamagedError(f"{cls.__name__}: {error}") from error
    return loaded


def read(cls: type[T], place: Place) -> T:
    """What is at a place; an empty one if there is none, or if it cannot be read."""
    try:
        return load(cls, disk.read(place) or b"")
    except ours(DamagedError, OSError):
        return cls()


def is_damage(error: BaseException) -> bool:
    """Whether a file cannot be read because something else is in its place, and not because of its disk."""
    return isinstance(error, DamagedError) or getattr(error, "errno", None) in (*disk.NOT_REGULAR, errno.EFBIG)


def to_line(message: object) -> bytes:
    """A dataclass as a line that `from_line` understands, without its end."""
    return b"%s %s" % (type(message).__name__.encode(), dump(message))


def from_line(kinds: tuple[type[T], ...], line: bytes) -> T | None:
    """What a line says; None if `to_line` has not written it: libraries may print on the same pipe."""
    name, _, data = line.partition(b" ")
    try:
        return next((load(kind, data) for kind in kinds if kind.__name__.encode() == name), None)
    except ours(DamagedError):
        return None


@functools.cache
def _fields(cls: Any) -> tuple[str, ...]:
    return tuple(field.name for field in dataclasses.fields(cls))


@functools.cache
def _converter(kind: Any) -> Convert:
    """What turns a value of JSON into this type, or raises ValueError."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(kind):
        return _to_dataclass(kind)
    if origin in (types.UnionType, typing.Union):
        return _to_optional(arguments)
    if origin is dict and arguments[0] is str:
        return _to_dict(_converter(arguments[1]))
    if origin in (list, frozenset) or (origin is tuple and arguments[1:] == (...,)):
        return _to_items(origin, _converter(arguments[0]))
    if (plain := _PLAIN.get(kind)) is not None:
        return plain
    if issubclass(kind, StrEnum):
        return typing.cast("Convert", kind)
    raise TypeError(f"state of type {kind} cannot be loaded")


def _exactly(kind: type, value: Any) -> Any:
    if type(value) is not kind:
        raise ValueError(f"{value!r:.80} is no {kind.__name__}")
    return value


def _to_text(value: Any) -> str:
    text: str = _exactly(str, value)
    if not text.isascii():  # half of a character: no path, URL or stream takes it
        text.encode(errors="surrogateescape")
    return text


def _to_float(value: Any) -> float:
    if type(value) not in (int, float) or not math.isfinite(value):
        raise ValueError(f"{value!r:.80} is no finite number")
    return float(value)


_PLAIN: dict[Any, Convert] = {
    str: _to_text,
    int: functools.partial(_exactly, int),
    bool: functools.partial(_exactly, bool),
    float: _to_float,
}


def _to_optional(arguments: tuple[Any, ...]) -> Convert:
    (kind,) = (argument for argument in arguments if argument is not types.NoneType)
    convert = _converter(kind)
    return lambda value: None if value is None else convert(value)


def _to_items(make: Callable[[Any], Any], convert: Convert) -> Convert:
    return lambda value: make(convert(item) for item in _exactly(list, value))


def _to_dict(convert: Convert) -> Convert:
    return lambda value: {_to_text(key): convert(item) for key, item in _exactly(dict, value).items()}


def _to_dataclass(cls: Any) -> Convert:
    hints = typing.get_type_hints(cls)
    converters = {name: _converter(hints[name]) for name in _fields(cls)}

    def convert(value: Any) -> Any:
        if _exactly(dict, value).keys() != converters.keys():
            raise ValueError(f"{cls.__name__} has other fields than {', '.join(value) or 'none'}"[:200])
        return cls(**{name: converter(value[name]) for name, converter in converters.items()})

    return convert
