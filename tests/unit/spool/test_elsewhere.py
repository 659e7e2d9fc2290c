"""Which hosts have an uploader of their own, as processes without one see it."""

from __future__ import annotations

import dataclasses
import os
import time

import pytest

from hf_mpwriter.base.settings import Settings
from hf_mpwriter.daemon.status_file import StatusFile
from hf_mpwriter.spool.layout import Spool
from hf_mpwriter.spool.status import SILENCE
from hf_mpwriter.spool.workers import members as members_module
from hf_mpwriter.spool.workers.members import MemberFile, Members
from hf_mpwriter.spool.workers.peers import OTHERS_SILENCE, seen_from_here
from hf_mpwriter.system import disk, locks
from hf_mpwriter.system.process import Process

OTHER = dataclasses.replace(Process.current(), host="other-01234567")


@pytest.fixture
def spool(tmp_path):
    """A spool in which a worker of another host has written nothing for long, and whose lock is free here."""
    made = Spool(str(tmp_path / "exp1"))
    made.create()
    worker = MemberFile(made, "main", OTHER, Settings())
    worker.leave()
    os.utime(worker.path, (0, 0))
    yield made
    for fd in list(locks._table):
        locks.release(fd)


def publish(
    spool: Spool, process: Process, phase: str = "idle", elsewhere: tuple[str, ...] | None = (), age: float = 0.0
) -> None:
    """Write the status of an uploader that was heard of some seconds ago."""
    host = spool.host(process.host)
    disk.make_dirs(host.root)
    status = StatusFile(host, process, time.monotonic, 0.0, lambda: time.time() - age)
    status.change(elsewhere=None if elsewhere is None else tuple(sorted(elsewhere)))
    status.publish(phase=phase, waiting=0, commits=0, blocked_until=0.0)
    os.utime(host.daemon("uploader").status, (time.time() - age, time.time() - age))


def lives(spool: Spool) -> bool:
    """Whether the worker of the other host counts as alive."""
    (member,) = Members(spool).all()
    assert member.alive is (OTHER.host in seen_from_here(spool))
    return member.alive


def test_without_an_uploader_here_the_lock_tells_whether_locks_reach(spool):
    """Where its uploader's lock is held here, its workers' locks tell the truth. Else its heartbeat counts."""
    assert not lives(spool)
    publish(spool, OTHER)
    assert lives(spool)
    lock = locks.try_exclusive(spool.uploader_lock)
    assert not lives(spool), "its lock reaches here"
    locks.release(lock)
    publish(spool, OTHER, "left")
    assert not lives(spool)
    publish(spool, OTHER, age=OTHERS_SILENCE + 1)
    assert not lives(spool)


def test_the_uploader_here_says_what_it_knows(spool):
    """Until it has looked, and where it has left, others look themselves."""
    publish(spool, OTHER)
    assert locks.try_exclusive(spool.uploader_lock) is not None
    publish(spool, Process.current(), elsewhere=(OTHER.host,))
    assert lives(spool)
    publish(spool, Process.current(), elsewhere=())
    assert not lives(spool), "it took over from the other one, which was killed"
    publish(spool, Process.current(), elsewhere=None)
    assert lives(spool)
    publish(spool, Process.current(), "left", elsewhere=(OTHER.host,))
    assert not lives(spool), "another host holds the lock, and it reaches here"
    publish(spool, Process.current(), elsewhere=(OTHER.host,), age=SILENCE + 1)
    assert not lives(spool)


def test_hosts_are_looked_up_once_for_all_members(spool, monkeypatch):
    """Their status is a file per host, and there may be hundreds of workers."""
    MemberFile(spool, "rank_00001", OTHER, Settings()).leave()
    asked = []
    monkeypatch.setattr(members_module, "seen_from_here", lambda _: asked.append(1) or (OTHER.host,))
    members = Members(spool)
    for looks in (1, 2):
        assert [member.alive for member in members.all()] == [True, True]
        assert len(asked) == looks, "each look asks anew"
