"""A followed folder: the program writes event files into it with writers that are not ours.

    no event file yet              a look every LOOK_EVERY seconds
    event files                    the folder becomes a run; what is new is asked for every ROUND seconds
    a worker of ours logs there    its uploader sends all of the folder, when it is due

When the program has ended, what is there is asked for once more.
"""

from __future__ import annotations

from collections.abc import Callable

from hf_mpwriter.base.errors import HfMpWriterError
from hf_mpwriter.spool.layout import Spool

LOOK_EVERY = 5.0  # seconds
ROUND = 300.0  # seconds between two uploads, as between two commits of a writer of ours
NOTHING_THERE, ABSENT = "it has no event files", "it does not exist"  # that may change while the program runs


class NotARunError(HfMpWriterError):
    """A folder has nothing that could be sent."""


class Followed:
    """One folder."""

    def __init__(self, make_run: Callable[[], Spool], *, is_named: bool = True, private: bool | None = None) -> None:
        self.make_run, self.is_named, self.private = make_run, is_named, private
        self.is_told = False  # whether a worker of ours logs there
        self._next = 0.0
        self._last_reason = ""

    def is_due(self, now: float) -> bool:
        """Whether what is new is to be asked for now; then the next round begins."""
        if self.is_told or now < self._next:
            return False
        self._next = now + ROUND
        return True

    def change(self, reason: str) -> str:
        """What to tell of the folder: that it begins to fail, or does not fail any more; "" for nothing new."""
        before, self._last_reason = self._last_reason, reason
        if reason == before:
            return ""
        return f"not on the Hub yet: {reason}" if reason else "uploads work again"
