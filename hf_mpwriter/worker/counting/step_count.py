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
from hf_mpwriter.system import locks


class StepCount:
    """The steps to come.

    Args:
        first: gives the step to begin with, by what is on disk; OSError if that cannot be read.

    Attributes:
        coming: the steps to come, None while nothing is known of them. `log` assigns it, which costs less than `start`.
    """

    def __init__(self, first: Callable[[], int]) -> None:
        self._first = first
        self.forget()

    def forget(self) -> None:
        """Begin again with what is on disk: another process may log there until the next step."""
        self._lock = locks.thread_lock()
        self.coming: Iterator[int] | None = None

    def start(self, step: int) -> None:
        """Let this step be the next one."""
        self.coming = itertools.count(step)

    def take(self) -> int:
        """Return the next step, for one record."""
        steps = self.coming
        if steps is None:
            first, failure = self._first_or_zero()  # without the lock: it reads files
            with self._lock:
                steps = self.coming = self.coming or itertools.count(first)
            if failure:  # now: a handler of the user may call `take`
                logger.warning("the last step on disk cannot be read (%s); steps are counted from 0", failure)
        return next(steps)  # one instruction, so no other thread gets this step

    def _first_or_zero(self) -> tuple[int, OSError | None]:
        try:
            return self._first(), None
        except OSError as error:
            return 0, error
