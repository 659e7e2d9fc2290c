"""Event files on a disk that refuses: nothing is raised, and what is lost is counted."""

from __future__ import annotations

import errno
import os
import signal

import pytest
from event_places import START, Place
from forks import in_child
from support import events, full_disk, limit_files, scalar, unlimit_files

from hf_mpwriter.base.timing import USUAL
from hf_mpwriter.events import event_file
from hf_mpwriter.events.event_file import EventFile
from hf_mpwriter.events.limits import Limits


def test_a_short_write_is_cut_back_and_the_writer_goes_on_when_there_is_room(place):
    """A full disk cuts a write in its middle; nothing torn stays, nothing is lost, order is kept."""
    file = place.file()
    file.append(scalar(1))
    with full_disk(200):
        for step in range(2, 30):
            file.append(scalar(step, "tag" * 10))
            events(file.path)
            place.now += USUAL.disk_retry_longest
        assert file.waiting > 10
        assert os.path.getsize(file.path) == file.length
    file.append(scalar(30))
    assert (file.waiting, file.dropped) == (0, 0)
    assert place.steps() == list(range(1, 31))
    assert len(place.paths()) == 1


@pytest.mark.parametrize("room", range(0, 60, 7))
def test_a_disk_that_is_full_from_the_start_leaves_no_half_beginning(place, room):
    """A segment whose first records do not fit is not left behind; records wait for the next one."""
    file = place.file(purge=5)
    with full_disk(room):
        for step in range(1, 4):
            file.append(scalar(step))
            file.flush()
        assert file.waiting == 3
        assert place.paths() == []
    file.flush()
    assert file.waiting == 0
    assert place.steps() == [1, 2, 3]
    assert [event.session_log.status for event in events(file.path)[1:3]] == [START, START]


@pytest.mark.parametrize("limit", [300, 1000, 5000])
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_limit_on_file_size_starts_a_new_segment(place, caplog, limit, when):
    """It is no full disk: nothing waits, nothing is lost, no file exceeds it, and none is cut twice."""

    def child() -> None:
        file = place.file()
        if when == "before":
            limit_files(limit)
        for step in range(1, 200):
            file.append(scalar(step))
            if step == 2 and when == "after":
                limit_files(limit)
            assert (file.waiting, file.dropped) == (0, 0)
        file.close()
        assert not caplog.records

    assert in_child(child) == 0
    assert place.steps() == list(range(1, 200))
    sizes = [os.path.getsize(path) for path in place.paths()]
    assert max(sizes) <= limit
    assert min(sizes[:-1]) > limit // 2


def test_a_record_above_the_limit_on_file_size_is_dropped_and_makes_no_file(place, caplog):
    """It is counted, one warning is given, and what comes after it goes into the same segment."""

    def child() -> None:
        file = place.file()
        limit_files(5000)
        for step in range(1, 40):
            file.append(scalar(step))
            file.append(bytes(10_000))
            file.check()
        assert (file.waiting, file.dropped) == (0, 39)
        assert [record.message.count("ulimit -f") for record in caplog.records] == [1]

    assert in_child(child) == 0
    assert place.steps() == list(range(1, 40))
    assert len(place.paths()) == 1


def test_a_filesystem_with_a_largest_file_starts_a_new_segment(place, monkeypatch):
    """EFBIG without a limit of the process: a record that fits into no file is tried once in an empty one."""
    write = os.write

    def write_into(fd: int, data: bytes) -> int:
        room = 1000 - os.fstat(fd).st_size
        if room <= 0:
            raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
        return write(fd, data[:room])

    monkeypatch.setattr(os, "write", write_into)
    file = place.file()
    for step in range(1, 100):
        file.append(scalar(step))
        if step % 10 == 0:
            file.append(bytes(10_000))
    assert (file.waiting, file.dropped) == (0, 9)
    assert place.steps() == list(range(1, 100))
    assert len(place.paths()) < 20


def test_a_limit_on_file_size_does_not_kill_a_program_that_leaves_sigxfsz_alone(place):
    """As in a program that embeds Python: no write is begun that would exceed the limit."""

    def child() -> None:
        limit_files(5000)
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        file = place.file()
        for step in range(1, 300):
            file.append(scalar(step))
            if step == 5:
                file.append(scalar(0, "x" * 4700))
                file.append(bytes(10_000))
        assert (file.waiting, file.dropped) == (0, 1)

    assert in_child(child) == 0
    assert place.steps() == [1, 2, 3, 4, 5, 0, *range(6, 300)]


