"""Files of the run directory as a snapshot finds them, and how much of them one batch may hold.

    LocalFile    path       length                         growing    sha256, blob_id
    event file   relative   end of the last whole record   yes/no     "", ""
    attachment   relative   size                           no         of the whole content

A push carries one batch. The limits of a batch bound the memory of a push and what one refused commit costs.
"""

from __future__ import annotations

import hashlib
import os
import re
import sys
from dataclasses import dataclass, field

from hf_mpwriter.base.names import SPOOL_NAME, is_attachment, is_run_path
from hf_mpwriter.base.verdicts import Sent
from hf_mpwriter.system import disk
from hf_mpwriter.system.directory import Directory, Place
from hf_mpwriter.system.interrupts import ours, suppress
from hf_mpwriter.system.process import open_above

PAYLOAD_LIMIT = 128 << 20  # bytes of one file that a push holds in memory; a segment of ours has no more
BATCH_FILES = 100  # files in one batch; of event files in the first, see `uploader/pacing`
BATCH_IN_MEMORY = 64 << 20  # bytes of one batch that the push holds in memory
BATCH_BYTES = 1 << 30  # bytes in one batch
REGULAR_BYTES = 10 << 20  # size up to which the Hub may want the content of an attachment in the commit itself
CHUNK = 1 << 20  # bytes that are read at once
LONGEST = (1 << 63) - 1  # bytes of a file, as the kernel counts


@dataclass(frozen=True)
class LocalFile:
    """A file of the run directory as a snapshot found it."""

    path: str  # relative to the run directory, with slashes
    length: int  # bytes up to the end of the last whole record; of an attachment, its size in bytes
    growing: bool  # whether its writer may append more. Files of others count as growing until they are quiet
    sha256: str = ""  # of the content of an attachment, hex; "" of an event file
    # git's id of the content of an attachment, by which the Hub knows small text files; "" of an event file
    blob_id: str = ""
    # inode, size, mtime and ctime (ns) of an attachment while it was read; () if they changed meanwhile
    stamp: tuple[int, ...] = field(default=(), compare=False)

    def __post_init__(self) -> None:
        if not (is_run_path(self.path) and 0 <= self.length <= LONGEST):
            raise ValueError(f"not a file of a run directory: {self!r:.200}")
        patterns = ("[0-9a-f]{64}", "[0-9a-f]{40}") if is_attachment(self.path) else ("", "")
        if not all(map(re.fullmatch, patterns, (self.sha256, self.blob_id))):
            raise ValueError(f"not the digests of an attachment: {self!r:.200}")

    def is_covered(self, held: Sent) -> bool:
        """Whether nothing is left to send while the Hub holds `held`; what was deleted there stays so.

        An event file only grows, so the length decides. An attachment may change in any way, so the content decides.
        """
        if held.deleted:
            return True
        if self.sha256:
            return (held.length, held.sha256) == (self.length, self.sha256)
        return held.length >= self.length

    @property
    def content(self) -> Sent:
        """What the Hub holds after this attachment was sent."""
        return Sent(self.length, self.sha256, self.blob_id)

    @property
    def in_memory(self) -> bool:
        """Whether a push holds the content in memory, to cut it at `length` or to put it into the commit itself."""
        limit = PAYLOAD_LIMIT if self.growing else REGULAR_BYTES if self.sha256 else 0
        return self.length <= limit

    @property
    def is_large(self) -> bool:
        """Whether it may still grow and is too long to be held in memory, see `snapshot/large_files`."""
        return self.growing and self.length > PAYLOAD_LIMIT


def begins_with(whole: int, beginning: int, end: int = sys.maxsize) -> bool:
    """Whether a file begins with what another one has before `end`; both are descriptors."""
    position = 0
    while chunk := os.pread(beginning, min(CHUNK, end - position), position):
        if os.pread(whole, len(chunk), position) != chunk:
            return False
        position += len(chunk)
    return True


def continues(fd: int, place: Place) -> bool:
    """Whether an open file begins with what is at a place, if something is; OSError if that cannot be read.

    Zeros at the end do not count: a power cut leaves them where content was not durable.
    """
    try:
        here = disk.open_beneath(place)
    except ours(FileNotFoundError):
        return True
    try:
        return begins_with(fd, here, _without_zeros(here))
    finally:
        os.close(here)


def _without_zeros(fd: int) -> int:
    """Bytes of a file before the zeros at its end."""
    end = os.fstat(fd).st_size
    while end:
        start = max(0, end - CHUNK)
        if content := os.pread(fd, min(CHUNK, end - start), start).rstrip(b"\0"):
            return start + len(content)
        end = start
    return 0


def owners(run: Directory) -> set[int]:
    """The users that may own what this user makes in a run directory.

    A filesystem may know him by another number, that of the spool. A run directory is its owner's.
    """
    found = {os.geteuid()}
    for place in (Place(run), run / SPOOL_NAME):
        with suppress(OSError):
            found.add(place.stat().st_uid)
    return found


def git_hasher(size: int) -> hashlib._Hash:
    """A hasher that gives git's id of a content of `size` bytes once it was fed with it."""
    return hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)


def digest(file: str | int, length: int) -> str:
    """sha256 of the first `length` bytes of a file, hex; of fewer if it is shorter."""
    return feed(hashlib.sha256(), file, length)


def feed(hasher: hashlib._Hash, file: str | int, length: int) -> str:
    """Feed a hasher with the first `length` bytes of a file, by its path or open; its digest, hex."""
    with open(file, "rb", opener=open_above, closefd=isinstance(file, str)) as source:
        source.seek(0)
        while length > 0 and (chunk := source.read(min(CHUNK, length))):
            hasher.update(chunk)
            length -= len(chunk)
    return hasher.hexdigest()
