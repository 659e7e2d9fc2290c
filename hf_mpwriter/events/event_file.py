"""Event files: the append-only side. One `os.write` per record, no buffer, no thread.

An `EventFile` is a series of segments in one directory, written by this process alone:

    events.out.tfevents.1795233002...   sealed
    events.out.tfevents.1795236610...   open        <- appended here

A record takes the short way: lock, write, count. Whatever is not as usual (no segment yet, a full one, a disk that
refuses, an interrupted write, a record logged inside another's write) sends it the long way, through the waiting line.

Invariants:
- When `append` returns, the record is with the kernel, or it waits in bounded memory because the disk refuses
  writes, or it is counted in `dropped`. `append` never raises OSError and never waits. One exception: a record that a
  signal handler logs while the interrupted call opens or mends a segment is written by that call.
- A file never holds a torn record in its middle.
- A segment is opened `O_EXCL` at its first record and never by a process that did not create it. The next one is
  opened only after the one before is sealed. Every segment is announced before it exists.
- START is written twice: TensorBoard's Python readers ignore the first START of a directory.
"""

from __future__ import annotations

import logging
import math
import os
import threading
import time
from collections import deque
from collections.abc import Callable

from hf_mpwriter.base import names as names_module
from hf_mpwriter.events import framing
from hf_mpwriter.events.limits import Limits
from hf_mpwriter.events.segment import Item, Segment
from hf_mpwriter.system import disk, process

logger = logging.getLogger("hf_mpwriter")

SEGMENT_SHARE = 8  # a segment is sealed at one eighth of what was written, within the two limits below
SEGMENT_MIN = 16 << 20  # bytes
SEGMENT_MAX = 128 << 20  # bytes; TensorBoard's default reader keeps one descriptor per file, so: few files
RETRY_FIRST = 1.0  # seconds from a refusal to the next try; doubled with every further one
RETRY_LAST = 16.0  # seconds, the longest


