"""What a mirror does next, and when a copy is tried again."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_mpwriter.mirror import decision
from hf_mpwriter.mirror.decision import MirrorAction, MirrorSituation, decide, pause
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
    least = decision.REFUSED_PAUSE / 2 if is_refused else decision.SHORTEST_PAUSE
    assert least <= wait <= longest
