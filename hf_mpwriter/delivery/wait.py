"""The wait for sinks, which all that waits has in common. It calls no one: who waits loops over the looks.

    for look in wait_for(wanted, until):
        if look.is_due:
            ...                          see that an uploader lives
    ... one.result() ...                 what holds then

A sink is looked at while something may still come there: not if all is there, if all that is missing is refused, if the
sink refuses all, or if nothing is tried before the end.

Invariant: a wait ends at its time, or as soon as nothing can come before that.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple, Self

from hf_mpwriter.delivery.sinks import ANY, Delivery, Question, Sink

POLL = 0.05  # seconds between two looks
CHECK_PAUSE = 4.0  # times as long as a look took, until the next one; at least POLL
ENSURE_EVERY = 1.0  # seconds between two checks, while waiting, that there is one to wait for


class Wanted(NamedTuple):
    """What is to be in a sink."""

    sink: Sink
    lengths: Mapping[str, int]  # bytes per path
    question: Question = ANY

    @classmethod
    def now(cls, sink: Sink, lengths: Mapping[str, int]) -> Self:
        """What is asked for now."""
        return cls(sink, lengths, sink.question(lengths))

    def look(self) -> Delivery:
        """What of it is there."""
        return self.sink.look(self.lengths, self.question)

    def result(self) -> Delivery:
        """What of it is there in the end, when also what was refused before the question is told."""
        return self.sink.look(self.lengths, replace(self.question, refusals={}))

    def missing(self) -> dict[str, int]:
        """Bytes that are not there, per path."""
        return self.sink.missing(self.lengths, self.question)


class Look(NamedTuple):
    """What was seen while waiting."""

    deliveries: tuple[Delivery, ...]  # to sinks of which something may still come
    is_due: bool  # whether it is time to see that there is one to wait for


def wait_for(
    wanted: Sequence[Wanted],
    until: float,
    clock: Callable[[], float] = time.monotonic,
    pause: Callable[[float], object] = time.sleep,
) -> Iterator[Look]:
    """Look at sinks until monotonic seconds, as long as something may come before that."""
    for one in wanted:
        one.sink.until = until
    for is_due in ticks(until, clock, pause):
        deliveries = tuple(one.look() for one in wanted)
        open_ones = tuple(delivery for delivery in deliveries if _may_come(delivery, until - clock()))
        if not open_ones:
            return
        yield Look(open_ones, is_due)


def _may_come(delivery: Delivery, left: float) -> bool:
    return not delivery.is_complete and not delivery.is_final and delivery.comes_in <= left


def ticks(
    until: float, clock: Callable[[], float] = time.monotonic, pause: Callable[[float], object] = time.sleep
) -> Iterator[bool]:
    """Tick until monotonic seconds, more slowly where what is done takes long: whether housekeeping is due."""
    next_house = -math.inf
    while (now := clock()) < until:
        is_due = now >= next_house
        next_house = now + ENSURE_EVERY if is_due else next_house
        yield is_due
        pause(min(max(POLL, CHECK_PAUSE * (clock() - now)), max(0.0, until - clock())))
