"""Sealing: when the open segments of a staged run are sealed. Only what is sealed comes to the logdir.

    what                            seals segments that are older than
    the time                        `mirror_every`, or 1/64 of the run's age if that is longer
    `push()`, `trigger()`           1/512 of the run's age, and a second
    a signal that asks for a push   nothing: the process may have seconds to live
    `push(wait)`, `close`, the end  nothing

It is done when the worker keeps house, or in the call itself for the last row. An idle process seals nothing until its
next call.

Invariants:
- Files stay few, whatever a program asks for at every step: TensorBoard's default reader keeps one descriptor per file.
- What is sealed is never written again. Each request concerns the segments that were open then.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from hf_mpwriter.spool.staging.record import least_age
from hf_mpwriter.worker.files import WorkerFiles

REQUESTED_SHARE = 512  # the parts of a run's age of which one is the least age of a segment that a push seals
REQUESTED_MIN = 1.0  # seconds


def opened_before(now: float, run_age: float, mirror_every: float, requested_at: float) -> float:
    """The monotonic seconds such that segments that were opened before are to be sealed."""
    by_time = now - least_age(run_age, mirror_every)
    by_request = min(requested_at, now - max(REQUESTED_MIN, run_age / REQUESTED_SHARE))
    return max(by_time, by_request)


class Sealing:
    """What one process seals for the mirror; nothing of a run that is not staged."""

    def __init__(self, files: WorkerFiles, mirror_every: Callable[[], float], clock: Callable[[], float]) -> None:
        self._files, self._mirror_every, self._clock = files, mirror_every, clock
        self._requested_at = -math.inf
        self.made_at: float | None = None  # unix time when the run began; None if it is not staged

    def request(self, *, at_once: bool) -> None:
        """Seal what is open now: when the worker keeps house and files stay few, or at once."""
        self._requested_at = self._clock()
        if at_once and self.made_at is not None:
            self._files.seal_older()

    def seal_due(self) -> None:
        """Seal the segments that are due; called when the worker keeps house."""
        if self.made_at is not None:
            age = max(0.0, time.time() - self.made_at)
            self._files.seal_older(opened_before(self._clock(), age, self._mirror_every(), self._requested_at))
