"""Fetch: event files on their way from the logdir to this disk, several at a time.

    logdir --pieces--> .hf_mpwriter/arriving/<32 hex> --as long as it was listed--> renamed to its path

    here                                 what happens
    nothing, or a beginning of the file  it is fetched
    anything else                        nothing; it is told

Invariants:
- Nothing is written to the logdir.
- Nothing stands at a path but what was there, or the whole file, durable.
- A file that came is as old as its name says: a purge does not take it for one of this attempt.
- A file that cannot be read there ends nothing; what this disk refuses, or a logdir that is away, ends all.
"""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from hf_mpwriter.base import names
from hf_mpwriter.base.files import continues
from hf_mpwriter.base.names import SPOOL_NAME
from hf_mpwriter.mirror.targets import Target, describe, is_of_one_file
from hf_mpwriter.spool.copies import Arrived, Conflict, Item, Unread
from hf_mpwriter.spool.staging import ARRIVING
from hf_mpwriter.system import disk
from hf_mpwriter.system.directory import Directory, Place

AT_ONCE = 8  # files that are read at a time: a filesystem of fsspec may hold tens of megabytes of each
GIVE_UP_AFTER = 16  # files in a row that cannot be read: then it is the logdir, and no single file
SURELY_OLD = 3600.0  # seconds


class UnreadSourceError(OSError):
    """A file of the logdir cannot be read, or not as a whole."""


def fetched(run: Directory, target: Target, items: Sequence[Item]) -> Iterator[Arrived | Conflict | Unread]:
    """Fetch files; what has become of each, in their order."""
    disk.make_dirs(Place(run, SPOOL_NAME) / ARRIVING, durable=False)
    for directory in sorted({os.path.dirname(item.path) for item in items}):
        disk.make_dirs(run / directory, 0o777)
    pool, in_a_row = ThreadPoolExecutor(AT_ONCE), 0
    try:
        for outcome in pool.map(lambda item: _outcome(run, target, item), items):
            in_a_row = in_a_row + 1 if isinstance(outcome, Unread) else 0
            yield outcome
            if isinstance(outcome, Unread) and in_a_row == GIVE_UP_AFTER:
                raise UnreadSourceError(f"{in_a_row} files in a row cannot be read: {outcome.reason}")
    finally:  # a thread that hangs is not waited for: its process ends soon
        pool.shutdown(wait=False, cancel_futures=True)


def _outcome(run: Directory, target: Target, item: Item) -> Arrived | Conflict | Unread:
    """Fetch one file."""
    temporary = Place(run, SPOOL_NAME) / ARRIVING / os.urandom(16).hex()
    fd = temporary.open(os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        came = 0
        for piece in _pieces(target, item.path):
            disk.write_all(fd, piece)
            came += len(piece)
        if came != item.length:
            return Unread(item.path, f"{came} bytes came, and {item.length} are listed")
        if not continues(fd, run / item.path):
            return Conflict(item.path, f"the file there ({item.length} bytes) does not begin with the one here")
        _put_in_place(fd, temporary, run / item.path)
        return Arrived(item.path, item.length)
    except UnreadSourceError as error:
        return Unread(item.path, str(error))
    finally:
        os.close(fd)
        with contextlib.suppress(FileNotFoundError):  # as a rule it has been moved
            temporary.unlink()


def _pieces(target: Target, path: str) -> Iterator[bytes]:
    """The content of a file; UnreadSourceError if only that one cannot be read."""
    try:
        yield from target.pieces(path)
    except Exception as error:
        if isinstance(error, OSError) and not is_of_one_file(error):
            raise
        raise UnreadSourceError(describe(error)) from error  # a filesystem of fsspec may raise anything


def _put_in_place(fd: int, temporary: Place, place: Place) -> None:
    second = names.event_second(place.basename) or math.inf
    old = min(second, time.time() - SURELY_OLD)
    os.utime(fd, (old, old))
    disk.fsync(fd, "fetch.file")
    disk.move(temporary, place, "fetch.file")
