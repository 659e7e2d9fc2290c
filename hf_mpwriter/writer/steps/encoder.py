"""The step encoder: many scalars as one event, encoded by hand.

    Event(wall_time, step, summary=[Value(tag, simple_value), Value(tag, simple_value), ...])

Everything but time, step and numbers is the same in all records with these names, so it is encoded once. One call packs
a record whose step is from 1 to 2 ** 21 - 1, a varint of up to three bytes.

Invariant: the record is byte-identical to what the protobuf classes write.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable

from crc32c import crc32c

from hf_mpwriter.events import framing

_FLOAT = struct.Struct("<f")
_PACK_U32 = struct.Struct("<I").pack


class StepEncoder:
    """Encodes the values of some tags.

    Args:
        tags: as they go into the file.
    """

    __slots__ = ("_field", "_headers", "_one", "_parts", "_start", "_three", "_two")

    def __init__(self, tags: Iterable[str]) -> None:
        heads = [framing.value_head(tag.encode()) for tag in tags]
        start = b"\x2a" + framing.varint(struct.calcsize(_format("", heads)))
        heads[0] = start + heads[0]
        self._field, self._start = struct.Struct(_format("", heads)).pack, len(start)
        formats = [_format("BdB" + length * "B", heads) for length in range(1, 4)]
        self._one, self._two, self._three = [struct.Struct(one).pack for one in formats]
        self._headers = [framing.header(struct.calcsize(one)) for one in formats]
        self._parts: list[bytes | float] = [part for head in heads for part in (head, 0.0)]

    def record(self, wall_time: float | None, step: int, values: Iterable[float]) -> bytes:
        """Return the record, framed.

        Args:
            wall_time: unix time in seconds, None for none.
            step: global step.
            values: one per tag; stored as float32, infinite if it is too large.

        Raises:
            ValueError: the step does not fit into 64 bits.
        """
        parts = self._parts.copy()
        parts[1::2] = values
        try:
            if not wall_time or step <= 0 or step >= 0x200000:
                return framing.frame(framing.summary_event(wall_time, step, self.summary(values)))
            if step < 0x80:
                payload, length = self._one(9, wall_time, 16, step, *parts), 0
            elif step < 0x4000:
                payload, length = self._two(9, wall_time, 16, step & 0x7F | 0x80, step >> 7, *parts), 1
            else:
                low, high = step & 0x7F | 0x80, step >> 7 & 0x7F | 0x80
                payload, length = self._three(9, wall_time, 16, low, high, step >> 14, *parts), 2
        except OverflowError:
            return self.record(wall_time, step, [*map(_within_float32, values)])
        crc = crc32c(payload)
        return self._headers[length] + payload + _PACK_U32((((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF)

    def summary(self, values: Iterable[float]) -> bytes:
        """Return the summary alone, see `record`."""
        parts = self._parts.copy()
        parts[1::2] = map(_within_float32, values)
        return self._field(*parts)[self._start :]


def _format(start: str, heads: list[bytes]) -> str:
    return f"<{start}" + "".join([f"{len(head)}sf" for head in heads])


def _within_float32(value: float) -> float:
    try:
        _FLOAT.pack(value)
    except OverflowError:
        return math.copysign(math.inf, value)
    return value
