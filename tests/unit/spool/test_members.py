"""Claims and member files: no two in one directory, and a member file is seen locked or over."""

from __future__ import annotations

import dataclasses
import errno
import itertools
import json
import os
import signal

import pytest
from forks import KILLED, fork, in_child, kill, living, reap
from hypothesis import example, given
from hypothesis import strategies as st
from programs import wait_for
from support import JSON, failing, limit_files, open_descriptors

from hf_mpwriter.base import state
from hf_mpwriter.base.settings import Settings
from hf_mpwriter.spool.layout import Spool
from hf_mpwriter.spool.workers import members as members_module
from hf_mpwriter.spool.workers.losses import losses
from hf_mpwriter.spool.workers.member_lines import COUNTERS_LENGTH, Member, MemberName, News, Reading
from hf_mpwriter.spool.workers.members import MemberFile, MemberFiles, Members, claim, last_of
from hf_mpwriter.system import locks
from hf_mpwriter.system.process import Process
from hf_mpwriter.testing import processes

NAME = MemberName("main", "h-1", 1, 2, 3)
ME = Process.current()
FIRST = {
    "process": dataclasses.asdict(ME),
    "started_at": 5.0,
    "settings": json.loads(state.dump(Settings())),
    "agent": None,
    "launcher": None,
    "rank": None,
    "is_daemon": False,
    "task": None,
    "is_late": False,
    "says_again": "",
}


@pytest.fixture
def place(tmp_path):
    """A spool."""
    made = Spool(str(tmp_path / "exp1"))
    made.create()
    yield made
    for fd in list(locks._table):
        locks.release(fd)


def member_file(place: Spool, worker: str = "main") -> MemberFile:
    """A member file of this process."""
    return MemberFile(place, worker, Process.current(), Settings())


def counters(requests: int = 0, dropped: int = 0) -> bytes:
    """The second line of a member file."""
    said = {"requests": requests, "dropped": dropped, "in_memory": 0, "since": 0.0, "why": ""}
    return json.dumps(said).encode().ljust(COUNTERS_LENGTH - 1) + b"\n"


def parse(data: bytes) -> Member | None:
    """What a member file of a live worker says."""
    reading = Reading(NAME)
    reading.take(data)
    return reading.member


def lines(*contents: object) -> bytes:
    """A member file's content."""
    return b"".join(json.dumps(content).encode() + b"\n" for content in contents)


# claims


def test_no_two_processes_get_the_same_name(place):
    """Sixteen racing processes that all want one name get sixteen different ones, one of them the wanted."""
    wait, let_go = os.pipe()
    told, tell = os.pipe()

    def child() -> None:
        os.close(let_go)
        name = claim(place, "rank_00003").name
        os.write(tell, f"{name}\n".encode())
        os.read(wait, 1)

    children = [fork(child) for _ in range(16)]
    os.close(tell)
    names: list[str] = []
    data = b""
    while data.count(b"\n") < 16:
        data += os.read(told, 1000)
    names = data.decode().split()
    os.close(let_go)
    assert [reap(pid) for pid in children] == [0] * 16
    assert sorted(names, key=lambda name: (len(name), name)) == [
        "rank_00003",
        *(f"rank_00003~{n}" for n in range(2, 17)),
    ]
    os.close(told)
    os.close(wait)


def test_the_name_of_a_killed_worker_is_free_again(place):
    """A restart takes the same directory."""
    with living(lambda: claim(place, "main")) as pid:
        assert claim(place, "main").name == "proc_00001"
        kill(pid)
        assert claim(place, "main").name == "main"


def test_a_claim_whose_file_was_just_deleted_is_not_worthless(place, monkeypatch):
    """The holder of a claim holds the lock of the file at its path."""
    name, fd, *_ = claim(place, "main")
    os.unlink(place.claim(name))
    other, new, *_ = claim(place, "main")
    assert other == "main"
    assert os.path.samestat(os.fstat(new), os.stat(place.claim("main")))
    assert not os.path.samestat(os.fstat(fd), os.fstat(new))


# start and end of a member file


