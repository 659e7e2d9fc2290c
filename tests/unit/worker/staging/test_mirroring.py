"""What a worker tells of a mirror that gets nowhere."""

from __future__ import annotations

import logging
import os
import time

import pytest
from staged import stage

from hf_mpwriter.base import state
from hf_mpwriter.events.deferred_log import logger
from hf_mpwriter.spool.layout import Spool
from hf_mpwriter.spool.staging.record import MirrorPlaces, MirrorStatus, mirror_lock
from hf_mpwriter.system import locks
from hf_mpwriter.system.process import host_id
from hf_mpwriter.worker.staging.mirroring import SEVERAL, Mirroring, trouble


@pytest.mark.parametrize(
    ("status", "refused", "told"),
    [
        (MirrorStatus(), {}, ""),
        (MirrorStatus(failures=1, reason="why"), {}, ""),
        (MirrorStatus(failures=SEVERAL, reason="why"), {}, "why"),
        (MirrorStatus(failures=1, reason="why", is_refused=True), {}, "why"),
        (MirrorStatus(failures=1, reason="why", phase="stuck"), {}, "why"),
        (MirrorStatus(failures=9, reason="why", phase="left"), {}, ""),
        (
            MirrorStatus(),
            {"b": "No space left on device", "a": "another file is there"},
            "a: another file is there, and 1 more",
        ),
        (MirrorStatus(), {"b": "No space left on device"}, "b: No space left on device"),
    ],
)
def test_each_row_of_the_table(status, refused, told):
    """As the head of the module says."""
    assert trouble(status, refused) == told


def test_a_trouble_is_told_once_and_again_when_it_comes_back(tmp_path, caplog):
    """By the member that speaks; both places are named."""
    spool, speaks = stage(tmp_path / "run", "s3://bucket/exp1"), [False]
    os.makedirs(spool.host(host_id()).root)
    mirroring = Mirroring(spool, lambda: speaks[0])

    def keep_house(**fields) -> int:
        status = state.dump(MirrorStatus(beat=time.time(), **fields))
        with open(MirrorPlaces.of(spool.host(host_id())).status, "wb") as file:
            file.write(status)
        with caplog.at_level(logging.WARNING):
            mirroring.keep_house()
            logger.flush()
        return len(caplog.records)

    lock = locks.try_exclusive(mirror_lock(spool))  # a mirror lives
    full = {"failures": 1, "is_refused": True, "reason": "No space left on device"}
    assert keep_house(**full) == 0
    speaks[0] = True
    assert keep_house(**full) == 1
    assert f"s3://bucket/exp1 does not take what is logged: No space left on device. It is kept in {spool.run_dir}" in (
        caplog.text
    )
    assert keep_house(**{**full, "failures": 2}) == 1
    assert keep_house() == 1
    assert keep_house(**full) == 2
    locks.release(lock)


def test_a_run_that_is_not_staged_reads_no_records_of_hosts(tmp_path, monkeypatch):
    """Each worker keeps house every few seconds, and a shared filesystem may hold the directories of many hosts."""
    spool = Spool(str(tmp_path / "run"))
    spool.create()
    os.makedirs(spool.host("other").root)
    read = []
    monkeypatch.setattr(Spool, "host_ids", lambda self: read.append(self) or [])
    assert Mirroring(spool, lambda: True).keep_house() is False
    assert read == []
