"""Arrivals: event files on their way from the logdir to this disk, many at once.

    logdir --pieces--> .hf_mpwriter/restoring/<32 hex> --as long as it is listed--> renamed to its path

Most of the time goes by in calls that wait for a network. So files are read by a bounded number of threads, and only
few long ones at a time: a filesystem of fsspec may hold tens of megabytes of each.

Invariants:
- Nothing stands at a path but what was there, or the whole file, durable.
- A file that came is as old as its name says: a purge does not take it for one of this attempt.
- What cannot be read there ends its own way only; what this disk refuses ends all of them.
"""

from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from queue import Empty, SimpleQueue
from typing import NamedTuple

from hf_mpwriter.base import names
from hf_mpwriter.base.files import begins_with
from hf_mpwriter.mirror.copy import describe
from hf_mpwriter.mirror.targets import Target
from hf_mpwriter.spool.layout import Spool
from hf_mpwriter.system import disk, locks
from hf_mpwriter.system.directory import Place

SMALL_AT_ONCE = 32  # files that are read at a time
LARGE_AT_ONCE = 4  # of those that are longer than LARGE
LARGE = 4 << 20  # bytes
GIVE_UP_AFTER = 32  # files in a row that cannot be read: then it is the logdir, and no single file
RESTORING = "restoring"  # directory of the temporary files, in the spool
SURELY_OLD = 3600.0  # seconds


class UnreadSourceError(Exception):
    """A file of the logdir cannot be read, or not as a whole."""


class Listed(NamedTuple):
    """A file of the logdir."""

    path: str  # relative to it
    size: int  # bytes


class Arrival(NamedTuple):
    """What has become of a file."""

    file: Listed  # which one
    is_here: bool = False  # whether it is here now; not if something else is in its place
    error: Exception | None = None  # why not, None if there was no error


class Arrivals:
    """Brings files of a logdir."""

    def __init__(self, spool: Spool, open_target: Callable[[], Target]) -> None:
        self._spool, self._open_target = spool, open_target
        self._own, self._lock, self._came, self._is_over = threading.local(), locks.thread_lock(), 0, False

    @property
    def came(self) -> int:
        """Bytes that have been read."""
        return self._came

    def bring(self, wanted: Sequence[Listed], tick: Callable[[], object], every: float) -> Iterator[Arrival]:
        """Bring files; what has become of each, as it is known."""
        outcomes: SimpleQueue[Arrival] = SimpleQueue()
        disk.make_dirs(self._spool.directory / RESTORING, durable=False)
        for directory in sorted({os.path.dirname(file.path) for file in wanted}):
            disk.make_dirs(self._spool.run / directory, 0o777)
        small, large = ThreadPoolExecutor(SMALL_AT_ONCE), ThreadPoolExecutor(LARGE_AT_ONCE)
        try:
            for file in wanted:
                (large if file.size > LARGE else small).submit(self._bring_one, file, outcomes.put)
            in_a_row = 0
            for outcome in self._taken(outcomes, len(wanted), tick, every):
                in_a_row = in_a_row + 1 if outcome.error else 0
                if outcome.error is not None and not isinstance(outcome.error, UnreadSourceError):
                    raise outcome.error
                if outcome.error is not None and in_a_row == GIVE_UP_AFTER:
                    raise UnreadSourceError(f"{in_a_row} files in a row cannot be read: {outcome.error}")
                yield outcome
        finally:
            self._is_over = True
            for pool in (small, large):  # a thread that hangs is not waited for: its process ends soon
                pool.shutdown(wait=False, cancel_futures=True)

    def _taken(
        self, outcomes: SimpleQueue[Arrival], count: int, tick: Callable[[], object], every: float
    ) -> Iterator[Arrival]:
        while count:
            try:
                outcome = outcomes.get(timeout=every)
            except Empty:
                pass
            else:
                count -= 1
                yield outcome
            tick()

    def _bring_one(self, file: Listed, tell: Callable[[Arrival], object]) -> None:
        try:
            tell(Arrival(file, self._arrives(file)))
        except Exception as error:  # noqa: BLE001 - a filesystem of fsspec may raise anything
            tell(Arrival(file, error=error))

    def _arrives(self, file: Listed) -> bool:
        """Bring one file; whether it is here now."""
        temporary = self._spool.directory / RESTORING / os.urandom(16).hex()
        fd = temporary.open(os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        try:
            came = sum(self._write(fd, piece) for piece in self._pieces(file.path))
            if came != file.size:
                raise UnreadSourceError(f"{came} bytes came, and {file.size} are listed")
            place = self._spool.run / file.path
            if not _continues(fd, place):
                return False
            second = names.event_second(os.path.basename(file.path)) or math.inf
            old = min(second, time.time() - SURELY_OLD)
            os.utime(fd, (old, old))
            disk.fsync(fd, "restore.file")
            disk.move(temporary, place, "restore.file")
            return True
        finally:
            os.close(fd)

    def _pieces(self, path: str) -> Iterator[bytes]:
        try:
            target = getattr(self._own, "target", None)
            if target is None:
                target = self._own.target = self._open_target()
            for piece in target.pieces(path):
                if self._is_over:
                    break
                yield piece
        except Exception as error:  # as in `_bring_one`
            raise UnreadSourceError(describe(error)) from error

    def _write(self, fd: int, piece: bytes) -> int:
        disk.write_all(fd, piece)
        with self._lock:
            self._came += len(piece)
        return len(piece)


def _continues(fd: int, place: Place) -> bool:
    """Whether what came begins with what is here."""
    try:
        here = disk.open_beneath(place)
    except FileNotFoundError:
        return True
    try:
        return begins_with(fd, here)
    finally:
        os.close(here)
