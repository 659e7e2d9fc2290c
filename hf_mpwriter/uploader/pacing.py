"""Pacing: when the next push of a branch may start, how it goes, how much it carries, and when refused paths go again.

    verdicts      -> next_try      no push starts earlier; a request ends the wait, unless the Hub asked for it
    rate limit    -> take          a token for each push that commits; without one, next_try
    412           -> fenced        after MOVED_LIMIT of these since the last success, one push names no parent
    Xet trouble   -> xet           after XET_LIMIT failures in a row, content goes by LFS for an hour
    413, 504      -> batch size    halves; a full commit in less than SLOW_COMMIT doubles it
    refused path  -> retries       REFUSALS times, minutes apart; then the Hub is believed: after minutes, later hours

When a push is tried again is a pure decision of `next_step`, with attempts and randomness as arguments:

    Done, Quarantine   at once, if more waits
    Split              soon, in smaller batches
    Moved              within seconds; after MOVED_LIMIT since the last success as Retry
    Retry, Unknown     full jitter below a ceiling that doubles from 5 s to 5 min; Retry-After of the Hub counts
    Refused            slowly: 5 min, doubling to an hour; a new token or a request ends the wait

A Hub takes only so many commits an hour, so many small files need large commits. But a commit that takes a minute is
ended by a proxy on the way. So the size of batches is found by trying, anew by each uploader.

All times are monotonic seconds.
"""

from __future__ import annotations

import logging
import math
import random
from collections import Counter
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass

from hf_mpwriter.base.files import BATCH_FILES
from hf_mpwriter.base.names import is_attachment
from hf_mpwriter.base.timing import USUAL, Timing
from hf_mpwriter.base.verdicts import Done, Moved, Quarantine, Refused, Retry, Split, Unknown, Verdict
from hf_mpwriter.spool.ledger import Ledger
from hf_mpwriter.uploader.rate_limit import BUSY_WAIT, HOUR, RateLimit

logger = logging.getLogger("hf_mpwriter")

LONGEST_WAIT = 300.0  # seconds
SHORTEST_WAIT = 0.5  # seconds; full jitter may draw 0, which would hammer
REFUSED_WAIT = 300.0  # seconds
LONGEST_REFUSED_WAIT = HOUR  # of a destination, or of a path
REFUSALS = 3  # of a path alone, minutes apart, before the Hub is believed
MOVED_LIMIT = 5  # 412 since the last success, before one push names no parent
XET_LIMIT = 3  # failures of the Xet storage in a row, before content goes by LFS
XET_PAUSE = HOUR  # until Xet is tried again; LFS sends whole files
SLOW_COMMIT = 45.0  # seconds; the Hub, or a proxy before it, ends a request in 60
SMALLEST = 10  # files; what is refused with fewer is split, and does not make other batches smaller
LARGEST = 600  # files; a push of more takes more memory than `hf upload` of a folder, which makes as many commits


@dataclass(frozen=True)
class Clocks:
    """The time as an uploader knows it, and its waits."""

    now: Callable[[], float]  # monotonic seconds
    there: Callable[[], float]  # unix time of the filesystem, on which hosts agree
    rng: random.Random  # for jitter
    timing: Timing = USUAL


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
        return Step(max(wait, verdict.after), may_hurry=False)
    return Step(wait)


class Backoff:
    """Waits after failures: of event files or of attachments of a branch, or of one run."""

    def __init__(self, clocks: Clocks) -> None:
        self._clocks = clocks
        self.next_try, self.may_hurry = 0.0, True
        self.attempts = 0
        self._counts = Counter[type]()  # each sort of trouble has a wait of its own

    def failed(self, verdict: Verdict) -> Step:
        """Count a failure, and wait as it asks for."""
        self.attempts += 1
        sort = type(verdict) if isinstance(verdict, (Moved, Refused)) else Retry
        self._counts[sort] += 1
        step = next_step(verdict, self._counts[sort], self._clocks.rng, self._clocks.timing)
        self.hold(step)
        return step

    def hold(self, step: Step) -> None:
        """Start no push for a while."""
        self.next_try, self.may_hurry = self._clocks.now() + step.wait, step.may_hurry

    def hurry(self, since: float) -> None:
        """A request ends a wait, the shortest one after `since` at the earliest, unless the Hub asked for it."""
        self.end_wait(since + self._clocks.timing.push_retry_first)

    def end_wait(self, earliest: float) -> None:
        """Start the next push then, if it would be later, unless the Hub asked for the wait."""
        if self.may_hurry:
            self.next_try = min(self.next_try, earliest)

    def succeeded(self) -> None:
        """Forget the failures and the wait."""
        self.attempts = 0
        self._counts.clear()
        self.next_try, self.may_hurry = 0.0, True


