"""The step encoder: many scalars as one event, encoded by hand.

    Event(wall_time, step, summary=[Value(tag, simple_value), Value(tag, simple_value), ...])

Everything but time, step and numbers is the same in all records with these names. So each byte of a record is a place
in a table of 256 bytes, which one call packs and one call looks up:

    table    time | step | number, number, ... | the bytes that names and fields are made of, each once
    form     places in the table, one per byte of the record:   form.translate(table) -> record

In training no cache holds what a step touches. A form, a table and a handful of fields to pack are a few hundred bytes
beside each other, however many names there are; a template of each name is an object of its own.

Invariant: the record is byte-identical to what the protobuf classes write.

The cache of step encoders, per names in their order.

    this dictionary  --is full-->  old  --is replaced by the next full one-->  gone
      ^------is used again---------'

Two generations keep what was used last, without a note of each use: a hit is one look into a dictionary.

Invariants:
- Sets of names that fit into one generation all stay, in whatever order they are used.
- Beside the set that was used last, no more than two generations are kept.
- Threads need no lock: the worst that a race does is to encode names once more.

Metrics: what is given to `log`, as names and numbers.

{"loss": tensor(0.5), "eval": {"acc": 1}}  -->  ("loss", "eval/acc"), [0.5, 1.0]
"""

from __future__ import annotations

import contextlib
import math
import numbers
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from crc32c import crc32c
from tensorboardX.summary import _clean_tag

from hf_mpwriter.events import framing
from hf_mpwriter.writer.values import as_number

_TABLE = 256  # bytes: all that a byte of a form can tell apart
_TIME, _STEP = bytes(range(8)), bytes(range(8, 12))  # their places
_NUMBERS = 12  # the place of the first number
_SHORT_STEPS = 1 << 21  # below it, the varint of a step has three bytes at most
_FLOAT = struct.Struct("<f")
_PACK_U32 = struct.Struct("<I").pack
GENERATION = 32_768  # names of a generation
SET_COST = 16  # names that each set counts in addition: many small sets take memory too

Names = tuple[str, ...]
_PLAIN = frozenset([float, int, bool, np.float16, np.float32, np.float64, np.int32, np.int64])  # `float` takes them
_TEXT = (str, bytes, bytearray)  # `add_scalar` takes numbers in them; here they are more likely a mistake


