"""Event files: what returned is kept, nothing is torn, and training never hears of a disk in trouble."""

from __future__ import annotations

import contextlib
import dis
import errno
import itertools
import logging
import os
import random
import signal
import sys
import threading

import pytest
from support import events, failing, fork, in_child, keys, limit_files, reap, scalar, unlimit_files
from tensorboardX.proto import event_pb2

from hf_mpwriter.base import names as names_module
from hf_mpwriter.events import event_file, framing, segment
from hf_mpwriter.events.event_file import EventFile
from hf_mpwriter.events.limits import Limits
from hf_mpwriter.system import disk

START = 1  # SessionLog.START


class Place:
    """A worker directory, and what was announced about it."""

    def __init__(self, directory) -> None:
        self.directory = str(directory)
        self.announced: list[tuple[str, str, int]] = []
        self.existed: list[bool] = []
        self.refuse = False
        self.now = 100.0

    def locate(self) -> str:
        """The directory, unless the disk refuses."""
        if self.refuse:
            raise OSError(errno.ENOSPC, "refused")
        return self.directory

    def announce(self, kind: str, path: str, length: int) -> None:
        """Remember."""
        self.existed.append(os.path.exists(path))
        self.announced.append((kind, path, length))

    def file(self, memory: int = 16 << 20, purge: int | None = None, **arguments) -> EventFile:
        """An event file here, with a clock that the test moves."""
        file = EventFile(self.locate, self.announce, limits=Limits(memory), clock=lambda: self.now, **arguments)
        if purge is not None:
            file.purge(purge)
        return file

    def paths(self) -> list[str]:
        """The event files, in the order of their names."""
        return [os.path.join(self.directory, name) for name in sorted(os.listdir(self.directory))]

    def steps(self) -> list[int]:
        """The steps of all scalars, in the order in which TensorBoard reads them."""
        return [step for path in self.paths() for _, step in keys(path)]


@pytest.fixture
def place(tmp_path) -> Place:
    """An empty worker directory."""
    (tmp_path / "worker").mkdir()
    return Place(tmp_path / "worker")


@pytest.fixture
def small_segments(monkeypatch):
    """Segments are sealed after some records."""
    monkeypatch.setattr(event_file, "SEGMENT_MIN", 300)
    monkeypatch.setattr(event_file, "SEGMENT_MAX", 2000)


# returned means kept


def test_a_writer_that_logs_nothing_leaves_nothing(place):
    """No file is made before the first record, also not by flush and close."""
    file = place.file()
    file.flush()
    file.close()
    assert place.paths() == []
    assert place.announced == []


def test_a_file_begins_with_its_version(place):
    """The first record of a segment says `brain.Event:2`."""
    file = place.file()
    file.append(scalar(1))
    assert events(file.path)[0].file_version == "brain.Event:2"
    assert place.steps() == [1]


def test_what_returned_is_kept_under_sigkill(place):
    """A child tells each returned step through a pipe and is killed at any moment: all of them are in whole records."""
    seed = 7
    print(f"seed {seed}")
    rng = random.Random(seed)
    for _ in range(6):
        told, tell = os.pipe()

        def child(tell: int = tell) -> None:
            file = place.file()
            for step in itertools.count(1):
                file.append(scalar(step, "x" * (step % 300)))
                os.write(tell, b"%d\n" % step)

        before = set(place.paths())
        pid = fork(child)
        os.close(tell)
        got = b""
        limit = rng.randrange(1, 30_000)
        while len(got) < limit:
            got += os.read(told, limit - len(got))
        os.kill(pid, signal.SIGKILL)
        assert reap(pid) == -signal.SIGKILL
        while chunk := os.read(told, 1 << 16):
            got += chunk
        os.close(told)
        returned = int(got.rpartition(b"\n")[0].rpartition(b"\n")[2])
        (path,) = set(place.paths()) - before
        steps = [records_step for _, records_step in whole_keys(path)]
        assert steps == list(range(1, len(steps) + 1))
        assert returned <= len(steps) <= returned + 1


