"""Pacing: when the next push may start, and how it goes.

    commit_every  -> next_commit   when the events of live workers are due
    verdicts      -> next_try      no push starts earlier; a request ends the wait, unless the Hub asked for it
    rate limit    -> take          a token for each push that commits; without one, next_try
    several nodes -> turn          what all want at once, a first commit and an urgent one, each does at its turn;
                                   where they are more than a burst, a second failure in a row costs the turn, as
                                   after an outage all would come at once
    429, 412      -> stretch       doubles the pauses, or adds to them; each commit takes a little of that back
    412           -> fenced        after MOVED_LIMIT of these since the last success, one push names no parent
    Xet trouble   -> xet           after XET_LIMIT failures in a row, content goes by LFS for an hour

When a push is tried again is a pure decision of `next_step`, with attempts and randomness as arguments:

    Done, Quarantine   at once, if more waits
    Split              soon, in smaller batches
    Moved              within seconds; after MOVED_LIMIT in a row as Retry
    Retry, Unknown     full jitter under a ceiling that doubles from 5 s to 5 min; Retry-After of the Hub counts
    Refused            slowly: 5 min, doubling to an hour; a new token or a request ends the wait

All times are monotonic seconds.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Collection
from dataclasses import dataclass

from hf_mpwriter.base.verdicts import Done, Moved, Quarantine, Refused, Retry, Split, Unknown, Verdict
from hf_mpwriter.uploader.pace.rate_limit import BUSY_WAIT, RateLimit

FIRST_WAIT = 5.0  # seconds
LONGEST_WAIT = 300.0  # seconds
SHORTEST_WAIT = 0.5  # seconds; full jitter may draw 0, which would hammer
LONGEST_WISH = 3600.0  # seconds; a longer Retry-After is not believed
REFUSED_WAIT = 300.0  # seconds
LONGEST_REFUSED_WAIT = 3600.0  # seconds
MOVED_WAIT = 3.0  # seconds
MOVED_LIMIT = 5  # 412 since the last success, before one push names no parent
LARGEST_STRETCH = 8.0  # of all pauses
STRETCH_ON_412 = 0.5  # a verdict: the push itself has tried a few times
STRETCH_BACK = 0.25  # for each commit
TURN_LASTS = 30.0  # seconds after a commit in which more of the same may go
LOOK_EVERY = 10.0  # seconds between two looks for others at the bucket, while a turn is waited for
XET_LIMIT = 3  # failures of the Xet storage in a row, before content goes by LFS
XET_PAUSE = 3600.0  # seconds until Xet is tried again; LFS sends whole files


@dataclass(frozen=True)
class Step:
    """What happens next."""

    wait: float  # seconds until the next push
    may_hurry: bool = True  # whether a request of the user may end the wait; False if the Hub asked for it


def next_step(verdict: Verdict, attempts: int, rng: random.Random) -> Step:
    """Decide when to push again."""
    if isinstance(verdict, (Done, Quarantine)):
        return Step(0.0)
    if isinstance(verdict, Split):
        return Step(rng.uniform(SHORTEST_WAIT, FIRST_WAIT))
    if isinstance(verdict, Refused):
        return Step(min(LONGEST_REFUSED_WAIT, REFUSED_WAIT * 2 ** min(attempts - 1, 10)))
    if isinstance(verdict, Moved):
        if attempts <= MOVED_LIMIT:
            return Step(rng.uniform(SHORTEST_WAIT, MOVED_WAIT))
        attempts -= MOVED_LIMIT
    ceiling = min(LONGEST_WAIT, FIRST_WAIT * 2 ** min(attempts - 1, 10))
    wait = rng.uniform(SHORTEST_WAIT, ceiling)
    if not isinstance(verdict, Moved) and verdict.after is not None:
        return Step(max(wait, min(verdict.after, LONGEST_WISH)), may_hurry=False)
    return Step(wait)


class Backoff:
    """The waits of one lane after failures."""

    def __init__(self, clock: Callable[[], float], rng: random.Random) -> None:
        self._clock, self._rng = clock, rng
        self.next_try, self.may_hurry = 0.0, True
        self.attempts = self._moved = self._failures = 0

    def failed(self, verdict: Verdict) -> Step:
        """Count a failure, and wait as it asks for."""
        self.attempts += 1
        if isinstance(verdict, Moved):
            self._moved += 1
        else:
            self._failures += 1
        step = next_step(verdict, self._moved if isinstance(verdict, Moved) else self._failures, self._rng)
        self.hold(step)
        return step

    def hold(self, step: Step) -> None:
        """Start no push for a while."""
        self.next_try, self.may_hurry = self._clock() + step.wait, step.may_hurry

    def hurry(self, earliest: float) -> None:
        """End a wait at `earliest`, unless the Hub asked for it."""
        if self.may_hurry:
            self.next_try = min(self.next_try, earliest)

    def succeeded(self) -> None:
        """Forget the failures and the wait."""
        self.attempts = self._failures = self._moved = 0
        self.next_try, self.may_hurry = 0.0, True


class Pacing(Backoff):
    """The waits that hold for all pushes, and how the next one goes."""

    def __init__(self, clock: Callable[[], float], rng: random.Random, rate_limit: RateLimit, first: float) -> None:
        super().__init__(clock, rng)
        self._rate_limit = rate_limit
        self.next_commit = first  # when the commit interval is over
        self._xet_failures = 0
        self._last_try = self._lfs_until = 0.0
        self._last_squash = -math.inf
        self._holds_token = self.used_up = False
        self._asked_at: float | None = None  # since when a turn is waited for
        self._turn_ends, self._next_look, self._has_committed = -math.inf, 0.0, False
        self.turn_at = 0.0  # when the rate limit allows what is urgent, 0 unless it has refused that

    @property
    def is_fenced(self) -> bool:
        """Whether the next push names its parent."""
        return self._moved < MOVED_LIMIT

    @property
    def uses_xet(self) -> bool:
        """Whether the next push may use Xet."""
        return self._clock() >= self._lfs_until

    @property
    def blocked_until(self) -> float:
        """When a push is allowed again, whatever is asked for; 0 if nothing but a request is needed."""
        return max(0.0 if self.may_hurry else self.next_try, self.turn_at)

    @property
    def is_alone(self) -> bool:
        """Whether the whole rate limit is that of this bucket."""
        return self._rate_limit.rule.parts == 1

    @property
    def explanation(self) -> str:
        """Why the rate limit refused the last push, for people."""
        return self._rate_limit.explanation

    def saw(self, hosts: Collection[str], apart: Collection[str] = ()) -> None:
        """Note which hosts share the run directory, `apart` from those with an uploader of their own."""
        changed = self._rate_limit.saw(hosts, apart)
        if self._asked_at is not None and self._clock() >= self._next_look:
            self._next_look = self._clock() + LOOK_EVERY
            changed |= self._rate_limit.look()
        if changed and self._asked_at is not None:
            self.hurry(self._clock())

    def take(self, *, urgent: bool, at_once: bool = False) -> bool:
        """Whether the rate limit allows a push now; else the next try waits for it."""
        now = self._clock()
        wait = self._rate_limit.take(urgent=urgent)
        if wait > BUSY_WAIT and at_once and not self.is_alone:
            wait = 0.0  # the Hub takes more than the limit: what is lost otherwise goes now
        if wait > BUSY_WAIT:  # the nodes get their tokens one after another: that is turn enough
            self._asked_at = -math.inf
        elif not wait and not at_once and (wait := self._until_turn(now, urgent=urgent)):
            self._rate_limit.give_back()
        if wait:
            self.hold(Step(wait))
        if wait <= BUSY_WAIT or self.is_alone:  # to wait for a turn is no try
            self._last_try = now
        self.turn_at = now + wait if wait > BUSY_WAIT and urgent else 0.0
        self._holds_token, self.used_up = not wait, wait > BUSY_WAIT
        return not wait

    def _until_turn(self, now: float, *, urgent: bool) -> float:
        """Seconds until the turn of this node for what all nodes may want at the same moment."""
        if (self._has_committed and not urgent) or now < self._turn_ends:
            self._asked_at = None
            return 0.0
        self._asked_at = now if self._asked_at is None else self._asked_at
        return max(0.0, self._asked_at + self._rate_limit.turn - now)

    def _spend(self, *, committed: bool) -> None:
        """Give the token back if there was no commit; a mere read-back never had one."""
        if self._holds_token and not committed:
            self._rate_limit.give_back()
        self._holds_token = False

    def requested(self) -> None:
        """End a wait because of a request, FIRST_WAIT after the last try at the earliest."""
        self.hurry(self._last_try + FIRST_WAIT)

    def may_squash(self, minutes: float) -> bool:
        """Whether the history may be squashed after the next commit: once in `minutes`."""
        due = self._clock() >= self._last_squash + 60 * minutes
        if due:
            self._last_squash = self._clock()
        return due

    def scanned(self, minutes: float) -> None:
        """Note a scan: the next commit is due in `minutes`."""
        self.next_commit = self._clock() + 60 * minutes * self._rate_limit.stretch

    def soon(self) -> None:
        """Make the next commit due now."""
        self.next_commit = self._clock()

    def done(self, *, committed: bool, beside_others: bool | None = None) -> None:
        """The Hub has a batch."""
        if committed and beside_others is not None:
            self._rate_limit.committed(beside_others=beside_others)
        moved = 0 if self.is_fenced else MOVED_LIMIT - 1  # a busy branch stays busy: one try is enough
        self.succeeded()
        self._moved = moved
        if committed and self.uses_xet:
            self._xet_failures = 0
        if committed:
            self._has_committed, self._turn_ends = True, self._clock() + TURN_LASTS
            self._stretch(self._rate_limit.stretch - STRETCH_BACK)
        self._asked_at = None
        self._spend(committed=committed)

    def _stretch(self, stretch: float) -> None:
        self._rate_limit.stretch = min(LARGEST_STRETCH, max(1.0, stretch))

    def learn(self, verdict: Verdict) -> None:
        """Take what a failure tells about the way and the rate limit, whatever the push carried."""
        down = isinstance(verdict, Retry) and (verdict.limited or verdict.after is None)  # 409 is soon over
        loses_turn = down and self._failures > 0 and self._rate_limit.rule.is_by_turns
        self._spend(committed=loses_turn or not isinstance(verdict, (Retry, Moved)))
        if isinstance(verdict, Moved):
            self._stretch(self._rate_limit.stretch + STRETCH_ON_412)
        elif isinstance(verdict, Retry) and verdict.limited:
            self._stretch(2 * self._rate_limit.stretch)
        if isinstance(verdict, (Retry, Unknown)) and verdict.xet and self.uses_xet:
            self._xet_failures += 1
            if verdict.xet == "missing" or self._xet_failures >= XET_LIMIT:
                self._xet_failures, self._lfs_until = XET_LIMIT - 1, self._clock() + XET_PAUSE
                self.attempts = self._failures = 0  # the other way is tried soon
