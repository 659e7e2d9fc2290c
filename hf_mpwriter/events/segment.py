"""A segment: one event file that this process created and may still append to.

    events.out.tfevents.1795236610...    file_version, [START, START,] record, record, ...
                                                                              ^ end: all before it is whole

Invariants:
- `end` is behind a whole record. What comes after it in the file is a write whose outcome is not known yet; `mend`
  finds it out: a whole record is counted, a torn one is cut off. What was ever whole is never cut: an uploader may
  have seen it.
- The descriptor is given back (`rest`) and taken again (`wake`) only while the path is the very file that was created,
  with the length that it was left at.
- `rest` refuses in the middle of a write, which may be that of the same thread, interrupted by a signal.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable

from hf_mpwriter.events import framing
from hf_mpwriter.system import disk

Item = tuple[bytes]  # a record in a tuple of its own, known again by its identity
NOTHING: Item = (b"",)

_CREATE = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC
_REOPEN = os.O_RDWR | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
_FILE_MODE = 0o666  # as every other writer's; the umask decides
MOST_SKIPS = 63  # syncs in a row that are not tried, of a disk that refuses all of them


class Segment:
    """One open event file.

    Args:
        path: of the file, which must not exist.
        head: its first records, framed.
        warn: tells the user; called while the event file is locked.

    Attributes:
        path: of the file.
        fd: its descriptor, below 0 while it rests.
        committed: where the last whole record ends, and that record: one assignment, so that an exception of a
            signal handler never comes between the two.
        under_way: the record whose write has begun and is not counted yet.

    Raises:
        OSError: the disk refuses; there is no file then.
    """

    __slots__ = (
        "_inode",
        "_name_synced",
        "_refusals",
        "_seen",
        "_skips",
        "_synced",
        "_warn",
        "committed",
        "fd",
        "path",
        "under_way",
    )

    def __init__(self, path: str, head: bytes, warn: Callable[..., object]) -> None:
        self.path = path
        self._warn = warn
        self.fd = os.open(path, _CREATE, _FILE_MODE)
        try:
            disk.write_all(self.fd, head)
            self._inode = disk.inode(self.fd)
        except BaseException:
            os.close(self.fd)
            os.unlink(path)
            raise
        self.committed = (len(head), NOTHING)
        self.under_way: Item | None = None
        self._synced, self._name_synced = 0, False  # bytes that survive a power cut, and whether the name does
        self._refusals = 0  # syncs in a row that have failed, or are under way
        self._skips = 0  # syncs that are not tried
        self._seen = len(head)  # length when the file was last seen at its path

    @property
    def end(self) -> int:
        """Bytes of whole records."""
        return self.committed[0]

    def write(self, item: Item) -> None:
        """Append all of a record or nothing of it; OSError if the disk refuses."""
        self.under_way = item
        try:
            disk.write_all(self.fd, item[0])  # after a short write the next one says why
        except OSError:
            self.mend()
            raise
        self.count(item)

    def count(self, item: Item) -> None:
        """The record is in the file; a signal handler that logged since has perhaps counted it already."""
        size = len(item[0])  # no call between the condition and what follows from it: handlers run at calls
        if self.under_way is item:
            self.committed = (self.committed[0] + size, item)
            self.under_way = None
            return
        before = None
        while self.fd >= 0 and before is not self.committed:  # a handler may log between the two, too
            before, size = self.committed, os.fstat(self.fd).st_size
            if before is self.committed:
                before = self.committed = (size, item)

    def mend(self) -> None:
        """After a write whose outcome is not known: count the record if it is whole, else cut it off."""
        if self.under_way is None:
            return
        size = os.fstat(self.fd).st_size
        if size == self.end + len(self.under_way[0]):
            self.committed = (size, self.under_way)
        elif size > self.end:
            os.ftruncate(self.fd, self.end)
        self.under_way = None

    def is_there(self) -> bool:
        """Whether the file is still at its path; what is written from here on was written after that.

        A disk that refuses to tell has removed nothing.
        """
        try:
            there = disk.inode(self.path) == self._inode
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError:
            return True
        if there:
            self._seen = self.end
        return there

    def written_since_removal(self) -> bytes:
        """Records that went into the file after it was last seen at its path and that are nowhere else now."""
        with contextlib.suppress(OSError):
            if self.fd >= 0 and not os.fstat(self.fd).st_nlink:  # else it was only moved away, and keeps them
                kept = max(self._seen, _whole_length(self.path))  # somebody may have put a copy in its place
                return os.pread(self.fd, max(0, self.end - kept), kept)
        return b""

    def rest(self) -> bool:
        """Give the descriptor back until the next record, unless it is in use; whether that was done."""
        if self.under_way is not None or not self.is_there():
            return False
        self.close()
        return True

    def wake(self) -> bool:
        """Take a descriptor again; False if the file is no longer what this process left there."""
        try:
            fd = os.open(self.path, _REOPEN)
        except FileNotFoundError:
            return False
        if disk.inode(fd) != self._inode or os.fstat(fd).st_size != self.end:
            os.close(fd)
            return False
        self.fd = fd
        return True

    @property
    def is_durable(self) -> bool:
        """Whether all of it survives a power cut."""
        return self._synced == self.end and self._name_synced

    def sync(self) -> None:
        """Make it survive a power cut; what the disk refuses is told.

        After a sync that has failed the kernel takes the bytes for written, so they are written again before the next
        one; the more of these fail in a row, the rarer that is done: training does not pay for such a disk.
        """
        if self.is_durable:
            return
        if self._skips:
            self._skips -= 1
            self._warn("%s: not safe against a power cut: the disk has refused that", self.path)
            return
        end, refusals = self.end, self._refusals
        self._refusals += 1
        try:
            if refusals:
                disk.write_again(self.path, self._synced, end)
            if self.fd < 0:
                disk.fsync_path(self.path, "eventfile")
            else:
                disk.fsync(self.fd, "eventfile")
            self._synced = end  # what was appended during the fsync is not synced yet
            if not self._name_synced:
                disk.fsync_dir(os.path.dirname(self.path), "eventfile")
                self._name_synced = True
            self._refusals = 0
        except OSError as error:
            self._skips = min(2**refusals - 1, MOST_SKIPS)
            self._warn("%s: not safe against a power cut: %s", self.path, error)

    def close(self) -> None:
        """Give the descriptor back."""
        fd, self.fd = self.fd, -1
        if fd < 0:
            return
        try:
            os.close(fd)
        except OSError as error:  # a network filesystem tells here what it could not keep
            self._warn("%s: %s", self.path, error)


def _whole_length(path: str) -> int:
    try:
        with open(path, "rb") as file:
            return framing.whole_length(file.fileno())
    except OSError:
        return 0
