"""The pace: when the next push may start, and by which way; waits are bounded and jittered, the Hub's wish counts."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_mpwriter.base.settings import Destination
from hf_mpwriter.base.timing import USUAL
from hf_mpwriter.base.verdicts import Done, Moved, Quarantine, Refused, Retry, Split, Unknown
from hf_mpwriter.system import locks
from hf_mpwriter.system.directory import at
from hf_mpwriter.uploader import pacing, rate_limit
from hf_mpwriter.uploader.pacing import Clocks, Pacing, next_step
from hf_mpwriter.uploader.rate_limit import RateLimit


class Time:
    """A pace with a clock that the test moves and a budget of four commits at once."""

    def __init__(self, folder) -> None:
        self.now = 1000.0
        shared = RateLimit(Destination("https://hub", "me/run"), 20.0, at(folder), lambda: self.now)
        self.pace = Pacing(Clocks(lambda: self.now, lambda: self.now, random.Random(1)), shared)

    def fail(self, verdict) -> None:
        """A push of event files ends like this."""
        assert self.pace.take(urgent=True)
        self.pace.learn([verdict])
        self.pace.failed(verdict)


@pytest.fixture
def time(tmp_path) -> Time:
    """At rest."""
    return Time(tmp_path)


def test_a_used_up_budget_puts_off_the_next_try_and_a_request_may_ask_sooner(time):
    """The periodic pushes leave a token for requests."""
    while time.pace.take(urgent=False):
        pass
    assert time.now < time.pace.next_try <= time.now + 2 * 3600 / 16
    assert time.pace.may_hurry
    time.pace.requested()
    assert time.pace.next_try == time.now + USUAL.push_retry_first
    assert time.pace.take(urgent=True)


def test_what_was_not_taken_is_not_given_back(time, tmp_path):
    """A push that went without the bucket, as its lock could not be had, frees no token of others when it fails."""
    while time.pace.take(urgent=True):
        time.pace.done(committed=True)
    holder = locks.try_exclusive(at(tmp_path / "lock"))
    assert not time.pace.take(urgent=True)
    time.now += rate_limit.BUSY_LIMIT + 1
    assert time.pace.take(urgent=True)
    locks.release(holder)
    time.pace.learn([Retry("503")])
    assert not time.pace.take(urgent=True)


def test_others_at_the_bucket_are_no_used_up_budget(time, tmp_path):
    """The user is not told that commits come slower, and the entry is not made anew."""
    assert time.pace.take(urgent=True)
    holder = locks.try_exclusive(at(tmp_path / "lock"))
    assert not time.pace.take(urgent=True)
    locks.release(holder)
    assert (time.pace.used_up, time.pace.next_try) == (False, time.now + rate_limit.BUSY_WAIT)
    while time.pace.take(urgent=True):
        pass
    assert time.pace.used_up


@pytest.mark.parametrize(
    ("verdict", "tokens"),
    [(Retry("x"), 4), (Moved("x"), 4), (Unknown("x"), 3), (Split("x"), 3), (Refused("x", ""), 3), (None, 4)],
)
def test_only_what_surely_made_no_commit_is_given_back(time, verdict, tokens):
    """The Hub counts what it was asked, so whatever it looked at is paid for. None: it had it all."""
    if verdict is None:
        assert time.pace.take(urgent=True)
        time.pace.done(committed=False)
    else:
        time.fail(verdict)
    left = 0
    while time.pace.take(urgent=True):
        left += 1
    assert left == tokens


@pytest.mark.parametrize("verdict", [None, Retry("x")])
def test_a_push_that_only_reads_back_gives_back_no_token_that_it_never_took(time, verdict):
    """`sync` asks what the Hub has, without anything to send: that makes no room for more commits."""
    while time.pace.take(urgent=True):
        pass
    if verdict is None:
        time.pace.done(committed=False)
    else:
        time.pace.learn([verdict])
    assert not time.pace.take(urgent=True)


def test_after_failures_of_xet_in_a_row_content_goes_by_lfs_for_an_hour(time):
    """A success in between counts; after the hour Xet is tried again."""
    for _ in range(pacing.XET_LIMIT - 1):
        time.fail(Retry("x", xet="failing"))
    time.pace.done(committed=True)
    for _ in range(pacing.XET_LIMIT - 1):
        time.fail(Retry("x", xet="failing"))
        assert time.pace.uses_xet
    time.fail(Retry("x", xet="failing"))
    assert not time.pace.uses_xet
    assert time.pace.next_try <= time.now + USUAL.push_retry_first, "LFS is tried soon"
    time.now += pacing.XET_PAUSE
    assert time.pace.uses_xet


def test_a_xet_storage_that_is_still_broken_after_an_hour_costs_one_push_and_not_three(time):
    """A hang takes minutes each time. Commits by LFS and read-backs say nothing of Xet, a commit by it does."""
    for _ in range(pacing.XET_LIMIT):
        time.fail(Unknown("the push hung", xet="failing"))
    time.pace.done(committed=True)
    time.now += pacing.XET_PAUSE
    time.pace.done(committed=False)
    time.fail(Unknown("the push hung", xet="failing"))
    assert not time.pace.uses_xet
    time.now += pacing.XET_PAUSE
    time.pace.done(committed=True)
    time.fail(Retry("x", xet="failing"))
    assert time.pace.uses_xet


def test_after_nothing_but_412_a_push_goes_without_a_parent(time):
    """After that one with a parent is tried once; if the branch is not busy any more, all is as before."""
    for _ in range(pacing.MOVED_LIMIT):
        assert time.pace.is_fenced
        time.fail(Moved("412"))
    assert not time.pace.is_fenced
    time.pace.done(committed=False)
    assert time.pace.is_fenced
    time.fail(Moved("412"))
    assert not time.pace.is_fenced
    time.pace.done(committed=False)
    time.pace.done(committed=False)
    for _ in range(pacing.MOVED_LIMIT):
        assert time.pace.is_fenced
        time.fail(Moved("412"))


def test_a_busy_branch_is_no_reason_to_be_slow_after_a_failure(time):
    """Each sort of trouble has a wait of its own."""
    for _ in range(pacing.MOVED_LIMIT):
        time.fail(Moved("412"))
    time.fail(Retry("503"))
    assert time.pace.attempts == pacing.MOVED_LIMIT + 1
    assert time.pace.next_try <= time.now + USUAL.push_retry_first
    time.pace.failed(Unknown("503"))
    time.pace.failed(Refused("403", "a token"))
    assert time.pace.next_try == time.now + pacing.REFUSED_WAIT


def test_a_wish_of_the_hub_outlasts_every_hurry(time):
    """A request ends a wait of ours only."""
    time.fail(Retry("429", after=500.0))
    before = time.pace.next_try
    assert before >= time.now + 500
    time.pace.requested()
    assert time.pace.next_try == before


def test_the_history_is_squashed_once_per_interval(time):
    """However many commits there are in it."""
    assert time.pace.may_squash(5)
    assert not time.pace.may_squash(5)
    time.now += 301
    assert time.pace.may_squash(5)


# a step

ATTEMPTS = st.integers(1, 10**9)
SEEDS = st.integers(0, 2**32).map(random.Random)
AFTER = st.none() | st.floats(0, 1e9)


@given(st.sampled_from([Retry, Unknown]), ATTEMPTS, AFTER, SEEDS)
def test_a_failure_is_tried_again_between_the_shortest_and_the_longest_wait(kind, attempts, after, rng):
    """Never at once (it would hammer), never later than the ceiling or what the Hub asked for."""
    step = next_step(kind("why", after), attempts, rng)
    assert step.wait >= pacing.SHORTEST_WAIT
    if after is None:
        assert step.wait <= min(pacing.LONGEST_WAIT, USUAL.push_retry_first * 2 ** min(attempts - 1, 20))
        assert step.may_hurry
    else:
        assert after <= step.wait <= max(pacing.LONGEST_WAIT, after)
        assert not step.may_hurry, "no request ends a wait that the Hub asked for"


@given(ATTEMPTS, SEEDS)
def test_a_refused_destination_is_tried_slowly(attempts, rng):
    """Minutes, up to an hour, growing; a request may end the wait."""
    step = next_step(Refused("why", "hint"), attempts, rng)
    assert pacing.REFUSED_WAIT <= step.wait <= pacing.LONGEST_REFUSED_WAIT
    assert step.may_hurry
    assert next_step(Refused("why", "hint"), attempts + 1, rng).wait >= step.wait


@given(st.integers(1, pacing.MOVED_LIMIT), SEEDS)
def test_a_moved_branch_is_tried_again_within_seconds(attempts, rng):
    """With jitter, so that two that race do not race in step."""
    assert pacing.SHORTEST_WAIT <= next_step(Moved("412"), attempts, rng).wait <= USUAL.moved_retry


def test_a_branch_that_moves_for_ever_is_left_alone_for_longer_and_longer():
    """A token that may only open pull requests gets nothing but 412, with a parent or without."""
    rng = random.Random(5)
    print("seed 5")
    for attempts, ceiling in ((pacing.MOVED_LIMIT + 1, 5.0), (pacing.MOVED_LIMIT + 4, 40.0), (1000, 300.0)):
        waits = [next_step(Moved("412"), attempts, rng).wait for _ in range(500)]
        assert 0.9 * ceiling < max(waits) <= ceiling


@pytest.mark.parametrize("verdict", [Done("c", own=True, repo_id="r", files={}), Quarantine({"a": "why"})])
def test_what_changed_the_queue_goes_on_at_once(verdict):
    """Nothing was wrong with the Hub."""
    assert next_step(verdict, 5, random.Random(1)).wait == 0.0


def test_the_ceiling_doubles_and_the_waits_are_spread():
    """Full jitter: many uploaders that fail together do not come back together."""
    rng = random.Random(3)
    print("seed 3")
    for attempts, ceiling in ((1, 5.0), (2, 10.0), (4, 40.0), (7, 300.0), (50, 300.0)):
        waits = [next_step(Retry("why"), attempts, rng).wait for _ in range(500)]
        assert max(waits) > 0.9 * ceiling
        assert min(waits) < 0.1 * ceiling + pacing.SHORTEST_WAIT
        assert len(set(waits)) > 490
