"""Pacing: when the next push may start, how it goes, and how many event files it carries.

    commit_every  -> next_commit   when the events of live workers are due
    verdicts      -> next_try      no push starts earlier; a request ends the wait, unless the Hub asked for it
    rate limit    -> take          a token for each push that commits; without one, next_try
    412           -> fenced        after MOVED_LIMIT of these since the last success, one push names no parent
    Xet trouble   -> xet           after XET_LIMIT failures in a row, content goes by LFS for an hour
    413, 504      -> batch size    halves; a full commit in less than SLOW_COMMIT doubles it

When a push is tried again is a pure decision of `next_step`, with attempts and randomness as arguments:

    Done, Quarantine   at once, if more waits
    Split              soon, in smaller batches
    Moved              within seconds; after MOVED_LIMIT in a row as Retry
    Retry, Unknown     full jitter below a ceiling that doubles from 5 s to 5 min; Retry-After of the Hub counts
    Refused            slowly: 5 min, doubling to an hour; a new token or a request ends the wait

A Hub takes only so many commits an hour, so many small files need large commits. But a commit that takes a minute is
ended by a proxy on the way. So the size of batches is found by trying, anew by each uploader.

All times are monotonic seconds.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Collection
from dataclasses import dataclass

from hf_mpwriter.base.files import BATCH_FILES
from hf_mpwriter.base.timing import USUAL, Timing
from hf_mpwriter.base.verdicts import Done, Moved, Quarantine, Refused, Retry, Split, Unknown, Verdict
from hf_mpwriter.uploader.rate_limit import BUSY_WAIT, RateLimit

LONGEST_WAIT = 300.0  # seconds
SHORTEST_WAIT = 0.5  # seconds; full jitter may draw 0, which would hammer
LONGEST_WISH = 3600.0  # seconds; a longer Retry-After is not believed
REFUSED_WAIT = 300.0  # seconds
LONGEST_REFUSED_WAIT = 3600.0  # seconds
MOVED_LIMIT = 5  # 412 since the last success, before one push names no parent
XET_LIMIT = 3  # failures of the Xet storage in a row, before content goes by LFS
XET_PAUSE = 3600.0  # seconds until Xet is tried again; LFS sends whole files
SLOW_COMMIT = 45.0  # seconds; the Hub, or a proxy before it, ends a request in 60
SMALLEST = 10  # files; what is refused with fewer is split, and does not make other batches smaller
LARGEST = 600  # files; a push of more takes more memory than `hf upload` of a folder, which makes as many commits


@dataclass(frozen=True)
class Step:
    """What happens next."""

    wait: float  # seconds until the next push
    may_hurry: bool = True  # whether a request of the user may end the wait; False if the Hub asked for it


def next_step(verdict: Verdict, attempts: int, rng: random.Random, timing: Timing = USUAL) -> Step:
    """Decide when to push again."""
    if isinstance(verdict, (Done, Quarantine)):
        return Step(0.0)
    if isinstance(verdict, Split):
        return Step(rng.uniform(SHORTEST_WAIT, timing.push_retry_first))
    if isinstance(verdict, Refused):
        return Step(min(LONGEST_REFUSED_WAIT, REFUSED_WAIT * 2 ** min(attempts - 1, 10)))
    if isinstance(verdict, Moved):
        if attempts <= MOVED_LIMIT:
            return Step(rng.uniform(SHORTEST_WAIT, timing.moved_retry))
        attempts -= MOVED_LIMIT
    ceiling = min(LONGEST_WAIT, timing.push_retry_first * 2 ** min(attempts - 1, 10))
    wait = rng.uniform(SHORTEST_WAIT, ceiling)
    if not isinstance(verdict, Moved) and verdict.after is not None:
        return Step(max(wait, min(verdict.after, LONGEST_WISH)), may_hurry=False)
    return Step(wait)


class Backoff:
    """The waits of one lane after failures."""

    def __init__(self, clock: Callable[[], float], rng: random.Random, timing: Timing = USUAL) -> None:
        self._clock, self._rng, self._timing = clock, rng, timing
        self.first_wait = timing.push_retry_first  # seconds that a request does not shorten
        self.next_try, self.may_hurry = 0.0, True
        self.attempts = self._moved = self._failures = 0

    def failed(self, verdict: Verdict) -> Step:
        """Count a failure, and wait as it asks for."""
        self.attempts += 1
        if isinstance(verdict, Moved):
            self._moved += 1
        else:
            self._failures += 1
        attempts = self._moved if isinstance(verdict, Moved) else self._failures
        step = next_step(verdict, attempts, self._rng, self._timing)
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

    def __init__(
        self,
        clock: Callable[[], float],
        rng: random.Random,
        rate_limit: RateLimit,
        first: float,
        timing: Timing = USUAL,
    ) -> None:
        super().__init__(clock, rng, timing)
        self._rate_limit = rate_limit
        self.next_commit = first  # when the commit interval is over
        self._xet_failures = 0
        self._last_try = self._lfs_until = 0.0
        self._last_squash = -math.inf
        self._holds_token = self.used_up = False  # used_up: whether the rate limit has refused the last push
        self.due_at = 0.0  # when the rate limit allows what is urgent, 0 unless it has refused that

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
        return max(0.0 if self.may_hurry else self.next_try, self.due_at)

    @property
    def is_alone(self) -> bool:
        """Whether the whole rate limit is that of this bucket."""
        return self._rate_limit.rule.nodes == 1

    @property
    def explanation(self) -> str:
        """Why the rate limit refused the last push, for people."""
        return self._rate_limit.explanation

    def saw(self, hosts: Collection[str], apart: Collection[str] = ()) -> None:
        """Note which hosts share the run directory, `apart` from those with an uploader of their own."""
        if self._rate_limit.saw(hosts, apart) and self.used_up:
            self.hurry(self._clock())

    def take(self, *, urgent: bool, at_once: bool = False) -> bool:
        """Whether the rate limit allows a push now; else the next try waits for it."""
        now = self._last_try = self._clock()
        wait = self._rate_limit.take(urgent=urgent)
        self._holds_token, self.used_up, self.due_at = not wait, wait > BUSY_WAIT, 0.0
        if not wait or (at_once and not self.is_alone):  # what is lost otherwise goes now: the Hub takes more
            return True
        self.hold(Step(wait))
        if urgent and self.used_up:
            self.due_at = now + wait
        return False

    def _spend(self, *, committed: bool) -> None:
        """Give the token back if there was no commit; a mere read-back never had one."""
        if self._holds_token and not committed:
            self._rate_limit.give_back()
        self._holds_token = False

    def requested(self) -> None:
        """End a wait because of a request, `first_wait` after the last try at the earliest."""
        self.hurry(self._last_try + self.first_wait)

    def may_squash(self, minutes: float) -> bool:
        """Whether the history may be squashed after the next commit: once in `minutes`."""
        due = self._clock() >= self._last_squash + 60 * minutes
        if due:
            self._last_squash = self._clock()
        return due

    def scanned(self, minutes: float) -> None:
        """Note a scan: the next commit is due in `minutes`."""
        self.next_commit = self._clock() + 60 * minutes

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
        self._spend(committed=committed)

    def learn(self, verdict: Verdict) -> None:
        """Take what a failure tells about the way and the rate limit, whatever the push carried."""
        self._spend(committed=not isinstance(verdict, (Retry, Moved)))
        if isinstance(verdict, (Retry, Unknown)) and verdict.xet and self.uses_xet:
            self._xet_failures += 1
            if verdict.xet == "missing" or self._xet_failures >= XET_LIMIT:
                self._xet_failures, self._lfs_until = XET_LIMIT - 1, self._clock() + XET_PAUSE
                self.attempts = self._failures = 0  # the other way is tried soon


def after_commit(most: int, files: int, seconds: float) -> int:
    """How many files the next batch may have, after the Hub has taken one."""
    return min(2 * most, LARGEST) if files >= most and seconds < SLOW_COMMIT else most


def after_refusal(most: int, files: int) -> int:
    """How many files the next batch may have, after one was too large or took too long."""
    return min(most, max(SMALLEST, files // 2)) if files > 1 else most


class BatchSize:
    """The number of files in the next batch, found by trying."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self.files, self._started_at = BATCH_FILES, clock()

    def started(self) -> None:
        """Note that a push starts."""
        self._started_at = self._clock()

    def done(self, files: int) -> bool:
        """The Hub has taken a commit of so many files; False if batches must not become larger for now."""
        seconds = self._clock() - self._started_at
        self.files = after_commit(self.files, files, seconds)
        return seconds < SLOW_COMMIT

    def failed(self, verdict: Verdict, files: int) -> None:
        """Take in a verdict on a push of so many files."""
        too_slow = isinstance(verdict, Unknown) and verdict.too_slow
        if too_slow or (isinstance(verdict, Split) and verdict.too_large):
            self.files = after_refusal(self.files, files)
