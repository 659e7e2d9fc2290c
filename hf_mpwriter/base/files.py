"""TODO base.files."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field

from hf_mpwriter.base.names import is_attachment, is_run_path
from hf_mpwriter.base.verdicts import Sent

LONGEST = (1 << 63) - 1  # bytes of a file, as the kernel counts

BATCH_FILES = 100  # files in one entry
BATCH_IN_MEMORY = 64 << 20  # bytes of files that the push holds in memory
BATCH_BYTES = 512 << 20  # bytes in one entry
REGULAR_BYTES = 10 << 20  # up to this size the Hub may want the content of an attachment within the commit itself


@dataclass(frozen=True)
class LocalFile:
    """A file of the run directory as it is on disk.

    Attributes:
        path: relative to the run directory, with slashes.
        length: end of the last whole record; of an attachment, its size.
        growing: whether its writer may append more; of files of others nobody knows, so they count as growing.
        sha256: of an attachment's whole content, hex; "" of an event file.
        blob_id: git's id of an attachment's content, by which the Hub knows small text files; "" of an event file.
        stamp: inode, size, mtime and ctime (ns) of an attachment while it had this content; () if it changed meanwhile.
    """

    path: str
    length: int
    growing: bool
    sha256: str = ""
    blob_id: str = ""
    stamp: tuple[int, ...] = field(default=(), compare=False)

    def __post_init__(self) -> None:
        if not (is_run_path(self.path) and 0 <= self.length <= LONGEST):
            raise ValueError(f"not a file of a run directory: {self!r:.200}")
        patterns = ("[0-9a-f]{64}", "[0-9a-f]{40}") if is_attachment(self.path) else ("", "")
        if not all(map(re.fullmatch, patterns, (self.sha256, self.blob_id))):
            raise ValueError(f"not the digests of an attachment: {self!r:.200}")

    def is_covered(self, held: Sent) -> bool:
        """Whether nothing is left to send when the Hub holds this of the path.

        An event file only grows, so its length tells; an attachment may change in any way, so its content does.
        """
        if self.sha256:
            return (held.length, held.sha256) == (self.length, self.sha256)
        return held.length >= self.length

    @property
    def content(self) -> Sent:
        """What the Hub holds once it has this attachment."""
        return Sent(self.length, self.sha256, self.blob_id)

    @property
    def in_memory(self) -> bool:
        """Whether a push holds the content in memory: cut at the snapshot's length, or part of the commit itself."""
        return self.growing or (bool(self.sha256) and self.length <= REGULAR_BYTES)


def git_blob(size: int) -> hashlib._Hash:
    """Git's digest of a content of this size, to be fed with it; the Hub names small regular files by it."""
    return hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
