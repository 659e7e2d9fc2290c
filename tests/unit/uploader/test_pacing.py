"""The pace: when the next push may start, and by which way."""

from __future__ import annotations

import random

import pytest

from hf_mpwriter.base.settings import Destination
from hf_mpwriter.base.timing import USUAL
from hf_mpwriter.base.verdicts import Moved, Refused, Retry, Split, Unknown
from hf_mpwriter.system import locks
from hf_mpwriter.system.directory import at
from hf_mpwriter.uploader import pacing, rate_limit
from hf_mpwriter.uploader.pacing import Clocks, Pacing
from hf_mpwriter.uploader.rate_limit import RateLimit


class Time:
    """A pace with a clock that the test moves and a budget of four commits at once."""

    def __init__(self, folder) -> None:
        self.now = 1000.0
        shared = RateLimit(Destination("https://hub", "me/run"), 20.0, [at(folder)], lambda: self.now)
        self.pace = Pacing(Clocks(lambda: self.now, lambda: self.now, random.Random(1)), shared)

    def fail(self, verdict) -> None:
        """A push of event files ends like this."""
        assert self.pace.take(urgent=True)
        self.pace.learn(verdict)
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
    ("verdict", "tokens"), [(Retry("x"), 4), (Moved("x"), 4), (Unknown("x"), 3), (Split("x"), 3), (Refused("x", ""), 3)]
)
def test_only_what_surely_made_no_commit_is_given_back(time, verdict, tokens):
    """The Hub counts what it was asked, so whatever it looked at is paid for."""
    time.fail(verdict)
    left = 0
    while time.pace.take(urgent=True):
        left += 1
    assert left == tokens


def test_a_push_that_needed_no_commit_is_given_back(time):
    """The Hub had it all."""
    for _ in range(10):
        assert time.pace.take(urgent=True)
        time.pace.done(committed=False)


@pytest.mark.parametrize("verdict", [None, Retry("x")])
def test_a_push_that_only_reads_back_gives_back_no_token_that_it_never_took(time, verdict):
    """`sync` asks what the Hub has, without anything to send: that makes no room for more commits."""
    while time.pace.take(urgent=True):
        pass
    if verdict is None:
        time.pace.done(committed=False)
    else:
        time.pace.learn(verdict)
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


def test_a_push_that_hangs_is_a_failure_of_xet_too(time):
    """Its timeouts do not reach everything; with LFS every request has one."""
    for _ in range(pacing.XET_LIMIT):
        assert time.pace.uses_xet
        time.fail(Unknown("the push hung", xet="failing"))
    assert not time.pace.uses_xet


def test_a_hub_without_xet_gets_lfs_at_once(time):
    """404 of the token route needs no second opinion."""
    time.fail(Retry("x", xet="missing"))
    assert not time.pace.uses_xet


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
