"""A segment: one event file that this process created and may still append to.

    events.out.tfevents.1795236610...    file_version, [START, START,] record, record, ...
                                                                              ^ end: all before it is whole

Invariants:
- `end` is behind a whole record. What comes after it in the file is a write whose outcome is not known yet. `mend`
  finds it out: a whole record is counted, a torn one is cut off. A whole record is never cut: an uploader may have
  seen it.
- The descriptor is closed (`rest`) and opened again (`wake`) only while the path is the file that was created, with
  the length that it was left at.
- A descriptor whose mount came back is dead for ever, though the path works. `revive` opens the file again, by its
  content.
- A program that becomes a daemon closes our descriptors and uses their numbers. Then the file is opened again; only
  `write` does not look, so that it costs no second call.
- `rest` refuses in the middle of a write, which may be one of the same thread, interrupted by a signal.
"""

from __future__ import annotations

import errno
import os

from hf_mpwriter.events import framing
from hf_mpwriter.events.deferred_log import DeferredLog
from hf_mpwriter.system import disk
from hf_mpwriter.system.directory import Place, identity
from hf_mpwriter.system.interrupts import ours, suppress
from hf_mpwriter.system.process import close_if, is_still

Item = tuple[bytes]  # a record in a tuple of its own, recognized by its identity
NOTHING: Item = (b"",)

_CREATE = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_APPEND
_REOPEN = os.O_RDWR | os.O_APPEND | os.O_NONBLOCK
_FILE_MODE = 0o666  # like every other writer; the umask decides
CHECK_BYTES = 16 << 10  # bytes of what was appended since the last check that the next one reads back
LAST_BYTES = 64  # bytes of the last record that it compares
MOST_SKIPS = 63  # syncs in a row that are not tried, of a disk that refuses all of them


