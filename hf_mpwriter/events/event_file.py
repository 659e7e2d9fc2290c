"""The event file: keeps records in one directory, to which no other process appends.

    append_record  --short way-->  Segment                    lock, one `os.write`, count
         |
         +--long way-->  Backlog  --_drain-->  SegmentSeries  opens and seals segments, registers them with the home

The long way is for everything unusual: no segment yet, a full one, a disk that refuses, an interrupted write, a record
logged inside another's write. There is no buffer and no thread. While the disk refuses, it is tried again after 1 s,
2 s, 4 s ... 16 s, and the newest records are dropped for which the process has no memory. A descriptor whose mount was
away is dead for ever: where a write fails as it does on such a one, the file is opened again by its path.

Invariants:
- When `append` returns, the record is with the kernel, or it waits in the backlog because the disk refuses writes, or
  it is counted in `dropped`. `append` never raises OSError, and waits for nothing but the disk. One exception: a
  record that a signal handler logs while the interrupted call opens or mends a segment is written by that call.
- A file never holds a torn record in its middle.
- A segment is created at the first record, or when its path is needed.
- Warnings are logged after the lock is released: a log handler may log events in turn.
"""

from __future__ import annotations

import errno
import math
import os
import time
from collections import deque
from collections.abc import Callable

from hf_mpwriter.base.timing import USUAL, Timing
from hf_mpwriter.events import framing
from hf_mpwriter.events.boundary import Boundary
from hf_mpwriter.events.deferred_log import logger
from hf_mpwriter.events.limits import Limits
from hf_mpwriter.events.segment import NOTHING, Item, Segment
from hf_mpwriter.events.series import FileHome, Purge, SegmentSeries
from hf_mpwriter.system import process_state
from hf_mpwriter.system.directory import DEAD, Place
from hf_mpwriter.system.interrupts import ours

LOOK_EVERY = 3.0  # seconds
OUT_OF_DESCRIPTORS = (errno.EMFILE, errno.ENFILE)  # of the process, of the system


class Backlog:
    """The records of one event file that wait, oldest first. One leaves after it was written, or it is counted."""

    def __init__(self, limits: Limits, timing: Timing = USUAL) -> None:
        self._limits, self._timing = limits, timing
        self.items: deque[Item] = deque()  # one record each; the first, perhaps all that a removed file has lost
        self.records = self.size = self.dropped = 0
        self.retry_after = self.retry_at = 0.0
        self.last_error = ""  # why the disk refused last

    def add(self, item: Item) -> None:
        """Let a record wait."""
        self.items.append(item)
        self.records += 1
        self.size += len(item[0])

    def add_first(self, item: Item) -> None:
        """Let records wait before all others."""
        count, size = framing.count(item[0]), len(item[0])
        self.items.appendleft(item)
        self.records += count
        self.size += size

    def remove_first(self) -> int:
        """Remove the oldest item, which was written; so many records."""
        item = self.items.popleft()
        count = framing.count(item[0])
        self.records = self.records - count if self.items else 0
        self.size = self.size - len(item[0]) if self.items else 0
        return count

    def drop_first(self) -> None:
        """Drop the oldest item, which no file can hold."""
        count = self.remove_first()
        self.dropped += count

    def trim(self) -> None:
        """Drop the newest records that the memory limit has no room for."""
        while not self._limits.has_room(self, self.size) and self.items:
            item = self.items.pop()
            count = framing.count(item[0])
            self.records -= count
            self.size -= len(item[0])
            self.dropped += count

    def give_up(self) -> None:
        """Drop all records."""
        lost = self.records
        self.items.clear()
        self.records = self.size = 0
        self._limits.clear(self)
        self.dropped += lost

    def refused(self, now: float, why: str) -> None:
        """Plan the next try."""
        self.last_error = why
        self.retry_after = min(self._timing.disk_retry_longest, 2 * self.retry_after or self._timing.disk_retry_first)
        self.retry_at = now + self.retry_after

    def accepted(self) -> bool:
        """Note that the disk has accepted all records; True if it had refused one before."""
        self._limits.clear(self)
        if not self.retry_after:
            return False
        self.retry_at = self.retry_after = 0.0
        return True

    @property
    def error(self) -> str:
        """Why the disk refused last, "" while it accepts records."""
        return self.last_error if self.retry_after else ""


