"""The status of an uploader, as others read it."""

from __future__ import annotations

import dataclasses
import time

import pytest

from hf_mpwriter.base.settings import Destination
from hf_mpwriter.daemon.election import is_left_to_others
from hf_mpwriter.daemon.starts import StartRecord
from hf_mpwriter.delivery.sinks import HubSink
from hf_mpwriter.spool import status as status_module
from hf_mpwriter.spool.status import FULL_DISK, LONGEST_PAUSE, SILENT_FOR, UploaderStatus
from hf_mpwriter.system.process import Process

NOW = 1_700_000_000.0
IDLE = UploaderStatus(process=Process.current(), phase="idle", beat=NOW - 5)


@pytest.fixture
def full(monkeypatch):
    """A disk without room."""
    monkeypatch.setattr(status_module.filesystem, "is_full", lambda _: True)


def test_a_status_that_has_no_room_says_so_itself(own_spool, full):
    """With the disk to be freed, since when nothing was heard, and no word of a process that has said nothing."""
    found = IDLE.or_full(own_spool, NOW)
    assert (found.reason, found.why) == (
        FULL_DISK,
        f"{FULL_DISK}: free space on the disk of {own_spool.directory.path}",
    )
    assert (found.failing_since, found.failed_at, found.beat) == (IDLE.beat, NOW, IDLE.beat)
    assert found.stillness(NOW + 3600) == ""
    assert UploaderStatus().or_full(own_spool, NOW).reason == FULL_DISK, "of one that never could publish any"
    assert HubSink(own_spool).status().reason == FULL_DISK


def test_a_status_that_is_young_or_a_refusal_counts(own_spool, full):
    """To training: an uploader that speaks tells itself why it fails."""
    assert IDLE.or_full(own_spool, NOW, SILENT_FOR) == IDLE
    assert IDLE.or_full(own_spool, NOW + SILENT_FOR, SILENT_FOR).reason == FULL_DISK
    refused = dataclasses.replace(IDLE, kind="Refused", reason="no token")
    assert refused.or_full(own_spool, NOW + 3600) == refused


def test_with_room_a_status_is_what_it_is(own_spool):
    """However old it is."""
    assert IDLE.or_full(own_spool, NOW + 3600) == IDLE


@pytest.mark.parametrize(
    ("phase", "kind", "age", "expected"),
    [
        ("left", "Refused", 0.0, True),
        ("left", "Refused", LONGEST_PAUSE, False),  # no younger token has come: try again
        ("left", "Refused", -3600.0, False),  # the clock was set
        ("left", "Retry", 0.0, False),
        ("waiting", "Refused", 0.0, False),  # it was killed
    ],
)
def test_after_a_refused_token_the_next_uploader_is_left_to_a_younger_one(phase, kind, age, expected):
    """For some minutes; one that is younger always starts."""
    before = UploaderStatus(token_issued_at=1000.0, phase=phase, kind=kind, beat=time.time() - age)
    destination = Destination("https://hub", "me/run")
    for issued_at, is_left in ((1000.0, expected), (1000.5, False)):
        record = StartRecord(run_dir="/run", destination=destination, token_issued_at=issued_at)
        assert is_left_to_others(record, before) is is_left
