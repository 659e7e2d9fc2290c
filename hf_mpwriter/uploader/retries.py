"""Retries: when a path is tried again that the Hub has refused.

    refused REFUSALS times, minutes apart   the Hub is believed; from then on after minutes, later hours, for ever
    a request, a new start                  at once, but not within `Timing.refused_retry_first` of the last try

All times are monotonic seconds. The ledger keeps the refusals.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection

from hf_mpwriter.base.names import is_attachment
from hf_mpwriter.base.timing import USUAL, Timing
from hf_mpwriter.spool.ledger import Ledger

REFUSALS = 3  # of a file alone, minutes apart, before the Hub is believed
LONGEST_RETRY_WAIT = 3600.0  # seconds


def retry_wait(refusals: int, timing: Timing = USUAL) -> float:
    """Seconds until a path is tried again that the Hub has refused so often."""
    if refusals < REFUSALS:
        return timing.refused_retry_first * 2.0 ** (refusals - 1)
    return min(LONGEST_RETRY_WAIT, timing.refused_retry * 2.0 ** min(refusals - REFUSALS, 10))


class Retries:
    """When paths are tried again that the Hub has refused: slowly, for ever."""

    def __init__(
        self,
        ledger: Ledger,
        clock: Callable[[], float],
        filesystem_time: Callable[[], float],
        timing: Timing = USUAL,
    ) -> None:
        self._timing = timing
        self._ledger, self._clock, self._filesystem_time = ledger, clock, filesystem_time
        self._last: dict[str, float] = {}  # path -> last try
        self._next: dict[str, float] = {}  # path -> next try
        self._absent: set[str] = set()  # paths that could not be tried when they were due
        refused = {path: entry for path, entry in ledger.quarantined.items() if entry.refusals}
        now, there = clock(), filesystem_time() if refused else 0.0
        for path, entry in refused.items():  # a new start tries them again
            age = there - entry.tried
            self._last[path] = now - age if 0 <= age < timing.refused_retry_first else -math.inf
            self._next[path] = max(now, self._last[path] + timing.refused_retry_first)

    def refused(self, path: str, reason: str, *, certain: bool) -> None:
        """The Hub has refused a path."""
        known = self._ledger.quarantined.get(path)
        refusals = max((known.refusals if known else 0) + 1, REFUSALS if certain else 1)
        self._ledger.quarantine(path, reason, refusals, self._filesystem_time())
        self._last[path] = self._clock()
        self._next[path] = self._clock() + retry_wait(refusals, self._timing)
        self._absent.discard(path)

    def left_out(self, path: str, reason: str) -> None:
        """This host cannot read or send a path now; noted each time, so that a wait knows what was found since."""
        known = self._ledger.quarantined.get(path)
        if known is None or not known.refusals:
            self._ledger.quarantine(path, reason, tried=self._filesystem_time())

    def due(self, *, attachments: bool) -> set[str]:
        """The paths that may be tried now."""
        return {path for path, at in self._waiting(attachments=attachments).items() if at <= self._clock()}

    def is_due(self, *, attachments: bool) -> bool:
        """Whether there is such a path."""
        return bool(self._next) and bool(self.due(attachments=attachments))

    @property
    def is_open(self) -> bool:
        """Whether the Hub is not believed yet about one of them."""
        paths = self._next.keys() & self._ledger.quarantined.keys() - self._absent
        return any(self._ledger.quarantined[path].refusals < REFUSALS for path in paths)

    def request(self) -> None:
        """A request: try them at once, or a while after the last try."""
        distance = self._timing.refused_retry_first
        for path, at in self._next.items():
            self._next[path] = min(at, max(self._clock(), self._last[path] + distance))

    def postpone(self, paths: Collection[str]) -> None:
        """Try these late: there is nothing of them that could be sent now."""
        self._absent.update(paths)
        self._next |= dict.fromkeys(paths, self._clock() + LONGEST_RETRY_WAIT)

    def _waiting(self, *, attachments: bool) -> dict[str, float]:
        for path in [path for path in self._next if path not in self._ledger.quarantined]:  # the Hub has taken it
            del self._next[path], self._last[path]
        return {path: at for path, at in self._next.items() if is_attachment(path) is attachments}