class StepEncoder:
    """Encodes the values of some tags."""

    __slots__ = ("_blocks", "_constants", "_count", "_pack", "_shapes", "_short_steps")

    def __init__(self, tags: Iterable[str]) -> None:
        heads = [framing.value_head(tag.encode()) for tag in tags]
        self._count = len(heads)
        start = b"\x2a" + framing.varint(sum(map(len, heads)) + 4 * self._count)
        self._blocks = [*_blocks(heads, b"\x09\x10" + start)]
        block = self._blocks[0]
        self._pack, self._constants = block.pack, block.constants
        forms = [
            block.places(b"\x09") + _TIME + block.places(b"\x10") + _STEP[:length] + block.places(start) + block.form
            for length in range(1, 4)
        ]
        self._shapes = tuple([(framing.header(len(form)), form) for form in forms])  # by the length of the step
        self._short_steps = _SHORT_STEPS if len(self._blocks) == 1 else 0  # 0: always the long way

    def record(self, wall_time: float | None, step: int, values: Sequence[float]) -> bytes:
        """Return the record, framed."""
        if not wall_time or step <= 0 or step >= self._short_steps:
            return self._any_record(wall_time, step, values)
        if step < 0x80:
            varint, (header, form) = step, self._shapes[0]
        elif step < 0x4000:
            varint, (header, form) = step & 0x7F | 0x80 | step >> 7 << 8, self._shapes[1]
        else:
            varint, (header, form) = step & 0x7F | 0x8080 | (step & 0x3F80) << 1 | step >> 14 << 16, self._shapes[2]
        try:
            table = self._pack(wall_time, varint, *values, self._constants)
        except (OverflowError, struct.error):  # a number beyond float32, or not one per tag
            return self._any_record(wall_time, step, values)
        payload = form.translate(table)
        crc = crc32c(payload)
        return header + payload + _PACK_U32((((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF)

    def _any_record(self, wall_time: float | None, step: int, values: Sequence[float]) -> bytes:
        return framing.frame(framing.summary_event(wall_time, step, self.summary(values)))

    def summary(self, values: Sequence[float]) -> bytes:
        """Return the summary alone, see `record`."""
        if len(values) != self._count:
            raise ValueError(f"{self._count} names, but a set of values of size {len(values)}")
        try:
            return self._filled(values)
        except OverflowError:
            return self._filled([*map(_within_float32, values)])

    def _filled(self, values: Sequence[float]) -> bytes:
        parts, first = list[bytes](), 0
        for block in self._blocks:
            last = first + block.count
            parts.append(block.form.translate(block.pack(0.0, 0, *values[first:last], block.constants)))
            first = last
        return b"".join(parts)


class _Block:
    """Neighbours in a summary whose numbers and other bytes fit into one table."""

    __slots__ = ("constants", "count", "form", "pack")

    def __init__(self, heads: Sequence[bytes], more: bytes) -> None:
        self.count = len(heads)  # of its numbers
        self.constants = bytes(sorted(set(more).union(*heads)))  # the bytes that are no numbers
        before = _NUMBERS + 4 * self.count
        # makes the table of time, step, numbers and constants
        self.pack = struct.Struct(f"<dI{self.count}f{_TABLE - before}s").pack
        numbers = [bytes(range(first, first + 4)) for first in range(_NUMBERS, before, 4)]
        # places of all its bytes
        self.form = b"".join([self.places(head) + number for head, number in zip(heads, numbers, strict=True)])

    def places(self, data: bytes) -> bytes:
        """The places of some bytes."""
        first = _NUMBERS + 4 * self.count
        return bytes([first + self.constants.index(byte) for byte in data])


def _blocks(heads: Sequence[bytes], more: bytes) -> Iterator[_Block]:
    """The blocks of a summary: as many heads in each as fit into one table, together with other bytes.

    One always fits: names in an event file have no control characters, so there is room beside all other bytes.
    """
    some, used = list[bytes](), {*more}
    for head in heads:
        used.update(head)
        if some and _NUMBERS + 4 * (len(some) + 1) + len(used) > _TABLE:
            yield _Block(some, more)
            some, used = [], {*more, *head}
        some.append(head)
    yield _Block(some, more)


def _within_float32(value: float) -> float:
    try:
        _FLOAT.pack(value)
    except OverflowError:
        return math.copysign(math.inf, value)
    return value


class EncoderCache(dict[Names, StepEncoder]):
    """The encoders of the names that were logged last; an encoder that is not there is made."""

    def __init__(self) -> None:
        super().__init__()
        self._old: dict[Names, StepEncoder] = {}
        self._size = 0

    def __missing__(self, names: Names) -> StepEncoder:
        """Return the encoder of an older generation, or a new one."""
        encoder = self[names] = self._old.get(names) or StepEncoder(tags_of(names))
        self._size += len(names) + SET_COST
        if self._size > GENERATION:
            self._old, self._size = self.copy(), 0
            self.clear()
        return encoder

    @property
    def kept(self) -> int:
        """How many names are kept, those of both generations once."""
        return sum(map(len, {**self._old, **self}))


def read(metrics: Mapping[str, Any]) -> tuple[tuple[str, ...], list[float]]:
    """Return names and numbers, in the order of the mapping; `log` does it itself for a dictionary of floats."""
    if type(metrics) is not dict and not isinstance(metrics, Mapping):
        raise TypeError(f"metrics is of type {type(metrics).__name__}, not a mapping of names to scalars")
    names, values = (*metrics,), [*metrics.values()]
    if _PLAIN.issuperset(map(type, values)):
        with contextlib.suppress(OverflowError):  # an integer that is too large for a float
            return names, [*map(float, values)]
    leaves = list(_leaves(metrics, ""))
    return tuple([name for name, _ in leaves]), [number for _, number in leaves]


def _leaves(metrics: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, float]]:
    for name, value in metrics.items():
        path = prefix + _checked(name)
        if type(value) is float:
            yield path, value
        elif isinstance(value, Mapping):
            yield from _leaves(value, f"{path}/")
        else:
            yield path, _number(path, value)


def _checked(name: Any) -> str:
    if not isinstance(name, str):
        raise TypeError(f"the name {name!r} is of type {type(name).__name__}, not a string")
    return name


def _number(name: str, value: Any) -> float:
    is_complex = isinstance(value, numbers.Complex) and not isinstance(value, numbers.Real)
    try:
        number = None if is_complex or isinstance(value, _TEXT) else as_number(value)
    except (TypeError, ValueError):  # a timedelta64, a signaling NaN of a Decimal
        number = None
    if number is None:
        shape = getattr(value, "shape", None)
        kind = type(value).__name__ + (f" of shape {tuple(shape)}" if shape else "")
        raise TypeError(f"{name!r} is no scalar: {kind}")
    return number


def tags_of(names: tuple[str, ...]) -> list[str]:
    """Return the names as they go into the file: what TensorBoard does not take becomes an underscore."""
    tags: dict[str, str] = {}
    for name in names:
        tag = _clean_tag(_checked(name))
        if tag in tags:
            raise ValueError(f"{tags[tag]!r} and {name!r} are the same name in the event file: {tag!r}")
        tags[tag] = name
    return list(tags)
