"""What a mirror does about a disk that refuses its record, files that go away, and copies that stand or only read."""

from __future__ import annotations

import dataclasses
import errno
import os
import random
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest
from staged import stage
from support import event_file

from hf_mpwriter.base.files import LocalFile
from hf_mpwriter.base.timing import USUAL
from hf_mpwriter.daemon.starts import MirrorStart
from hf_mpwriter.delivery.sinks import LogdirSink
from hf_mpwriter.mirror import copy, loop
from hf_mpwriter.mirror.decision import MirrorAction, decide
from hf_mpwriter.mirror.loop import Mirror
from hf_mpwriter.snapshot.event_files import EventFileScan
from hf_mpwriter.spool.copies import (
    Absent,
    Arrived,
    CopyHandle,
    CopyJob,
    CopyLivesError,
    Failure,
    Finished,
    Item,
    Listed,
    Task,
    Unread,
    Withheld,
)
from hf_mpwriter.spool.layout import Spool
from hf_mpwriter.spool.staging import COMPARE_LOCK, COPY_LOCK, Mirrored, MirrorRecord
from hf_mpwriter.spool.status import LINGER
from hf_mpwriter.system import locks
from hf_mpwriter.system.process import host_id

NAME = "events.out.tfevents.1000000000.there.1.0123abcd"


@pytest.fixture
def spool(tmp_path) -> Spool:
    """The spool of a staged run."""
    spool = stage(tmp_path / "here", tmp_path / "there")
    os.makedirs(spool.host(host_id()).root)
    return spool


@pytest.fixture
def clock() -> list[float]:
    """Monotonic seconds, the last ones count."""
    return [1000.0]


@pytest.fixture
def mirror(spool, clock) -> Mirror:
    """A mirror of that run that has found nothing in the logdir; no process."""
    lock = locks.try_exclusive(spool.lock_of("mirror"))
    mirror = Mirror(spool, MirrorStart(spool.run_dir, to=spool.logdir), lock, lambda: clock[-1], random.Random(0))
    mirror._take(Listed({}))
    return mirror


def test_a_record_that_the_disk_refuses_is_written_when_it_takes_it(spool, mirror):
    """Or ends would wait in vain for what is in the logdir, and `sync` would never see it."""
    host = spool.host(host_id())
    os.rename(str(host.root), f"{host.root}.away")  # nothing can be written there
    mirror._take(Arrived(NAME, 4711))
    mirror._save()
    assert Mirrored.read(host).files == {}
    os.rename(f"{host.root}.away", str(host.root))
    mirror._publish()
    assert Mirrored.read(host).files == {NAME: 4711}


def test_a_mirror_leaves_a_copy_that_cannot_be_killed_when_no_worker_lives(spool, mirror, clock):
    """It holds nothing but its lock, and would stay for ever."""
    mirror._copy = SimpleNamespace(is_stuck=True, pid=4711, listen=lambda: ([], None), wait=lambda _: None)
    assert mirror.tick()
    clock.append(clock[-1] + LINGER + 1)
    assert not mirror.tick()
    assert not locks.is_held(spool.lock_of("mirror"))


def test_a_file_that_goes_away_is_told_and_looked_for_again(spool, mirror, tmp_path):
    """Or one copy after the other would be started for it until the next scan."""
    told = list(copy.do(CopyJob(Task.BRING, spool.run_dir, str(tmp_path / "there"), (Item(NAME, 5),)), spool.run))
    assert told == [Absent(NAME), Finished()]
    mirror._next_scan = 2000.0
    mirror._take(told[0])
    assert mirror._next_scan == 0.0


def test_a_comparison_keeps_no_file_from_the_logdir(spool):
    """`verify` may read for long; the mirror would report a copy that hangs."""
    root = spool.host(host_id()).root
    job = CopyJob(Task.BRING, spool.run_dir, spool.logdir)
    lock = locks.try_exclusive(root / COMPARE_LOCK)
    handle = CopyHandle(spool, job)
    ended(handle)
    locks.release(lock)
    lock = locks.try_exclusive(root / COPY_LOCK)
    with pytest.raises(CopyLivesError):
        CopyHandle(spool, job)
    locks.release(lock)


class Ended:
    """A copy that has told something and has ended; it was no process."""

    is_stuck, pid = False, 4711

    def __init__(self, *told) -> None:
        self._told = told

    def listen(self):
        """All of it at once."""
        return list(self._told[:-1]), self._told[-1]


