"""The step count: which step comes next in the event files of this worker.

    purge_step given          purge_step, purge_step + 1, ...
    nothing known yet         the step behind the last one on disk, also of an earlier attempt; 0 if there is none
    a step logged as `n`      n + 1, n + 2, ...

Invariants:
- Two threads never get the same step.
- What is on disk is read at most once between two joins of the worker, and only if a step is asked for.
- A forked child counts for itself: its event files are others.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

from hf_mpwriter.events.deferred_log import logger
from hf_mpwriter.system import process_state
from hf_mpwriter.system.interrupts import ours

Given = tuple[int]  # a step in a tuple of its own, recognized by its identity


class StepCount:
    """The steps to come."""

    def __init__(self, first: Callable[[], int]) -> None:
        self._first = first
        self._lock = process_state.thread_lock()
        self.forget()

    def forget(self) -> None:
        """Begin again with what is on disk: another process may log there until the next step."""
        self.given: Given | None = None
        self._counting: tuple[Given | None, Iterator[int]] | None = None  # what it counts on from, and the steps

    def start(self, step: int) -> None:
        """Let this step be the next one."""
        self.given = (step - 1,)

    def take(self) -> int:
        """Return the next step, for one record."""
        while (counting := self._counting) is None or counting[0] is not self.given:
            self._begin()
        return next(counting[1])  # one instruction, so no other thread gets this step

    def _begin(self) -> None:
        """Count on from what is given, unless another thread or a signal handler does it meanwhile."""
        given = self.given
        first, failure = self._first_or_zero() if given is None else (given[0] + 1, None)  # no lock: it reads files
        counting = given, itertools.count(first)
        with self._lock:  # no call between the condition and what follows from it: handlers run at calls
            if given is self.given and (self._counting is None or self._counting[0] is not given):
                self._counting = counting
        if failure:  # now: a handler of the user may call `take`
            logger.warning("the last step on disk cannot be read (%s); steps are counted from 0", failure)

    def _first_or_zero(self) -> tuple[int, Exception | None]:
        try:
            return self._first(), None
        except ours(Exception) as error:  # of any kind: what is logged comes first
            return 0, error