def test_a_member_file_is_seen_locked_or_not_at_all(place):
    """While member files are made and withdrawn all the time, an observer never sees a dead one."""

    def make() -> None:
        observer = Members(place)
        for _ in itertools.count():
            mine = member_file(place)
            observer.all()
            observer.all()
            os.unlink(mine.path)  # as withdraw does, but for the slow fsync
            locks.release(mine._fd)

    pid = fork(make)
    try:
        seen, dead = [], []
        observer = Members(place)

        def look() -> bool:
            members = [member for _ in range(50) for member in observer.all()]
            seen.extend(members)
            # withdrawn between listing and probing: then the path is gone as well
            dead.extend(m for m in members if not m.alive and os.path.exists(place.members / str(m.name)))
            return len(seen) > 300

        wait_for(look, "the child makes member files")
    finally:
        kill(pid)
    assert dead == []


@pytest.mark.parametrize("fault", ["kill", "enospc", "eio"])
def test_a_member_file_that_is_not_made_is_not_seen_and_leaves_nothing(place, fault):
    """Killed or refused before the rename: no member, and the next one succeeds. A refusal leaves nothing (promise 11).

    A worker tries every second while the disk is full: neither files nor descriptors may add up.
    """
    point, before = f"members.file.rename={fault}", open_descriptors()
    if fault == "kill":
        assert in_child(lambda: member_file(place), point) == KILLED
    else:
        for _ in range(5):
            with failing(point), pytest.raises(OSError, match="failpoint"):
                member_file(place)
        assert open_descriptors() == before
        assert os.listdir(place.members) == []
    assert Members(place).all() == []
    made = member_file(place)
    assert [(member.name, member.alive) for member in Members(place).all()] == [(made.name, True)]


def test_a_line_that_does_not_fit_is_taken_back(place):
    """The disk is full in the middle of a line: it is an OSError, the member file stays readable, later lines count."""

    def child() -> None:
        mine = member_file(place)
        limit_files(os.path.getsize(mine.path) + 30)
        with pytest.raises(OSError, match=r"refuses|large"):
            mine.write({"open": "a" * 50})
        mine.write({"open": "b"})
        (member,) = Members(place).all()
        assert member.growing == {"b"}

    assert in_child(child) == 0


def test_a_member_file_says_who_writes_what_and_what_it_asks_for(place):
    """Open files, sealed ones, requests; after it has left it is dead and nothing of it grows."""
    mine = MemberFile(place, "rank_00001", ME, Settings(commit_every=2.5))
    observer = Members(place)
    mine.write({"open": "a"})
    mine.write({"open": "b"})
    mine.write({"seal": "a"})
    mine.count(requests=1)
    (member,) = observer.all()
    assert (member.alive, member.growing, member.files) == (True, {"b"}, {"a", "b"})
    mine.count(requests=1)
    (member,) = observer.all()
    assert member.requests == 2
    assert (member.process, member.settings.commit_every) == (ME, 2.5)
    mine.count(dropped=3)
    mine.leave()
    (member,) = observer.all()
    assert (member.alive, member.dropped, member.growing) == (False, 3, frozenset())
    assert member.files == {"a", "b"}
    observer.remove(member)
    assert observer.all() == []


def test_a_killed_worker_is_dead_and_nothing_of_it_grows(place):
    """The lock tells at once; its files are known still."""

    def child() -> None:
        member_file(place).write({"open": "a"})

    with living(child) as pid:
        observer = Members(place)
        (member,) = observer.all()
        assert (member.alive, member.growing) == (True, {"a"})
        kill(pid)
        (member,) = observer.all()
        assert (member.alive, member.growing, member.files) == (False, frozenset(), {"a"})


def test_death_is_final(place):
    """The file of a dead member is not read again, whatever becomes of it, until it is gone; others are."""
    dead, alive = member_file(place, "rank_00001"), member_file(place, "rank_00002")
    observer = Members(place)
    dead.leave()
    assert [member.alive for member in observer.all()] == [False, True]
    lock = locks.try_exclusive(dead.path)
    assert lock is not None
    alive.leave()
    assert [member.alive for member in observer.all()] == [False, False]
    os.unlink(dead.path)
    assert [member.name for member in observer.all()] == [alive.name]


def test_what_was_noted_of_those_who_are_gone_is_forgotten(place):
    """Children come and go by the thousands; what is remembered is bounded by the member files (promise 11)."""
    noted, observer = News(), Members(place)
    mine = member_file(place)
    mine.count(requests=1)
    for _ in range(5):
        other = member_file(place, "child")
        other.leave()
        for member in observer.all():
            noted.note(member)
        assert len(noted._noted) == 2
        os.unlink(other.path)
        noted.keep(observer.all())
        assert list(noted._noted) == [mine.name]