class EventFile:
    """The event files of one directory that this process writes.

    Args:
        locate: gives the directory when a segment is opened; it may take a claim.
        announce: called with ("open", path, 0) before a segment exists and ("seal", path, length) when it is complete.
        suffix: the user's filename_suffix.
        limits: shared by the event files of a process.
        may_rest: whether the descriptor may be given back while the segment is open.
        clock: monotonic seconds.

    Attributes:
        path: of the last segment, "" before the first.
        dropped: records that the disk refused for good.
    """

    def __init__(
        self,
        locate: Callable[[], str],
        announce: Callable[[str, str, int], None],
        suffix: str = "",
        limits: Limits | None = None,
        *,
        may_rest: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._locate = locate
        self._announce = announce
        self._suffix = suffix
        self._may_rest = may_rest
        self._clock = clock
        self._start_fresh(limits or Limits())

    def _start_fresh(self, limits: Limits) -> None:
        self._limits = limits
        self._lock = threading.RLock()  # re-entrant: a signal handler may log inside a write
        self._busy = False
        self._waiting: deque[Item] = deque()
        self._waiting_bytes = 0
        self._unannounced: deque[tuple[str, int]] = deque()  # sealed segments that the card does not know of yet
        self._refused_until = self._retry_after = 0.0
        self._purge: tuple[int, float] | None = None
        self._sealed_bytes = self.dropped = 0
        self._closing = False
        self._warnings: deque[tuple[str, tuple[object, ...]]] = deque()
        self._next_path = ""  # announced, and not made yet
        self.path = ""
        self._segment: Segment | None = None
        self._unsynced: set[Segment] = set()  # sealed while the disk refused to sync them
        self._limit = 0  # bytes at which the segment is sealed
        self._usual: Segment | None = None  # the segment while all is as usual, None: records go the long way

    # append

    def append(self, payload: bytes) -> None:
        """Keep one record, given by its payload."""
        self.append_record(framing.frame(payload))

    def append_record(self, record: bytes) -> None:
        """Keep one record, framed."""
        item, size = (record,), len(record)
        with self._lock:
            segment = self._usual
            if segment is not None and segment.under_way is None and segment.committed[0] < self._limit:
                segment.under_way = item
                try:
                    written = os.write(segment.fd, record) == size
                except OSError:  # the long way meets it again, and tells
                    written = False
                if written:
                    if segment.under_way is item:  # no call before all is counted: signal handlers run at calls
                        segment.committed = (segment.committed[0] + size, item)
                        segment.under_way = None
                    else:  # a signal handler has logged meanwhile
                        segment.count(item)
                    return
            self._waiting.append(item)
            self._waiting_bytes += size
            if not self._busy:  # else: logged by a signal handler inside `_drain`, which goes on with it
                self._drain()
        self._speak()

    def _drain(self) -> None:
        """Write what waits, also what a signal handler logs meanwhile."""
        self._drain_once()
        while self._waiting and not self._retry_after:
            self._drain_once()
        if self._closing:
            self._close()

    def _drain_once(self) -> None:
        """Each record exactly once, whatever interrupts in between."""
        try:
            self._busy = True
            self._usual = None
            if self._clock() < self._refused_until or not self._write_waiting():
                self._bound_memory()
                return
            self._limits.waits_no_more(self)
            self._usual = self._segment
            if self._retry_after:
                self._refused_until = self._retry_after = 0.0
                if self._limits.is_calm:
                    self._warn("%s: the disk takes event records again", self.path)
        finally:
            self._busy = False

    def _write_waiting(self) -> bool:
        waiting = self._waiting  # of this process: a signal handler may fork, and the child begins with none
        try:
            if self._segment is not None:
                self._segment.mend()
            while waiting:
                item = waiting[0]
                if self._segment is None or item is not self._segment.committed[1]:
                    self._writable_segment().write(item)
                waiting.popleft()
                self._waiting_bytes = self._waiting_bytes - len(item[0]) if waiting else 0
        except OSError as error:
            self._refuse(error)
            return False
        return True

    def _refuse(self, error: OSError) -> None:
        if not self._retry_after and self._limits.is_calm:  # one warning, however many files it meets
            self._warn(
                "%s: the disk refuses event records (%s); up to %.1f MiB wait in memory",
                self.path or "the first event file",
                error.strerror or error,
                self._limits.memory / (1 << 20),
            )
        self._usual = None
        self._retry_after = min(RETRY_LAST, 2 * self._retry_after or RETRY_FIRST)
        self._refused_until = self._clock() + self._retry_after

    def _bound_memory(self) -> None:
        while not self._limits.waits(self, self._waiting_bytes) and self._waiting:
            self._waiting_bytes -= len(self._waiting.pop()[0])
            self.dropped += 1

    def _warn(self, text: str, *arguments: object) -> None:
        """Told when the lock is released: whoever handles log messages may log events in turn."""
        self._warnings.append((text, arguments))

    def _speak(self) -> None:
        while self._warnings:
            text, arguments = self._warnings.popleft()
            logger.warning(text, *arguments)

    # segments

    def _writable_segment(self) -> Segment:
        segment = self._segment
        if segment is not None and segment.end >= self._limit:
            segment.sync()
            self._let_go(segment)
        elif segment is not None and segment.fd < 0:
            if segment.wake():
                self._limits.opened(self)
            else:
                self._warn("%s was removed or rewritten by somebody; going on in a new file", segment.path)
                self._let_go(segment)
        return self._segment or self._open_segment()

    def _open_segment(self) -> Segment:
        directory = os.path.normpath(self._locate())
        self._announce_seals()
        disk.make_dirs(directory, 0o777, durable=False)
        now, existing = time.time(), os.listdir(directory)
        head = framing.frame(framing.version_event(now)) + self._start_of_purge(directory, existing, now)
        path = self._next_path
        if os.path.dirname(path) != directory or os.path.basename(path) in existing:
            self._give_up_next()
            name = names_module.event_name(existing, now, process.host_name(), os.getpid(), self._suffix)
            path = os.path.join(directory, name)
            self._announce("open", path, 0)
            self._next_path = path
        segment = self._segment = Segment(path, head, self._warn)
        self.path, self._next_path = path, ""
        self._limit = min(SEGMENT_MAX, max(SEGMENT_MIN, self._sealed_bytes // SEGMENT_SHARE))
        self._purge = None
        if self._may_rest:
            self._limits.opened(self)
        return segment

    def _give_up_next(self) -> None:
        """A name that was announced is not used: the card must not call it open for ever."""
        path, self._next_path = self._next_path, ""
        if path:
            self._unannounced.append((path, 0))

    def _start_of_purge(self, directory: str, names: list[str], now: float) -> bytes:
        if self._purge is None:
            return b""
        step, unless_since = self._purge
        existing = filter(names_module.is_event_file, names)
        if any(_modified(os.path.join(directory, name)) >= unless_since for name in existing):
            return b""
        return 2 * framing.frame(framing.session_start_event(now, step))

    def _let_go(self, segment: Segment) -> None:
        """Write no more to the segment; the next record opens another one."""
        self._segment = self._usual = None
        end = segment.end  # from here on nothing can make it longer, not even a signal handler
        self._unannounced.append((segment.path, end))
        self._sealed_bytes += end
        self._limits.closed(self)
        segment.close()
        if not segment.is_durable:
            self._unsynced.add(segment)
        self._announce_seals()

    def _announce_seals(self) -> None:
        """Tell the card which segments are complete; what it cannot take now is told later."""
        while self._unannounced:
            seal = self._unannounced[0]
            try:
                self._announce("seal", *seal)
            except OSError as error:
                logger.debug("%s: not announced as sealed: %s", seal[0], error)
                return
            if self._unannounced and self._unannounced[0] is seal:  # else a signal handler has announced it, too
                self._unannounced.popleft()

    def rest(self) -> bool:
        """Give the descriptor back until the next record, unless it is in use; whether that was done."""
        if not self._lock.acquire(blocking=False):
            return False
        try:
            if self._busy or self._segment is None or not self._segment.rest():
                return False
            self._usual = None
            return True
        finally:
            self._lock.release()

    # state

    @property
    def is_open(self) -> bool:
        """Whether there is a segment to append to."""
        return self._segment is not None

    @property
    def length(self) -> int:
        """Bytes of whole records in the open segment."""
        segment = self._segment
        return segment.end if segment else 0

    @property
    def waiting(self) -> int:
        """Records that the disk has refused so far."""
        return len(self._waiting)

    def purge(self, step: int, unless_since: float = math.inf) -> None:
        """TensorBoard is to hide what was logged until now in this directory at this step and later.

        Args:
            step: global step.
            unless_since: unix time; not if the directory has an event file written at that time or later. A child
                that takes over the directory of an earlier one must not hide what that one has logged in this attempt.
        """
        with self._lock:
            if self._segment is None:
                self._purge = step, unless_since
                return
        start = framing.session_start_event(time.time(), step)
        self.append(start)
        self.append(start)

    def begin(self) -> None:
        """Open a segment although nothing is logged yet: for the START in it, or for whoever asks for its name."""
        with self._lock:
            if self._segment is None and not self._busy:
                try:
                    self._open_segment()
                except OSError as error:
                    self._warn("no event file can be opened yet: %s", error)
        self._speak()

    def flush(self) -> None:
        """Make what was appended survive a power cut."""
        with self._lock:
            if not self._busy:
                self._flush()
        self._speak()

    def _flush(self) -> None:
        self._refused_until = 0.0
        self._check()
        for segment in list(self._unsynced):
            if segment.is_there():
                segment.sync()
            if segment.is_durable or not segment.is_there():
                self._unsynced.discard(segment)
        if self._segment is not None:
            self._segment.sync()

    def check(self) -> None:
        """Go on in a new segment if somebody deleted the file under us; try again what disk or card have refused."""
        with self._lock:
            if not self._busy:
                self._check()
        self._speak()

    def _check(self) -> None:
        self._announce_seals()
        if self._segment is not None and not self._segment.is_there():
            self._replace_removed(self._segment)
        if self._waiting or (self._segment is not None and self._segment.under_way is not None):
            self._drain()

    def _replace_removed(self, segment: Segment) -> None:
        self._warn("%s was removed while it was written; going on in a new file", segment.path)
        saved = segment.written_since_removal()
        self._let_go(segment)
        if saved:
            self._waiting.appendleft((saved,))
            self._waiting_bytes += len(saved)

    def close(self) -> None:
        """Seal the segment; an `append` afterwards opens the next one."""
        with self._lock:
            if self._busy:  # a signal handler closes inside `_drain`, which does it at its end
                self._closing = True
            else:
                self._close()
        self._speak()

    def _close(self) -> None:
        self._closing = False
        self._flush()
        self._give_up_next()
        if self._segment is not None:
            self._let_go(self._segment)
        self._announce_seals()

    def give_up(self) -> int:
        """Forget what the disk has refused until now, for good; how many records that are."""
        with self._lock:
            if self._busy or not self._retry_after:
                return 0
            lost = len(self._waiting)
            self._waiting.clear()
            self._waiting_bytes = 0
            self._limits.waits_no_more(self)
            self.dropped += lost
            return lost

    def announce_again(self) -> None:
        """The card is a new one: it has to be told of the segment."""
        with self._lock:
            self._next_path = ""
            if self._segment is not None:
                self._announce("open", self._segment.path, 0)

    def abandon(self, limits: Limits) -> None:
        """Leave the file to the parent after fork: close the inherited descriptor, forget what waits."""
        if self._segment is not None:
            self._segment.close()
        self._start_fresh(limits)


def _modified(path: str) -> float:
    try:
        return os.stat(path).st_mtime
    except OSError:
        return 0.0
