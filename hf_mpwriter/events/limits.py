"""Limits: what the event files of one process share, a bounded memory and a bounded number of descriptors.

    memory       bytes of records that wait because the disk refuses them, over all files
    descriptors  of event files; `add_scalars` opens one for each tag, without end. Files in sub directories rest first
    file size    of each file, see `largest_file`

Invariants:
- Both are counted from what each file reports. A total that an interrupted report has spoiled is put right when nothing
  waits any more.
- Nothing here waits: a file that is in use at the moment keeps its descriptor.
- All event files together keep to a share of RLIMIT_NOFILE: the rest is for training.
"""

from __future__ import annotations

import resource
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hf_mpwriter.events.event_file import EventFile

MEMORY_LIMIT = 16 << 20  # bytes
OPEN_FILES = 64  # in sub directories; a sixteenth of the usual limit on Linux
SHARE = 4  # one of so many descriptors that the process may have is for event files
UNLIMITED = 1 << 63  # more bytes than any file has


def largest_file() -> int:
    """Bytes that this process may write into one file; UNLIMITED without a limit."""
    soft, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
    return UNLIMITED if soft == resource.RLIM_INFINITY else soft


def descriptor_share() -> int:
    """Descriptors that event files may have."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return UNLIMITED if soft == resource.RLIM_INFINITY else max(1, soft // SHARE)


class Limits:
    """The shared limits of one process."""

    def __init__(self, memory: int = MEMORY_LIMIT, open_files: int = OPEN_FILES) -> None:
        self.memory = memory
        self._open_files = open_files
        self.forget()

    def forget(self) -> None:
        """Begin with nothing that waits or is open, as at the start and in a forked child."""
        self._waiting: dict[object, int] = {}  # bytes of each backlog
        self._total = 0  # of these, counted along
        self._main: dict[EventFile, None] = {}  # the one that was opened first comes first
        self._sub: dict[EventFile, None] = {}

    def has_room(self, backlog: object, size: int) -> bool:
        """Note the size of a backlog; whether all backlogs together are within the memory limit."""
        self._total += size - self._waiting.get(backlog, 0)
        self._waiting[backlog] = size
        return self._total <= self.memory

    def clear(self, backlog: object) -> None:
        """Note that nothing waits in a backlog."""
        size = self._waiting.pop(backlog, 0)
        self._total = self._total - size if self._waiting else 0

    @property
    def is_calm(self) -> bool:
        """Whether nothing waits anywhere."""
        return not self._waiting

    def opened(self, file: EventFile, *, is_main: bool) -> None:
        """Note a descriptor that is open; beyond the limits, those that were opened first are closed."""
        (self._main if is_main else self._sub)[file] = None
        self._rest(self._sub, len(self._sub) - self._open_files, file)
        excess = len(self._main) + len(self._sub) - descriptor_share()
        self._rest(self._main, excess - self._rest(self._sub, excess, file), file)

    def rest_all(self, but: EventFile) -> bool:
        """Close all descriptors but that of one file, because the process has none left; True if one was closed."""
        return sum(self._rest(files, len(files), but) for files in (self._sub, self._main)) > 0

    def _rest(self, files: dict[EventFile, None], excess: int, but: EventFile) -> int:
        """Close up to `excess` descriptors; how many were closed."""
        closed = 0
        for file in list(files)[: max(0, excess)]:
            if file is not but and file.rest():
                files.pop(file, None)
                closed += 1
        return closed

    def awake(self) -> list[EventFile]:
        """Who has a descriptor."""
        return [*self._main, *self._sub]

    def closed(self, file: EventFile) -> None:
        """Note a descriptor that was closed."""
        self._main.pop(file, None)
        self._sub.pop(file, None)