def test_a_worker_that_died_has_left_a_file_open(place):
    """One that sealed its files has ended. The last file names a death, so a later life that ends well is none."""
    members = Members(place)
    died, ended = member_file(place, "rank_00001"), member_file(place, "rank_00002")
    for path in ("rank_00001/events.2", "rank_00001/sub/events.1"):
        died.write({"open": path})
    died.write({"seal": "rank_00001/events.2"})
    ended.write({"open": "rank_00002/events.1"})
    ended.write({"seal": "rank_00002/events.1"})
    for one in (died, ended):
        one.leave()
    found = members.all()
    assert [member.has_died for member in found] == [True, False]
    for member in found:
        members.remove(member)
    assert last_of(found[0].files) == "rank_00001/events.2"
    assert members.all() == []


def test_news_is_a_new_request_or_the_end(place):
    """What was noted is no news again; one more request and death are."""
    noted, observer, mine = News(), Members(place), member_file(place)
    (member,) = observer.all()
    assert noted.covers(member)
    for change in (
        lambda: mine.count(requests=1),
        lambda: mine.count(requests=1),
        mine.leave,
    ):
        change()
        (member,) = observer.all()
        assert not noted.covers(member)
        noted.note(member)
        assert noted.covers(member)


def test_a_stopped_worker_lives(place):
    """SIGSTOP is no death."""
    with living(lambda: member_file(place)) as pid:
        os.kill(pid, signal.SIGSTOP)
        assert [member.alive for member in Members(place).all()] == [True]
        os.kill(pid, signal.SIGCONT)


def test_the_name_of_a_member_file_is_never_used_again(place):
    """Each member file of a process and of its children has another name."""
    names = [str(member_file(place).name) for _ in range(3)]
    told, tell = os.pipe()
    assert in_child(lambda: os.write(tell, str(member_file(place).name).encode())) == 0
    names.append(os.read(told, 1000).decode())
    assert len(set(names)) == 4
    os.close(told)
    os.close(tell)


def test_a_worker_notices_that_the_spool_was_deleted(place):
    """`is_there` is false once the member file is not the file at its path."""
    mine = member_file(place)
    assert mine.is_there()
    os.unlink(mine.path)
    assert not mine.is_there()


def test_pids_to_kill_are_those_of_processes_that_log_here(place):
    """In another container the same number is another process."""
    strange = MemberFile(place, "rank_00001", dataclasses.replace(Process.current(), ticks=1), Settings())
    assert processes.workers(place.run_dir) == []
    mine = member_file(place)
    assert processes.workers(place.run_dir) == [os.getpid()]
    for one in (strange, mine):
        one.withdraw()


def test_a_worker_whose_member_file_was_replaced_by_garbage_does_not_live_for_ever(place):
    """What cannot be read for a moment is waited for; a link in its place never passes."""
    mine, seen = member_file(place), Members(place)
    assert [member.alive for member in seen.all()] == [True]
    os.unlink(mine.path)
    os.symlink("elsewhere", mine.path)
    assert seen.all() == []


# reading member files


def test_a_torn_last_line_is_not_there():
    """Cut at every byte: the whole lines count, nothing raises."""
    data = lines(FIRST) + counters(5, 1) + lines({"open": "a"}, {"seal": "a"})
    ends = [n + 1 for n, byte in enumerate(data) if byte == 10]
    for cut in range(len(data) + 1):
        member = parse(data[:cut])
        whole = sum(end <= cut for end in ends)
        assert (member is not None) == (whole > 0)
        if member is not None:
            assert (member.requests, member.dropped) == ((5, 1) if whole > 1 else (0, 0))
            assert member.files == ({"a"} if whole > 2 else frozenset())
            assert member.growing == ({"a"} if whole == 3 else frozenset())


@given(st.lists(st.binary(max_size=30) | JSON.map(lambda value: json.dumps(value).encode()), max_size=4))
@example([b'{"requests": Infinity, "dropped": 0, "in_memory": 0, "since": 0, "why": ""}'])
@example([b'{"requests": 0, "dropped": 1e999, "in_memory": 0, "since": 0, "why": ""}'])
def test_no_content_of_a_member_file_makes_parsing_raise(garbage):
    """Whatever a damaged disk shows, as first line or later: a member or None."""
    for content in (garbage, [json.dumps(FIRST).encode(), *garbage]):
        parse(b"\n".join(content) + b"\n")


