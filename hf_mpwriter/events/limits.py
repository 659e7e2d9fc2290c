"""Limits: what the event files of one process share, a bounded memory and a bounded number of descriptors.

    memory       bytes of records that wait because the disk refuses them, over all files
    descriptors  of files in sub directories; `add_scalars` opens one for each tag, without end

Invariants:
- Both are counted from what each file reports. The total of the memory is counted along; a report that was interrupted
  is corrected when it is counted again, after as many reports as there are files that wait.
- Nothing here waits: a file that is in use at the moment keeps its descriptor.
"""

from __future__ import annotations

from typing import Protocol

MEMORY_LIMIT = 16 << 20  # bytes
OPEN_FILES = 64  # a quarter of the 256 that macOS allows, a sixteenth of the usual limit on Linux


class Closeable(Protocol):
    """A file that can close its descriptor and open it again."""

    def rest(self) -> bool:
        """Close the descriptor unless it is in use; True if it was closed."""


class Limits:
    """The shared limits of one process.

    Args:
        memory: bytes of records that may wait.
        open_files: descriptors of files that can rest.
    """

    def __init__(self, memory: int = MEMORY_LIMIT, open_files: int = OPEN_FILES) -> None:
        self.memory = memory
        self._open_files = open_files
        self._waiting: dict[object, int] = {}  # bytes of each backlog
        self._total = 0  # of these, counted along
        self._until_recount = 0  # calls until it is counted again, as many as there are backlogs
        self._open: dict[Closeable, None] = {}  # the one that was opened first comes first

    def has_room(self, backlog: object, size: int) -> bool:
        """Note the size of a backlog.

        Args:
            backlog: identifies it.
            size: bytes that wait in it.

        Returns:
            Whether all backlogs together are within the memory limit.
        """
        self._total += size - self._waiting.get(backlog, 0)
        self._waiting[backlog] = size
        self._until_recount -= 1
        if self._until_recount <= 0:
            waiting = list(self._waiting.values())
            self._total, self._until_recount = sum(waiting), len(waiting)
        return self._total <= self.memory

    def clear(self, backlog: object) -> None:
        """Note that nothing waits in a backlog."""
        self._total -= self._waiting.pop(backlog, 0)

    @property
    def is_calm(self) -> bool:
        """Whether nothing waits anywhere."""
        return not self._waiting

    def opened(self, file: Closeable) -> None:
        """Note a descriptor that was opened; beyond the limit, those opened first are closed."""
        if file in self._open:
            return
        self._open[file] = None
        for other in list(self._open)[: max(0, len(self._open) - self._open_files)]:
            if other is not file and other.rest():
                self._open.pop(other, None)

    def closed(self, file: Closeable) -> None:
        """Note a descriptor that was closed."""
        self._open.pop(file, None)
