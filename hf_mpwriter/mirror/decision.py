"""What a mirror does next, and when a copy is tried again: pure functions.

situation                                                     action
workers are gone, and there was no progress for LINGER        LEAVE
something may be new                                          SCAN
files wait, no copy lives, and a try is allowed               COPY
files wait, SIGTERM                                           LEAVE
nothing waits, and workers are gone, or SIGTERM               LEAVE
any other                                                     WAIT
"""

from __future__ import annotations

import enum
import random
from dataclasses import dataclass

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
    """All that `decide` may know; no copy of this mirror runs.

    Attributes:
        living: members that live.
        abandoned_for: seconds since a member was last seen alive, or a file has arrived.
        may_try: whether a copy may start now.
        is_due: whether something may be new.
        waiting: files that wait, as of the last scan.
        is_ending: whether SIGTERM asks for the end.
    """

    living: int
    abandoned_for: float
    may_try: bool
    is_due: bool
    waiting: int
    is_ending: bool


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
    """Seconds until the next copy: full jitter under a ceiling that doubles.

    Args:
        failures: in a row.
        rng: source of the jitter.
        is_refused: whether a person has to do something before it can succeed; then half of the ceiling at least.
    """
    first, longest = (REFUSED_PAUSE, LONGEST_REFUSED_PAUSE) if is_refused else (FIRST_PAUSE, LONGEST_PAUSE)
    ceiling = min(longest, first * 2.0 ** min(failures - 1, 20))
    return max(SHORTEST_PAUSE, rng.uniform(ceiling / 2 if is_refused else 0.0, ceiling))
