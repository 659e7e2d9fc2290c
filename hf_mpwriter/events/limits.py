"""What the event files of one process share: a bounded memory and a bounded number of open descriptors.

    memory       bytes of records that wait because the disk refuses them, over all files
    descriptors  files of sub-writers that are open; `add_scalars` makes one for each tag, without end

Invariants:
- Both are counted from what each file says of itself, so an interrupted update is put right by the next.
- Nothing here waits: a file that is in use at the moment keeps its descriptor.
"""

from __future__ import annotations

from typing import Protocol

MEMORY_LIMIT = 16 << 20  # bytes
OPEN_FILES = 64  # a quarter of the 256 that macOS allows, a sixteenth of Linux's usual limit


class Restable(Protocol):
    """A file that can give its descriptor back for a while."""

    def rest(self) -> bool:
        """Close the descriptor unless it is in use at the moment; whether that was done."""


class Limits:
    """The shared limits of one process.

    Args:
        memory: bytes of records that may wait.
        open_files: descriptors of files that can rest.
    """

    def __init__(self, memory: int = MEMORY_LIMIT, open_files: int = OPEN_FILES) -> None:
        self.memory = memory
        self._open_files = open_files
        self._waiting: dict[Restable, int] = {}
        self._open: dict[Restable, None] = {}  # the longest open first

    def waits(self, file: Restable, count: int) -> bool:
        """The disk refuses a file, and so many bytes of it wait now; whether memory allows that."""
        self._waiting[file] = count
        return sum(list(self._waiting.values())) <= self.memory

    def waits_no_more(self, file: Restable) -> None:
        """The disk takes the records of a file again."""
        self._waiting.pop(file, None)

    @property
    def is_calm(self) -> bool:
        """Whether the disk refuses no file."""
        return not self._waiting

    def opened(self, file: Restable) -> None:
        """A file has opened its descriptor: those open longest rest, as many as are too many."""
        self._open.pop(file, None)
        self._open[file] = None
        for other in list(self._open)[: max(0, len(self._open) - self._open_files)]:
            if other is not file and other.rest():
                self._open.pop(other, None)

    def closed(self, file: Restable) -> None:
        """A file has no descriptor any more."""
        self._open.pop(file, None)
