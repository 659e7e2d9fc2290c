"""The backlog: records that are not in a segment yet, oldest first, in bounded memory.

    add      a record that cannot take the short way: the disk refuses, or a write is going on
    trim     drops the newest records until the memory of the process suffices, and counts them
    refused  the disk has refused: the next try is due after 1 s, 2 s, 4 s ... 16 s

Invariants:
- A record leaves the backlog only after it was written, or it is counted in `dropped`.
- An interrupted update of `size` is put right when the backlog is empty.
"""

from __future__ import annotations

from collections import deque

from hf_mpwriter.base.timing import USUAL, Timing
from hf_mpwriter.events.limits import Limits
from hf_mpwriter.events.segment import Item


class Backlog:
    """The records of one event file that wait."""

    def __init__(self, limits: Limits, timing: Timing = USUAL) -> None:
        self._limits, self._timing = limits, timing
        self.items: deque[Item] = deque()  # the records
        self.size = self.dropped = 0
        self.retry_after = self.retry_at = 0.0
        self.error = ""  # why the disk refused last, "" while it accepts records

    def add(self, item: Item) -> None:
        """Let a record wait."""
        self.items.append(item)
        self.size += len(item[0])

    def add_first(self, item: Item) -> None:
        """Let a record wait before all others."""
        self.items.appendleft(item)
        self.size += len(item[0])

    def remove_first(self) -> None:
        """Remove the oldest record, which was written."""
        item = self.items.popleft()
        self.size = self.size - len(item[0]) if self.items else 0

    def drop_first(self) -> None:
        """Drop the oldest record, which no file can hold."""
        self.remove_first()
        self.dropped += 1

    def trim(self) -> None:
        """Drop the newest records that the memory limit has no room for."""
        while not self._limits.has_room(self, self.size) and self.items:
            self.size -= len(self.items.pop()[0])
            self.dropped += 1

    def give_up(self) -> None:
        """Drop all records."""
        lost = len(self.items)
        self.items.clear()
        self.size = 0
        self._limits.clear(self)
        self.dropped += lost

    def refused(self, now: float, error: OSError) -> None:
        """Plan the next try."""
        self.error = error.strerror or str(error)
        self.retry_after = min(self._timing.disk_retry_longest, 2 * self.retry_after or self._timing.disk_retry_first)
        self.retry_at = now + self.retry_after

    def accepted(self) -> bool:
        """Note that the disk has accepted all records; True if it had refused one before."""
        self._limits.clear(self)
        if not self.retry_after:
            return False
        self.retry_at = self.retry_after = 0.0
        self.error = ""
        return True