@pytest.mark.parametrize("bad", [b"garbage", b'{"open": {"a": "x"}}', b'{"op{"open": "b"}', b"5", b'{"seal": []}'])
def test_one_damaged_line_does_not_make_a_living_worker_disappear(bad):
    """Otherwise its open file would count as complete, and it as dead; only the first line makes a member file."""
    data = lines(FIRST) + counters() + lines({"open": "a"}) + bad + b"\n" + lines({"open": "c"})
    member = parse(data)
    assert member is not None
    assert {"a", "c"} <= member.growing


def test_strangers_in_the_spool_do_not_disturb(place):
    """Temporary names, editors' copies, directories and unreadable member files are passed over."""
    mine = member_file(place)
    for name in ("README", ".x.tmp", f"{mine.name}~", "main.h-1.1.2-9"):
        with open(os.path.join(place.members, name), "wb") as file:
            file.write(b"\xff\n")
    os.mkdir(os.path.join(place.members, "main.h-1.1.2-8"))
    assert [member.name for member in Members(place).all()] == [mine.name]


def test_no_spool_has_no_members(tmp_path):
    """A run directory without a spool has no members."""
    assert Members(Spool(str(tmp_path))).all() == []


def test_a_new_uploader_removes_what_is_no_member_file_and_never_will_be(place):
    """What a power cut leaves of the files of the dead, and a kill while joining; the living keep theirs."""

    def join() -> MemberFile:
        return MemberFile(place, "rank_00001", Process.current(), Settings())

    living = join()
    assert in_child(join, "members.file.rename=kill") == KILLED
    for number, content in enumerate([b"", b"\0" * 600, b'{"process": {"host"']):
        place_of = place.members / str(MemberName("rank_00002", "host-0", 1, 2, number))
        with open(place_of, "wb") as file:
            file.write(content)
    with open(os.path.join(place.members, "notes"), "wb") as file:
        file.write(b"of a user")
    assert len(os.listdir(place.members)) == 6
    members = Members(place)
    members.sweep()
    assert [member.name for member in members.all()] == [living.name]
    assert sorted(os.listdir(place.members)) == ["notes", str(living.name)]


def test_a_new_uploader_leaves_a_member_file_that_is_being_made(place):
    """It is not locked yet for a moment; its process lives."""
    name = MemberName.of("rank_00001", Process.current(), 7)
    with open(os.path.join(place.members, f".{name}.tmp"), "wb"):
        pass
    Members(place).sweep()
    assert os.listdir(place.members) == [f".{name}.tmp"]


def test_what_the_disk_has_refused_to_remove_goes_with_a_later_sweep(place):
    """An empty member file, as a power cut leaves it: the first removal fails, the next sweep has another try."""
    ruin = place.members / str(MemberName("rank_00002", "host-0", 1, 2, 3))
    with open(ruin, "wb"):
        pass
    members = Members(place)
    with failing("members.file.unlink=eio"):
        members.sweep()
    assert os.path.exists(ruin)
    members.sweep()
    assert not os.path.exists(ruin)


# bounds


def registration(place: Spool) -> MemberFiles:
    """The member files of this process."""
    return MemberFiles(lambda: member_file(place))


def test_requests_do_not_make_a_member_file_longer(place):
    """A thousand requests, each one news: as many bytes as after none."""
    mine, reading = registration(place), Members(place)
    for number in range(50):
        mine.opened(f"events.out.tfevents.{number}")
    (file,) = mine.files
    before = os.path.getsize(file.path)
    for _ in range(1000):
        mine.request()
    mine.record_dropped(3)
    mine.record_dropped(4)
    assert os.path.getsize(file.path) == before
    (member,) = reading.all()
    assert (member.requests, member.dropped, len(member.growing)) == (1000, 4, 50)


