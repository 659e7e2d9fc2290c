"""Returning: what is in the logdir and not here, on its way back while training goes on.

    unlisted --Listed--> missing --Arrived--> here
                                 --Unread---> named; tried again with the next list
                                 --Conflict-> named; left alone on both sides

A list is asked for when a mirror starts, when `sync` or `pull` asks, and RELIST_AFTER seconds after one of which
something could not be read.

Invariant: what a living worker has open is never replaced.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Collection, Mapping

from hf_mpwriter.base.names import is_config
from hf_mpwriter.spool.copies import Arrived, Conflict, Item, Listed, Message, Unread, bounded
from hf_mpwriter.spool.staging import lacking
from hf_mpwriter.system.directory import Directory

FETCHED_BYTES = 32 << 20  # bytes in one job, so that what is to go to the logdir waits for no longer
RELIST_AFTER = 300.0  # seconds


class Returning:
    """The files of one logdir that are to come here."""

    def __init__(self, run: Directory, clock: Callable[[], float]) -> None:
        self._run, self._clock = run, clock
        self.begin()

    def begin(self) -> None:
        """Believe nothing: what is there is listed anew."""
        self.missing: dict[str, int] = {}  # bytes per path, in the order in which they come
        self.unread: dict[str, str] = {}  # the reason per path
        self._list_at = -math.inf  # monotonic seconds

    @property
    def is_unlisted(self) -> bool:
        """Whether what is there is to be listed."""
        return self._clock() >= self._list_at

    def note(self, message: Message) -> None:
        """Take in what a copy has told."""
        if isinstance(message, Listed):
            self.unread, self._list_at = {}, math.inf
            self.missing = dict(_ordered(lacking(self._run, message.files)))
        elif isinstance(message, Arrived | Conflict | Unread):
            self.missing.pop(message.path, None)
            if isinstance(message, Conflict | Unread):
                self.unread[message.path] = message.reason
            if isinstance(message, Unread):
                self._list_at = self._clock() + RELIST_AFTER

    def failed(self, items: Collection[Item]) -> None:
        """A copy that was to fetch these has failed: it was not a matter of single files."""
        for item in items:
            if self.unread.pop(item.path, None) is not None:
                self.missing[item.path] = item.length

    def next_items(self, growing: Collection[str]) -> tuple[Item, ...]:
        """The files of the next job."""
        for path in self.missing.keys() & growing:
            del self.missing[path]
        return bounded([Item(path, length) for path, length in self.missing.items()], FETCHED_BYTES)


def _ordered(files: Mapping[str, int]) -> list[tuple[str, int]]:
    """Lists of embeddings, then the newest file of each directory, then the one before, and so on."""
    places, seen = dict[str, int](), dict[str, int]()
    for path in sorted(files, reverse=True):
        directory = os.path.dirname(path)
        places[path] = seen[directory] = seen.get(directory, 0) + 1
    return sorted(files.items(), key=lambda file: (not is_config(file[0]), places[file[0]], file[0]))
