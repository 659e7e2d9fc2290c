"""The status of an uploader, as others read it."""

from __future__ import annotations

import dataclasses

import pytest

from hf_mpwriter.spool import status as status_module
from hf_mpwriter.spool.progress import Progress
from hf_mpwriter.spool.status import FULL_DISK, SILENT_FOR, UploaderStatus
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
    assert Progress(own_spool).uploader().reason == FULL_DISK


def test_a_status_that_is_young_or_a_refusal_counts(own_spool, full):
    """To training: an uploader that speaks tells itself why it fails."""
    assert IDLE.or_full(own_spool, NOW, SILENT_FOR) == IDLE
    assert IDLE.or_full(own_spool, NOW + SILENT_FOR, SILENT_FOR).reason == FULL_DISK
    refused = dataclasses.replace(IDLE, kind="Refused", reason="no token")
    assert refused.or_full(own_spool, NOW + 3600) == refused


def test_with_room_a_status_is_what_it_is(own_spool):
    """However old it is."""
    assert IDLE.or_full(own_spool, NOW + 3600) == IDLE
