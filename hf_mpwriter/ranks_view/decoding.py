"""Decoding: scalars and purges in the bytes of an event file, quickly and without protobuf classes.

    chunk  --Decoder.read-->  Decoded(wall_time, step, tags, values)     one per record that has scalars
                              Decoded(wall_time, step, None, ())         SessionLog START
                              end of the last whole record

The records of one `log` differ in their step and in the bytes of their numbers only. So what was parsed once is kept as
a layout, a `struct` that takes the numbers out; what lies between them is compared, so no record is taken for another:

    2a len | 0a len 0a len "loss" 15 | number | 0a len 0a len "accuracy" 15 | number
    -------------- mark -------------          ----------------- mark -----------------

Invariants:
- A record is taken only if both its checksums hold, as TensorBoard does.
- What is no scalar is passed over: a histogram, an image, a damaged protobuf. So is a value that is a tensor, as this
  library writes none for a scalar.
- The memory for layouts is bounded.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple

from hf_mpwriter.events import framing

MOST_LAYOUTS = 4096  # that are kept; beyond that, records are parsed without one
MOST_ALIKE = 16  # of one length
AROUND = framing.HEADER_SIZE + framing.FOOTER_SIZE  # bytes of a record beside its payload

_DOUBLE = struct.Struct("<d")
_FLOAT = struct.Struct("<f")
_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")
_WALL_TIME, _STEP, _SUMMARY, _SESSION_LOG = 0x09, 0x10, 0x2A, 0x3A  # keys of the fields of an event
_VALUE, _TAG, _SIMPLE_VALUE = 0x0A, 0x0A, 0x15  # of a summary, and of a value
_STATUS, _START = 0x08, 1  # of a session log
_LEAST = 9  # bytes of an event with a wall time


class Decoded(NamedTuple):
    """What one record says."""

    wall_time: float  # unix time in seconds
    step: int  # global step
    tags: tuple[str, ...] | None  # of the scalars; None for START
    values: tuple[float, ...]  # of the scalars
    start: int  # offset of the record in its chunk


class Read(NamedTuple):
    """What a chunk says."""

    rows: list[Decoded]  # in their order
    end: int  # of the last whole record in the chunk
    needed: int  # bytes of the record behind it, 0 if that is not known; below 0 if it is damaged


class _Layout:
    """Records of the same tags and lengths."""

    __slots__ = ("marks", "tags", "unpack")

    def __init__(self, data: bytes, places: list[int], tags: tuple[str, ...]) -> None:
        form, position = "<", 0
        for place in places:
            form += f"{place - position}sf"
            position = place + 4
        self.unpack = struct.Struct(f"{form}{len(data) - position}s").unpack
        self.marks, self.tags = self.unpack(data)[::2], tags


class Decoder:
    """Decodes records; one for all files, as the ranks log the same tags."""

    def __init__(self) -> None:
        self._count = 0
        self._single: dict[bytes, tuple[str, ...]] = {}  # what stands before the number of a record with one
        self._by_length: dict[int, list[_Layout]] = {}

    def read(self, chunk: bytes) -> Read:
        """The scalars of all whole records of a chunk, which begins with a record."""
        rows: list[Decoded] = []
        position, size, view = 0, len(chunk), memoryview(chunk)
        header, crc, length_at, crc_at = framing.header, framing.masked_crc, _U64.unpack_from, _U32.unpack_from
        while position + framing.HEADER_SIZE <= size:
            (length,) = length_at(chunk, position)
            if length >= 1 << 63 or not chunk.startswith(header(length), position):
                return Read(rows, position, -1)
            end = position + AROUND + length
            if end > size:
                return Read(rows, position, AROUND + length)
            begin = position + framing.HEADER_SIZE
            if crc_at(chunk, end - framing.FOOTER_SIZE)[0] != crc(view[begin : end - framing.FOOTER_SIZE]):
                return Read(rows, position, -1)
            row = self._row(chunk[begin : end - framing.FOOTER_SIZE], position)
            if row is not None:
                rows.append(row)
            position = end
        return Read(rows, position, 0)

    def _row(self, payload: bytes, start: int) -> Decoded | None:
        """A record, None if it says nothing here."""
        if len(payload) <= _LEAST or payload[0] != _WALL_TIME:
            return None
        position, step = _LEAST, 0
        try:
            if payload[position] == _STEP:
                step, position = _varint(payload, position + 1)
                step = step - (1 << 64) if step >= 1 << 63 else step
            key = payload[position]
            if key == _SUMMARY:
                tags, values = self._scalars(payload[position:])
                return Decoded(_DOUBLE.unpack_from(payload, 1)[0], step, tags, values, start) if tags else None
            if key == _SESSION_LOG and _is_start(payload, position):
                return Decoded(_DOUBLE.unpack_from(payload, 1)[0], step, None, (), start)
        except (IndexError, ValueError, struct.error):  # no event, or none that anything of ours writes
            pass
        return None

    def _scalars(self, data: bytes) -> tuple[tuple[str, ...], tuple[float, ...]]:
        """Tags and numbers in a summary field, which has to be the last one of its event."""
        known = self._single.get(data[:-4])
        if known is not None:
            return known, _FLOAT.unpack_from(data, len(data) - 4)
        alike = self._by_length.get(len(data), ())
        for layout in alike:
            found = layout.unpack(data)
            if found[::2] == layout.marks:
                return layout.tags, found[1::2]
        return self._parsed(data)

    def _parsed(self, data: bytes) -> tuple[tuple[str, ...], tuple[float, ...]]:
        """As `_scalars`, of a layout that is not known; it is kept if there is nothing but scalars in it."""
        tags, places, is_plain = _places(data)
        if is_plain and tags and self._count < MOST_LAYOUTS:
            alike = self._by_length.setdefault(len(data), [])
            if places == [len(data) - 4]:
                self._single[data[:-4]] = tags
                self._count += 1
            elif len(alike) < MOST_ALIKE:
                alike.append(_Layout(data, places, tags))
                self._count += 1
        return tags, tuple(_FLOAT.unpack_from(data, place)[0] for place in places)


def _varint(data: bytes, position: int) -> tuple[int, int]:
    """A varint, and where it ends."""
    value = shift = 0
    while shift < 70:
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & 0xFFFFFFFFFFFFFFFF, position
        shift += 7
    raise ValueError("no varint")


def _fields(data: bytes, position: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Of each field of a message: its key, and where its content begins and ends; a varint's is the number itself."""
    while position < end:
        key, position = _varint(data, position)
        kind = key & 7
        if kind == 0:
            value, position = _varint(data, position)
            yield key, value, position
            continue
        size = {1: 8, 5: 4}.get(kind)
        if kind == 2:
            size, position = _varint(data, position)
        if size is None or position + size > end:
            raise ValueError("no message")
        yield key, position, position + size
        position += size


def _places(data: bytes) -> tuple[tuple[str, ...], list[int], bool]:
    """Of a summary field: the tags of its scalars, where their numbers stand, and whether it holds nothing else."""
    size, begin = _varint(data, 1)
    if begin + size != len(data):
        raise ValueError("the summary is not the last field")
    tags, places, is_plain = list[str](), list[int](), True
    for key, start, end in _fields(data, begin, len(data)):
        tag, place = "", -1
        for inner, at, to in _fields(data, start, end) if key == _VALUE else ():
            if inner == _TAG:
                tag = data[at:to].decode()
            elif inner == _SIMPLE_VALUE:
                place = at
        if place < 0 or not tag:
            is_plain = False
        else:
            tags.append(tag)
            places.append(place)
    return tuple(tags), places, is_plain


def _is_start(payload: bytes, position: int) -> bool:
    """Whether a session log is START."""
    size, begin = _varint(payload, position + 1)
    fields = _fields(payload, begin, begin + size)
    return any(key == _STATUS and value == _START for key, value, _ in fields)