def whole_keys(path: str) -> list[tuple[str, int]]:
    """(tag, step) of the whole records of a file that may have a torn tail."""
    found = map(event_pb2.Event.FromString, framing.payloads(path))
    return [(value.tag, event.step) for event in found for value in event.summary.value]


def test_a_returned_record_is_in_the_file_at_once(place):
    """No buffer of ours: another process sees it before anything else is called."""
    file = place.file()
    for step in range(1, 20):
        file.append(scalar(step))
        assert place.steps() == list(range(1, step + 1))
        assert os.path.getsize(file.path) == file.length


def test_flush_makes_file_and_name_durable(place, monkeypatch):
    """The file is synced when something is new, the directory once per segment."""
    synced = []
    monkeypatch.setattr(disk.os, "fsync", lambda fd: synced.append(os.fstat(fd).st_ino))
    file = place.file()
    file.append(scalar(1))
    file.flush()
    assert synced == [os.stat(file.path).st_ino, os.stat(place.directory).st_ino]
    file.flush()
    assert len(synced) == 2
    file.append(scalar(2))
    file.flush()
    assert synced[2:] == [os.stat(file.path).st_ino]


def test_a_record_logged_during_flush_is_synced_by_the_next(place, monkeypatch):
    """A signal handler logs while flush is in fsync: the next flush does not take that record for durable."""
    file = place.file()
    file.append(scalar(1))
    synced = []

    def fsync(fd: int) -> None:
        if os.fstat(fd).st_ino == os.stat(file.path).st_ino:
            synced.append(os.fstat(fd).st_size)
        if len(synced) == 1 and len(place.steps()) == 1:
            file.append(scalar(2))

    monkeypatch.setattr(disk.os, "fsync", fsync)
    file.flush()
    file.flush()
    assert max(synced) == os.path.getsize(file.path)


def test_a_refused_fsync_is_told_not_raised(place, caplog):
    """Flush does not raise into training; the next one tries again."""
    file = place.file()
    file.append(scalar(1))
    with failing("eventfile.fsync=eio"):
        file.flush()
    assert "power cut" in caplog.text
    assert file._segment._synced < file.length
    file.flush()
    assert file._segment._synced == file.length


def test_a_disk_that_refuses_every_fsync_is_asked_ever_more_rarely_and_each_flush_tells(place, monkeypatch, caplog):
    """Before each try all that is not durable is written again, which training must not pay at every flush."""
    tries = []

    def refuse(_: int) -> None:
        tries.append(1)
        raise OSError(errno.EIO, "as ever")

    file = place.file()
    with monkeypatch.context() as patch:
        patch.setattr(disk.os, "fsync", refuse)
        for step in range(200):
            file.append(scalar(step))
            file.flush()
    assert len(tries) < 12
    assert caplog.text.count("power cut") == 200
    for _ in range(64):
        file.flush()
    assert file._segment.is_durable


# a disk that refuses


def test_a_short_write_is_cut_back_and_the_writer_goes_on_when_there_is_room(place):
    """The limit of the file size cuts a write in its middle; nothing torn stays, nothing is lost, order is kept."""

    def child() -> None:
        file = place.file()
        file.append(scalar(1))
        limit_files(os.path.getsize(file.path) + 200)
        for step in range(2, 30):
            file.append(scalar(step, "tag" * 10))
            events(file.path)
            place.now += event_file.RETRY_LAST
        assert file.waiting > 10
        assert os.path.getsize(file.path) == file.length
        unlimit_files()
        file.append(scalar(30))
        assert file.waiting == 0
        assert file.dropped == 0
        assert place.steps() == list(range(1, 31))
        file.close()

    assert in_child(child) == 0


