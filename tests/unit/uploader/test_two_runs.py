"""An uploader of two runs: how one of them ends while the other goes on, and what the user is told once."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from support import event_file
from uploaders import Driven, Site, has

from hf_mpwriter.base.settings import Destination, Settings
from hf_mpwriter.daemon.loop import GRACE
from hf_mpwriter.daemon.starts import StartRecord
from hf_mpwriter.spool.layout import Spool
from hf_mpwriter.spool.status import UploaderStatus
from hf_mpwriter.spool.workers.members import ENDER, MemberFile
from hf_mpwriter.system import locks
from hf_mpwriter.system.process import Process, host_id
from hf_mpwriter.uploader.upload import HeldRun

EVENTS = "events.out.tfevents.1700000000.other"


@pytest.fixture
def two(site, tmp_path) -> Driven:
    """An uploader of two runs with a worker each; there is something to send of both."""
    one = site.uploader()
    one.workers = []
    other = Spool(str(tmp_path / "other"))
    other.create()
    other.record_destination(Destination("http://127.0.0.1:9", "me/run", path_in_repo="tensorboard/other"))
    lock = locks.try_exclusive(other.uploader_lock)
    record = StartRecord(**vars(other.paths), destination=other.destination())
    one.add(HeldRun(other, record, lock))
    for spool in (site.spool, other):
        event_file(Path(spool.run_dir, EVENTS), 1)
        one.workers.append(MemberFile(spool, "main", Process.current(), Settings()))
    return one


def ask(spool: Spool, host: str | None = None) -> MemberFile:
    """`stop` asks, on this host or another."""
    process = Process.current()
    ender = MemberFile(spool, ENDER, dataclasses.replace(process, host=host or process.host), Settings())
    ender.count(requests=1)
    return ender


def status(spool: Spool) -> UploaderStatus:
    """What the uploader says in a run."""
    return UploaderStatus.read(spool.host(host_id()))


def turn(one: Driven, site: Site, seconds: float = 1.0) -> None:
    """A tick, so much later."""
    site.now += seconds
    one.tick()


def test_a_run_that_is_to_end_is_sent_once_more_and_let_go(two, site, monkeypatch):
    """Its lock is free, and the other run is served as before."""
    monkeypatch.setattr(two, "_sleep", lambda: None)
    first, second = two.uploads
    ask(site.spool)
    turn(two, site)
    assert [part.files[0].path for part in site.jobs[-1].parts][:1] == [EVENTS]
    assert first in two.uploads
    sent = [{file.path: file.length for file in parcel.batch.files} for parcel in two.branch.parcels]
    two._conclude(two.branch.end([has(**files) for files in sent]))
    for _ in range(3):
        turn(two, site)
    assert two.uploads == [second]
    assert not locks.is_held(site.spool.uploader_lock)
    assert (status(site.spool).phase, status(site.spool).serves) == ("left", 1)


def test_an_end_takes_no_longer_than_after_sigterm(two, site, monkeypatch):
    """A push of the run that hangs is ended, and the other run keeps the uploader."""
    monkeypatch.setattr(two, "_sleep", lambda: None)
    first, second = two.uploads
    ask(site.spool)
    turn(two, site)
    push = site.pushes[-1]
    turn(two, site, GRACE - 1)
    assert not push.killed
    turn(two, site, 2.0)
    assert push.killed
    for _ in range(3):
        turn(two, site)
    assert (two.uploads, first._lock) == ([second], -1)


def test_only_stop_on_this_host_ends_an_upload(two, site, monkeypatch):
    """An uploader of another host reads the same member files."""
    monkeypatch.setattr(two, "_sleep", lambda: None)
    ask(site.spool, host="there-01234567")
    turn(two, site)
    assert not any(upload.requests.is_ending for upload in two.uploads)


def test_a_run_that_is_finished_does_not_wait_for_a_push_of_others(two, site, monkeypatch):
    """Nothing is left to do for it, and its supervisor waits for that."""
    monkeypatch.setattr(two, "_sleep", lambda: None)
    first, second = two.uploads
    Path(site.spool.run_dir, EVENTS).unlink()
    turn(two, site, 3.0)
    assert two.branch.carries(second.sending.in_flight)
    assert not two.branch.carries(first.sending.in_flight)
    two.workers[0].leave()
    for _ in range(4):
        turn(two, site)
    assert (two.uploads, two.branch.push) == ([second], site.pushes[-1])


def test_why_commits_come_slower_is_told_once_of_all_runs(two, site, monkeypatch):
    """By a run whose process lives: that of an ended one cannot print it."""
    monkeypatch.setattr(two, "_sleep", lambda: None)
    monkeypatch.setattr(two.branch.limit, "take", lambda *, urgent: 45.0)  # noqa: ARG005
    two.workers[0].leave()
    for _ in range(5):
        turn(two, site, 60.0)
    told = [[notice.text for notice in upload.status.status.notices] for upload in two.uploads]
    assert told == [[], [two.branch.limit.explanation]]
    assert not site.pushes
