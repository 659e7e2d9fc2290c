"""The series: the segments of one event file, opened and sealed one after another.

    events.out.tfevents.1795233002...   sealed, synced
    events.out.tfevents.1795236610...   current

    home.directory()             before a segment is opened; may take a claim
    home.opened(path)            before the segment exists
    home.sealed(path, length)    when it is complete; length 0 if the name was not used after all

Invariants:
- No segment exists that was not reported as opened. Every path that was reported so is reported as sealed in the end:
  one that stays open holds back all later segments of its directory.
- A report of a seal that fails, on a full disk, is kept and repeated; seals keep their order.
- Names sort in the order of opening, whatever the clock does.
- The next segment is opened only after the one before is sealed.
- A sealed segment takes nothing more: its limit is 0, so the short way of `EventFile.append_record` refuses it.
- START is written twice: TensorBoard's Python readers ignore the first START of a directory.
- No clock tells which files are of this attempt: the first record of each names its attempt.
- A segment is full below the largest size that a file may have: RLIMIT_FSIZE, or what the filesystem has shown with
  EFBIG. A record that exceeds that size by itself is never begun twice.
"""

from __future__ import annotations

import errno
import os
import signal
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import NamedTuple, Protocol

from hf_mpwriter.base import names as names_module
from hf_mpwriter.events import framing, limits
from hf_mpwriter.events.deferred_log import DeferredLog
from hf_mpwriter.events.segment import Item, Segment
from hf_mpwriter.system import disk, process
from hf_mpwriter.system.directory import Place
from hf_mpwriter.system.interrupts import ours, suppress

SEGMENT_SHARE = 8  # a segment is sealed at one eighth of what was written, within the two limits below
SEGMENT_MIN = 16 << 20  # bytes; the home may say less
SEGMENT_MAX = 128 << 20  # bytes; TensorBoard's default reader keeps one descriptor per file, so: few files
SIZE_MARGIN = 64 << 10  # bytes that a segment keeps below the largest size of a file, so that most records fit
MOST_REPLACED = 10  # damaged segments; a filesystem that answers wrongly must not make files without end
VERSION_SIZE = len(framing.frame(framing.version_event(1.0, 16 * "0")))  # bytes of the first record
LONGEST_HEAD = 512  # bytes in which the first record of a file of ours is


class FileHome(Protocol):
    """Where event files live, and where their segments are recorded. All methods may raise OSError."""

    after: int  # second; the names of segments lie behind it, 0 for any

    @property
    def mark(self) -> str:
        """In the first record of each segment: of the attempt, "" for none."""

    @property
    def segment_min(self) -> int:
        """Bytes that the smallest segments have, unless SEGMENT_MIN is less."""

    def directory(self) -> Place:
        """The directory of the owner."""

    def opened(self, path: Place) -> None:
        """Record a segment that is about to be created."""

    def sealed(self, path: Place, length: int) -> None:
        """Record that a segment is complete."""


class Purge(NamedTuple):
    """What TensorBoard is to hide."""

    step: int  # global step; what was logged at this step and later
    unless: str = ""  # a mark; no purge if the newest event file of ours in the directory has it

    def head(self, directory: Place, names: list[str], now: float) -> bytes:
        """The framed START records, b"" if they are not wanted."""
        if not self.is_wanted(directory, names):
            return b""
        return 2 * framing.frame(framing.session_start_event(now, self.step))

    def is_wanted(self, directory: Place, names: list[str]) -> bool:
        """Whether it is to be done in a directory, which has these names."""
        newest_first = sorted(filter(names_module.is_ours, names), reverse=True) if self.unless else []
        for name in newest_first:
            if first := _first_record(directory / name):  # else it was not begun, or cannot be read
                return not framing.has_mark(first, self.unless)
        return True

    def is_pending(self, directory: Place) -> bool:
        """Whether it is still to be done in a directory, which may not exist yet; OSError if it cannot be read."""
        try:
            return self.is_wanted(directory, directory.names())
        except ours(FileNotFoundError):
            return True