@pytest.mark.parametrize("room", range(0, 60, 7))
def test_a_disk_that_is_full_from_the_start_leaves_no_half_beginning(place, room):
    """A segment whose first records do not fit is not left behind; records wait for the next one."""

    def child() -> None:
        file = place.file(purge=5)
        limit_files(room)
        for step in range(1, 4):
            file.append(scalar(step))
            file.flush()
        assert file.waiting == 3
        assert place.paths() == []
        unlimit_files()
        file.flush()
        assert file.waiting == 0
        assert place.steps() == [1, 2, 3]
        assert [event.session_log.status for event in events(file.path)[1:3]] == [START, START]

    assert in_child(child) == 0


def test_memory_is_bounded_and_what_is_dropped_is_counted(place, caplog):
    """While the disk refuses, the oldest records wait up to the limit; the rest is counted; one warning is given."""
    file = place.file(memory=1000)
    place.refuse = True
    for step in range(1, 101):
        file.append(scalar(step))
        place.now += 0.3
        assert sum(len(item[0]) for item in file._waiting) == file._waiting_bytes <= 1000
    assert file.waiting + file.dropped == 100
    assert file.waiting > 10
    assert sum("refuses" in record.message for record in caplog.records) == 1
    place.refuse = False
    kept = file.waiting
    file.flush()
    assert place.steps() == list(range(1, kept + 1))
    assert sum("again" in record.message for record in caplog.records) == 1


def test_the_memory_is_shared_by_all_files_of_a_process(place, tmp_path):
    """A hundred sub-writers on a full disk take no more memory than one; what one gets rid of, another may have."""
    limits = Limits(memory=1000)
    (tmp_path / "other").mkdir()
    other = Place(tmp_path / "other")
    mine, its = (EventFile(one.locate, one.announce, limits=limits, clock=lambda: 0.0) for one in (place, other))
    place.refuse = other.refuse = True
    for step in range(1, 101):
        mine.append(scalar(step))
        its.append(scalar(step))
        assert mine._waiting_bytes + its._waiting_bytes <= 1000
    assert mine.dropped + its.dropped + mine.waiting + its.waiting == 200
    dropped, place.refuse = its.dropped, False
    mine.flush()
    its.append(scalar(101))
    assert its.dropped == dropped


def test_a_record_larger_than_the_memory_is_dropped_and_counted(place):
    """It does not push out others, and the next ones are kept."""
    file = place.file(memory=1000)
    place.refuse = True
    file.append(scalar(1))
    file.append(bytes(2000))
    file.append(scalar(2))
    assert (file.waiting, file.dropped) == (2, 1)
    place.refuse = False
    file.flush()
    assert place.steps() == [1, 2]


def test_while_the_disk_refuses_it_is_tried_only_now_and_then(place):
    """Between two tries an append costs nothing but memory; flush tries at once."""
    tries = []
    file = EventFile(lambda: tries.append(1) or place.locate(), place.announce, clock=lambda: place.now)
    place.refuse = True
    for step in range(50):
        file.append(scalar(step))
    assert len(tries) == 1
    place.now += event_file.RETRY_FIRST
    file.append(scalar(50))
    assert len(tries) == 2
    file.flush()
    assert len(tries) == 3


def test_an_announcement_that_is_refused_makes_no_file(place):
    """A card on a full disk: the record waits, and no file exists that no card names."""
    file = EventFile(place.locate, failing_announcement, clock=lambda: place.now)
    file.append(scalar(1))
    assert file.waiting == 1
    assert place.paths() == []
    file._announce = place.announce
    file.flush()
    assert place.steps() == [1]


def failing_announcement(kind: str, path: str, length: int) -> None:
    """Refuse."""
    raise OSError(errno.ENOSPC, "refused")


def test_a_descriptor_that_fails_to_close_raises_nothing_and_is_not_written_to_again(
    place, small_segments, monkeypatch
):
    """close() may report a late write error (NFS, quota); the number may be anybody's file afterwards."""
    file = place.file()
    file.append(scalar(1))
    real, first = os.close, file._segment.fd

    def close(fd: int) -> None:
        real(fd)
        if fd == first:
            raise OSError(errno.EDQUOT, "quota")

    monkeypatch.setattr(event_file.os, "close", close)
    for step in range(2, 12):
        file.append(scalar(step))
    monkeypatch.setattr(event_file.os, "close", real)
    file.close()
    assert place.steps() == list(range(1, 12))