class Pacing(Backoff):
    """The waits that hold for all pushes, and how the next one goes."""

    def __init__(self, clocks: Clocks, rate_limit: RateLimit) -> None:
        super().__init__(clocks)
        self._rate_limit = rate_limit
        self._xet_failures = 0
        self._last_try = self._lfs_until = 0.0
        self._last_squash = -math.inf
        self._holds_token = self.used_up = False  # used_up: whether the rate limit has refused the last push
        self.due_at = 0.0  # when the rate limit allows what is urgent, 0 unless it has refused that

    @property
    def is_fenced(self) -> bool:
        """Whether the next push names its parent."""
        return self._counts[Moved] < MOVED_LIMIT

    @property
    def uses_xet(self) -> bool:
        """Whether the next push may use Xet."""
        return self._clocks.now() >= self._lfs_until

    @property
    def blocked_until(self) -> float:
        """When a push is allowed again, whatever is asked for; 0 if nothing but a request is needed."""
        return max(0.0 if self.may_hurry else self.next_try, self.due_at)

    @property
    def is_alone(self) -> bool:
        """Whether the whole rate limit is that of this bucket."""
        return self._rate_limit.rule.nodes == 1

    def saw(self, hosts: Collection[str], apart: Collection[str] = ()) -> None:
        """Note which hosts share the run directory, `apart` from those with an uploader of their own."""
        if self._rate_limit.saw(hosts, apart) and self.used_up:
            self.end_wait(self._clocks.now())

    def take(self, *, urgent: bool, at_once: bool = False) -> bool:
        """Whether the rate limit allows a push now; else the next try waits for it."""
        now = self._last_try = self._clocks.now()
        wait = self._rate_limit.take(urgent=urgent)
        self._holds_token, self.used_up, self.due_at = self._rate_limit.has_taken, wait > BUSY_WAIT, 0.0
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

    def started(self) -> None:
        """Note that a push starts, also one that needs no token."""
        self._last_try = self._clocks.now()

    def requested(self) -> None:
        """End a wait because of a request."""
        self.hurry(self._last_try)

    def may_squash(self, minutes: float) -> bool:
        """Whether the history may be squashed after the next commit: once in `minutes`."""
        due = self._clocks.now() >= self._last_squash + 60 * minutes
        if due:
            self._last_squash = self._clocks.now()
        return due

    def done(self, *, committed: bool, beside_others: bool | None = None) -> None:
        """The Hub has a batch."""
        if committed and beside_others is not None:
            self._rate_limit.committed(beside_others=beside_others)
        moved = 0 if self.is_fenced else MOVED_LIMIT - 1  # a busy branch stays busy: one try is enough
        self.succeeded()
        self._counts[Moved] = moved
        if committed and self.uses_xet:
            self._xet_failures = 0
        self._spend(committed=committed)

    def learn(self, verdicts: Iterable[Verdict]) -> None:
        """Take what a push that has failed tells about the way and the rate limit, whatever it carried."""
        found = list(verdicts)
        # one that is done beside them had nothing to commit
        self._spend(committed=not all(isinstance(verdict, (Done, Retry, Moved)) for verdict in found))
        blame = {verdict.xet for verdict in found if isinstance(verdict, (Retry, Unknown))} - {""}
        if blame and self.uses_xet:
            self._xet_failures += 1
            if self._xet_failures >= XET_LIMIT:
                self._xet_failures, self._lfs_until = XET_LIMIT - 1, self._clocks.now() + XET_PAUSE
                self.attempts = self._counts[Retry] = 0  # the other way is tried soon


