"""Restoring: who asks for a restore, how long training waits for it, and what it knows afterwards."""

from __future__ import annotations

import itertools
import os
import sys
import time
from collections.abc import Callable

import pytest

from hf_mpwriter.base import state
from hf_mpwriter.base.settings import Settings
from hf_mpwriter.spool.layout import Spool
from hf_mpwriter.spool.staging.record import MirrorRecord
from hf_mpwriter.spool.staging.restoration import Restoration, restore_lock
from hf_mpwriter.spool.workers.members import MemberFile
from hf_mpwriter.system import locks
from hf_mpwriter.system.filesystem import Mount, find_mount
from hf_mpwriter.system.process import Process
from hf_mpwriter.worker.staging import restoring


@pytest.fixture
def staged(tmp_path) -> Spool:
    """The spool of a staged run."""
    spool = Spool.of(str(tmp_path / "local" / "exp1"), logdir=str(tmp_path / "mount" / "exp1"))
    spool.create()
    return spool


@pytest.fixture
def asked(monkeypatch) -> list[Restoration]:
    """Answers to those who ask for a restore; what is left was not asked for."""
    answers: list[Restoration] = []
    monkeypatch.setattr(restoring, "_run", lambda _: answers.pop(0))
    return answers


def test_a_run_in_its_logdir_costs_nothing(tmp_path):
    """Nothing is locked, written or asked."""
    spool = Spool(str(tmp_path / "exp1"))
    with restoring.prepared(spool, is_joined=False) as known:
        assert known == restoring.Staged()
    assert not (tmp_path / "exp1").exists()


def test_the_first_member_of_an_attempt_asks_and_the_others_do_not(staged, asked):
    """Also where the run was here before: it may have gone on elsewhere."""
    asked += [Restoration(first=1000, last=2000, is_over=True), Restoration(first=1000, last=3000, is_over=True)]
    for last in (2000, 3000):
        with restoring.prepared(staged, is_joined=False) as known:
            assert known == restoring.Staged(1000.0, last)
            assert locks.try_exclusive(restore_lock(staged)) is None, "until this process has joined"
            member = MemberFile(staged, "main", Process.current(), Settings())
        with restoring.prepared(staged, is_joined=False) as known:
            assert known == restoring.Staged(1000.0, last)
        member.leave()
    assert MirrorRecord.read(staged) == MirrorRecord(staged.logdir, 1000.0, find_mount(staged.logdir))
    assert asked == []


def recorded_mount(staged, recorded: Mount) -> Mount | None:
    """The mount of the record after a start, where it was another one before."""
    MirrorRecord(staged.logdir, 1000.0, recorded).publish(staged)
    with restoring.prepared(staged, is_joined=False):
        return MirrorRecord.read(staged).mount


@pytest.mark.skipif(sys.platform != "linux", reason="mountinfo is Linux's")
def test_a_start_takes_what_is_mounted_in_place_of_the_mount(staged, asked, caplog):
    """And says so: the user has mounted it, and has started training there."""
    asked += [Restoration(is_over=True)]
    here = find_mount(staged.logdir)
    assert recorded_mount(staged, Mount(here.point, "fuse.gcsfuse", "bucket")) == here
    assert f"it was on gcsfuse (bucket) at {here.point}, and is on {here} now" in caplog.text


def test_a_start_without_the_mount_keeps_it_in_mind(staged, asked, caplog, tmp_path):
    """What the mount has left is not taken for it."""
    asked += [Restoration(is_over=True)]
    gone = Mount(str(tmp_path / "mount"), "fuse.gcsfuse", "bucket")
    assert recorded_mount(staged, gone) == gone
    assert "goes on there" not in caplog.text


def test_a_record_that_was_lost_is_written_without_a_look_at_the_logdir(staged, asked, monkeypatch):
    """While training goes on the mount may hang."""
    asked += [Restoration(is_over=True)]
    with restoring.prepared(staged, is_joined=False):
        before = MirrorRecord.read(staged)
    os.unlink(str(MirrorRecord.place(staged)))
    monkeypatch.setattr(restoring, "find_mount", None)
    restoring.publish_record(staged, before.made_at)
    assert MirrorRecord.read(staged) == before


