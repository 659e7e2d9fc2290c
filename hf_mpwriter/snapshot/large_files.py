"""Large event files: files that may still grow and that a push must not hold in memory.

The Hub's client takes bytes or a path, and it reads a path more than once. So a file that is longer than PAYLOAD_LIMIT
goes as a path that leads to a content that does not change:

    a filesystem that can clone          a clone without a name, which takes no room; at most once in COPY_EVERY
    room on the disk                     a copy without a name; at most once in COPY_EVERY
    any other                            left for later, with a reason

Segments of ours are sealed before they are so long, and a file that is quiet goes as it is (`event_files`). An earlier
writer of the same run, or a program that logs images into one file for weeks, makes such files.

Invariants:
- What is sent is cut at the length of the snapshot, and does not change while it is sent.
- A copy leaves room on the disk, as copies of attachments do. It has no name, so the death of the push removes it.
- When no worker lives, or `hf-mpwriter sync` asks, a file is not left for later because of its last copy.
"""

from __future__ import annotations

import contextlib
import errno
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator

from hf_mpwriter.base.files import LocalFile
from hf_mpwriter.snapshot.attachments import check_room
from hf_mpwriter.system import disk
from hf_mpwriter.system.directory import Directory, Place
from hf_mpwriter.system.interrupts import ours

COPY_EVERY = 3600.0  # seconds between two copies of a file
CHUNK = 64 << 20  # bytes copied at once
NO_COPY = "it still grows, and a copy of it cannot be made"  # how a reason begins


class LargeFiles:
    """When the large files of a run directory are sent."""

    def __init__(self, run: Directory, scratch: Place, clock: Callable[[], float]) -> None:
        self._run, self._scratch, self._clock = run, scratch, clock
        self._sent_at: dict[str, float] = {}

    def started(self, files: Iterable[LocalFile]) -> None:
        """Note that a push of these files starts."""
        self._sent_at |= {file.path: self._clock() for file in files if file.is_large}

    def left_for_later(self, files: Iterable[LocalFile], *, everything: bool) -> dict[str, str]:
        """The large files that are not to be sent now; the reason per path; "" if it is only too early."""
        left = {}
        for file in files:
            if file.is_large and (reason := self._obstacle(file, everything=everything)) is not None:
                left[file.path] = reason
        return left

    def _obstacle(self, file: LocalFile, *, everything: bool) -> str | None:
        if not everything and self._clock() < self._sent_at.get(file.path, -COPY_EVERY) + COPY_EVERY:
            return ""
        try:
            fd = disk.open_beneath(self._run / file.path)
        except ours(OSError):  # it is gone, or cannot be read: the push finds out
            return None
        try:
            with _nameless(self._scratch) as (copy, _):
                if not disk.clone(fd, copy):
                    check_room(self._scratch, file.length)
        except ours(OSError) as error:
            return f"{NO_COPY}: {error.strerror or error}"
        finally:
            os.close(fd)
        return None


@contextlib.contextmanager
def snapshot_of(fd: int, length: int, scratch: Place) -> Iterator[str]:
    """A path that leads to the first `length` bytes of an open file, as they are now."""
    with _nameless(scratch) as (copy, path):
        if not disk.clone(fd, copy):
            check_room(scratch, length)
            _copy(fd, copy, length)
        if os.fstat(copy).st_size < length:
            raise FileNotFoundError(errno.ENOENT, "it is shorter than its snapshot")
        os.ftruncate(copy, length)
        yield path


@contextlib.contextmanager
def _nameless(directory: Place) -> Iterator[tuple[int, str]]:
    """A new file without a name, and a path that leads to it."""
    disk.make_dirs(directory)
    with tempfile.TemporaryFile(dir=directory.way, buffering=0) as file:
        yield file.fileno(), f"/proc/self/fd/{file.fileno()}"


def _copy(source: int, target: int, length: int) -> None:
    """Copy the first bytes of a file; less if it is shorter."""
    done = 0
    while done < length and (count := os.sendfile(target, source, done, min(CHUNK, length - done))):
        done += count
