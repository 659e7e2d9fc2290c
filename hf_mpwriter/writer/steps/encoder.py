"""The step encoder: many scalars as one event, encoded by hand.

    Event(wall_time, step, summary=[Value(tag, simple_value), Value(tag, simple_value), ...])

Everything but time, step and numbers is the same in all records with these names. So each byte of a record is a place
in a table of 256 bytes, which one call packs and one call looks up:

    table    time | step | number, number, ... | the bytes that names and fields are made of, each once
    form     places in the table, one per byte of the record:   form.translate(table) -> record

In training no cache holds what a step touches. A form, a table and a handful of fields to pack are a few hundred bytes
beside each other, however many names there are; a template of each name is an object of its own.

Invariant: the record is byte-identical to what the protobuf classes write.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable, Iterator, Sequence

from crc32c import crc32c

from hf_mpwriter.events import framing

_TABLE = 256  # bytes: all that a byte of a form can tell apart
_TIME, _STEP = bytes(range(8)), bytes(range(8, 12))  # their places
_NUMBERS = 12  # the place of the first number
_SHORT_STEPS = 1 << 21  # below it, the varint of a step has three bytes at most
_FLOAT = struct.Struct("<f")
_PACK_U32 = struct.Struct("<I").pack


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
