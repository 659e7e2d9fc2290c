"""What a mirror does next, a pure function; what is in a copy's job; and when it tries again.

situation                                                     action
workers are gone, and there was no progress for LINGER        LEAVE
something may be new here                                     SCAN
what is in the logdir is not known, and a try is allowed      LIST
files wait to go there, and a try is allowed                  COPY
files wait to come here, and a try is allowed                 FETCH
files wait, SIGTERM                                           LEAVE
nothing waits, and workers are gone, or SIGTERM               LEAVE
any other                                                     WAIT

After SIGTERM nothing is listed or fetched.

what has failed                     what is tried again, and when
the logdir                          all, after a pause that grows
files of some writers               these after that pause; those of others at once
a file, while others get there      that one after a pause of its own
"""

from __future__ import annotations

import enum
import random
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass

from hf_mpwriter.base.timing import USUAL, Timing
from hf_mpwriter.snapshot.event_files import writer_of
from hf_mpwriter.spool.copies import Absent, Arrived, Conflict, Item, Message, Withheld
from hf_mpwriter.spool.status import LINGER

LONGEST_PAUSE = 300.0  # seconds
LONGEST_REFUSED_PAUSE = 3600.0  # seconds
SHORTEST_PAUSE = 0.5  # seconds; full jitter may draw 0


class MirrorAction(enum.Enum):
    """What to do next."""

    SCAN = enum.auto()  #: see which files are final, and not in the logdir
    LIST = enum.auto()  #: start a copy that tells what is in the logdir
    COPY = enum.auto()  #: start a copy of files to the logdir
    FETCH = enum.auto()  #: start a copy of files from there
    WAIT = enum.auto()  #: nothing to do, or nothing allowed yet
    LEAVE = enum.auto()  #: give the mirror lock up


@dataclass(frozen=True)
class MirrorSituation:
    """All that `decide` may know; no copy of this mirror runs."""

    living: int  # members that live
    abandoned_for: float  # seconds since a member was last seen alive, or a file has arrived
    may_try: bool  # whether a copy may start now
    is_due: bool  # whether something may be new
    waiting: int  # files that wait to go to the logdir, as of the last scan
    is_ending: bool  # whether SIGTERM asks for the end
    is_unlisted: bool = False  # whether what is in the logdir is to be found out
    missing: int = 0  # files that wait to come from there


def decide(s: MirrorSituation) -> MirrorAction:
    """The next action."""
    if not s.living and s.abandoned_for > LINGER:
        return MirrorAction.LEAVE
    if s.is_due:
        return MirrorAction.SCAN
    if s.may_try and (copy := _next_copy(s)):
        return copy
    if s.is_ending or not (s.waiting or s.is_unlisted or s.missing or s.living):
        return MirrorAction.LEAVE
    return MirrorAction.WAIT


def _next_copy(s: MirrorSituation) -> MirrorAction | None:
    if s.is_unlisted and not s.is_ending:
        return MirrorAction.LIST
    if s.waiting:
        return MirrorAction.COPY
    return MirrorAction.FETCH if s.missing and not s.is_ending else None


def pause(failures: int, rng: random.Random, timing: Timing = USUAL, *, is_refused: bool) -> float:
    """Seconds until the next copy: full jitter under a ceiling that doubles."""
    first, longest = timing.copy_retry_first, LONGEST_PAUSE
    if is_refused:
        first, longest = timing.copy_refused_retry_first, LONGEST_REFUSED_PAUSE
    ceiling = min(longest, first * 2.0 ** min(failures - 1, 20))
    return max(SHORTEST_PAUSE, rng.uniform(ceiling / 2 if is_refused else 0.0, ceiling))


class Tries:
    """When the next copy may start, and which files are in it."""

    def __init__(self, clock: Callable[[], float], rng: random.Random, timing: Timing = USUAL) -> None:
        self._clock, self._rng, self._timing = clock, rng, timing
        self._next = self._last = 0.0
        # writers whose files have failed in the last copies; they come last
        self.behind: frozenset[tuple[str, str]] = frozenset()
        self._held: set[str] = set()
        self._rounds, self._held_until = 0, 0.0

    def may_start(self, writers: Iterable[tuple[str, str]]) -> bool:
        """Whether a copy may start now."""
        now = self._clock()
        may_follow = bool(self.behind) and now >= self._last + self._timing.copy_retry_first
        return now >= self._next or (may_follow and not self.behind.issuperset(writers))

    def start(self) -> None:
        """A copy starts."""
        self._last = self._clock()

    def hurry(self) -> None:
        """A request or an end is news: it ends a wait. Many of them do not make the tries more frequent than that."""
        self._next = min(self._next, self._last + self._timing.copy_retry_first)

    def at_once(self) -> None:
        """Nothing is waited for."""
        self._next = 0.0

    def not_before(self, seconds: float) -> None:
        """Wait so long at least."""
        self._next = max(self._next, self._clock() + seconds)

    def failed(self, failures: int, *, is_refused: bool) -> float:
        """A copy has failed, for the n-th time in a row; the seconds until the next one."""
        wait = pause(failures, self._rng, self._timing, is_refused=is_refused)
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
                self._held_until = self._clock() + pause(self._rounds, self._rng, self._timing, is_refused=True)
            self._held.add(message.path)
        elif isinstance(message, Arrived | Conflict | Absent):
            self._held.discard(message.path)
            if not self._held:
                self._rounds, self._held_until = 0, 0.0

    def due(self) -> frozenset[str]:
        """The files that were held back and may be tried again."""
        return frozenset(self._held if self._clock() >= self._held_until else ())


def turned(items: list[Item], failures: int, behind: Collection[tuple[str, str]] = ()) -> list[Item]:
    """The items, after failures those of other writers first: what cannot be brought holds up only its own writer."""
    writers = list(dict.fromkeys(writer_of(item.path) for item in items))
    start = failures % max(1, len(writers))
    rank = {writer: place for place, writer in enumerate(writers[start:] + writers[:start])}
    return sorted(items, key=lambda item: (writer_of(item.path) in behind, rank[writer_of(item.path)]))