class BatchSize:
    """The number of files in the next batch, found by trying."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self.files, self._started_at = BATCH_FILES, now()

    def started(self) -> None:
        """Note that a push starts."""
        self._started_at = self._now()

    def done(self, files: int) -> bool:
        """The Hub has taken a commit of so many files; False if batches must not become larger for now."""
        in_time = self._now() - self._started_at < SLOW_COMMIT
        if in_time and files >= self.files:
            self.files = min(2 * self.files, LARGEST)
        return in_time

    def failed(self, verdict: Verdict, files: int) -> None:
        """Take in a verdict on a push of so many files; one that is refused alone is itself too large."""
        too_slow = isinstance(verdict, Unknown) and verdict.too_slow
        if files > 1 and (too_slow or (isinstance(verdict, Split) and verdict.too_large)):
            self.files = min(self.files, max(SMALLEST, files // 2))


def retry_wait(refusals: int, timing: Timing = USUAL) -> float:
    """Seconds until a path is tried again that the Hub has refused so often."""
    if refusals < REFUSALS:
        return timing.refused_retry_first * 2.0 ** (refusals - 1)
    return min(LONGEST_REFUSED_WAIT, timing.refused_retry * 2.0 ** min(refusals - REFUSALS, 10))


class Retries:
    """When paths are tried again that the Hub has refused: slowly, for ever. The ledger keeps the refusals."""

    def __init__(self, ledger: Ledger, clocks: Clocks) -> None:
        self._ledger, self._clocks = ledger, clocks
        self._tried: dict[str, float] = {}  # when the last try was
        self._absent: dict[str, float] = {}  # when there was nothing to try of a path that was due
        self._asked = set[str]()  # paths that a request came for after their last try
        there = clocks.there() if ledger.quarantined else 0.0
        for path, entry in ledger.quarantined.items():
            if there >= entry.tried:  # else a clock is wrong
                self._tried[path] = clocks.now() - (there - entry.tried)
        self.request()  # as a new start is one

    def refused(self, path: str, reason: str, *, certain: bool) -> None:
        """The Hub has refused a path."""
        logger.info("%s is refused: %s", path, reason)
        known = self._ledger.quarantined.get(path)
        refusals = max((known.refusals if known else 0) + 1, REFUSALS if certain else 1)
        self._ledger.quarantine(path, reason, refusals, self._clocks.there())
        self._tried[path] = self._clocks.now()
        self._absent.pop(path, None)
        self._asked.discard(path)

    def left_out(self, path: str, reason: str) -> None:
        """This host cannot read or send a path now; noted each time, so that a wait knows what was found since."""
        known = self._ledger.quarantined.get(path)
        if known is None or not known.refusals:
            if known is None or known.reason != reason:
                logger.info("%s is left out: %s", path, reason)
            self._ledger.quarantine(path, reason, tried=self._clocks.there())

    def due(self, *, attachments: bool) -> set[str]:
        """The paths that may be tried now."""
        now = self._clocks.now()
        paths = (path for path in self._refused() if is_attachment(path) is attachments)
        return {path for path in paths if self._next_try(path) <= now}

    @property
    def is_open(self) -> bool:
        """Whether the Hub is not believed yet about one of them."""
        return any(self._ledger.quarantined[path].refusals < REFUSALS for path in self._refused() - self._absent.keys())

    def request(self) -> None:
        """A request: try them at once, or a while after the last try."""
        self._asked = self._refused()

    def postpone(self, paths: Collection[str]) -> None:
        """Try these late: there is nothing of them that could be sent now."""
        self._absent |= dict.fromkeys(paths, self._clocks.now())
        self._asked -= set(paths)

    def _refused(self) -> set[str]:
        return {path for path, entry in self._ledger.quarantined.items() if entry.refusals}

    def _next_try(self, path: str) -> float:
        tried, timing = self._tried.get(path, -math.inf), self._clocks.timing
        if path in self._asked:
            return tried + timing.refused_retry_first
        if path in self._absent:
            return self._absent[path] + LONGEST_REFUSED_WAIT
        return tried + retry_wait(self._ledger.quarantined[path].refusals, timing)
