"""The live lane: when a file goes to the bucket."""

from __future__ import annotations

import pytest

from hf_mpwriter.uploader.live import AT_LEAST, CHUNK, ROUND, TIMES, is_due

WORTH_IT = CHUNK // TIMES + 1


@pytest.mark.parametrize(
    ("waited", "new", "is_last", "goes"),
    [
        (0, 10 * CHUNK, False, False),
        (ROUND, WORTH_IT, False, True),
        (ROUND, WORTH_IT - 1, False, False),
        (AT_LEAST - 0.1, 1, False, False),
        (AT_LEAST, 1, False, True),
        (0, 1, True, True),
    ],
)
def test_a_file_goes_when_it_has_waited_and_is_worth_a_round(waited, new, is_last, goes):
    """What Xet sends again is at most TIMES what is new, unless it has waited for long, or nobody logs any more."""
    assert is_due(waited, new, is_last=is_last) is goes
