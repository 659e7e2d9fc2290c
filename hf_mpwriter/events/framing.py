"""Framing: records of a tfevents file, hand-encoded scalars, and the end of the last whole record.

A tfevents file is a sequence of records, each one protobuf `Event`:

    length   uint64, little endian
    crc      uint32, masked crc32c of the length
    payload  `length` bytes
    crc      uint32, masked crc32c of the payload

The first record of a file holds `file_version: "brain.Event:2"`. A reader stops at a torn or damaged record and never
returns to that file, so only whole records may be published.

Invariants:
- What is encoded by hand here is byte-identical to what the protobuf classes write.
- Whatever a header announces, at most HELD bytes of a file are held: a longer record is checked in pieces. One above
  LONGEST_RECORD is damage, and nothing of it is read.
"""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

os.environ.setdefault("CRC32C_SW_MODE", "auto")  # as tensorboardX does: no warning on a CPU without the instruction

from crc32c import crc32c

from hf_mpwriter.system.interrupts import ours
from hf_mpwriter.system.process import READ_LIMIT, open_above

CHUNK = 1 << 20  # bytes read at once when records are parsed
HELD = READ_LIMIT  # bytes of a file that are held at most; of a longer record only the beginning is
BEGINNING = 64 << 10  # bytes of it: in them are step and tag
LONGEST_RECORD = 2 << 30  # bytes of a payload; no program can make or parse a longer protobuf message
HEADER_SIZE = 12  # bytes: length and its crc
FOOTER_SIZE = 4  # bytes: crc of the payload
_DAMAGED = -1  # in place of the size of a record
SHORT_STEPS = 1 << 21  # below it, the varint of a step has three bytes at most
_CACHED_LENGTHS = 4096  # framing headers kept, one for each payload length below this

_WALL_TIME, _STEP = 0x09, 0x10  # what stands before these in an event

_U64 = struct.Struct("<Q")
_U32 = struct.Struct("<I")
_HEADER = struct.Struct("<QI")
_DOUBLE = struct.Struct("<d")
_FLOAT = struct.Struct("<f")
_PACK_U32 = _U32.pack
_headers: dict[int, bytes] = {}


def masked_crc(data: bytes | memoryview) -> int:
    """crc32c, rotated and offset as the record format requires."""
    return _masked(crc32c(data))


def _masked(crc: int) -> int:
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def _header(length: int) -> bytes:
    packed = _U64.pack(length)
    header = packed + _U32.pack(masked_crc(packed))
    if length < _CACHED_LENGTHS:
        _headers[length] = header
    return header


def header(length: int) -> bytes:
    """What stands before a payload of `length` bytes."""
    return _headers.get(length) or _header(length)


