"""The live lane: when a file goes to the bucket."""

from __future__ import annotations

import pytest
from support import event_file
from uploaders import EVENT_FILE, uploader

from hf_mpwriter.base.settings import Destination
from hf_mpwriter.base.verdicts import Done, Sent, Unknown
from hf_mpwriter.uploader.in_flight import SETTLE_TIME
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


def test_only_what_no_late_request_can_take_away_is_safe(own_spool):
    """A round whose outcome is not known may still come: what was there before it is safe, until it is listed."""
    own_spool.record_destination(Destination("https://hub", "me/run"))
    event_file(f"{own_spool.run_dir}/{EVENT_FILE}", 1)
    live = (driven := uploader(own_spool)).upload.live

    def round_at(now, verdict=None):
        live.look(now)
        live.conclude(
            verdict or Done("", False, "me/b", {file.path: Sent(file.length, "") for file in live._files}), now
        )
        return driven.upload.status.status.live

    before = round_at(0.0)
    assert (before.safe > 0, before.lacks) == (True, 0)
    event_file(f"{own_spool.run_dir}/{EVENT_FILE}", 2)
    assert round_at(1.0, Unknown("no answer")).safe == before.safe
    assert round_at(2.0).safe == before.safe
    live.look(SETTLE_TIME)
    assert (live.waiting, live.is_compared) == ([], True)
    live.look(1.0 + SETTLE_TIME)
    assert (len(live.waiting), live.is_compared) == (1, False), "it is listed anew"
    after = round_at(2.0 + SETTLE_TIME)
    assert (after.safe > before.safe, after.lacks) == (True, 0)
