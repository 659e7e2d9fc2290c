"""The pace of an uploader: when the next push may start, and by which way.

    commit_every ──> next_commit         when living workers' events are due
    verdicts     ──> next_try            nothing is sent before; a request of the user ends the wait if it is `patient`
    budget       ──> take                a token before each push; without one, next_try
    412          ──> fenced              after MOVED_LIMIT pushes with nothing else, one goes without a parent; after
                                         that every second one may
    Xet trouble  ──> xet                 after XET_LIMIT failures in a row LFS is used for an hour; after that one is
                                         enough, until a commit by Xet has worked

Times are monotonic seconds.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable

from hf_mpwriter.base.verdicts import Moved, Retry, Unknown, Verdict
from hf_mpwriter.uploader import backoff
from hf_mpwriter.uploader.backoff import Step
from hf_mpwriter.uploader.rate_limit import BUSY_WAIT, RateLimit

XET_LIMIT = 3  # failures of the Xet storage in a row, before content goes by LFS
XET_PAUSE = 3600.0  # seconds, until Xet is tried again: LFS sends whole files


class Pacing:
    """When and how.

    Args:
        clock: monotonic seconds.
        rng: source of the jitter.
        budget: of the repository.
        first: when the first commit is due.

    Attributes:
        attempts: verdicts in a row that were not Done.
        next_commit: when the commit interval is over.
        next_try: when a push is allowed again.
        patient: whether a request may end the wait until `next_try`; the Hub did not wish it then.
        used_up: whether the last push found no token, rather than others at the bucket.
    """

    def __init__(self, clock: Callable[[], float], rng: random.Random, budget: RateLimit, first: float) -> None:
        self._clock, self._rng, self._budget = clock, rng, budget
        self.next_commit, self.next_try, self.patient = first, 0.0, True
        self.attempts = self._moved = self._failures = self._xet_failures = 0
        self._last_try = self._lfs_until = 0.0
        self._last_squash = -math.inf
        self._holds_token = self.used_up = False

    @property
    def fenced(self) -> bool:
        """Whether the next push names its parent."""
        return self._moved < backoff.MOVED_LIMIT

    @property
    def xet(self) -> bool:
        """Whether the next push may use Xet."""
        return self._clock() >= self._lfs_until

    def take(self, *, urgent: bool) -> bool:
        """Whether the budget allows a push now; else the next try waits for it.

        Args:
            urgent: somebody asked for it, or it may be the last one.
        """
        self._last_try = self._clock()
        if wait := self._budget.take(urgent=urgent):
            self.hold(Step(wait))
        self._holds_token, self.used_up = not wait, wait > BUSY_WAIT
        return not wait

    def _spend(self, *, committed: bool) -> None:
        """The push is over: its token goes back if there was no commit; a mere read-back never had one."""
        if self._holds_token and not committed:
            self._budget.give_back()
        self._holds_token = False

    def hold(self, step: Step) -> None:
        """Nothing is sent for a while."""
        self.next_try, self.patient = self._clock() + step.wait, step.patient

    def hurry(self) -> None:
        """Somebody asks: a wait ends, unless the Hub wished it."""
        if self.patient:
            self.next_try = min(self.next_try, self._last_try + backoff.FIRST_WAIT)

    def may_squash(self, minutes: float) -> bool:
        """Whether the history may be squashed after the next commit: once in so many minutes."""
        due = self._clock() >= self._last_squash + 60 * minutes
        if due:
            self._last_squash = self._clock()
        return due

    def surveyed(self, minutes: float) -> None:
        """What there is now goes; the next commit is due so many minutes later."""
        self.next_commit = self._clock() + 60 * minutes

    def soon(self) -> None:
        """The next commit is due."""
        self.next_commit = self._clock()

    def done(self, *, committed: bool) -> None:
        """The Hub has an entry; `committed` if that took a commit."""
        self._moved = 0 if self.fenced else backoff.MOVED_LIMIT - 1  # a busy branch stays busy: one try is enough
        self.attempts = self._failures = 0
        if committed and self.xet:
            self._xet_failures = 0
        self.next_try, self.patient = 0.0, True
        self._spend(committed=committed)

    def failed(self, verdict: Verdict) -> None:
        """A push of event files has failed."""
        self.attempts += 1
        if isinstance(verdict, Moved):
            self._moved += 1
        else:
            self._failures += 1
        in_a_row = self._moved if isinstance(verdict, Moved) else self._failures
        self.hold(backoff.next_step(verdict, in_a_row, self._rng))

    def learn(self, verdict: Verdict) -> None:
        """Whatever a push carried: what its failure tells about the way and the budget."""
        self._spend(committed=not isinstance(verdict, (Retry, Moved)))
        if isinstance(verdict, (Retry, Unknown)) and verdict.xet and self.xet:
            self._xet_failures += 1
            if verdict.xet == "missing" or self._xet_failures >= XET_LIMIT:
                self._xet_failures, self._lfs_until = XET_LIMIT - 1, self._clock() + XET_PAUSE
                self.attempts = self._failures = 0  # the other way is tried soon