def ended(handle: CopyHandle):
    """How a real copy ends."""
    while (end := handle.listen()[1]) is None:
        handle.wait(1.0)
    return end


def test_a_mount_that_is_gone_is_compared_anew(spool, mirror):
    """What it had not published was lost with its program: nothing that was there is believed."""
    mirror._take(Arrived(NAME, 4711))
    assert mirror._outgoing.there == {NAME: 4711}
    mirror._listen(Ended(Failure("no permission", is_refused=True)))
    assert mirror._outgoing.there == {NAME: 4711}
    mirror._listen(Ended(Failure("not mounted; mount it again", is_refused=False, is_gone=True)))
    assert mirror._outgoing.there == {}
    assert mirror.status.status.reason == "not mounted; mount it again"


@pytest.mark.parametrize("task", [Task.BRING, Task.FETCH, Task.LIST])
def test_sigterm_ends_what_comes_from_the_logdir_and_no_more(mirror, monkeypatch, task):
    """The time that is left is for what is to go there; what was ended from here is no failure that it waits for."""
    ends, copy_ = [], Ended(Failure("it ended by signal 9"))
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.setattr(signal, "setitimer", lambda *limit: ends.append(limit))
    monkeypatch.setattr(copy_, "kill", lambda: ends.append("copy"), raising=False)
    mirror._copy, mirror._job = copy_, dataclasses.replace(mirror._job, task=task)
    mirror.terminate()
    assert ("copy" in ends) is (task is not Task.BRING)
    mirror._listen(copy_)
    assert (mirror._copy, mirror.status.status.failures) == (None, 1 if task is Task.BRING else 0)


def test_the_limit_of_a_copy_doubles_until_one_ends_well(spool, mirror, monkeypatch):
    """The next copy is started with what the record says, also by the next mirror."""
    started = []

    def start(_spool, _job, seconds: float) -> Ended:
        started.append(seconds)
        return Ended(Finished())

    monkeypatch.setattr(loop, "CopyHandle", start)
    for _ in range(2):
        mirror._listen(Ended(Failure("it hung", is_refused=False, is_late=True)))
    assert Mirrored.read(spool.host(host_id())).late == 2
    for _ in range(2):
        mirror._start_copy(mirror._next_job(MirrorAction.COPY))
        mirror._listen(mirror._copy)
    assert started == [4 * USUAL.copy_limit, USUAL.copy_limit]


def test_a_file_that_is_held_back_waits_alone(spool, mirror, clock):
    """Later files of its writer wait with it, other files do not; after a pause it is tried again."""
    other = NAME.replace("0123abcd", "89abcdef")
    mirror._outgoing._final = [LocalFile(path, 5, growing=False) for path in (NAME, other)]
    mirror._listen(Ended(Withheld(NAME, "Permission denied"), Arrived(other, 5), Finished()))
    assert mirror._waiting() == []
    assert LogdirSink(spool).refused({NAME: 5}) == {NAME: f"{NAME}: Permission denied"}
    assert mirror.status.status.failures == 0
    clock.append(clock[-1] + 120.0)
    assert [file.path for file in mirror._waiting()] == [NAME]
    mirror._listen(Ended(Arrived(NAME, 5), Finished()))
    assert mirror._waiting() == []
    assert LogdirSink(spool).refused({NAME: 5}) == {}


def test_a_copy_whose_record_cannot_be_read_writes_nothing(spool, tmp_path, mirror):
    """It would not know that another mount, or none, is in the place of the logdir. The mirror tries again."""
    (tmp_path / "here" / NAME).write_bytes(b"12345")
    job = CopyJob(Task.BRING, spool.run_dir, str(tmp_path / "there"), (Item(NAME, 5),))
    record = Path(MirrorRecord.place(spool))
    content = record.read_bytes()
    record.write_bytes(content[:-9])
    with pytest.raises(OSError, match="on which mount"):
        CopyHandle(spool, job)
    assert not (tmp_path / "there").exists()
    CopyHandle(spool, dataclasses.replace(job, task=Task.COMPARE)).wait(60.0)
    record.write_bytes(content)
    handle = CopyHandle(spool, job)
    end = ended(handle)
    assert isinstance(end, Finished)


