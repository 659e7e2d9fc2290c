"""Batch size: how many event files the next commit may carry.

    a full commit in less than SLOW_COMMIT   -> twice as many, at most LARGEST
    a slower one                             -> as many as before
    413, 504, a push whose time was over     -> half as many as were refused, at least SMALLEST

A Hub takes only so many commits an hour, so many small files need large commits. But a commit that takes a minute is
ended by a proxy on the way. So the size is found by trying, anew by each uploader.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from hf_mpwriter.base.files import BATCH_FILES
from hf_mpwriter.base.verdicts import Split, Unknown, Verdict

SLOW_COMMIT = 45.0  # seconds; the Hub, or a proxy before it, ends a request in 60
SMALLEST = 10  # files; what is refused with fewer is split, and does not make other batches smaller
LARGEST = 600  # files; a push of more takes more memory than `hf upload` of a folder, which makes as many commits


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


@dataclass(frozen=True)
class TooLarge:
    """Lengths of an event file that the Hub has refused for their size."""

    least: int  # of them
    greatest: int  # of them, as a rule the whole file
    times: int  # that so much was refused