class SegmentSeries:
    """The segments of one event file. Its methods are called while the event file is locked."""

    def __init__(
        self, home: FileHome, sub: str, suffix: str, log: DeferredLog, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._home = home
        self._sub = sub
        self._suffix = suffix
        self._log = log
        self._clock = clock
        self._start_fresh()

    def _start_fresh(self) -> None:
        self._reserved: Place | None = None  # was reported as opened, and is not created yet
        self._seals: deque[tuple[Place, int]] = deque()  # of what is complete and not reported yet, with the length
        self.current: Segment | None = None
        self.path: Place | None = None
        self.purge: Purge | None = None
        self.damaged: dict[Place, int] = {}
        self._opened_at = 0.0  # monotonic seconds; of the current segment
        self._sealed_bytes = 0
        self._largest = limits.UNLIMITED  # bytes of a file, as the filesystem has shown
        self._warned_of_large = False
        self._replaced = 0
        self._unsynced: set[Segment] = set()  # sealed while the disk refused to sync them

    def abandon(self) -> None:
        """Leave the segments to the parent after fork; a write that the fork interrupted finds an empty series."""
        if self.current is not None:
            self.current.close()
        self._start_fresh()

    def writable(self) -> Segment:
        """The segment for the next record; OSError if none can be opened."""
        segment = self.current
        if segment is not None and segment.end >= segment.limit:
            segment.sync()
            self.seal(segment)
        elif segment is not None and segment.fd < 0 and not segment.wake():
            self._log.warning("%s was removed or rewritten by another program; continuing in a new file", segment.path)
            self.seal(segment, segment.readable())
        return self.current or self.open()

    def revive(self) -> bool:
        """Look anew at what may be dead; whether another try is worth it. OSError if the path does not answer."""
        self._home.directory()
        if self.current is None:
            return False
        self._revive(self.current)
        return True

    def _revive(self, segment: Segment) -> None:
        if not segment.revive():
            self._log.warning("%s is not as it was left; continuing in a new file", segment.path)
            self.seal(segment, segment.readable())

    def open(self) -> Segment:
        """Open the next segment."""
        directory = self._home.directory() / self._sub
        self.report_seals()
        disk.make_dirs(directory, 0o777, durable=False)
        now, existing = time.time(), directory.names()
        head = framing.frame(framing.version_event(now, self._home.mark))
        if self.purge is not None:
            head += self.purge.head(directory, existing, now)
        limit = self._limit(len(head))
        path = self._reserved
        if path is None or path.parent != directory or path.basename in existing:
            self._release()
            least = max(now, self._home.after + 1)
            name = names_module.event_name(existing, least, process.host_name(), os.getpid(), self._suffix)
            path = directory / name
            self._home.opened(path)
            self._reserved = path
        segment = self.current = Segment(path, head, limit, self._log)
        self._opened_at = self._clock()
        self.path, self._reserved = path, None
        self.purge = None
        return segment

    # reports to the home

    def _release(self) -> None:
        """Seal the reserved path unused, if there is one."""
        path, self._reserved = self._reserved, None
        if path is not None:
            self._seals.append((path, 0))

    def report_seals(self) -> None:
        """Report what is sealed; what the home refuses stays for the next call."""
        while self._seals:
            seal = self._seals[0]
            try:
                self._home.sealed(*seal)
            except ours(Exception):
                return
            if self._seals and self._seals[0] is seal:  # else a signal handler has reported it as well
                self._seals.popleft()

    def register_again(self) -> None:
        """Report to a home that starts anew which segment is open; OSError if it refuses."""
        self._reserved = None
        if self.current is not None:
            self._home.opened(self.current.path)

    # the largest size of a file

    @property
    def is_deadly(self) -> bool:
        """Whether a write beyond the limit on file size would kill the process, as in a program that embeds Python."""
        return limits.largest_file() < limits.UNLIMITED and signal.getsignal(signal.SIGXFSZ) is signal.SIG_DFL

    def _limit(self, head: int) -> int:
        """Bytes at which a new segment is full."""
        largest = min(limits.largest_file(), self._largest)
        least = min(SEGMENT_MIN, self._home.segment_min)
        share = min(SEGMENT_MAX, max(least, self._sealed_bytes // SEGMENT_SHARE))
        return max(head + 1, min(share, largest - min(SIZE_MARGIN, largest // 8)))

    def write(self, item: Item) -> bool:
        """Write a record to the current segment, or to the next one where the file may not grow so far.

        False if no file can hold the record.
        """
        while not self._append(segment := self.writable(), item):
            if segment.is_empty or VERSION_SIZE + len(item[0]) > limits.largest_file():
                self._warn_of_large(segment, len(item[0]))
                return False
            if limits.largest_file() == limits.UNLIMITED:  # not below 1 MiB: one huge record must not make tiny files
                self._largest = max(segment.end, 1 << 20)
            segment.limit = min(segment.limit, segment.end)  # full
        return True

    def _append(self, segment: Segment, item: Item) -> bool:
        """Append a record unless the file may not grow so far; a limit below any event file counts as a full disk."""
        largest, error = limits.largest_file(), OSError(errno.EFBIG, os.strerror(errno.EFBIG), segment.path)
        if segment.end + len(item[0]) <= largest:
            try:
                segment.write(item)
            except ours(OSError) as refused:
                error = refused
            else:
                return True
        if error.errno != errno.EFBIG or largest <= VERSION_SIZE:
            raise error
        return False

    def _warn_of_large(self, segment: Segment, size: int) -> None:
        if not self._warned_of_large:
            self._warned_of_large = True
            self._log.warning(
                "%s: a record of %d bytes was dropped, and so are all others that exceed the limit on file size; "
                "`ulimit -f` tells it in kB",
                segment.path,
                size,
            )

    def seal(self, segment: Segment, readable: int | None = None) -> None:
        """Write no more to the segment; the next record opens another one."""
        self.current = None
        segment.limit = 0
        end = segment.end  # from here on nothing makes it longer, a signal handler included
        if readable is not None and readable < end:
            self.damaged[segment.path] = end
        self._seals.append((segment.path, end if readable is None else readable))
        self._sealed_bytes += end
        segment.close()
        if not segment.is_durable:
            self._unsynced.add(segment)
        self.report_seals()

    def seal_older(self, opened_before: float) -> None:
        """Seal the current segment if records are in it and it was opened before then; the next `sync` syncs it."""
        segment = self.current
        if segment is None or segment.is_empty or segment.under_way is not None or self._opened_at >= opened_before:
            return
        self.seal(segment)

    def replace_removed(self) -> bytes:
        """Seal the current segment if its file was deleted; records that were written since, and are lost with it."""
        segment = self.current
        if segment is None or segment.is_there():
            return b""
        if segment.is_dead():
            with suppress(OSError):  # the next write meets it again
                self._revive(segment)
            return b""
        self._log.warning("%s was removed while it was written; continuing in a new file", segment.path)
        saved = segment.written_since_removal()
        self.seal(segment)
        return saved

    def replace_damaged(self) -> None:
        """Seal the current segment if its file does not hold what was written."""
        segment = self.current
        if segment is None or self._replaced == MOST_REPLACED or segment.is_sound():
            return
        self._replaced += 1
        readable = segment.readable()
        self._log.warning(
            "%s was changed by another program or by the disk: of %d bytes, %d can be read; continuing in a new file",
            segment.path,
            segment.end,
            min(readable, segment.end),
        )
        self.seal(segment, readable)

    def unsynced(self, device: int) -> list[tuple[Segment, int]]:
        """The segments on a device that a power cut may shorten, each with the end of its last whole record."""
        segments = [*self._unsynced, *filter(None, [self.current])]
        return [(one, one.end) for one in segments if one.device == device and not one.is_durable]

    def sync(self) -> None:
        """Make all segments survive a power cut."""
        for segment in list(self._unsynced):
            if segment.is_there():
                segment.sync()
            if segment.is_durable or not segment.is_there():
                self._unsynced.discard(segment)
        if self.current is not None:
            self.current.sync()

    def close(self) -> None:
        """Seal the current segment."""
        self._release()
        if self.current is not None:
            self.seal(self.current)
        self.report_seals()


def sync_together(series: Iterable[SegmentSeries], run: Place) -> None:
    """Sync the whole filesystem where many segments lack that: a sync of each takes a second for a thousand of them."""
    try:
        device = os.fstat(run.directory.fd).st_dev
    except ours(OSError):  # it was removed
        return
    lacking = [one for each in series for one in each.unsynced(device)]
    if len(lacking) >= disk.MANY and disk.sync_filesystem(run, "event_file"):
        for segment, end in lacking:
            segment.note_synced(end)


def _first_record(place: Place) -> bytes:
    """The payload of the first record of a file, b"" if there is none."""
    with suppress(OSError):
        fd = disk.open_beneath(place)
        try:
            found, _ = framing.records(fd, 0, os.fstat(fd).st_size, LONGEST_HEAD)
        finally:
            os.close(fd)
        return found[0][1] if found else b""
    return b""
