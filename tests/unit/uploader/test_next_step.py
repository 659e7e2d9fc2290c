"""When to try again: bounded, jittered, and the Hub's own wish counts."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_mpwriter.base.timing import USUAL
from hf_mpwriter.base.verdicts import Done, Moved, Quarantine, Refused, Retry, Unknown
from hf_mpwriter.uploader import pacing

ATTEMPTS = st.integers(1, 10**9)
SEEDS = st.integers(0, 2**32).map(random.Random)
AFTER = st.none() | st.floats(0, 1e9)


@given(st.sampled_from([Retry, Unknown]), ATTEMPTS, AFTER, SEEDS)
def test_a_failure_is_tried_again_between_the_shortest_and_the_longest_wait(kind, attempts, after, rng):
    """Never at once (it would hammer), never later than the ceiling or what the Hub asked for, up to a cap."""
    step = pacing.next_step(kind("why", after), attempts, rng)
    assert step.wait >= pacing.SHORTEST_WAIT
    if after is None:
        assert step.wait <= min(pacing.LONGEST_WAIT, USUAL.push_retry_first * 2 ** min(attempts - 1, 20))
        assert step.may_hurry
    else:
        assert min(after, pacing.LONGEST_WISH) <= step.wait <= max(pacing.LONGEST_WAIT, min(after, pacing.LONGEST_WISH))
        assert not step.may_hurry, "no request ends a wait that the Hub asked for"


@given(ATTEMPTS, SEEDS)
def test_a_refused_destination_is_tried_slowly(attempts, rng):
    """Minutes, up to an hour, growing; a request may end the wait."""
    step = pacing.next_step(Refused("why", "hint"), attempts, rng)
    assert pacing.REFUSED_WAIT <= step.wait <= pacing.LONGEST_REFUSED_WAIT
    assert step.may_hurry
    assert pacing.next_step(Refused("why", "hint"), attempts + 1, rng).wait >= step.wait


@given(st.integers(1, pacing.MOVED_LIMIT), SEEDS)
def test_a_moved_branch_is_tried_again_within_seconds(attempts, rng):
    """With jitter, so that two that race do not race in step."""
    assert pacing.SHORTEST_WAIT <= pacing.next_step(Moved("412"), attempts, rng).wait <= USUAL.moved_retry


def test_a_branch_that_moves_for_ever_is_left_alone_for_longer_and_longer():
    """A token that may only open pull requests gets nothing but 412, with a parent or without."""
    rng = random.Random(5)
    print("seed 5")
    for attempts, ceiling in ((pacing.MOVED_LIMIT + 1, 5.0), (pacing.MOVED_LIMIT + 4, 40.0), (1000, 300.0)):
        waits = [pacing.next_step(Moved("412"), attempts, rng).wait for _ in range(500)]
        assert 0.9 * ceiling < max(waits) <= ceiling


@pytest.mark.parametrize("verdict", [Done("c", own=True, repo_id="r", files={}), Quarantine({"a": "why"})])
def test_what_changed_the_queue_goes_on_at_once(verdict):
    """Nothing was wrong with the Hub."""
    assert pacing.next_step(verdict, 5, random.Random(1)).wait == 0.0


def test_the_ceiling_doubles_and_the_waits_are_spread():
    """Full jitter: many uploaders that fail together do not come back together."""
    rng = random.Random(3)
    print("seed 3")
    for attempts, ceiling in ((1, 5.0), (2, 10.0), (4, 40.0), (7, 300.0), (50, 300.0)):
        waits = [pacing.next_step(Retry("why"), attempts, rng).wait for _ in range(500)]
        assert max(waits) > 0.9 * ceiling
        assert min(waits) < 0.1 * ceiling + pacing.SHORTEST_WAIT
        assert len(set(waits)) > 490
