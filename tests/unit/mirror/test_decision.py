"""What a mirror does next, and when a copy is tried again."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_mpwriter.base.timing import USUAL
from hf_mpwriter.mirror import decision
from hf_mpwriter.mirror.decision import MirrorAction, MirrorSituation, Tries, decide, pause
from hf_mpwriter.spool.copies import Absent, Arrived, Conflict, Withheld
from hf_mpwriter.spool.status import LINGER

IDLE = MirrorSituation(living=1, abandoned_for=0.0, may_try=True, is_due=False, waiting=0, is_ending=False)


def situation(**fields) -> MirrorSituation:
    """A situation that differs from an idle one."""
    return MirrorSituation(**{**vars(IDLE), **fields})


@pytest.mark.parametrize(
    ("fields", "action"),
    [
        ({}, MirrorAction.WAIT),
        ({"is_due": True}, MirrorAction.SCAN),
        ({"is_due": True, "waiting": 3}, MirrorAction.SCAN),
        ({"waiting": 3}, MirrorAction.COPY),
        ({"waiting": 3, "may_try": False}, MirrorAction.WAIT),
        ({"waiting": 3, "may_try": False, "living": 0}, MirrorAction.WAIT),
        ({"waiting": 3, "living": 0, "abandoned_for": LINGER + 1}, MirrorAction.LEAVE),
        ({"waiting": 3, "missing": 3}, MirrorAction.COPY),
        ({"is_unlisted": True, "waiting": 3, "missing": 3}, MirrorAction.LIST),
        ({"is_unlisted": True, "living": 0, "may_try": False}, MirrorAction.WAIT),
        ({"missing": 3, "living": 0}, MirrorAction.FETCH),
        ({"missing": 3, "living": 0, "may_try": False}, MirrorAction.WAIT),
        ({"missing": 3, "is_unlisted": True, "is_ending": True}, MirrorAction.LEAVE),
        ({"living": 0}, MirrorAction.LEAVE),
        ({"living": 0, "is_due": True}, MirrorAction.SCAN),
        ({"is_ending": True}, MirrorAction.LEAVE),
        ({"is_ending": True, "is_due": True}, MirrorAction.SCAN),
        ({"is_ending": True, "waiting": 3}, MirrorAction.COPY),
        ({"is_ending": True, "waiting": 3, "may_try": False}, MirrorAction.LEAVE),
    ],
)
def test_each_row_of_the_table(fields, action):
    """As the head of the module says."""
    assert decide(situation(**fields)) is action


@given(st.builds(MirrorSituation))
def test_no_mirror_leaves_living_workers_unasked(s):
    """While a worker lives, only SIGTERM makes it leave."""
    if s.living and not s.is_ending:
        assert decide(s) is not MirrorAction.LEAVE


@given(st.integers(1, 10_000), st.integers(), st.booleans())
def test_pauses_are_bounded_and_drawn(failures, seed, is_refused):
    """Many hosts do not come at once after an outage; nothing hammers."""
    wait = pause(failures, random.Random(seed), is_refused=is_refused)
    longest = decision.LONGEST_REFUSED_PAUSE if is_refused else decision.LONGEST_PAUSE
    least = USUAL.copy_refused_retry_first / 2 if is_refused else decision.SHORTEST_PAUSE
    assert least <= wait <= longest


ONE, TWO = ("", "one"), ("", "two")


def tries() -> tuple[Tries, list[float]]:
    """Tries, and their clock: the last of these seconds."""
    clock = [1000.0]
    return Tries(lambda: clock[-1], random.Random(0)), clock


def test_writers_whose_files_have_failed_hold_up_no_other():
    """A file of another writer is tried after a moment, whatever the pause; only its own failure makes it wait, too."""
    found, clock = tries()
    found.start()
    found.behind |= {ONE}
    found.failed(10, is_refused=True)
    assert not found.may_start([ONE, TWO])
    clock.append(clock[-1] + USUAL.copy_retry_first)
    assert found.may_start([ONE, TWO])
    assert not found.may_start([ONE])
    found.behind |= {TWO}
    assert not found.may_start([ONE, TWO])
    found.succeeded()
    assert found.may_start([ONE])
    assert not found.behind


def test_the_logdir_as_a_whole_is_waited_for():
    """While nothing is known of single writers, all wait."""
    found, clock = tries()
    found.start()
    found.failed(10, is_refused=True)
    clock.append(clock[-1] + USUAL.copy_retry_first)
    assert not found.may_start([ONE, TWO])
    found.hurry()
    assert found.may_start([ONE])


def test_a_file_that_was_held_back_is_tried_again_with_growing_pauses():
    """Not with each copy, and at once in the next round when it arrives and fails later."""
    found, clock = tries()
    waits = []
    for _ in range(4):
        found.note(Withheld("a", "no"))
        found.note(Withheld("b", "no"))
        assert found.due() == frozenset()
        start = clock[-1]
        while not found.due():
            clock.append(clock[-1] + 1.0)
        assert found.due() == {"a", "b"}
        waits.append(clock[-1] - start)
    assert waits[3] > 2 * waits[0] > USUAL.copy_refused_retry_first / 2
    found.note(Arrived("a", 1))
    assert found.due() == {"b"}
    found.note(Conflict("b", "another file is there"))
    assert found.due() == frozenset()


def test_a_file_that_was_held_back_and_is_removed_is_not_waited_for():
    """It would come back into each round, and make the pauses of others longer."""
    found, clock = tries()
    found.note(Withheld("a", "no"))
    found.note(Absent("a"))
    clock.append(clock[-1] + 10 * decision.LONGEST_REFUSED_PAUSE)
    assert found.due() == frozenset()
    assert found._rounds == 0
