"""Starts: how often uploaders are started, whatever clocks, disks and other processes do."""

from __future__ import annotations

import math
import os

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from programs import wait_for

from hf_mpwriter.spool import starts
from hf_mpwriter.spool.starts import LONGEST_PAUSE, STARTS_LIMIT, Starter, StartRecord, Starts
from hf_mpwriter.system import failpoints, launch, locks
from hf_mpwriter.system.process import host_id

HOUR = 3600.0
TIMES = st.floats(-1e9, 1e9) | st.sampled_from([math.nan, math.inf, -math.inf])
ANYTHING = st.builds(
    Starts, st.sampled_from(["", "here", "other"]), st.lists(TIMES, max_size=6).map(tuple), TIMES, TIMES
)


def starts_within(seconds: float, begin: Starts, now: float) -> int:
    """How many uploaders that crash at once are started, if one is wanted every second."""
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
    """Three starts in a minute are ordinary; then 5 s, 10 s ... up to 5 min."""
    count, now, pauses = Starts("here"), 100.0, []
    for _ in range(12):
        count = count.as_of(now, "here").with_start(now)
        pauses.append(max(0.0, count.quiet_until - now))
        now = max(now, count.quiet_until)
    assert pauses == [0.0, 0.0, 0.0, 5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 300.0, 300.0, 300.0]


@pytest.mark.parametrize(
    ("count", "now"),
    [
        (Starts("other", (99.0,) * 4, 200.0, 5.0), 100.0),  # the machine was started again
        (Starts("here", (99.0, 101.0), 200.0, 5.0), 100.0),  # where no boot is known, or another time namespace
        (Starts("here", (1.0,) * 4, 1e9, 300.0), 1000.0),  # long ago
        (Starts("here", (99.0,), math.nan), 100.0),
    ],
)
def test_what_says_nothing_about_now_counts_as_none(count, now):
    """A monotonic clock has a meaning in one boot only."""
    assert count.as_of(now, "here") == Starts("here")


@pytest.fixture
def crashing(monkeypatch):
    """An uploader that ends as soon as it is started."""
    monkeypatch.setitem(launch.BOOTS, "uploader", "raise SystemExit(1)")


@pytest.fixture
def record(spool):
    """A start record of the run."""
    return StartRecord(spool.run_dir, destination=spool.destination(), token_issued_at=1.0)


def ended(starter: Starter, spool) -> None:
    """Wait until what was started has ended."""
    wait_for(lambda: not starter.reap() and not locks.is_held(spool.uploader_lock), "it ends")


@pytest.mark.parametrize(("workers", "last_of_the_first"), [(1, 3.0), (12, 0.0)])
def test_many_workers_start_no_more_than_one(spool, record, crashing, workers, last_of_the_first):
    """The count stands on disk; each of them asks it under the uploader lock."""
    now = [1000.0]
    all_of_them, found = [Starter(spool, clock=lambda: now[0]) for _ in range(workers)], 0
    for _ in range(70):
        for starter in all_of_them:
            if starter.start(record, os.environ.copy):
                found += 1
                ended(starter, spool)
        now[0] += 1.0
    assert found == STARTS_LIMIT + 1 + 3, "then after 5 s, 10 s and 20 s; the next would be after 40 s"
    assert {starter.quiet_until for starter in all_of_them} == {1000.0 + last_of_the_first + 35.0 + 40.0}


def test_a_disk_that_refuses_the_count_prevents_no_start(spool, record, crashing):
    """The worker counts for itself then; what it has counted is written as soon as the disk allows it."""
    now = [1000.0]
    starter = Starter(spool, clock=lambda: now[0])
    for number in range(STARTS_LIMIT + 3):
        failpoints.armed["starts.write"] = ("enospc", 1)
        assert starter.start(record, os.environ.copy) is (number <= STARTS_LIMIT)
        ended(starter, spool)
    assert not os.path.exists(spool.host(host_id()).daemon("uploader").starts)
    del failpoints.armed["starts.write"]
    now[0] = starter.quiet_until
    assert starter.start(record, os.environ.copy)
    ended(starter, spool)
    assert not Starter(spool, clock=lambda: now[0]).start(record, os.environ.copy), "another one reads it"


def test_a_start_that_fails_is_not_counted_for_others(spool, record, monkeypatch):
    """A rank without an interpreter says nothing about the others."""

    def fail(*_: object, **__: object) -> int:
        raise OSError("no interpreter")

    starter = Starter(spool)
    monkeypatch.setattr(launch, "start", fail)
    for _ in range(STARTS_LIMIT + 2):
        with pytest.raises(OSError, match="no interpreter"):
            starter.start(record, os.environ.copy)
    assert starts._load(spool.host(host_id()).daemon("uploader").starts).at == ()
    assert not locks.is_held(spool.uploader_lock)
