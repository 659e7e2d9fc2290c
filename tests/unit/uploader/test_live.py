"""The live lane: when a file goes to the bucket."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from support import event_file
from uploaders import EVENT_FILE, uploader

from hf_mpwriter.base.settings import Destination
from hf_mpwriter.base.verdicts import Done, Quarantine, Sent, Unknown
from hf_mpwriter.push.job import Quota
from hf_mpwriter.uploader.in_flight import SETTLE_TIME
from hf_mpwriter.uploader.live import (
    AT_LEAST,
    CHUNK,
    LASTS,
    REQUESTS,
    ROUND,
    SHARE,
    SLOWEST,
    SPAN,
    TIMES,
    Pause,
    interval,
    is_due,
)
from hf_mpwriter.uploader.pacing import Clocks

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


@pytest.mark.parametrize(("took", "waits"), [(0.1, False), (1.0, True)])
def test_rounds_take_a_share_of_a_core_over_a_minute(took, waits):
    """The first one, which imports the client, delays no second one; dear ones wait as long as they have to."""
    pause, now, spent, longest = Pause(Clocks(lambda: 0.0, lambda: 0.0, random.Random(1)), 0.0), 0.0, 0.0, 0.0
    assert pause.spent(2.0, now) == 0.0
    while now < 1000.0:
        spent += took
        wait = pause.spent(took, now)
        longest, now = max(longest, wait), now + max(ROUND, wait)
    assert spent <= SHARE * (now + SPAN)
    assert (longest > ROUND) is waits


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


def test_a_file_that_the_bucket_refuses_waits_alone_and_is_told_once(sweep):
    """Others go meanwhile; it is tried again, later each time. One that belongs to nobody here is told at once."""
    upload = sweep.add("a")
    live, refused = upload.live, f"sub/{EVENT_FILE}"
    event_file(Path(upload.run_dir, refused), 1)
    for _ in range(LASTS):
        sweep.now += 600
        live.look(sweep.now)
        assert refused in {file.path for file in live.waiting}
        sent = {EVENT_FILE: Sent(1, "")}
        live.conclude(Done("", own=False, repo_id="me/b", files=sent, left={refused: "no"}), sweep.now)
        assert not told(upload) or _ == LASTS - 1
        sweep.log(upload)
        sweep.now += 1
        live.look(sweep.now)
    assert [file.path for file in live.waiting] == [EVENT_FILE]
    assert told(upload) == ["not live: no. The upload goes on without it"]
    live.conclude(Quarantine({EVENT_FILE: "of others"}), sweep.now)
    assert told(upload)[1].startswith("not live: of others. Name another bucket")


def told(upload):
    """What the user is told."""
    return [notice.text for notice in upload.status.status.notices]


@pytest.mark.parametrize(
    ("limit", "nodes", "is_on"),
    [(1000, 1, True), (1000, 2, True), (1000, 30, True), (1000, 50, False), (1000, 1000, False), (6000, 1000, False)],
)
@pytest.mark.parametrize("others", [0, 200])
def test_all_nodes_of_an_account_use_less_than_half_of_its_requests(limit, nodes, is_on, others):
    """Each knows only what its last answer has told, and its first round takes more. Beyond a minute it is off."""
    rng, window = random.Random(1), 300
    heard, due, first = [Quota(limit, limit=limit)] * nodes, [0.0] * nodes, [True] * nodes
    due = [rng.uniform(0, interval(heard[0], 0.0, nodes)) for _ in range(nodes)]
    for start in range(0, 4 * window, window):
        left, ours = limit, 0
        for now in range(start, start + window):
            left -= others // window + (now % window < others % window)
            for node in range(nodes):
                if now < due[node] or interval(heard[node], now, nodes) > SLOWEST:
                    continue
                requests = REQUESTS + 4 * first[node]
                ours, left, first[node] = ours + requests, left - requests, False
                heard[node] = Quota(left, start + window - now, limit, window, now)
                due[node] = now + max(ROUND, min(SLOWEST, interval(heard[node], now, nodes, requests)))
        assert ours < limit / 2
        assert (ours > 0) is is_on
