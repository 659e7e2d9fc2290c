"""The size of batches: grows while commits are fast, and is halved where the Hub takes less."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_mpwriter.base.files import BATCH_FILES
from hf_mpwriter.base.verdicts import Moved, Quarantine, Refused, Retry, Split, Unknown
from hf_mpwriter.uploader.pacing import LARGEST, SLOW_COMMIT, SMALLEST, BatchSize

TOO_LARGE = Split("413", too_large=True)
CASES = [  # the size before, the files and seconds of a commit or the verdict on a push, the size after
    (100, 100, SLOW_COMMIT - 1, 200),
    (100, 100, SLOW_COMMIT, 100),
    (100, 99, 2.0, 100),
    (LARGEST, LARGEST, 2.0, LARGEST),
    (10, 40, 2.0, 20),
    (100, 100, TOO_LARGE, 50),
    (100, 100, Unknown("504", too_slow=True), 50),
    (100, 30, TOO_LARGE, 15),
    (100, 12, TOO_LARGE, SMALLEST),
    (50, 100, TOO_LARGE, 50),
    (100, 1, TOO_LARGE, 100),
    (100, 100, Split("400"), 100),
    (100, 100, Unknown("502"), 100),
    (100, 100, Retry("429"), 100),
    (100, 100, Moved("412"), 100),
    (100, 100, Refused("401", ""), 100),
    (100, 100, Quarantine({"a": "b"}), 100),
]


@pytest.mark.parametrize(("before", "files", "outcome", "after"), CASES)
def test_a_full_commit_that_is_fast_doubles_the_size_and_what_speaks_of_size_halves_it(before, files, outcome, after):
    """Not below the smallest; an outage, a busy branch or a bad token leaves it, and so does a file refused alone."""
    size = BatchSize(iter((0.0, 0.0, outcome)).__next__)
    size.files = before
    if isinstance(outcome, float):
        size.started()
        assert size.done(files) == (outcome < SLOW_COMMIT)
    else:
        size.failed(outcome, files)
    assert size.files == after


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 2 * LARGEST), st.floats(0, 100))))
def test_the_size_stays_within_its_limits(events):
    """Whatever happens; a refusal never makes it larger, a commit never smaller."""
    now = 0.0
    size = BatchSize(lambda: now)
    assert size.files == BATCH_FILES
    for is_done, files, seconds in events:
        before = size.files
        size.started()
        now += seconds
        if is_done:
            assert size.done(files) == (seconds < SLOW_COMMIT)
        else:
            size.failed(TOO_LARGE, files)
        assert SMALLEST <= size.files <= LARGEST
        assert size.files >= before if is_done else size.files <= before
