"""Starts: how often daemons are started, whatever clocks say and files hold."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from hf_mpwriter.spool.status import LONGEST_PAUSE, STARTS_LIMIT, Starts

HOUR = 3600.0
TIMES = st.floats(-1e9, 1e9) | st.sampled_from([math.nan, math.inf, -math.inf])
ANYTHING = st.builds(Starts, st.sampled_from(["", "here", "other"]), st.integers(-(2**80), 2**80), TIMES)


def starts_within(seconds: float, begin: Starts, now: float) -> int:
    """How many daemons that crash at once are started, if one is wanted every second."""
    count, found = begin, 0
    for second in range(int(seconds)):
        count = count.as_of(now + second, "here")
        if now + second >= count.quiet_until:
            count, found = count.with_start(now + second), found + 1
    return found


@given(ANYTHING, st.floats(0.0, 1e8))
@hypothesis_settings(max_examples=30)
def test_no_count_prevents_starts_for_ever_or_lets_them_loose(count, now):
    """Whatever stands in the file: within ten minutes there is a start, within an hour there are not many."""
    assert starts_within(2 * LONGEST_PAUSE, count, now) >= 1
    assert starts_within(HOUR, count, now) <= STARTS_LIMIT + 7 + HOUR / LONGEST_PAUSE


def test_pauses_double():
    """Three starts in a row are ordinary; then 5 s, 10 s ... up to 5 min."""
    count, now, pauses = Starts("here"), 100.0, []
    for _ in range(12):
        count = count.as_of(now, "here").with_start(now)
        pauses.append(max(0.0, count.quiet_until - now))
        now = max(now, count.quiet_until)
    assert pauses == [0.0, 0.0, 0.0, 5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 300.0, 300.0, 300.0]


@pytest.mark.parametrize(
    ("count", "now"),
    [
        (Starts("other", 4, 99.0), 100.0),  # the machine was started again
        (Starts("here", 4, 101.0), 100.0),  # where no boot is known, or another time namespace
        (Starts("here", 4, 1.0), 1000.0),  # long ago
        (Starts("here", 4, math.nan), 100.0),
        (Starts("here", -4, 99.0), 100.0),
    ],
)
def test_what_says_nothing_about_now_counts_as_none(count, now):
    """A monotonic clock has a meaning in one boot only."""
    assert count.as_of(now, "here") == Starts("here")
