"""Registration: what the owner of an event file knows of its segments, and when it learns it.

    home.directory()             before a segment is opened; may take a claim
    home.opened(path)            before the segment exists
    home.sealed(path, length)    when it is complete; length 0 if the name was not used after all

Invariants:
- No segment exists that was not reported as opened.
- Every path that was reported as opened is reported as sealed in the end: one that stays open holds back all later
  segments of its directory.
- A report of a seal that fails, on a full disk, is kept and repeated; seals keep their order.
"""

from __future__ import annotations

from collections import deque
from typing import Protocol

from hf_mpwriter.system.directory import Place


class FileHome(Protocol):
    """Where event files live, and where their segments are recorded. All methods may raise OSError."""

    after: int  # second; the names of segments lie behind it, 0 for any

    @property
    def segment_min(self) -> int:
        """Bytes that the smallest segments have, unless `series` has less."""

    def directory(self) -> Place:
        """The directory of the owner."""

    def opened(self, path: Place) -> None:
        """Record a segment that is about to be created."""

    def sealed(self, path: Place, length: int) -> None:
        """Record that a segment is complete."""


class Registration:
    """The reports of one event file to its home."""

    def __init__(self, home: FileHome) -> None:
        self._home = home
        # path that was reported as opened and is not created yet, None if there is none
        self.reserved: Place | None = None
        # (path, length) of segments that are complete and not reported yet
        self.seals: deque[tuple[Place, int]] = deque()

    def directory(self) -> Place:
        """See `FileHome.directory`."""
        return self._home.directory()

    def reserve(self, path: Place) -> None:
        """Report a segment before it is created."""
        self._home.opened(path)
        self.reserved = path

    def release(self) -> None:
        """Seal the reserved path unused, if there is one."""
        path, self.reserved = self.reserved, None
        if path is not None:
            self.seals.append((path, 0))

    def report_seals(self) -> None:
        """Report what is sealed; what the home refuses stays for the next call."""
        while self.seals:
            seal = self.seals[0]
            try:
                self._home.sealed(*seal)
            except OSError:
                return
            if self.seals and self.seals[0] is seal:  # else a signal handler has reported it as well
                self.seals.popleft()

    def repeat(self, path: Place | None) -> None:
        """Report to a home that starts anew which segment is open."""
        self.reserved = None
        if path is not None:
            self._home.opened(path)
