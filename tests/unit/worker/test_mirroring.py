"""What a worker tells of a mirror that gets nowhere."""

from __future__ import annotations

import logging
import os
import time
from pathlib import Path

from staged import stage

from hf_mpwriter.base import state
from hf_mpwriter.base.timing import Timing
from hf_mpwriter.daemon.election import Election
from hf_mpwriter.events.deferred_log import logger
from hf_mpwriter.spool.layout import Spool
from hf_mpwriter.spool.staging import Listing, MirrorStatus
from hf_mpwriter.system import locks
from hf_mpwriter.system.process import host_id
from hf_mpwriter.worker.mirroring import Mirroring


def test_a_trouble_is_told_once_and_again_when_it_comes_back(tmp_path, caplog):
    """By the member that speaks; both places are named."""
    spool, speaks = stage(tmp_path / "run", "s3://bucket/exp1"), [False]
    os.makedirs(spool.host(host_id()).root)
    mirroring = Mirroring(spool, lambda: speaks[0])

    def keep_house(**fields) -> int:
        status = state.dump(MirrorStatus(beat=time.time(), **fields))
        with open(spool.host(host_id()).daemon("mirror").status, "wb") as file:
            file.write(status)
        with caplog.at_level(logging.WARNING):
            mirroring.keep_house()
            logger.flush()
        return len(caplog.records)

    lock = locks.try_exclusive(spool.lock_of("mirror"))  # a mirror lives
    full = {"failures": 1, "is_refused": True, "reason": "No space left on device"}
    assert keep_house(**full) == 0
    speaks[0] = True
    assert keep_house(**full) == 1
    assert f"s3://bucket/exp1: No space left on device. What is on disk ({spool.run_dir}) stays there" in caplog.text
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


def test_the_last_step_waits_a_moment_for_what_is_still_to_come_back(tmp_path, caplog, monkeypatch):
    """Only for the directory that is asked for, once, and with a word that says what helps."""
    spool = stage(tmp_path / "run", "s3://bucket/exp1")
    ours = "events.out.tfevents.1795233002.h.1.00000001"
    Listing({ours: 5, f"rank_00001/{ours}": 5}).save(spool)
    brings = lambda *_: Path(spool.run_dir, ours).write_bytes(b"12345")  # noqa: E731
    monkeypatch.setattr(Election, "ensure", brings)
    mirroring = Mirroring(spool, lambda: True, timing=Timing(logdir_wait=0.1))
    mirroring.wait_until_back("")
    assert caplog.text == ""
    monkeypatch.setattr(Election, "ensure", lambda *_: None)
    mirroring.wait_until_back("rank_00001")
    assert caplog.text == "", "it has waited once"
    mirroring.forget()
    mirroring.wait_until_back("rank_00001")
    assert "1 file of earlier attempts are still to come back" in caplog.text
    assert "hf-mpwriter pull s3://bucket/exp1" in caplog.text