def test_a_live_file_never_counts_as_finished_however_many_there_were(place, monkeypatch):
    """One stays open while 2,000 others come and go: it grows all the time, and every member file stays short."""
    monkeypatch.setattr(members_module, "FULL_AT", 4096)
    mine, fresh = registration(place), Members(place)
    mine.opened("main.tfevents")
    for number in range(2000):
        mine.opened(f"{number}.tfevents")
        mine.sealed(f"{number}.tfevents")
        if number % 100 == 0:
            assert fresh.growing() == Members(place).growing() == {"main.tfevents"}
    mine.request()
    found = fresh.all()
    assert len(found) == len(mine.files) > 10
    assert max(os.path.getsize(file.path) for file in mine.files) < 2 * 4096 + 1000
    assert {path for member in found for path in member.files} > {"main.tfevents", "0.tfevents", "1999.tfevents"}
    assert {member.requests for member in found} == {1}
    mine.sealed("main.tfevents")
    assert fresh.growing() == Members(place).growing() == set()
    mine.leave(dropped=1)
    assert not any(member.alive for member in fresh.all())
    assert sum(member.dropped for member in fresh.all()) == 1


@pytest.mark.parametrize("point", ["open", "members.file.rename"])
def test_a_worker_that_dies_while_it_starts_another_member_file_is_dead(place, monkeypatch, point):
    """A kill between any two steps: nothing of it grows, what it had opened is known, and what is left is swept."""
    monkeypatch.setattr(members_module, "FULL_AT", 1)

    def child() -> None:
        mine = registration(place)
        mine.opened("a")
        if point == "open":
            mine.opened("b")
            os.kill(os.getpid(), signal.SIGKILL)
        with failing(f"{point}=kill"):
            mine.opened("b")

    assert in_child(child) == KILLED
    seen = Members(place)
    assert seen.growing() == set()
    assert {path for member in seen.all() for path in member.files} == ({"a", "b"} if point == "open" else {"a"})
    seen.sweep()
    assert not [name for name in os.listdir(place.members) if name.endswith(".tmp")]


def test_only_what_is_new_of_a_member_file_is_read(place, monkeypatch):
    """A worker with thousands of files that asks for a push costs its counters, not its file."""
    mine, seen = registration(place), Members(place)
    for number in range(300):
        mine.opened(f"{number}.tfevents")
    seen.all()
    read, pread = [], os.pread

    def counted(fd: int, length: int, offset: int) -> bytes:
        data = pread(fd, length, offset)
        read.append(len(data))
        return data

    monkeypatch.setattr(os, "pread", counted)
    mine.request()
    mine.opened("last.tfevents")
    (member,) = seen.all()
    assert (member.requests, len(member.files)) == (1, 301)
    assert sum(read) < COUNTERS_LENGTH + 100


def test_a_member_file_that_cannot_be_read_for_a_moment_is_no_end_of_its_worker(place, monkeypatch):
    """An observer that is new here must not take open files for complete: it gets an error first."""
    mine = registration(place)
    mine.opened("a.tfevents")
    known = Members(place)
    assert known.growing() == {"a.tfevents"}
    really = os.open

    def refuse(path: str, *args: object, **how: object) -> int:
        if os.path.basename(path) == str(mine.files[0].name):
            raise OSError(errno.EIO, os.strerror(errno.EIO), path)
        return really(path, *args, **how)

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", refuse)
        for members in (known, Members(place)):
            with pytest.raises(OSError, match="Input/output"):
                members.growing()
        assert [member.alive for member in known.all()] == [True]
    assert known.growing() == Members(place).growing() == {"a.tfevents"}


def test_a_file_of_the_program_on_the_number_of_a_member_file_is_not_written(place, tmp_path):
    """A program that becomes a daemon closes our descriptors and opens files of its own."""
    file = member_file(place)
    with open(tmp_path / "own", "wb") as own:
        os.dup2(own.fileno(), file._fd)
    for write in (lambda: file.write({"open": "a"}), lambda: file.count(requests=1)):
        with pytest.raises(OSError, match="descriptor"):
            write()
    assert not file.is_there()
    file.leave()
    assert os.fstat(file._fd).st_size == 0
    os.close(file._fd)


def test_a_kill_while_a_count_of_lost_records_is_kept_neither_loses_nor_doubles_it(place):
    """Whoever comes next removes the member file of a dead worker, and the count stays."""
    mine = member_file(place)
    mine.count(dropped=3, why="No space left")
    mine.leave()

    def remove() -> None:
        seen = Members(place)
        for member in seen.all():
            seen.remove(member)

    assert in_child(remove, "members.lost.rename=kill") == KILLED
    assert [(loss.records, loss.why) for loss in losses(place)] == [(3, "No space left")]
    remove()
    assert Members(place).all() == []
    assert [loss.records for loss in losses(place)] == [3]
