"""The last step that is on disk: the event files of one directory, from the newest to the oldest.

    chunk | chunk | chunk      one file: framed from its beginning, then searched
              <-- searched     from its last whole record backwards

Invariants:
- The answer is that of a parse of all files from their beginning, in the order in which TensorBoard reads them.
- No more than a chunk and one record are held in memory, and of a long one no more than `framing` gives.
- Files of another user are left out: they may be as long as a number can tell, and training waits.
- Of a tag that no file mentions, nothing is framed; a file is left out that mentions neither the tag nor a START.
"""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Generator, Mapping

from google.protobuf.message import DecodeError
from tensorboardX.proto.event_pb2 import Event, SessionLog

from hf_mpwriter.base.files import owners
from hf_mpwriter.base.names import is_event_file
from hf_mpwriter.events import framing
from hf_mpwriter.system import disk
from hf_mpwriter.system.directory import Place
from hf_mpwriter.system.interrupts import ours

CHUNK = framing.CHUNK  # bytes that are held at a time
SEARCHED = 256 << 10  # bytes that are searched for a tag at a time: what the caches of a processor hold
_START = b"\x3a\x02\x08\x01"  # of SessionLog START in an event


def last_step(
    directory: Place,
    tag: str | None = None,
    lengths: Mapping[str, int] | None = None,
    hidden_from: int | None = None,
    only_scalars: bool = False,
) -> int | None:
    """The step of the last record in a directory that no START hides; None if there is no such record.

    `tag`: of the record; None for any. Then step 0, which is also that of a record without one, counts only if
    there is no other. `lengths`: where the whole records end of files that this process writes.
    """
    search, known = _Search(tag, hidden_from, only_scalars=only_scalars), lengths or {}
    if not search.is_over and _any_has_tag(directory, search):
        with contextlib.closing(_files(directory)) as files:
            for name, fd in files:
                search.read(fd, known.get(name, os.fstat(fd).st_size))
                if search.is_over:
                    break
    return search.found if search.found is not None else search.stepless


def _any_has_tag(directory: Place, search: _Search) -> bool:
    with contextlib.closing(_files(directory)) as files:
        return any(search.has_tag(fd) for _, fd in files)


def _files(directory: Place) -> Generator[tuple[str, int], None, None]:
    """The event files from the newest to the oldest: name, and a descriptor until the next one is asked for."""
    users = owners(directory.directory)
    for name in sorted(_names(directory), reverse=True):
        try:
            fd = disk.open_beneath(directory / name)
        except ours(FileNotFoundError):
            continue
        except ours(OSError) as error:
            if error.errno in disk.NOT_REGULAR:
                continue
            raise
        try:
            if os.fstat(fd).st_uid in users:
                yield name, fd
        finally:
            os.close(fd)


def _names(directory: Place) -> list[str]:
    try:
        return directory.scan(keep=is_event_file)[1]
    except ours(FileNotFoundError):
        return []


class _Search:
    """What was found so far, of files from the newest to the oldest."""

    def __init__(self, tag: str | None, hidden_from: int | None, *, only_scalars: bool) -> None:
        self._tag, self._hidden_from, self._only_scalars = tag, hidden_from, only_scalars
        self.found: int | None = None  # the answer
        self.stepless: int | None = None  # the answer if nothing else is found
        name = (tag or "").encode()
        self._mark = b"\x0a" + framing.varint(len(name)) + name if name else b"\x2a"  # of the tag; of any summary

    @property
    def is_over(self) -> bool:
        """Whether older records change nothing."""
        return self.found is not None or (self._hidden_from is not None and self._hidden_from <= 0)

    def has_tag(self, fd: int) -> bool:
        """Whether a file has the tag anywhere, as bytes; true without one."""
        return self._tag is None or _has(fd, (self._mark,))

    def read(self, fd: int, end: int) -> None:
        """Search a file backwards, up to a length."""
        if self._tag is not None and not _has(fd, (self._mark, _START)):
            return
        starts = [0]
        while (stop := _next_stop(fd, starts[-1], end)) > starts[-1]:
            starts.append(stop)
        for start, stop in reversed(list(itertools.pairwise(starts))):
            for _, payload in reversed(framing.records(fd, start, stop, stop - start)[0]):
                if not self.is_over and (_START in payload or self._mark in payload):
                    self._take(payload)
            if self.is_over:
                return

    def _take(self, payload: bytes) -> None:
        """Take in a record that is older than all before."""
        if _START not in payload and self._is_hidden(framing.step_of(payload)):
            return
        try:
            event = Event.FromString(payload)
        except ours(DecodeError):  # a long record, of which step and tag are here, or not of protobuf
            if len(payload) == framing.BEGINNING:
                self.found = framing.step_of(payload)
            return
        if event.HasField("session_log"):
            if event.session_log.status == SessionLog.START and not self._is_hidden(event.step):
                self._hidden_from = event.step
        elif not self._is_hidden(event.step):
            self._consider(event)

    def _is_hidden(self, step: int | None) -> bool:
        """Whether a step surely does not matter; a purge may hide millions of records."""
        return step is not None and self._hidden_from is not None and step >= self._hidden_from

    def _consider(self, event: Event) -> None:
        values = event.summary.value
        if self._tag is not None:
            if any(value.tag == self._tag for value in values):
                self.found = event.step
        elif values and event.step > 0:
            self.found = event.step
        elif values and self.stepless is None and (not self._only_scalars or values[0].HasField("simple_value")):
            self.stepless = event.step


def _next_stop(fd: int, start: int, end: int) -> int:
    """Where the whole records of the next chunk end; at its start if there is none."""
    stop = framing.whole_length(fd, start, min(end, start + CHUNK))
    return stop if stop > start else framing.records(fd, start, end, CHUNK)[1]  # one record may be longer


def _has(fd: int, marks: tuple[bytes, ...]) -> bool:
    """Whether a file has one of these bytes anywhere."""
    overlap, position = max(map(len, marks)) - 1, 0
    while chunk := os.pread(fd, min(SEARCHED + overlap, framing.HELD), position):
        if any(mark in chunk for mark in marks):
            return True
        position += SEARCHED
    return False
