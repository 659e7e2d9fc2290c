"""Output: the derived event file, and what is known from it when it is continued.

    append(points)   one record per step
    rewind(step)     START, twice: TensorBoard's Python readers hide what was derived of this step and later ones
    seal()           it is complete; what follows goes into the next file

Invariants:
- It is an event file as that of a worker: segments of `events/series`, named by host and process. A process never
  appends to a file that it did not create.
- That it grows is on disk before it exists, see `spool/workers/derived`.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterable, Mapping

from hf_mpwriter.base import names
from hf_mpwriter.events import framing
from hf_mpwriter.events.deferred_log import logger
from hf_mpwriter.events.series import SEGMENT_MIN, SegmentSeries
from hf_mpwriter.ranks_view.aligning import BEFORE, Point
from hf_mpwriter.ranks_view.decoding import Decoder
from hf_mpwriter.ranks_view.encoding import Encoder
from hf_mpwriter.ranks_view.tags import origin
from hf_mpwriter.spool.layout import HostSpool
from hf_mpwriter.spool.workers import derived
from hf_mpwriter.system import disk
from hf_mpwriter.system.directory import Directory, Place

TOGETHER = 256 << 10  # bytes that are written at once
CHUNK = 256 << 10  # bytes that are read at once


class _Home:
    """What the series asks of the owner of its files."""

    after, segment_min = 0, SEGMENT_MIN

    def __init__(self, place: Place, host: HostSpool) -> None:
        self._place, self._host = place, host

    def directory(self) -> Place:
        """The directory of the derived files."""
        return self._place

    def opened(self, path: Place) -> None:
        """Record a file that is about to be made."""
        derived.record(self._host, path.name)

    def sealed(self, path: Place, length: int) -> None:  # noqa: ARG002 - the interface of all homes
        """Record that it is complete."""
        derived.clear(self._host)


class Output:
    """The derived event file."""

    def __init__(self, run: Directory, folder: str, host: HostSpool) -> None:
        self._place = Place(run, folder)
        self._series = SegmentSeries(_Home(self._place, host), "", "", logger)
        self._encoder = Encoder()

    def append(self, points: Iterable[Point]) -> None:
        """Append points, in the order of their steps; OSError if the disk refuses."""
        parts, size = list[bytes](), 0
        for _, record in self._encoder.records(points):
            parts.append(record)
            size += len(record)
            if size >= TOGETHER:
                self._write(b"".join(parts))
                parts, size = [], 0
        if parts:
            self._write(b"".join(parts))

    def rewind(self, step: int) -> None:
        """Let readers hide this step and later ones; OSError if the disk refuses."""
        self._write(2 * framing.frame(framing.session_start_event(time.time(), step)))

    def _write(self, data: bytes) -> None:
        self._series.replace_removed()
        self._series.write((data,))

    def seal(self) -> None:
        """Complete the file."""
        with contextlib.suppress(OSError):
            self._series.sync()
        self._series.close()

    @property
    def end(self) -> dict[str, int]:
        """How long each derived file is; OSError if the directory cannot be read."""
        found = {}
        for name in self._names():
            with contextlib.suppress(FileNotFoundError):
                found[name] = (self._place / name).stat().st_size
        return found

    def _names(self) -> list[str]:
        try:
            return sorted(filter(names.is_event_file, self._place.names()))
        except FileNotFoundError:
            return []

    def newest_second(self) -> int:
        """The second in the name of the newest derived file, 0 if there is none."""
        return max(map(names.event_second, self._names()), default=0)

    def emitted(self, known: Mapping[str, int], ends: Mapping[str, int]) -> dict[str, int]:
        """The last step per tag of which there is a point."""
        decoder, last = Decoder(), dict(known)
        for name in self._names():
            try:
                fd = disk.open_beneath(self._place / name)
            except OSError as error:
                if error.errno in disk.NOT_REGULAR:
                    continue
                raise
            try:
                position = ends.get(name, 0)
                while chunk := os.pread(fd, CHUNK, position):
                    read = decoder.read(chunk)
                    if not read.end and len(chunk) < read.needed <= disk.READ_LIMIT:
                        read = decoder.read(os.pread(fd, read.needed, position))
                    if not read.end:
                        break
                    position += read.end
                    for row in read.rows:
                        _take(last, row.step, row.tags)
            finally:
                os.close(fd)
        return {tag: step for tag, step in last.items() if step > BEFORE}


def _take(last: dict[str, int], step: int, names_there: tuple[str, ...] | None) -> None:
    """Take in a derived record, or START."""
    if names_there is None:
        last.update({tag: min(known, step - 1) for tag, known in last.items()})
        return
    for name in names_there:
        if (base := origin(name)) is not None:
            last[base] = step