class Segment:
    """One open event file."""

    __slots__ = (
        "_blurred",
        "_checked",
        "_inode",
        "_log",
        "_name_synced",
        "_refusals",
        "_seen",
        "_skips",
        "_synced",
        "committed",
        "fd",
        "limit",
        "path",
        "under_way",
    )

    def __init__(self, path: Place, head: bytes, limit: int, log: DeferredLog) -> None:
        self.path = path  # of the file, which must not exist
        self.limit = limit  # bytes at which it is full
        self._log = log
        self.fd = path.open(_CREATE, _FILE_MODE)  # its descriptor, below 0 while it rests
        try:
            disk.write_all(self.fd, head)
            self._inode = identity(os.fstat(self.fd))
        except BaseException:
            os.close(self.fd)
            disk.discard(path)
            raise
        # where the last whole record ends, and that record: one assignment, so that an exception of a signal
        # handler never comes between the two
        self.committed = (len(head), NOTHING)
        self.under_way: Item | None = None  # the record whose write has begun and is not counted yet
        self._synced, self._name_synced = 0, False  # bytes that survive a power cut, and whether the name does
        self._refusals = 0  # syncs in a row that have failed, or are under way
        self._skips = 0  # syncs that are not tried
        self._checked = len(head)  # the end of a record; what is before it was seen whole
        self._blurred = 0  # an `end` whose last record may be that of a signal handler
        self._seen = len(head)  # length when the file was last seen at its path

    @property
    def end(self) -> int:
        """Bytes of whole records."""
        return self.committed[0]

    @property
    def is_empty(self) -> bool:
        """Whether it holds nothing but its first records."""
        return self.committed[1] is NOTHING

    def write(self, item: Item) -> None:
        """Append all of a record or nothing of it; OSError if the disk refuses."""
        self.under_way = item
        try:
            disk.write_all(self.fd, item[0])  # after a short write the next one raises the reason
        except OSError:
            self.mend()
            raise
        self.count(item)

    def count(self, item: Item) -> None:
        """Count a record that is in the file, unless a signal handler that logged since has counted it."""
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
                self._blurred = size

    def mend(self) -> None:
        """After a write whose outcome is not known: count the record if it is whole, else cut it off."""
        if self.under_way is None:
            return
        self._check_descriptor()
        if self.fd < 0:
            self.under_way = None
            return
        size = os.fstat(self.fd).st_size
        if size == self.end + len(self.under_way[0]):
            self.committed = (size, self.under_way)
        elif size > self.end:
            os.ftruncate(self.fd, self.end)
        self.under_way = None

    def _check_descriptor(self) -> None:
        """Forget a descriptor that the program has closed; on its number may be a file of the program."""
        if self.fd >= 0 and not is_still(self.fd, self._inode):
            self.fd = -1

    def readable(self) -> int:
        """Bytes of whole records at the path, of a file that was damaged; `end` if there is none."""
        return _whole_length(self.path) if self.path.exists() else self.end

    def is_there(self) -> bool:
        """Whether the file is still at its path; what is written from here on was written after that.

        A disk that refuses to answer has removed nothing.
        """
        try:
            there = identity(self.path.stat()) == self._inode
        except ours(FileNotFoundError, NotADirectoryError):
            return False
        except ours(OSError):
            return True
        if there:
            self._seen = self.end
        return there

    def is_sound(self) -> bool:
        """Whether the file holds what this process has written, as far as a short look tells.

        It compares the length and the end of the last record, and reads back the first CHECK_BYTES of what was
        appended since the last look: another program may have cut or continued the file, or a disk lost a block.
        """
        before = self.committed
        end, (record,) = before
        if self.fd < 0 or self.under_way is not None:
            return True  # `wake` and `mend` look
        try:
            is_sound = (
                os.fstat(self.fd).st_size == end
                and self._has_last(self.fd, end, record)
                and framing.holds(os.pread(self.fd, min(CHECK_BYTES, end - self._checked), self._checked))
            )
        except ours(OSError):
            return True
        if self.committed is not before:  # a signal handler has logged meanwhile
            return True
        if is_sound:
            self._checked = end
        return is_sound

    def _has_last(self, fd: int, end: int, record: bytes) -> bool:
        """Whether a file has the end of the last record before `end`."""
        last = b"" if end == self._blurred else record[-LAST_BYTES:]
        return os.pread(fd, len(last), end - len(last)) == last

    def written_since_removal(self) -> bytes:
        """Records that were written after the file was last seen at its path, and that are in no other file."""
        with suppress(OSError):
            if self.fd >= 0 and not os.fstat(self.fd).st_nlink:  # else it was only moved away, and keeps them
                kept = max(self._seen, _whole_length(self.path))  # a copy may stand in its place
                return os.pread(self.fd, max(0, self.end - kept), kept)
        return b""

    def rest(self) -> bool:
        """Close the descriptor until the next record, unless it is in use; True if it was closed."""
        if self.under_way is not None or not self.is_there():
            return False
        self.close()
        return True

    def revive(self) -> bool:
        """Open the file again for a descriptor that may be dead; False if it does not hold what this process has left.

        OSError if the path does not answer, either. A mount that was made anew may give it another inode.
        """
        try:
            fd = self.path.open(_REOPEN)
        except ours(FileNotFoundError):
            return False
        try:
            found, (end, (record,)) = os.fstat(fd), self.committed
            begun = 0 if self.under_way is None else len(self.under_way[0])
            is_ours = end <= found.st_size <= end + begun and self._has_last(fd, end, record)
        except BaseException:
            os.close(fd)
            raise
        if not is_ours:
            os.close(fd)
            return False
        before, self.fd = (self.fd, self._inode), fd
        self._inode = identity(found)
        close_if(*before)
        return True

    def is_dead(self) -> bool:
        """Whether the descriptor is open, and tells nothing of its file any more."""
        try:
            return self.fd >= 0 and not os.fstat(self.fd)
        except ours(OSError) as error:
            return error.errno != errno.EBADF

    def wake(self) -> bool:
        """Open the descriptor again; False if the file is no longer what this process left there."""
        try:
            fd = self.path.open(_REOPEN)
        except ours(FileNotFoundError):
            return False
        if identity(os.fstat(fd)) != self._inode or os.fstat(fd).st_size != self.end:
            os.close(fd)
            return False
        self.fd = fd
        return True

    @property
    def is_durable(self) -> bool:
        """Whether all of it survives a power cut."""
        return self._synced == self.end and self._name_synced

    @property
    def device(self) -> int:
        """The device of its filesystem."""
        return self._inode[0]

    def note_synced(self, end: int) -> None:
        """Take in that all of the filesystem was synced after the file ended there.

        What the disk has refused to sync before is written again by `sync`.
        """
        if not self._refusals:
            self._synced, self._name_synced = max(self._synced, end), True

    def sync(self) -> None:
        """Make the file survive a power cut; warn if the disk refuses.

        After a failed sync the kernel takes the bytes for written, so they are written again before the next one. The
        more syncs fail in a row, the more are skipped: training does not pay for such a disk.
        """
        if self.is_durable:
            return
        if self._skips:
            self._skips -= 1
            self._log.warning("%s: not safe against a power cut: the disk has refused that", self.path)
            return
        self._check_descriptor()
        end, refusals = self.end, self._refusals
        self._refusals += 1
        try:
            if refusals:
                disk.write_again(self.path, self._synced, end)
            if self.fd < 0:
                disk.fsync_path(self.path, "event_file")
            else:
                disk.fsync(self.fd, "event_file")
            self._synced = end  # what was appended during the fsync is not synced yet
            if not self._name_synced:
                disk.fsync_dir(self.path.parent, "event_file")
                self._name_synced = True
            self._refusals = 0
        except ours(OSError) as error:
            self._skips = min(2**refusals - 1, MOST_SKIPS)
            self._log.warning("%s: not safe against a power cut: %s", self.path, error)

    def close(self) -> None:
        """Close the descriptor."""
        self._check_descriptor()
        fd, self.fd = self.fd, -1
        if fd < 0:
            return
        try:
            os.close(fd)
        except ours(OSError) as error:  # a network filesystem reports here what it could not keep
            self._log.warning("%s: %s", self.path, error)


def _whole_length(path: Place) -> int:
    try:
        fd = disk.open_beneath(path)
    except ours(OSError):
        return 0
    try:
        return framing.whole_length(fd)
    except ours(OSError):
        return 0
    finally:
        os.close(fd)