class EventFile:
    """The event files of one directory that this process writes."""

    def __init__(
        self,
        home: FileHome,
        sub: str = "",
        suffix: str = "",
        limits: Limits | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
        timing: Timing = USUAL,
    ) -> None:
        self._clock, self._timing = clock, timing
        self._is_main = not sub
        self._log = logger
        self._series = SegmentSeries(home, sub, suffix, self._log, clock)
        self._limits = limits or Limits()
        self._boundary = Boundary(lambda: "the first event file")
        self._lock = process_state.thread_lock()
        self._start_fresh()

    def _start_fresh(self) -> None:
        self._busy = False  # inside `_drain`
        self._close_requested = False  # while busy
        self._backlog = Backlog(self._limits, self._timing)
        self._next_look = 0.0  # monotonic seconds; at the path of a descriptor that may be dead
        self._usual: Segment | None = None  # the segment that takes the short way; None: records go the long way

    # append

    def append(self, payload: bytes) -> None:
        """Keep one record, given by its payload."""
        self.append_record(framing.frame(payload))

    def append_record(self, record: bytes) -> None:
        """Keep one record, framed."""
        item, size = (record,), len(record)
        try:
            with self._lock:
                segment = self._usual
                if segment is not None and segment.under_way is None and segment.committed[0] < segment.limit:
                    segment.under_way = item
                    try:
                        written = os.write(segment.fd, record) == size
                    except ours(OSError):  # the long way meets it again, and warns
                        written = False
                    if written:
                        if segment.under_way is item:  # no call before all is counted: signal handlers run at calls
                            segment.committed = (segment.committed[0] + size, item)
                            segment.under_way = None
                        else:  # a signal handler has logged meanwhile
                            segment.count(item)
                        return
                self._backlog.add(item)
                if not self._busy:  # else a signal handler logs inside `_drain`, which goes on with this record
                    self._drain()
            self._log.flush()
        except ours(Exception) as error:  # as in `Boundary`, which would cost a call
            self._failed(item, error)

    def _failed(self, item: Item, error: Exception) -> None:
        """Take in that something failed around a record: what neither waits nor may be written is dropped."""
        segment, backlog = self._series.current, self._backlog
        begun = (NOTHING, NOTHING) if segment is None else (segment.under_way, segment.committed[1])
        if not any(item is one for one in (*begun, *backlog.items)):
            backlog.dropped += 1
        self._boundary.tell(error, self.path)

    def _drain(self) -> None:
        """Write the backlog, and what a signal handler adds meanwhile."""
        self._drain_once()
        while self._backlog.items and not self._backlog.retry_after:
            self._drain_once()
        self._count_descriptor()
        if self._close_requested:
            self._close()

    def _drain_once(self) -> None:
        """Write each record exactly once, whatever interrupts in between."""
        try:
            self._busy = True
            self._usual = None
            if self._clock() < self._backlog.retry_at or not self._write_backlog():
                self._backlog.trim()
                return
            recovered = self._backlog.accepted()
            self._usual = None if self._series.is_deadly else self._series.current
            if recovered and self._limits.is_calm:
                self._log.warning("%s: the disk accepts event records again", self.path)
        finally:
            self._busy = False

    def _write_backlog(self) -> bool:
        backlog = self._backlog  # of this process: a signal handler may fork, and the child starts with an empty one
        try:
            if self._series.current is not None:
                self._series.current.mend()
            while backlog.items:
                item = backlog.items[0]
                segment = self._series.current
                if (segment is not None and item is segment.committed[1]) or self._series.write(item):
                    backlog.remove_first()
                else:
                    backlog.drop_first()
        except ours(Exception) as error:  # of any kind: then the records wait as well
            number = getattr(error, "errno", None)
            has_room = number in OUT_OF_DESCRIPTORS and self._limits.rest_all(but=self)
            if has_room or (number in DEAD and self._revives()):
                return self._write_backlog()
            self._refuse(error)
            return False
        return True

    def _revives(self) -> bool:
        """Whether the descriptor was dead and another one lives; the path is asked now and then only."""
        now = self._clock()
        if now < self._next_look:
            return False
        self._next_look = now + LOOK_EVERY
        try:
            return self._series.revive()
        except ours(OSError):
            return False

    def _refuse(self, error: Exception) -> None:
        why = str(getattr(error, "strerror", None) or (error if isinstance(error, OSError) else repr(error)))
        if not self._backlog.retry_after and self._limits.is_calm:  # one warning, however many files it meets
            self._log.warning(
                "%s: the disk refuses event records (%s); up to %.1f MiB wait in memory",
                self.path or getattr(error, "filename", None) or "the first event file",
                why,
                self._limits.memory / (1 << 20),
            )
        self._usual = None
        self._backlog.refused(self._clock(), why)

    # descriptor

    def _count_descriptor(self) -> None:
        segment = self._series.current
        if segment is not None and segment.fd >= 0:
            self._limits.opened(self, is_main=self._is_main)
        else:
            self._limits.closed(self)

    def rest(self) -> bool:
        """Close the descriptor until the next record, unless it is in use; True if it was closed."""
        held = list[bool]()
        try:
            held.extend(map(self._lock.acquire, [False]))  # taken and noted in one step of C: no signal handler between
            segment = self._series.current
            if not held[0] or self._busy or segment is None or not segment.rest():
                return False
            self._usual = None
            return True
        finally:
            if any(held):
                self._lock.release()

    # state

    @property
    def path(self) -> str:
        """Path of the last segment, "" before the first."""
        return str(self.place or "")

    @property
    def place(self) -> Place | None:
        """Place of the last segment, None before the first."""
        return self._series.path

    @property
    def is_open(self) -> bool:
        """Whether there is a segment to append to."""
        return self._series.current is not None

    @property
    def length(self) -> int:
        """Bytes of whole records in the open segment."""
        segment = self._series.current
        return segment.end if segment else 0

    @property
    def waiting(self) -> int:
        """Records in the backlog."""
        return self._backlog.records

    @property
    def segments(self) -> SegmentSeries:
        """Its segments."""
        return self._series

    @property
    def error(self) -> str:
        """Why the disk refused the records in the backlog, "" while it accepts records."""
        return self._backlog.error

    @property
    def last_error(self) -> str:
        """Why the disk refused records last, "" if it never did."""
        return self._backlog.last_error

    @property
    def dropped(self) -> int:
        """Records that the disk refused for good."""
        return self._backlog.dropped

    @property
    def damaged(self) -> dict[Place, int]:
        """Bytes that were written to each file that holds less now."""
        return self._series.damaged

    # what the owner asks for

    def purge(self, step: int, unless: str = "") -> None:
        """Make TensorBoard hide what was logged until now in this directory at this step and later.

        `unless`: see `Purge`. A child that takes over the directory of an earlier one must not hide what that
        one logged in this attempt.
        """
        with self._lock:
            if self._series.current is None:
                self._series.purge = Purge(step, unless)
                return
        for start in 2 * [framing.session_start_event(time.time(), step)]:
            self.append(start)

    def pending_purge(self, directory: Place) -> int | None:
        """The step of a purge that the next segment begins with, None if there is none."""
        with self._lock:
            purge = self._series.purge
        return purge.step if purge is not None and purge.is_pending(directory) else None

    def ensure_open(self) -> None:
        """Open a segment although nothing is logged yet: for the START in it, or because its name is asked for."""
        with self._lock:
            if self._series.current is None and not self._busy:
                try:
                    self._series.open()
                    self._count_descriptor()
                except ours(Exception) as error:  # the first record tries again
                    self._log.warning("no event file can be opened yet: %s", error)
        self._log.flush()

    def _unless_busy(self, step: Callable[[], object]) -> None:
        """Do a step under the lock; not inside another write, as in a signal handler."""
        with self._lock:
            if not self._busy:
                step()
        self._log.flush()

    def flush(self) -> None:
        """Make what was appended survive a power cut."""
        self._unless_busy(self._flush)

    def _flush(self) -> None:
        self._backlog.retry_at = 0.0
        self._check()
        self._series.sync()

    def check(self) -> None:
        """Replace a segment that was deleted by a new one; try again what the disk has refused."""
        self._unless_busy(self._check)

    def _check(self) -> None:
        self._series.report_seals()
        if saved := self._series.replace_removed():
            self._backlog.add_first((saved,))
        self._series.replace_damaged()
        segment = self._series.current
        self._count_descriptor()
        if self._backlog.items or (segment is not None and segment.under_way is not None):
            self._drain()

    def seal_older(self, opened_before: float = math.inf) -> None:
        """Seal the segment if records are in it and it was opened before then, in monotonic seconds; sync nothing."""
        self._unless_busy(lambda: self._series.seal_older(opened_before))

    def close(self) -> None:
        """Seal the segment; an `append` afterwards opens the next one."""
        with self._lock:
            if self._busy:  # a signal handler closes inside `_drain`, which does it at its end
                self._close_requested = True
            else:
                self._close()
        self._log.flush()

    def _close(self) -> None:
        self._close_requested, self._next_look = False, 0.0
        self._flush()
        self._series.close()
        self._limits.closed(self)

    def give_up(self) -> None:
        """Drop and count what the disk has refused until now."""
        with self._lock:
            if not self._busy and self._backlog.retry_after:
                self._backlog.give_up()

    def register_again(self) -> None:
        """Report the open segment to a home that starts anew; OSError if the home refuses."""
        with self._lock:
            self._series.register_again()
            self._backlog.retry_at = 0.0  # perhaps only the home had refused

    def abandon(self) -> None:
        """Leave the file to the parent after fork: close the inherited descriptor, forget what waits."""
        self._series.abandon()
        self._start_fresh()