def test_a_seal_that_is_refused_once_is_announced_later(place, small_segments):
    """A segment that is never announced as sealed holds back all later ones until the process ends (promise 8)."""
    refused = []

    def announce(kind: str, path: str, length: int) -> None:
        if kind == "seal" and not refused:
            refused.append(path)
            raise OSError(errno.ENOSPC, "refused")
        place.announce(kind, path, length)

    file = EventFile(place.locate, announce, clock=lambda: place.now)
    for step in range(1, 60):
        file.append(scalar(step))
    assert place.steps() == list(range(1, 60))
    assert refused[0] in [path for kind, path, _ in place.announced if kind == "seal"]


# segments


def test_a_segment_is_announced_before_it_exists_and_when_it_is_complete(place, small_segments):
    """Open, then the file; seal with its final length; the next is opened only then; no two are open at once."""
    file = place.file()
    for step in range(1, 100):
        file.append(scalar(step))
    file.close()
    kinds = [kind for kind, _, _ in place.announced]
    assert kinds == ["open", "seal"] * (len(kinds) // 2)
    assert len(kinds) > 6
    for (kind, path, length), existed in zip(place.announced, place.existed, strict=True):
        assert existed == (kind == "seal")
        assert kind == "open" or length == os.path.getsize(path)
    opened = [path for kind, path, _ in place.announced if kind == "open"]
    assert opened == sorted(opened) == place.paths()
    assert place.steps() == list(range(1, 100))


def test_names_increase_when_the_clock_goes_back(place, small_segments, monkeypatch):
    """Segments sort in the order in which they were written, whatever the wall clock says."""
    clock = itertools.cycle([2e9, 1e9, 5.0, -3.0, 2.5e9, 1.0])
    monkeypatch.setattr(event_file.time, "time", lambda: next(clock))
    file = place.file()
    for step in range(1, 80):
        file.append(scalar(step))
    assert len(place.paths()) > 5
    assert place.steps() == list(range(1, 80))


def test_segments_grow_with_the_run_within_their_limits(place, monkeypatch):
    """A segment is an eighth of what was written, not below the one limit nor above the other."""
    monkeypatch.setattr(event_file, "SEGMENT_MIN", 1000)
    monkeypatch.setattr(event_file, "SEGMENT_MAX", 5000)
    file = place.file()
    for step in range(1, 2500):
        file.append(scalar(step))
    sizes = [os.path.getsize(path) for path in place.paths()[:-1]]
    assert all(1000 <= size < 5100 for size in sizes)
    assert sizes[0] < 1100
    assert sizes[-1] >= 5000
    assert len(sizes) < 40


def test_start_is_written_twice_and_only_in_the_first_segment(place, small_segments):
    """After the version, before any record; never again after a rotation or a close (h12)."""
    file = place.file(purge=7)
    for step in range(1, 40):
        file.append(scalar(step))
    file.close()
    file.append(scalar(40))
    starts = [
        (n, i, e.step) for n, p in enumerate(place.paths()) for i, e in enumerate(events(p)) if e.session_log.status
    ]
    assert starts == [(0, 1, 7), (0, 2, 7)]
    assert len(place.paths()) > 3


def test_purge_step_zero_is_a_start_at_zero(place):
    """0 is a step, not "none"."""
    file = place.file(purge=0)
    file.append(scalar(1))
    assert [(e.session_log.status, e.step) for e in events(file.path)[1:3]] == [(START, 0), (START, 0)]


def test_an_append_after_close_opens_the_next_segment(place):
    """Nothing that was closed is appended to or truncated (h11)."""
    file = place.file(suffix=".x")
    for step in (1, 2, 3):
        file.append(scalar(step))
        file.close()
    assert len(place.paths()) == 3
    assert all(path.endswith(".x") for path in place.paths())
    assert place.steps() == [1, 2, 3]


def test_a_file_that_exists_is_never_opened(place, monkeypatch):
    """O_EXCL: on a clash of names the record waits and another name is taken; the other file is not touched."""
    names = iter(["events.out.tfevents.0000000001.a", "events.out.tfevents.0000000002.a"])
    monkeypatch.setattr(names_module, "event_name", lambda *_: next(names))
    theirs = os.path.join(place.directory, "events.out.tfevents.0000000001.a")
    with open(theirs, "wb") as other:
        other.write(b"theirs")
    file = place.file()
    file.append(scalar(1))
    assert file.waiting == 1
    file.flush()
    assert file.path.endswith("2.a")
    with open(theirs, "rb") as other:
        assert other.read() == b"theirs"


def test_a_file_removed_under_the_writer_is_replaced_by_a_new_one(place, caplog):
    """The look notices, says so once, and what comes next is kept; the old one is announced as over."""
    file = place.file()
    file.append(scalar(1))
    removed = file.path
    file.check()
    assert file.is_open
    os.unlink(removed)
    file.check()
    file.check()
    file.append(scalar(2))
    assert place.steps() == [2]
    assert sum("removed" in record.message for record in caplog.records) == 1


def test_a_flush_of_a_file_that_cannot_be_seen_syncs_it(place, monkeypatch):
    """A disk that refuses to tell whether the file is there: it is not given up, and what was logged is durable."""
    file = place.file()
    file.append(scalar(1))
    with monkeypatch.context() as patch:
        patch.setattr(os, "stat", lambda *_, **__: (_ for _ in ()).throw(OSError(errno.EIO, "refused")))
        file.flush()
    assert file._segment._synced == file.length
    file.append(scalar(2))
    assert (len(place.paths()), place.steps()) == (1, [1, 2])


def test_a_file_replaced_under_the_writer_does_not_count_as_growing_for_ever(place):
    """A restored copy stands at the old path: it must be announced as complete, or it holds back all later segments."""
    file = place.file()
    file.append(scalar(1))
    path = file.path
    with open(path, "rb") as source, open(f"{path}.copy", "wb") as copy:
        copy.write(source.read())
    os.rename(f"{path}.copy", path)
    file.check()
    file.append(scalar(2))
    assert place.steps() == [1, 2]
    assert path in [sealed for kind, sealed, _ in place.announced if kind == "seal"]


# fork, threads, signals


def test_a_child_of_fork_leaves_the_file_to_its_parent(place):
    """It closes, forgets what waits, and writes to a file of its own; the parent's goes on unharmed."""
    file = place.file()
    file.append(scalar(1))
    parents = file.path
    place.refuse = True

    def child() -> None:
        fd = file._segment.fd
        place.refuse = False
        file.abandon(Limits())
        with pytest.raises(OSError, match="descriptor"):
            os.fstat(fd)
        assert (file.waiting, file.dropped, file.is_open) == (0, 0, False)
        file.append(scalar(100))
        assert file.path != parents
        file.close()

    assert in_child(child) == 0
    place.refuse = False
    file.append(scalar(2))
    file.close()
    assert [step for _, step in keys(parents)] == [1, 2]
    assert sorted(place.steps()) == [1, 2, 100]


def test_a_child_of_fork_forgets_what_waits_in_its_parent(place):
    """Records that the disk refused are the parent's to write: each of them comes once."""
    file = place.file()
    place.refuse = True
    file.append(scalar(1))

    def child() -> None:
        place.refuse = False
        file.abandon(Limits())
        file.append(scalar(100))
        file.close()

    assert in_child(child) == 0
    place.refuse = False
    file.flush()
    assert sorted(place.steps()) == [1, 100]


def test_a_fork_in_the_middle_of_anothers_write_leaves_the_child_free_to_log(place):
    """The lock that another thread held at the fork does not exist in the child."""
    file = place.file()
    file.append(scalar(1))
    with contextlib.ExitStack() as stack:
        held, over = threading.Event(), threading.Event()

        def hold() -> None:
            with file._lock:
                held.set()
                over.wait()

        thread = threading.Thread(target=hold)
        thread.start()
        stack.callback(thread.join)
        stack.callback(over.set)
        held.wait()

        def child() -> None:
            file.abandon(Limits())
            file.append(scalar(2))

        pid = fork(child)
        assert reap(pid) == 0


def test_several_threads_append_whole_records(place, small_segments):
    """All records of all threads are there, whole, and in each thread's order."""
    file = place.file()

    def log(n: int) -> None:
        for step in range(1, 200):
            file.append(scalar(step, f"thread{n}"))

    threads = [threading.Thread(target=log, args=(n,)) for n in range(4)]
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(before)
    file.close()
    found = [key for path in place.paths() for key in keys(path)]
    for n in range(4):
        assert [step for tag, step in found if tag == f"thread{n}"] == list(range(1, 200))


def test_an_append_of_one_thread_returns_only_when_its_record_is_written(place, monkeypatch):
    """Also while another thread is in the middle of a write: what returned is with the kernel."""
    file = place.file()
    file.append(scalar(1))
    inside, returned = threading.Event(), threading.Event()
    real, waiting = os.write, []

    def slow(fd: int, data: bytes) -> int:
        if not inside.is_set():
            inside.set()
            returned.wait(0.2)
        return real(fd, data)

    def second() -> None:
        inside.wait()
        file.append(scalar(3))
        waiting.append(file.waiting)
        returned.set()

    monkeypatch.setattr(event_file.os, "write", slow)
    thread = threading.Thread(target=second)
    thread.start()
    file.append(scalar(2))
    thread.join()
    assert waiting == [0]
    assert place.steps() == [1, 2, 3]


def test_a_signal_handler_that_logs_inside_a_write_loses_nothing(place):
    """A timer logs a thousand times a second into the same file: every returned record is there once."""

    def child() -> None:
        file = place.file()
        logged = []

        def handler(*_: object) -> None:
            logged.append(len(logged) + 1)
            file.append(scalar(logged[-1], "signal"))

        signal.signal(signal.SIGALRM, handler)
        signal.setitimer(signal.ITIMER_REAL, 0.001, 0.0005)
        step = 0
        while len(logged) < 200:
            step += 1
            file.append(scalar(step, "main"))
        signal.setitimer(signal.ITIMER_REAL, 0)
        assert file.waiting == 0
        found = keys(file.path)
        # a handler may be interrupted by the next one before its record is queued: each once, in any order
        assert sorted(s for tag, s in found if tag == "signal") == logged
        assert [s for tag, s in found if tag == "main"] == list(range(1, step + 1))

    assert in_child(child) == 0


def test_a_record_logged_by_a_log_handler_is_written_before_append_returns(place):
    """A program logs warnings into TensorBoard: the warning that the disk is well again comes inside a write."""
    file = place.file()

    class Handler(logging.Handler):
        """Logs each message as a record."""

        def emit(self, record: logging.LogRecord) -> None:
            """Append."""
            file.append(scalar(record.lineno, "warning"))

    handler = Handler()
    event_file.logger.addHandler(handler)
    try:
        place.refuse = True
        file.append(scalar(1))
        place.refuse = False
        place.now += event_file.RETRY_FIRST
        file.append(scalar(2))
    finally:
        event_file.logger.removeHandler(handler)
    assert file.waiting == 0
    assert [tag for path in place.paths() for tag, _ in keys(path)].count("warning") == 2


class Interrupted(BaseException):
    """What a signal handler raises."""


def raise_interrupted() -> None:
    """A signal handler that raises."""
    raise Interrupted


SOURCES = {eventfile.__file__, segment.__file__, disk.__file__, records.__file__}


def interrupted(n: int, action, handler=raise_interrupted) -> bool:
    """Run `action`; behind its n-th call within our modules, where a signal handler may run, one does.

    Returns whether it was interrupted.
    """
    passed, last, ran = itertools.count(1), {}, []

    def trace(frame, event, _):
        if frame.f_code.co_filename not in SOURCES:
            return None
        frame.f_trace_opcodes = True
        if event == "opcode":
            before = last.get(frame)
            last[frame] = frame.f_lasti
            if before is not None and dis.opname[frame.f_code.co_code[before]].startswith("CALL") and next(passed) == n:
                ran.append(n)
                handler()
        return trace

    sys.settrace(trace)
    try:
        action()
    except Interrupted:
        pass
    finally:
        sys.settrace(None)
    return bool(ran)


@pytest.mark.parametrize("work", ["append", "flush", "close", "check"])
def test_what_a_signal_handler_logs_behind_any_call_is_kept_and_tears_nothing(place, work):
    """It logs behind every single call: each record is there once, and our length of the file is the true one."""
    payload = scalar(4)
    for n in itertools.count(1):
        file = place.file()
        for step in (1, 2, 3):
            file.append(scalar(step))

        def handler(file=file):
            file.append(scalar(10))
            file.append(scalar(11, "a longer tag"))

        again = interrupted(
            n, lambda file=file: file.append(payload) if work == "append" else getattr(file, work)(), handler
        )
        assert not file.path or not file.length or file.length == os.path.getsize(file.path), f"behind call {n}"
        interrupted(1, lambda file=file: file.append(scalar(5)), lambda file=file: file.append(scalar(12)))
        file.append(scalar(6))
        file.close()
        expected = [1, 2, 3, *[4] * (work == "append"), 5, 6, *[10, 11] * again, 12]
        assert sorted(place.steps()) == sorted(expected), f"a handler behind call {n}"
        sealed = {path: length for kind, path, length in place.announced if kind == "seal"}
        assert all(sealed[path] == os.path.getsize(path) for path in place.paths()), f"behind call {n}"
        for path in place.paths():
            os.unlink(path)
        if not again:
            assert n > 1
            return


def test_an_exception_of_a_signal_handler_never_duplicates_tears_or_loses_a_returned_record(place):
    """Raised behind every single call inside `append`: at most the record of that very append is missing."""
    payload = scalar(4)
    for n in itertools.count(1):
        file = place.file()
        for step in (1, 2, 3):
            file.append(scalar(step))
        again = interrupted(n, lambda file=file: file.append(payload))
        file.append(scalar(5))
        file.append(scalar(6))
        file.close()
        steps = place.steps()
        assert steps in ([1, 2, 3, 4, 5, 6], [1, 2, 3, 5, 6]), f"interrupted behind call {n}"
        assert not file._busy
        for path in place.paths():
            os.unlink(path)
        if not again:
            break
    assert n > 5


def test_an_exception_while_a_segment_is_opened_holds_nothing_back(place):
    """Interrupted behind every call of the first append: later records are kept, and no file counts as growing."""
    payload = scalar(1)
    for n in itertools.count(1):
        place.announced.clear()
        file = place.file(purge=3)
        again = interrupted(n, lambda file=file: file.append(payload))
        file.append(scalar(2))
        file.close()
        assert place.steps() in ([1, 2], [2]), f"interrupted behind call {n}"
        opened = {path for kind, path, _ in place.announced if kind == "open"}
        sealed = {path for kind, path, _ in place.announced if kind == "seal"}
        left_open = [path for path in opened - sealed if os.path.exists(path)]
        assert left_open == [], f"interrupted behind call {n}: {left_open} count as growing until the process ends"
        for path in place.paths():
            os.unlink(path)
        if not again:
            break
    assert n > 7


def test_an_exception_while_a_segment_is_sealed_spoils_neither_our_files_nor_anybody_elses(place, monkeypatch):
    """Interrupted behind every call of the append that rotates: nothing raises later, no foreign file is touched."""
    monkeypatch.setattr(event_file, "SEGMENT_MIN", 150)  # the third record is the last
    payload = scalar(3)
    problems = []
    for n in itertools.count(1):
        file = place.file()
        file.append(scalar(1))
        file.append(scalar(2))
        again = interrupted(n, lambda file=file: file.append(payload))
        stranger = os.open(place.directory + f"/../stranger{n}", os.O_RDWR | os.O_CREAT)
        try:
            for step in (4, 5, 6, 7):
                file.append(scalar(step))
            file.close()
        except OSError as error:
            problems.append(f"behind call {n}: {error!r} is raised into training")
        try:
            size = os.fstat(stranger).st_size
            os.close(stranger)
        except OSError:
            problems.append(f"behind call {n}: the descriptor of a foreign file was closed")
        else:
            if size:
                problems.append(f"behind call {n}: records went into a foreign file")
        if place.steps() not in ([1, 2, 3, 4, 5, 6, 7], [1, 2, 4, 5, 6, 7]):
            problems.append(f"behind call {n}: {place.steps()}")
        for path in place.paths():
            os.unlink(path)
        if not again:
            break
    assert n > 7
    assert problems == []


def test_an_exception_while_waiting_records_are_written_loses_none_of_them(place):
    """The disk refused them, their calls had returned: a Ctrl-C while they are written is no loss."""
    for n in itertools.count(1):
        file = place.file()
        file.append(scalar(1))
        file._refuse(OSError("refused"))
        for step in (2, 3, 4):
            file.append(scalar(step))
        assert file.waiting == 3
        place.now += event_file.RETRY_FIRST
        again = interrupted(n, file.flush)
        file.append(scalar(5))
        file.close()
        assert place.steps() == [1, 2, 3, 4, 5], f"interrupted behind call {n}"
        assert file._waiting_bytes == 0
        for path in place.paths():
            os.unlink(path)
        if not again:
            break
    assert n > 7


def test_real_interrupts_never_duplicate_or_tear(place, small_segments):
    """A timer whose handler raises at random moments, over rotations: each record at most once, returned ones all."""
    seed = 11
    print(f"seed {seed}")

    def child() -> None:
        rng = random.Random(seed)
        file = place.file()
        returned, interrupts, armed = [], 0, []

        def handler(*_: object) -> None:
            if armed:  # not on the way from one try to the next
                raise Interrupted

        signal.signal(signal.SIGALRM, handler)
        step = 0
        while interrupts < 250:
            step += 1
            try:
                armed.append(True)
                signal.setitimer(signal.ITIMER_REAL, rng.uniform(1e-6, 2e-4))
                file.append(scalar(step))
                returned.append(step)
                armed.clear()
            except Interrupted:
                armed.clear()
                interrupts += 1
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, signal.SIG_IGN)
        file.close()
        steps = place.steps()
        assert steps == sorted(set(steps)), "duplicated or out of order"
        assert set(returned) - set(steps) == set(), "lost"

    assert in_child(child) == 0


@pytest.mark.parametrize("size", [-5, 0])
def test_after_an_interrupted_write_a_torn_record_is_cut_off_and_a_whole_one_stays(place, size):
    """An uploader may have seen a whole record: it is never taken back, although its call did not return."""
    file = place.file()
    file.append(scalar(1))
    record = framing.frame(scalar(2))
    os.write(file._segment.fd, record[: len(record) + size])
    file._segment.under_way = (record,)
    file.append(scalar(3))
    assert place.steps() == ([1, 3] if size else [1, 2, 3])
    assert os.path.getsize(file.path) == file.length


def test_the_memory_bound_holds_after_an_interruption(place):
    """Bookkeeping that was interrupted does not make a later append raise from an empty queue."""
    payload = scalar(1, "x" * 500)
    for n in itertools.count(1):
        file = place.file(memory=100)
        again = interrupted(n, lambda file=file: file.append(payload))
        place.refuse = True
        file._refuse(OSError("refused"))
        file.append(scalar(2))
        place.refuse = False
        file.close()
        for path in place.paths():
            os.unlink(path)
        if not again:
            break
    assert n > 7