def test_a_limit_below_any_event_file_is_waited_out(place):
    """No segment can begin: records wait in memory, and no file is made for each try."""

    def child() -> None:
        file = place.file()
        file.append(scalar(1))
        limit_files(10)
        for step in range(2, 20):
            file.append(scalar(step))
            file.flush()
        assert (file.waiting, file.dropped) == (18, 0)
        assert len(place.paths()) == 1
        unlimit_files()
        file.flush()

    assert in_child(child) == 0
    assert place.steps() == list(range(1, 20))


def test_memory_is_bounded_and_what_is_dropped_is_counted(place, caplog):
    """While the disk refuses, the oldest records wait up to the limit; the rest is counted; one warning is given."""
    file = place.file(memory=1000)
    place.refuse = True
    for step in range(1, 101):
        file.append(scalar(step))
        place.now += 0.3
        assert sum(len(item[0]) for item in file._backlog.items) == file._backlog.size <= 1000
    assert file.waiting + file.dropped == 100
    assert file.waiting > 10
    assert sum("refuses" in record.message for record in caplog.records) == 1
    assert file.error == "refused"
    place.refuse = False
    kept = file.waiting
    file.flush()
    assert place.steps() == list(range(1, kept + 1))
    assert file.error == ""
    assert sum("again" in record.message for record in caplog.records) == 1


def test_the_memory_is_shared_by_all_files_of_a_process(place, tmp_path):
    """A hundred sub-writers on a full disk take no more memory than one; what one gets rid of, another may have."""
    limits = Limits(memory=1000)
    (tmp_path / "other").mkdir()
    other = Place(tmp_path / "other")
    mine, its = (EventFile(one, limits=limits, clock=lambda: 0.0) for one in (place, other))
    place.refuse = other.refuse = True
    for step in range(1, 101):
        mine.append(scalar(step))
        its.append(scalar(step))
        assert mine._backlog.size + its._backlog.size <= 1000
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

    class Counted(Place):
        """Counts how often a segment is to be opened."""

        def directory(self) -> str:
            """Count, then answer."""
            tries.append(1)
            return place.directory()

    file = EventFile(Counted(place.path), clock=lambda: place.now)
    place.refuse = True
    for step in range(50):
        file.append(scalar(step))
    assert len(tries) == 1
    place.now += USUAL.disk_retry_first
    file.append(scalar(50))
    assert len(tries) == 2
    file.flush()
    assert len(tries) == 3


def test_a_segment_whose_registration_is_refused_is_not_created(place):
    """A member file on a full disk: the record waits, and no file exists that no member file names."""
    refused = []

    class Full(Place):
        """Refuses the first report."""

        def opened(self, path: str) -> None:
            """Refuse once."""
            if not refused:
                refused.append(str(path))
                raise OSError(errno.ENOSPC, "refused")

    file = EventFile(Full(place.path), clock=lambda: place.now)
    file.append(scalar(1))
    assert file.waiting == 1
    assert place.paths() == []
    file.flush()
    assert place.steps() == [1]


def test_a_descriptor_that_fails_to_close_raises_nothing_and_is_not_written_to_again(
    place, small_segments, monkeypatch
):
    """close() may report a late write error (NFS, quota); the number may be anybody's file afterwards."""
    file = place.file()
    file.append(scalar(1))
    real, first = os.close, file._series.current.fd

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


def test_a_seal_that_is_refused_once_is_reported_later(place, small_segments):
    """A segment that is never reported as sealed holds back all later ones until the process ends (promise 8)."""
    refused = []

    class Full(Place):
        """Refuses the first seal."""

        def sealed(self, path: str, length: int) -> None:
            """Refuse once."""
            if not refused:
                refused.append(str(path))
                raise OSError(errno.ENOSPC, "refused")
            place.sealed(path, length)

    file = EventFile(Full(place.path), clock=lambda: place.now)
    for step in range(1, 60):
        file.append(scalar(step))
    assert place.steps() == list(range(1, 60))
    assert refused[0] in [path for kind, path, _ in place.reported if kind == "seal"]
