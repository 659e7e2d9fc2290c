"""The wait for sinks: who waits loops over its looks."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import pytest

from hf_mpwriter.delivery.sentences import ProcessEnd, announcement, message
from hf_mpwriter.delivery.sinks import ANY, Carrier, Delivery, Question
from hf_mpwriter.delivery.wait import ENSURE_EVERY, Wanted, ticks, wait_for

NOW = 1_700_000_000.0


@dataclass
class Bucket:
    """A third sink: all that a wait and its sentences need of one."""

    held: dict[str, int] = field(default_factory=dict)
    fields: dict[str, object] = field(default_factory=dict)
    until: float = math.inf

    def question(self, _: object) -> Question:
        """A question that begins now."""
        return Question(NOW)

    def missing(self, lengths: Mapping[str, int], _: Question = ANY) -> dict[str, int]:
        """Bytes per path."""
        return {path: length - self.held.get(path, 0) for path, length in lengths.items() if path not in self.held}

    def refused(self, _: object, __: Question = ANY) -> dict[str, str]:
        """Nothing."""
        return {}

    def look(self, lengths: Mapping[str, int], question: Question = ANY) -> Delivery:
        """All that is known."""
        missing, courier = self.missing(lengths, question), Carrier("copier", is_alive=True)
        total = sum(lengths.values())
        return Delivery("in the bucket", "s3://b", total, missing, carrier=courier, **self.fields)


class Time:
    """A clock that only pauses move."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        """Monotonic seconds."""
        return self.now

    def pause(self, seconds: float) -> None:
        """Let time pass."""
        self.now += seconds


def test_a_third_sink_needs_no_more_than_a_class():
    """It is waited for beside another one until both have all, and is told as they are."""
    near, far, time = Bucket(), Bucket(), Time()
    wanted = [Wanted.now(near, {"a": 1}), Wanted.now(far, {"a": 1, "b": 2})]
    seen = []
    for look in wait_for(wanted, time.now + 60, time, time.pause):
        seen.append([len(delivery.missing) for delivery in look.deliveries])
        near.held["a"] = 1
        if len(seen) == 2:
            far.held |= {"a": 1, "b": 2}
    assert seen == [[1, 2], [2]]
    assert near.until == far.until == 160.0
    end = ProcessEnd("runs/a", "/x", (wanted[0].look(), Bucket().look({"b": 2})), NOW)
    assert "until 2 B in 1 file of runs/a are in the bucket." in announcement(end, 60)
    assert "are not in the bucket yet. All of it is in the bucket." in message(end)
    assert "a copier goes on trying; then: hf-mpwriter sync ./runs/a" in message(end)


@pytest.mark.parametrize(
    ("fields", "looks"),
    [({}, True), ({"is_final": True}, False), ({"comes_in": 61.0}, False), ({"comes_in": 59.0}, True)],
)
def test_what_cannot_come_is_not_looked_at_again(fields, looks):
    """All of it is refused, or nothing is tried before the end."""
    time = Time()
    wait = wait_for([Wanted(Bucket(fields=fields), {"a": 1})], time.now + 60, time, time.pause)
    assert (next(wait, None) is not None) == looks


def test_what_was_not_compared_since_the_question_is_looked_at():
    """Though nothing is known to be missing."""
    time, sink = Time(), Bucket({"a": 1}, {"is_compared": False})
    assert next(wait_for([Wanted(sink, {"a": 1})], time.now + 60, time, time.pause)).deliveries[0].missing == {}
    sink.fields.clear()
    assert next(wait_for([Wanted(sink, {"a": 1})], time.now + 60, time, time.pause), None) is None


def test_housekeeping_is_due_at_once_and_then_every_second():
    """However short the pauses are; after the end nothing is due."""
    time, due = Time(), []
    for is_due in ticks(time.now + 2.5, time, time.pause):
        due += [time.now - 100.0] * is_due
    assert due == pytest.approx([0.0, ENSURE_EVERY, 2 * ENSURE_EVERY], abs=0.15)
    assert time.now == pytest.approx(102.5)
    assert list(ticks(time.now, time, time.pause)) == []


def test_what_takes_long_is_done_a_fifth_of_the_time():
    """A look may read the ledgers of many hosts."""
    time, count = Time(), 0
    for _ in ticks(time.now + 100, time, time.pause):
        time.now += 2.0
        count += 1
    assert count == 10
