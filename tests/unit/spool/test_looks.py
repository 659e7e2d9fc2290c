"""Looks at thousands of member files: few are read, and nothing that they say is missed."""

from __future__ import annotations

import os
import time

import pytest
from forks import kill, living

from hf_mpwriter.base.settings import Settings
from hf_mpwriter.spool.layout import Spool
from hf_mpwriter.spool.workers import members as looks
from hf_mpwriter.spool.workers.member_lines import Reading
from hf_mpwriter.spool.workers.members import MemberFile, Members
from hf_mpwriter.system.process import Process

COUNT = 6


@pytest.fixture
def spool(tmp_path):
    """A spool."""
    spool = Spool(str(tmp_path))
    spool.create()
    return spool


@pytest.fixture
def read(monkeypatch):
    """The workers whose member files are read; two at once are few enough to be read all."""
    found, read = [], Reading.read
    monkeypatch.setattr(Reading, "read", lambda self, *args: found.append(self.name.worker) or read(self, *args))
    monkeypatch.setattr(looks, "AT_ONCE", 2)
    return found


def member_file(spool: Spool, worker: str) -> MemberFile:
    """Join."""
    return MemberFile(spool, worker, Process.current(), Settings())


def rest(path) -> None:
    """Let a file be unchanged for a while."""
    past = time.time() - 60
    os.utime(path, (past, past))


def observer(spool: Spool, files: list[MemberFile]) -> Members:
    """One who has looked several times while nothing happened."""
    for file in files:
        rest(file.path)
    found = Members(spool)
    for _ in range(3):
        assert len(found.all()) == len(files)
    return found


def turns(count: int = COUNT) -> int:
    """Looks after which each member file was read."""
    return -(-count // looks.AT_ONCE)


def test_what_is_at_rest_is_read_in_turn(spool, read):
    """A look reads as many as one of few members does; after some looks each was read."""
    files = [member_file(spool, f"rank_{rank:05d}") for rank in range(COUNT)]
    members, all_read = observer(spool, files), set()
    for _ in range(turns()):
        read.clear()
        assert sum(member.alive for member in members.all()) == COUNT
        assert len(read) <= looks.AT_ONCE
        all_read.update(read)
    assert len(all_read) == COUNT


def test_few_members_are_read_at_each_look(spool, read):
    """There it costs nothing, and a death is seen at once."""
    files = [member_file(spool, name) for name in ("main", "other")]
    members = observer(spool, files)
    read.clear()
    members.all()
    assert sorted(read) == ["main", "other"]


@pytest.mark.parametrize("say", [lambda file: file.count(requests=1), lambda file: file.write({"open": "a"})])
def test_the_next_look_sees_what_a_worker_has_written(spool, read, say):
    """A request has the length of the one before, only the time of the file tells; so has each one that follows."""
    files = [member_file(spool, f"rank_{rank:05d}") for rank in range(COUNT)]
    members = observer(spool, files)
    for file in files:
        before = {member.name: member for member in members.all()}
        say(file)
        for member in members.all():
            assert (member != before[member.name]) == (member.name.worker == file.path.basename.partition(".")[0])


def test_a_request_right_after_another_one_is_seen(spool, read):
    """A file that was just written is read again, whatever its time: the clock of a filesystem is coarse."""
    files = [member_file(spool, f"rank_{rank:05d}") for rank in range(COUNT)]
    members = observer(spool, files)
    now = time.time_ns()
    for number in range(1, 4):
        files[0].count(requests=1)
        os.utime(files[0].path, ns=(now, now))
        assert max(member.requests for member in members.all()) == number


def test_the_next_look_sees_that_a_process_has_gone(spool, read):
    """A killed worker among thousands is dead at once, as nothing has its process id."""
    files = [member_file(spool, f"rank_{rank:05d}") for rank in range(COUNT)]

    with living(lambda: member_file(spool, "killed")) as pid:
        for name in os.listdir(spool.members):
            rest(spool.members / name)
        members = Members(spool)
        for _ in range(3):
            assert all(member.alive for member in members.all())
        kill(pid)
        assert [member.name.worker for member in members.all() if not member.alive] == ["killed"]
    assert len(files) == COUNT


def test_a_worker_whose_process_lives_on_is_dead_after_all_turns(spool, read):
    """Its lock is free, but the process id is taken."""
    files = [member_file(spool, f"rank_{rank:05d}") for rank in range(COUNT)]
    members = observer(spool, files)
    files[3].leave()
    dead = [[member.name.worker for member in members.all() if not member.alive] for _ in range(turns())]
    assert dead[-1] == ["rank_00003"]


def test_a_worker_of_another_host_is_read_at_each_look(spool, read, monkeypatch):
    """What the system knows of its file may be old."""
    files = [member_file(spool, f"rank_{rank:05d}") for rank in range(COUNT)]
    members = observer(spool, files)
    monkeypatch.setattr(members, "_host", "other")
    read.clear()
    members.all()
    assert len(read) == COUNT