def test_a_failure_is_told_and_not_repeated_at_once(staged, asked, caplog):
    """Processes that follow each other do not all wait for a mount that hangs; names sort behind what is known."""
    asked += [Restoration(files=2, size=99, last=7, failure="it hangs"), Restoration(last=5, is_over=True)]
    for _ in range(3):
        with restoring.prepared(staged, is_joined=False) as known:
            assert known.after == 7
    assert len(asked) == 1
    assert caplog.text.count("could not be brought back: it hangs") == 1
    Restoration(last=7, failure="it hangs", at=time.time() - restoring.RETRY_AFTER - 1).save(staged)
    with restoring.prepared(staged, is_joined=False) as known:
        assert known.after == 7
    assert asked == []


def test_a_file_that_cannot_be_read_is_told_and_tried_by_each_start(staged, asked, caplog):
    """It is no failure of the whole: the next start may find it readable."""
    asked += [Restoration(files=3, unread=1, reason="events.out: refused", is_over=True), Restoration(is_over=True)]
    for _ in range(2):
        with restoring.prepared(staged, is_joined=False):
            pass
    assert asked == []
    assert caplog.text.count("1 of 3 files there could not be brought back: events.out: refused. Training goes on") == 1


def test_what_is_told_of_a_wait_claims_nothing_that_is_not_known(staged, caplog):
    """Before the logdir has answered, there may be nothing of earlier attempts."""
    restoring._tell(staged, Restoration())
    restoring._tell(staged, Restoration(files=1, size=4000))
    first, second = caplog.messages
    assert "waiting for it to answer" in first
    assert "earlier attempts" not in first
    assert "bringing back 1 file (4.0 kB) of earlier attempts" in second


def test_a_lock_that_stays_is_not_waited_for_for_ever(staged, asked, monkeypatch, caplog):
    """Another process hangs in its restore; this one goes on, after a word."""
    monkeypatch.setattr(restoring, "LONGEST", 0.0)
    monkeypatch.setattr(restoring, "END_PATIENCE", 0.2)
    monkeypatch.setattr(restoring, "QUIET", 0.05)
    asked.append(Restoration(is_over=True))
    held = locks.try_exclusive(restore_lock(staged))
    with restoring.prepared(staged, is_joined=False):
        pass
    locks.release(held)
    assert "waiting for another process" in caplog.text


def line(report: Restoration) -> bytes:
    """What a restore writes, with its end."""
    return state.to_line(report) + b"\n"


def waited(
    data: bytes, clock: Callable[[], float] = time.monotonic, *, ends: bool
) -> tuple[Restoration, list[Restoration]]:
    """What a wait knows at its end, and what it tells, of a restore that has written this."""
    told: list[Restoration] = []
    there, away = os.pipe()
    os.write(away, data)
    if ends:
        os.close(away)
    try:
        return restoring._Wait(there, told.append, clock).end(), told
    finally:
        os.close(there)
        if not ends:
            os.close(away)


def test_a_wait_ends_with_the_restore():
    """Its last line counts; what libraries print does not, and the last line may lack its end."""
    over = Restoration(files=1, size=5, came=5, is_over=True)
    noise = b"a library prints\n" + line(Restoration(files=1)) + b"Restoration {}\n\nRestoration"
    assert waited(noise + b"\n" + line(over) + b"more", ends=True) == (over, [])
    assert waited(noise, ends=True)[0].failure == "the process that does it has ended"
    failed = Restoration(failure="no such bucket")
    assert waited(line(failed), ends=True)[0] == failed


def test_a_wait_for_a_restore_that_hangs_is_told_and_ends(monkeypatch):
    """With what is known until then, so that names sort behind it."""
    monkeypatch.setattr(restoring, "QUIET", 0.25)
    monkeypatch.setattr(restoring, "PATIENCE", 0.2)
    clock = itertools.count(0.0, 0.1).__next__  # of this machine, one look may take as long as all of them
    found, told = waited(line(Restoration(files=3, last=9)), clock, ends=False)
    assert found.last == 9
    assert "took longer than" in found.failure
    assert [report.files for report in told] == [3]
