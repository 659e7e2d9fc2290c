"""What a mirror does next, a pure function; and when it tries again.

situation                                                     action
workers are gone, and there was no progress for LINGER        LEAVE
something may be new                                          SCAN
files wait, no copy lives, and a try is allowed               COPY
files wait, SIGTERM                                           LEAVE
nothing waits, and workers are gone, or SIGTERM               LEAVE
any other                                                     WAIT

what has failed                     what is tried again, and when
the logdir                          all, after a pause that grows
files of some writers               these after that pause; those of others at once
a file, while others get there      that one after a pause of its own
"""

from __future__ import annotations

import enum
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from hf_mpwriter.mirror.job import Absent, Arrived, Conflict, Message, Withheld
from hf_mpwriter.spool.status import LINGER

FIRST_PAUSE = 2.0  # seconds
LONGEST_PAUSE = 300.0  # seconds
REFUSED_PAUSE = 60.0  # seconds, after what a person has to mend
LONGEST_REFUSED_PAUSE = 3600.0  # seconds
SHORTEST_PAUSE = 0.5  # seconds; full jitter may draw 0


class MirrorAction(enum.Enum):
    """What to do next."""

    SCAN = enum.auto()  #: see which files are final, and not in the logdir
    COPY = enum.auto()  #: start a copy
    WAIT = enum.auto()  #: nothing to do, or nothing allowed yet
    LEAVE = enum.auto()  #: give the mirror lock up


@dataclass(frozen=True)
class MirrorSituation:
    """All that `decide` may know; no copy of this mirror runs."""

    living: int  # members that live
    abandoned_for: float  # seconds since a member was last seen alive, or a file has arrived
    may_try: bool  # whether a copy may start now
    is_due: bool  # whether something may be new
    waiting: int  # files that wait, as of the last scan
    is_ending: bool  # whether SIGTERM asks for the end


def decide(s: MirrorSituation) -> MirrorAction:
    """The next action."""
    if not s.living and s.abandoned_for > LINGER:
        return MirrorAction.LEAVE
    if s.is_due:
        return MirrorAction.SCAN
    if s.waiting and s.may_try:
        return MirrorAction.COPY
    if s.is_ending or not (s.waiting or s.living):
        return MirrorAction.LEAVE
    return MirrorAction.WAIT


def pause(failures: int, rng: random.Random, *, is_refused: bool) -> float:
    """Seconds until the next copy: full jitter under a ceiling that doubles."""
    first, longest = (REFUSED_PAUSE, LONGEST_REFUSED_PAUSE) if is_refused else (FIRST_PAUSE, LONGEST_PAUSE)
    ceiling = min(longest, first * 2.0 ** min(failures - 1, 20))
    return max(SHORTEST_PAUSE, rng.uniform(ceiling / 2 if is_refused else 0.0, ceiling))


class Tries:
    """When the next copy may start, and which files are in it."""

    def __init__(self, clock: Callable[[], float], rng: random.Random) -> None:
        self._clock, self._rng = clock, rng
        self._next = self._last = 0.0
        # writers whose files have failed in the last copies; they come last
        self.behind: frozenset[tuple[str, str]] = frozenset()
        self._held: set[str] = set()
        self._rounds, self._held_until = 0, 0.0

    def may_start(self, writers: Iterable[tuple[str, str]]) -> bool:
        """Whether a copy may start now."""
        now = self._clock()
        if now >= self._next:
            return True
        return bool(self.behind) and now >= self._last + FIRST_PAUSE and not self.behind.issuperset(writers)

    def start(self) -> None:
        """A copy starts."""
        self._last = self._clock()

    def hurry(self) -> None:
        """A request or an end is news: it ends a wait. Many of them do not make the tries more frequent than that."""
        self._next = min(self._next, self._last + FIRST_PAUSE)

    def at_once(self) -> None:
        """Nothing is waited for."""
        self._next = 0.0

    def not_before(self, seconds: float) -> None:
        """Wait so long at least."""
        self._next = max(self._next, self._clock() + seconds)

    def failed(self, failures: int, *, is_refused: bool) -> float:
        """A copy has failed, for the n-th time in a row; the seconds until the next one."""
        wait = pause(failures, self._rng, is_refused=is_refused)
        self._next = self._clock() + wait
        return wait

    def succeeded(self) -> None:
        """A copy has ended well."""
        self._next, self.behind = 0.0, frozenset()

    def note(self, message: Message) -> None:
        """Take in what a copy says of a file: it is held back while others get there, or not any more."""
        if isinstance(message, Withheld):
            if self._clock() >= self._held_until:
                self._rounds += 1
                self._held_until = self._clock() + pause(self._rounds, self._rng, is_refused=True)
            self._held.add(message.path)
        elif isinstance(message, Arrived | Conflict | Absent):
            self._held.discard(message.path)
            if not self._held:
                self._rounds, self._held_until = 0, 0.0

    def due(self) -> frozenset[str]:
        """The files that were held back and may be tried again."""
        return frozenset(self._held if self._clock() >= self._held_until else ())
