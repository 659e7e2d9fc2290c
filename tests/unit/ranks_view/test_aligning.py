"""Aligning: what holds a step, how much waits, and what a point says."""

from __future__ import annotations

import math

import pytest

from hf_mpwriter.ranks_view import aligning
from hf_mpwriter.ranks_view.aligning import HELD, JOINING, NEW, Aligner

LONG_AGO = 1e6  # seconds after which no rank is new any more


def aligner(live, now=LONG_AGO, **arguments):
    """An aligner that has known its ranks for long."""
    found = Aligner(**arguments)
    found.begin(0.0, live)
    found.begin(now, live)
    return found


def log(found, rank, step, tag="loss", value=1.0):
    """A rank logs one value."""
    found.take(rank, step, 100.0 + rank, (tag,), (value,))


def steps(points):
    """Their steps."""
    return [point.step for point in points]


def test_a_living_rank_holds_what_it_has_not_passed():
    """A step is complete once every rank has logged the tag there, or later."""
    found = aligner([0, 1, 2])
    for rank, last in ((0, 5), (1, 3), (2, 4)):
        for step in range(last):
            log(found, rank, step)
    assert steps(found.settle([0, 1, 2], [])) == [0, 1, 2]
    assert steps(found.settle([0, 2], [])) == [3], "two ranks have step 3, one has step 4"
    assert steps(found.settle([0, 1, 2], [], is_over=True)) == []


def test_unread_data_holds_a_step_although_its_rank_is_dead():
    """What is on disk is taken in first, however long ago it was written."""
    found = aligner([])
    for rank in (0, 1):
        log(found, rank, 7)
    assert steps(found.settle([], [2])) == []
    assert steps(found.settle([], [])) == [7]


def test_nothing_is_complete_while_ranks_join():
    """A rank that has joined just now is seldom the last one."""
    found = aligner([0, 1])
    log(found, 0, 1)
    log(found, 1, 1)
    found.begin(LONG_AGO + 1, [0, 1, 2])
    assert steps(found.settle([0, 1, 2], [])) == []
    log(found, 2, 1)
    found.begin(LONG_AGO + 1 + JOINING, [0, 1, 2])
    (point,) = found.settle([0, 1, 2], [])
    assert point.wall_time == 102.0, "the latest one"


def test_a_rank_that_has_logged_nothing_of_a_tag_holds_it_while_either_is_new():
    """After that it is no tag of that rank."""
    found = aligner([0, 1, 2])
    log(found, 0, 1)
    log(found, 1, 1)
    assert steps(found.settle([0, 1, 2], [])) == []
    found.begin(LONG_AGO + NEW, [0, 1, 2])
    assert steps(found.settle([0, 1, 2], [])) == [1]
    found.begin(LONG_AGO + NEW + 1, [0, 1, 2, 3])
    log(found, 0, 2)
    log(found, 1, 2)
    found.begin(LONG_AGO + NEW + 1 + JOINING, [0, 1, 2, 3])
    assert steps(found.settle([0, 1, 2, 3], [])) == [], "rank 3 may log it, too"
    found.begin(LONG_AGO + NEW + 1 + NEW, [0, 1, 2, 3])
    assert steps(found.settle([0, 1, 2, 3], [])) == [2]


def test_a_rank_that_stopped_logging_a_tag_holds_each_step_for_a_while():
    """And what that rank logs later is left out, as its steps are older."""
    found = aligner([0, 1, 2])
    for rank in (0, 1, 2):
        log(found, rank, 1)
    for rank in (0, 1):
        log(found, rank, 2)
    assert steps(found.settle([0, 1, 2], [])) == [1]
    found.begin(LONG_AGO + HELD, [0, 1, 2])
    for rank in (0, 1):
        log(found, rank, 3)
    assert steps(found.settle([0, 1, 2], [])) == [2], "step 3 has not waited for so long"
    log(found, 2, 2)
    assert found.settle([0, 1, 2], [], is_over=True)[0].step == 3


def test_what_waits_is_bounded():
    """Beyond the bound the older half of the steps is settled as it is, and the memory is free again."""
    found = aligner([0, 1, 2], most=100)
    for step in range(51):
        log(found, 0, step)
        log(found, 1, step)
    assert found.waiting == 102
    assert steps(found.settle([0, 1, 2], [])) == list(range(26))
    assert found.waiting == 50


def test_a_step_that_one_rank_logs_is_no_point():
    """Also if it logs it twice; then the last value counts where others log it."""
    found = aligner([0, 1])
    log(found, 0, 1)
    log(found, 0, 1)
    log(found, 0, 2, value=5.0)
    log(found, 0, 2, value=6.0)
    log(found, 1, 2, value=8.0)
    (point,) = found.settle([], [])
    assert (point.step, point.mean, point.least, point.greatest) == (2, 7.0, 6.0, 8.0)


@pytest.mark.parametrize(
    ("values", "mean", "least", "greatest", "slowest"),
    [
        ((1.0, 3.0, 3.0), 7 / 3, 1.0, 3.0, 1),
        ((1.0, math.nan, 0.5), math.nan, math.nan, math.nan, 0),
        ((math.inf, -math.inf, 0.0), math.nan, -math.inf, math.inf, 0),
        ((math.nan, math.nan, math.nan), math.nan, math.nan, math.nan, -1),
    ],
)
def test_what_a_point_says_of_all_kinds_of_numbers(values, mean, least, greatest, slowest):
    """NaN of one rank is seen; the slowest rank is the lowest one with the greatest number."""
    found = aligner([])
    for rank, value in enumerate(values):
        log(found, rank, 1, "step_time", value)
    (point,) = found.settle([], [])
    wanted = (pytest.approx(mean, nan_ok=True), pytest.approx(least, nan_ok=True), pytest.approx(greatest, nan_ok=True))
    assert (point.mean, point.least, point.greatest) == wanted
    assert point.slowest == slowest


def test_the_slowest_rank_is_told_for_times_of_a_step_only():
    """That of a loss would mean nothing."""
    found = aligner([])
    for rank in (0, 1):
        log(found, rank, 1, "loss")
    assert found.settle([], [])[0].slowest is None


def test_tags_in_ever_new_combinations_take_no_memory_without_end():
    """The tags themselves stay few."""
    found = aligner([])
    for number in range(2 * aligning.MOST_GROUPS):
        tags = tuple(f"tag{bit}" for bit in range(14) if number >> bit & 1)
        found.take(0, 1, 1.0, tags, [1.0] * len(tags))
    assert len(found._groups) <= aligning.MOST_GROUPS
