"""The size of batches: grows while commits are fast, and is halved where the Hub takes less."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_mpwriter.base.files import BATCH_FILES
from hf_mpwriter.base.verdicts import Moved, Quarantine, Refused, Retry, Split, Unknown
from hf_mpwriter.uploader.pacing import LARGEST, SLOW_COMMIT, SMALLEST, BatchSize, after_commit, after_refusal


@pytest.mark.parametrize(
    ("most", "files", "seconds", "expected"),
    [
        (100, 100, 2.0, 200),
        (100, 100, SLOW_COMMIT - 1, 200),
        (100, 100, SLOW_COMMIT, 100),
        (100, 99, 2.0, 100),
        (100, 1, 2.0, 100),
        (600, 600, 2.0, LARGEST),
        (LARGEST, LARGEST, 2.0, LARGEST),
        (10, 40, 2.0, 20),
    ],
)
def test_a_full_commit_that_is_fast_doubles_the_size(most, files, seconds, expected):
    """A slow one, or one that was not full, leaves it."""
    assert after_commit(most, files, seconds) == expected


@pytest.mark.parametrize(
    ("most", "files", "expected"),
    [(100, 100, 50), (800, 400, 200), (100, 30, 15), (100, 12, SMALLEST), (50, 100, 50), (5, 2, 5), (100, 1, 100)],
)
def test_a_refusal_halves_the_size_but_not_below_the_smallest(most, files, expected):
    """A file that is refused alone is itself too large; their number is not to blame."""
    assert after_refusal(most, files) == expected


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
            size.failed(Split("413", too_large=True), files)
        assert SMALLEST <= size.files <= LARGEST
        assert size.files >= before if is_done else size.files <= before


VERDICTS = [
    (Split("413", too_large=True), 50),
    (Unknown("504", too_slow=True), 50),
    (Split("400"), 100),
    (Unknown("502"), 100),
    (Retry("429", limited=True), 100),
    (Moved("412"), 100),
    (Refused("401", ""), 100),
    (Quarantine({"a": "b"}), 100),
]


@pytest.mark.parametrize(("verdict", "expected"), VERDICTS)
def test_only_what_speaks_of_size_makes_batches_smaller(verdict, expected):
    """An outage, a busy branch or a bad token does not."""
    size = BatchSize(lambda: 0.0)
    size.failed(verdict, 100)
    assert size.files == expected
