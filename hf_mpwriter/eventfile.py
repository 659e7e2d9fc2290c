"""Event files: the append-only side. One `os.write` per record, no buffer, no thread.

An `EventFile` is a series of segments in one directory, written by this process alone:

    events.out.tfevents.1795233002...   sealed       file_version, [START, START,] records
    events.out.tfevents.1795236610...   open         file_version, records ...            <- appended here

Invariants:
- When `append` returns, the record is with the kernel, or it waits in bounded memory because the disk refuses
  writes, or it is counted in `dropped`. `append` never raises OSError and never waits.
- A file never holds a torn record in its middle: a short write is cut back to the record boundary before the next.
- A segment is opened `O_EXCL` at its first record and never by a process that did not create it. The next one is
  opened only after the one before is sealed. Every segment is announced before it exists.
- START is written twice, in the first segment only: TensorBoard's Python readers ignore the first START of a directory.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable

from hf_mpwriter import disk, identity, records, spool

logger = logging.getLogger("hf_mpwriter")

SEGMENT_SHARE = 8  # a segment is sealed at one eighth of what was written, within the two limits below
SEGMENT_MIN = 16 << 20  # bytes
SEGMENT_MAX = 128 << 20  # bytes; TensorBoard's default reader keeps one descriptor per file, so: few files
MEMORY_LIMIT = 16 << 20  # bytes of records that wait while the disk refuses writes
RETRY_AFTER = 1.0  # seconds between two tries while it does

_OPEN_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC
_FILE_MODE = 0o666  # as every other writer's; the umask decides


class EventFile:
    """The event files of one directory that this process writes.

    Args:
        locate: gives the directory when the first segment is opened; it may take a claim.
        announce: called with ("open", path, 0) before a segment exists and ("seal", path, length) when it is complete.
        suffix: the user's filename_suffix.
        purge_step: step of the START that the first segment begins with, None for none.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        locate: Callable[[], str],
        announce: Callable[[str, str, int], None],
        suffix: str = "",
        purge_step: int | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._locate = locate
        self._announce = announce
        self._suffix = suffix
        self._purge_step = purge_step
        self._clock = clock
        self.dropped = 0
        self.written = 0
        self._start_fresh()

    def _start_fresh(self) -> None:
        self._lock = threading.RLock()  # re-entrant: a signal handler may log inside a write
        self._busy = False
        self._waiting: deque[bytes] = deque()
        self._waiting_bytes = 0
        self._unannounced: deque[tuple[str, int]] = deque()  # sealed segments that the card does not know of yet
        self._refused_until = 0.0
        self._refusing = False
        self._fd = -1
        self.path = ""
        # the end of the open segment, and the record that ends there: one assignment, so that an exception of a
        # signal handler never comes between the two
        self._committed: tuple[int, bytes] = (0, b"")
        self._limit = SEGMENT_MIN
        self._mid_write = False
        self._unsynced = self._name_unsynced = False

    def append(self, payload: bytes) -> None:
        """Keep one record."""
        record = records.frame(payload)
        with self._lock:
            self._waiting.append(record)
            self._waiting_bytes += len(record)
            if not self._busy:  # else: logged inside another's write, which goes on with it
                self._drain()

    def _drain(self) -> None:
        """Write what waits, each record exactly once, whatever interrupts in between."""
        try:
            self._busy = True
            if self._refusing and self._clock() < self._refused_until:
                self._bound_memory()
                return
            while self._waiting:
                record = self._waiting[0]
                if record is not self._committed[1] and not self._write(record):
                    self._bound_memory()
                    return
                self._waiting.popleft()
                self._waiting_bytes -= len(record)
                if self._refusing:
                    self._refusing = False
                    logger.warning("%s: the disk takes event records again", self.path)
            self._waiting_bytes = 0
        finally:
            self._busy = False

    def _write(self, record: bytes) -> bool:
        try:
            if self._fd >= 0 and self.length >= self._limit:
                self._seal()
            if self._fd < 0:
                self._open_segment()
            self._write_whole(record)
        except OSError as error:
            self._refuse(error)
            return False
        self._unsynced = True
        self.written += len(record)
        return True

    def _write_whole(self, record: bytes) -> None:
        """All of the record or nothing of it."""
        end = self.length
        if self._mid_write:  # an exception came between a write and its bookkeeping: undo it
            os.ftruncate(self._fd, end)
        self._mid_write = True
        if (count := os.write(self._fd, record)) != len(record):
            os.ftruncate(self._fd, end)
            raise OSError(f"{count} of {len(record)} bytes written")
        self._committed = (end + count, record)
        self._mid_write = False

    def _open_segment(self) -> None:
        directory = self._locate()
        self._announce_seals()
        os.makedirs(directory, exist_ok=True)
        now = time.time()
        name = spool.event_name(os.listdir(directory), now, identity.host_name(), os.getpid(), self._suffix)
        path = os.path.join(directory, name)
        head = records.frame(records.version_event(now))
        if self._purge_step is not None:
            head += 2 * records.frame(records.session_start_event(now, self._purge_step))
        try:
            self._announce("open", path, 0)
            self._create(path, head)
        except BaseException:  # also an exception of a signal handler: the card must not call it open for ever
            if self.path != path:
                self._unannounced.append((path, 0))
            raise
        self._limit = min(SEGMENT_MAX, max(SEGMENT_MIN, self.written // SEGMENT_SHARE))
        self._purge_step = None

    def _create(self, path: str, head: bytes) -> None:
        fd = os.open(path, _OPEN_FLAGS, _FILE_MODE)
        try:
            disk.write_all(fd, head)
        except BaseException:
            os.close(fd)
            os.unlink(path)
            raise
        self.path, self._committed, self._mid_write = path, (len(head), b""), False
        self._unsynced = self._name_unsynced = True
        self._fd = fd

    def _seal(self) -> None:
        self._sync()
        self._let_go()

    def _let_go(self) -> None:
        """Write no more to the open segment; the next record opens another one."""
        fd, self._fd = self._fd, -1
        self._unannounced.append((self.path, self.length))
        try:
            os.close(fd)
        except OSError as error:  # a network filesystem tells here what it could not keep
            logger.warning("%s: %s", self.path, error)
        self._announce_seals()

    def _announce_seals(self) -> None:
        """Tell the card which segments are complete; what it cannot take now is told later."""
        while self._unannounced:
            try:
                self._announce("seal", *self._unannounced[0])
            except OSError as error:
                logger.debug("%s: not announced as sealed: %s", self._unannounced[0][0], error)
                return
            self._unannounced.popleft()

    def _sync(self) -> None:
        if self._fd < 0 or not self._unsynced:
            return
        try:
            self._unsynced = False  # first: what is appended during the fsync is unsynced again
            disk.fsync(self._fd, "eventfile")
            if self._name_unsynced:
                disk.fsync_dir(os.path.dirname(self.path), "eventfile")
                self._name_unsynced = False
        except OSError as error:
            self._unsynced = True
            logger.warning("%s: not safe against a power cut: %s", self.path, error)

    def _refuse(self, error: OSError) -> None:
        if not self._refusing:
            self._refusing = True
            logger.warning(
                "%s: the disk refuses event records (%s); up to %d MiB wait in memory",
                self.path or "the first event file",
                error.strerror or error,
                MEMORY_LIMIT >> 20,
            )
        self._refused_until = self._clock() + RETRY_AFTER

    def _bound_memory(self) -> None:
        while self._waiting_bytes > MEMORY_LIMIT and self._waiting:
            self._waiting_bytes -= len(self._waiting.pop())
            self.dropped += 1

    @property
    def is_open(self) -> bool:
        """Whether there is a segment to append to."""
        return self._fd >= 0

    @property
    def length(self) -> int:
        """Bytes of whole records in the open segment."""
        return self._committed[0]

    @property
    def waiting(self) -> int:
        """Records that the disk has refused so far."""
        return len(self._waiting)

    def flush(self) -> None:
        """Make what was appended survive a power cut."""
        with self._lock:
            if not self._busy:
                self._refused_until = 0.0
                self._drain()
                self._sync()

    def check_exists(self) -> None:
        """Open a new segment if somebody deleted the file under us; tell the card what it has not heard yet."""
        with self._lock:
            if self._busy:
                return
            self._announce_seals()
            if self._fd >= 0 and not disk.same_file(self._fd, self.path):
                logger.warning("%s was removed while it was written; going on in a new file", self.path)
                self._let_go()

    def close(self) -> None:
        """Seal the segment; an `append` afterwards opens the next one."""
        with self._lock:
            self.flush()
            if self._fd >= 0:
                self._seal()

    def abandon(self) -> None:
        """Leave the file to the parent after fork: close the inherited descriptor, forget what waits."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            with contextlib.suppress(OSError):
                os.close(fd)
        self._start_fresh()
        self.dropped = self.written = 0