def frame(payload: bytes) -> bytes:
    """One record, ready for one write."""
    crc = crc32c(payload)
    return header(len(payload)) + payload + _U32.pack((((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF)


def varint(value: int) -> bytes:
    """Protobuf's varint of a non-negative integer."""
    if value < 0x80:
        return bytes((value,))
    if value < 0x4000:
        return bytes((value & 0x7F | 0x80, value >> 7))
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _step_field(step: int | None) -> bytes:
    if not step:  # proto3 leaves out a zero
        return b""
    if not -(1 << 63) <= step < 1 << 63:
        raise ValueError(f"global_step {step} does not fit into 64 bits")
    return b"\x10" + varint(step & 0xFFFFFFFFFFFFFFFF)


class ScalarEncoder:
    """Encodes `Event(wall_time, step, summary=[Value(tag, simple_value)])` as framed records.

    Between step and value, all records of a tag have the same bytes, so they are encoded once. A step below 2 ** 21
    (a varint of up to three bytes) is packed together with everything else in one call.
    """

    __slots__ = ("_head", "_header", "_middle", "_one", "_three", "_two")

    def __init__(self, tag: str) -> None:
        self._head = value_head(tag)
        middle = self._middle = b"\x2a" + varint(len(self._head) + 4) + self._head
        self._one = struct.Struct(f"<BdBB{len(middle)}sf").pack
        self._two = struct.Struct(f"<BdBBB{len(middle)}sf").pack
        self._three = struct.Struct(f"<BdBBBB{len(middle)}sf").pack
        size = struct.calcsize(f"<BdB{len(middle)}sf")
        self._header = [_header(size + length) for length in range(4)]  # by the length of the step

    def record(self, wall_time: float, step: int | None, value: float) -> bytes:
        """One record, framed."""
        try:
            if wall_time == 0 or step is None or step <= 0 or step >= SHORT_STEPS:
                return frame(summary_event(wall_time, step, self._head + _FLOAT.pack(value)))
            if step < 0x80:
                payload, length = self._one(9, wall_time, 16, step, self._middle, value), 1
            elif step < 0x4000:
                payload = self._two(9, wall_time, 16, step & 0x7F | 0x80, step >> 7, self._middle, value)
                length = 2
            else:
                low, high = step & 0x7F | 0x80, step >> 7 & 0x7F | 0x80
                payload, length = self._three(9, wall_time, 16, low, high, step >> 14, self._middle, value), 3
        except ours(OverflowError):
            return self.record(wall_time, step, math.copysign(math.inf, value))
        crc = crc32c(payload)
        return self._header[length] + payload + _PACK_U32((((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF)


class StepEncoder:
    """Encodes the values of several tags as one framed record, in the same way."""

    __slots__ = ("_header", "_heads", "_pack", "_parts")

    def __init__(self, tags: Iterable[str]) -> None:
        self._heads = [value_head(tag) for tag in tags]
        start = b"\x2a" + varint(sum(map(len, self._heads)) + 4 * len(self._heads))
        constants = [start + self._heads[0], *self._heads[1:]]
        self._parts = [part for constant in constants for part in (constant, 0.0)]  # each with a place for its number
        values = "".join(f"{len(constant)}sf" for constant in constants)
        layouts = [struct.Struct(f"<BdB{step}{values}") for step in ("B", "H", "HB")]  # by the length of the step
        self._pack = [layout.pack for layout in layouts]
        self._header = [header(layout.size) for layout in layouts]

    def record(self, wall_time: float | None, step: int, values: Sequence[float]) -> bytes:
        """One record, framed; ValueError if there is not one value for each tag."""
        parts = self._parts.copy()
        parts[1::2] = values
        try:
            if not wall_time or step <= 0 or step >= SHORT_STEPS:
                return frame(summary_event(wall_time, step, self.summary(values)))
            if step < 0x80:
                payload, length = self._pack[0](9, wall_time, 16, step, *parts), 0
            elif step < 0x4000:
                payload, length = self._pack[1](9, wall_time, 16, step & 0x7F | 0x80 | step >> 7 << 8, *parts), 1
            else:
                low = step & 0x7F | 0x8080 | (step & 0x3F80) << 1
                payload, length = self._pack[2](9, wall_time, 16, low, step >> 14, *parts), 2
        except ours(OverflowError):
            return self.record(wall_time, step, [*map(_as_float32, values)])
        crc = crc32c(payload)
        return self._header[length] + payload + _PACK_U32((((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF)

    def summary(self, values: Sequence[float]) -> bytes:
        """The summary alone, as a tool that intercepts events is to see it."""
        return b"".join(head + _FLOAT.pack(_as_float32(value)) for head, value in zip(self._heads, values, strict=True))


def _as_float32(value: float) -> float:
    """A value that a float32 can hold: one that is too large becomes infinite."""
    try:
        _FLOAT.pack(value)
    except ours(OverflowError):
        return math.copysign(math.inf, value)
    return value


def summary_event(wall_time: float | None, step: int | None, summary: bytes) -> bytes:
    """Payload of `Event(wall_time, step, summary)`."""
    when = b"" if wall_time is None or wall_time == 0 else b"\x09" + _DOUBLE.pack(wall_time)  # proto3 leaves out a zero
    return b"".join((when, _step_field(step), b"\x2a", varint(len(summary)), summary))


def value_head(tag: str) -> bytes:
    """What stands before the four bytes of a float in `Summary(value=[Value(tag, simple_value), ...])`."""
    data = tag.encode()
    field = b"\x0a" + varint(len(data)) + data if data else b""  # proto3 leaves out an empty one
    return b"\x0a" + varint(len(field) + 5) + field + b"\x15"


def scalars(values: Iterable[tuple[str, float]]) -> bytes:
    """`Summary(value=[Value(tag, simple_value), ...])`, serialized."""
    return b"".join(value_head(tag) + _FLOAT.pack(value) for tag, value in values)


def version_event(wall_time: float, mark: str = "") -> bytes:
    """Payload of the first record of every file; `mark`: goes into it as the name of its writer."""
    return b"\x09" + _DOUBLE.pack(wall_time) + b"\x1a\x0dbrain.Event:2" + _source_metadata(mark)


def _source_metadata(mark: str) -> bytes:
    writer = f"hf_mpwriter {mark}".encode()
    return b"\x52" + varint(len(writer) + 2) + b"\x0a" + varint(len(writer)) + writer if mark else b""


def has_mark(payload: bytes, mark: str) -> bool:
    """Whether the first record of a file has a mark."""
    return bool(mark) and payload.endswith(_source_metadata(mark))


def session_start_event(wall_time: float, step: int) -> bytes:
    """Payload of SessionLog START: TensorBoard's Python readers drop what they have read at `step` and later."""
    return b"\x09" + _DOUBLE.pack(wall_time) + _step_field(step) + b"\x3a\x02\x08\x01"


def step_of(payload: bytes) -> int | None:
    """The step of an event, None if it has no summary. Fields come in the order of their numbers."""
    at, step = 9 if payload[:1] == bytes([_WALL_TIME]) else 0, 0
    if payload[at : at + 1] == bytes([_STEP]):
        at, shift = at + 1, 0
        while at < len(payload):
            byte = payload[at]
            step |= (byte & 0x7F) << shift
            at, shift = at + 1, shift + 7
            if byte < 0x80:
                break
        step -= (step >> 63) << 64  # as two's complement
    return step if payload[at : at + 1] == b"\x2a" else None


class WholeEnd(NamedTuple):
    """Where the whole records of a file end."""

    offset: int  # behind the last record that is complete and whose two checksums hold
    # whether a checksum does not hold in what comes next. If not, it is nothing, or the beginning of a record:
    # ordinary after a kill, and while a writer writes
    is_damaged: bool


def ending(fd: int, start: int = 0, end: int | None = None) -> WholeEnd:
    """Where the whole records end, and what comes next."""
    position = start
    while True:
        chunk = os.pread(fd, CHUNK if end is None else min(CHUNK, end - position), position)
        used, needed = whole_records(chunk)
        if used == 0 and needed > len(chunk) and (end is None or position + needed <= end):
            used, needed = _long_record(fd, needed, position)
        if used == 0:
            return WholeEnd(position, needed == _DAMAGED)
        position += used


def whole_length(fd: int, start: int = 0, end: int | None = None) -> int:
    """The offset behind the last whole record, see `ending`."""
    return ending(fd, start, end).offset


def announced(fd: int, position: int) -> int:
    """Bytes of the record there, as its header says; 0 if that is not whole."""
    return whole_records(os.pread(fd, HEADER_SIZE, position))[1]


def count(data: bytes) -> int:
    """The number of records in bytes of whole ones."""
    number = position = 0
    while position < len(data):
        position += HEADER_SIZE + _U64.unpack_from(data, position)[0] + FOOTER_SIZE
        number += 1
    return number


def holds(chunk: bytes) -> bool:
    """Whether all checksums in a part of a file hold that starts with a record; its last record may be cut off."""
    return whole_records(chunk)[1] != _DAMAGED


def _long_record(fd: int, size: int, position: int) -> tuple[int, int]:
    """As `whole_records`, of one record, which is read in pieces."""
    if position + size > os.fstat(fd).st_size:
        return 0, size
    crc, at, last = 0, position + HEADER_SIZE, position + size - FOOTER_SIZE
    piece = memoryview(bytearray(min(CHUNK, size)))
    while at < last and (count := os.preadv(fd, [piece[: last - at]], at)):
        crc, at = crc32c(piece[:count], crc), at + count
    footer = os.pread(fd, FOOTER_SIZE, last)
    if len(footer) < FOOTER_SIZE:  # it was cut meanwhile
        return 0, size
    return (size, 0) if _U32.unpack(footer)[0] == _masked(crc) else (0, _DAMAGED)


def whole_records(chunk: bytes) -> tuple[int, int]:
    """Bytes of whole records at the start of `chunk`, and the size of the record after them.

    The size is 0 if there is none or its header is cut off, _DAMAGED if a checksum does not hold, or if it is too long.
    """
    view = memoryview(chunk)
    position, size = 0, len(chunk)
    unpack_header, unpack_crc, lengths = _HEADER.unpack_from, _U32.unpack_from, dict[int, int]()
    while position + HEADER_SIZE <= size:
        length, crc = unpack_header(chunk, position)
        if lengths.get(length) != crc:  # most records have one of a few lengths
            if crc != masked_crc(view[position : position + 8]):
                return position, _DAMAGED
            lengths[length] = crc
        last = position + HEADER_SIZE + length
        end = last + FOOTER_SIZE
        if end > size:
            return position, end - position if length <= LONGEST_RECORD else _DAMAGED
        crc = crc32c(view[position + HEADER_SIZE : last])
        if unpack_crc(chunk, last)[0] != (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF:
            return position, _DAMAGED
        position = end
    return position, 0


def records(fd: int, start: int, end: int, size: int = CHUNK) -> tuple[list[tuple[int, bytes]], int]:
    """The whole records of about `size` bytes, or one that is longer: offset and payload; and where they end.

    Of a record longer than HELD, the payload is cut after BEGINNING bytes.
    """
    chunk = os.pread(fd, min(size, end - start, HELD), start)
    used, needed = whole_records(chunk)
    if not used and len(chunk) < needed <= end - start:
        if needed > HELD:
            used, _ = _long_record(fd, needed, start)
            return [(start, chunk[HEADER_SIZE : HEADER_SIZE + BEGINNING])] if used else [], start + used
        chunk = os.pread(fd, min(needed, HELD), start)
        used, _ = whole_records(chunk)
    return [(start + at, payload) for at, payload in _payloads(chunk, used)], start + used


def payloads(path: str | int, end: int | None = None) -> Iterator[bytes]:
    """The payloads of all whole records of a file, given by its path or open; as `records` has them."""
    with open(path, "rb", opener=open_above) as file:
        position, end = 0, os.fstat(file.fileno()).st_size if end is None else end
        while position < end:
            found, behind = records(file.fileno(), position, end)
            if behind == position:
                return
            position = behind
            yield from (payload for _, payload in found)


def _payloads(data: bytes, used: int) -> Iterator[tuple[int, bytes]]:
    """Offset and payload of each of the whole records that take so many bytes."""
    position = 0
    while position < used:
        (length,) = _U64.unpack_from(data, position)
        yield position, data[position + HEADER_SIZE : position + HEADER_SIZE + length]
        position += HEADER_SIZE + length + FOOTER_SIZE


def middle(fd: int, start: int, end: int) -> int:
    """The end of a whole record about halfway between two ends of records, 0 if there is none in between."""
    middle = whole_length(fd, start, (start + end) // 2)
    if middle == start:  # the first record takes more than half
        size = int.from_bytes(os.pread(fd, 8, start), "little")
        middle += HEADER_SIZE + size + FOOTER_SIZE
    return middle if middle < end else 0