def test_a_logdir_that_fails_as_a_whole_is_tried_less_and_less(mirror, clock):
    """Also after a file has failed before: no writer is worth a try every two seconds then."""
    mirror._job = dataclasses.replace(mirror._job, task=Task.BRING, items=(Item(NAME, 5),))
    mirror._conclude(Failure("why", is_refused=True, is_of_files=True))
    other = [("", "of another")]
    mirror._tries.start()
    clock.append(clock[-1] + 3)
    assert mirror._tries.may_start(other)
    mirror._conclude(Failure("it is not mounted", is_refused=True, is_gone=True))
    clock.append(clock[-1] + 3)
    assert not mirror._tries.may_start(other)


def test_a_file_that_cannot_be_read_for_a_moment_is_passed_by_no_later_one(spool, mirror, monkeypatch):
    """TensorBoard drops points of a later file when an earlier one comes."""
    later = NAME.replace("1000000000", "1000000001").replace("0123abcd", "0123abce")
    for name in (NAME, later):
        event_file(Path(spool.run_dir, name), 3)
    parse, fails = EventFileScan._parse, [True]

    def fail(scan, relative, place, **options):
        if fails[0] and relative == NAME:
            raise OSError(errno.EIO, "Input/output error")
        return parse(scan, relative, place, **options)

    monkeypatch.setattr(EventFileScan, "_parse", fail)
    mirror._scan([])
    assert (mirror._waiting(), mirror._seen) == ([], None)
    fails[0] = False
    mirror._scan([])
    assert [file.path for file in mirror._waiting()] == [NAME, later]


def test_what_is_listed_as_long_as_here_is_not_copied_and_the_rest_comes_back(spool, mirror):
    """It stays until all has come, and says what is still to come, and what cannot be read."""
    event_file(Path(spool.run_dir, NAME), 3)
    size, other, third = os.path.getsize(os.path.join(spool.run_dir, NAME)), f"rank_00001/{NAME}", f"rank_00002/{NAME}"
    mirror._scan([])
    mirror._take(Listed({NAME: size, other: 5, third: 6}))
    assert mirror._waiting() == []
    assert mirror._mirrored.files == {NAME: size}
    assert decide(mirror._situation([])) is MirrorAction.FETCH
    assert mirror._next_job(MirrorAction.FETCH).items == (Item(other, 5), Item(third, 6))
    mirror._publish()
    assert (mirror.status.status.returning, mirror.status.status.checked, LogdirSink(spool).is_returning) == (
        2,
        0.0,
        True,
    )
    mirror._listen(Ended(Arrived(other, 5), Unread(third, "why"), Finished()))
    mirror._publish()
    assert (mirror.status.status.returning, mirror.status.status.unread) == (0, {third: "why"})
    assert mirror.status.status.checked > 0
    assert mirror._outgoing.there == {NAME: size, other: 5}
    assert LogdirSink(spool).has_come_back(1.0) == f"{third}: why"


def test_a_file_of_which_a_beginning_is_here_comes_back_before_later_ones_go(spool, mirror):
    """It is fetched, not copied: a copy would find the file there longer, and refuse it for good."""
    later = NAME.replace("1000000000", "1000000001")
    for name in (NAME, later):
        event_file(Path(spool.run_dir, name), 3)
    mirror._scan([])
    size = os.path.getsize(os.path.join(spool.run_dir, NAME))
    mirror._take(Listed({NAME: size + 50}))
    assert mirror._waiting() == []
    assert decide(mirror._situation([])) is MirrorAction.FETCH
    event_file(Path(spool.run_dir, NAME), 6)  # it has come
    mirror._scan([])
    mirror._listen(Ended(Arrived(NAME, os.path.getsize(os.path.join(spool.run_dir, NAME))), Finished()))
    assert [file.path for file in mirror._waiting()] == [later]


def test_a_logdir_that_cannot_be_listed_gets_files_all_the_same(mirror):
    """A bucket may be for writing only."""
    mirror._returning.begin()
    mirror._outgoing._final = [LocalFile(NAME, 5, growing=False)]
    mirror._seen, mirror._next_scan = [], 2000.0
    assert decide(mirror._situation([])) is MirrorAction.LIST
    mirror._conclude(Failure("no permission to list", is_refused=True))
    mirror._tries.at_once()
    assert decide(mirror._situation([])) is MirrorAction.COPY
