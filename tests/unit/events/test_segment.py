"""Segments: their names, their sizes, their beginnings and their ends."""

from __future__ import annotations

import errno
import itertools
import os

import pytest
from event_places import START
from support import events, keys, scalar

from hf_mpwriter.base import names as names_module
from hf_mpwriter.events import framing, series
from hf_mpwriter.events import segment as segment_module


def test_a_segment_is_registered_before_it_exists_and_when_it_is_complete(place, small_segments):
    """Open, then the file; seal with its final length; the next is opened only then; no two are open at once."""
    file = place.file()
    for step in range(1, 100):
        file.append(scalar(step))
    file.close()
    kinds = [kind for kind, _, _ in place.reported]
    assert kinds == ["open", "seal"] * (len(kinds) // 2)
    assert len(kinds) > 6
    for (kind, path, length), existed in zip(place.reported, place.existed, strict=True):
        assert existed == (kind == "seal")
        assert kind == "open" or length == os.path.getsize(path)
    opened = [path for kind, path, _ in place.reported if kind == "open"]
    assert opened == sorted(opened) == place.paths()
    assert place.steps() == list(range(1, 100))


def test_names_increase_when_the_clock_goes_back(place, small_segments, monkeypatch):
    """Segments sort in the order in which they were written, whatever the wall clock says."""
    clock = itertools.cycle([2e9, 1e9, 5.0, -3.0, 2.5e9, 1.0])
    monkeypatch.setattr(series.time, "time", lambda: next(clock))
    file = place.file()
    for step in range(1, 80):
        file.append(scalar(step))
    assert len(place.paths()) > 5
    assert place.steps() == list(range(1, 80))


def test_segments_grow_with_the_run_within_their_limits(place, monkeypatch):
    """A segment is an eighth of what was written, not below the one limit nor above the other."""
    monkeypatch.setattr(series, "SEGMENT_MIN", 1000)
    monkeypatch.setattr(series, "SEGMENT_MAX", 5000)
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


def test_a_file_that_exists_is_never_opened(place, monkeypatch):
    """O_EXCL: on a clash of names the record waits and another name is taken; the other file is not touched."""
    names = iter(["events.out.tfevents.0000000001.a", "events.out.tfevents.0000000002.a"])
    monkeypatch.setattr(names_module, "event_name", lambda *_: next(names))
    theirs = os.path.join(place.path, "events.out.tfevents.0000000001.a")
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
    """A check notices, warns once, and what comes next is kept; the old segment is reported as sealed."""
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


def test_what_a_removed_file_had_is_counted_record_by_record(place):
    """The disk refuses the new file: all that waits is told, and all that is given up."""
    file = place.file()
    file.append(scalar(1))
    file.check()
    os.unlink(file.path)
    for step in range(2, 7):
        file.append(scalar(step))
    place.refuse = True
    file.check()
    file.append(scalar(7))
    assert (file.waiting, file.dropped) == (6, 0)
    file.give_up()
    assert (file.waiting, file.dropped) == (0, 6)
    place.refuse = False
    file.append(scalar(8))
    file.flush()
    assert (place.steps(), file.waiting) == ([8], 0)


def test_a_flush_of_a_file_that_cannot_be_seen_syncs_it(place, monkeypatch):
    """A disk that refuses to tell whether the file is there: it is not given up, and what was logged is durable."""
    file = place.file()
    file.append(scalar(1))
    with monkeypatch.context() as patch:
        patch.setattr(os, "stat", lambda *_, **__: (_ for _ in ()).throw(OSError(errno.EIO, "refused")))
        file.flush()
    assert file._series.current._synced == file.length
    file.append(scalar(2))
    assert (len(place.paths()), place.steps()) == (1, [1, 2])


def test_a_file_replaced_under_the_writer_does_not_count_as_growing_for_ever(place):
    """A restored copy stands at the old path: it must be reported as sealed, or it holds back all later ones."""
    file = place.file()
    file.append(scalar(1))
    path = file.path
    with open(path, "rb") as source, open(f"{path}.copy", "wb") as copy:
        copy.write(source.read())
    os.rename(f"{path}.copy", path)
    file.check()
    file.append(scalar(2))
    assert place.steps() == [1, 2]
    assert path in [sealed for kind, sealed, _ in place.reported if kind == "seal"]


@pytest.mark.parametrize("harm", ["cut", "continued", "zeros", "restored", "cut and continued"])
def test_a_file_that_was_damaged_under_the_writer_is_left_for_a_new_one(place, caplog, harm):
    """A check notices, warns once, and what comes next is kept; the seal tells what can be read of the old one."""
    file = place.file()
    for step in range(1, 100):
        file.append(scalar(step))
        if step == 60:
            file.check()
            checked = file.length
    path = file.path
    with open(path, "r+b") as other:
        if harm.startswith("cut"):
            other.truncate(checked + 20)
        if harm == "continued":
            other.seek(0, os.SEEK_END)
            other.write(framing.frame(scalar(0)))
        if harm == "zeros":
            other.seek(checked + 20)
            other.write(bytes(100))
        if harm == "restored":
            other.write(b"?" * (file.length - 1))
    if harm == "cut and continued":
        file.append(scalar(100))
    file.check()
    file.check()
    for step in range(101, 200):
        file.append(scalar(step))
        file.check()
    assert sum("changed by another program or by the disk" in record.message for record in caplog.records) == 1
    old, new = place.paths()
    assert old == path
    assert [step for _, step in keys(new)] == list(range(101, 200))
    fd = os.open(old, os.O_RDONLY)
    assert ("seal", old, framing.whole_length(fd)) in place.reported
    os.close(fd)


def test_a_disk_that_never_shows_what_was_written_gets_no_files_without_end(place, monkeypatch):
    """Checks are given up in the end; records go on."""
    monkeypatch.setattr(segment_module.Segment, "is_sound", lambda _: False)
    file = place.file()
    for step in range(1, 100):
        file.append(scalar(step))
        file.check()
    assert place.steps() == list(range(1, 100))
    assert len(place.paths()) == series.MOST_REPLACED + 1


def test_a_check_costs_little(place, monkeypatch):
    """It reads a bounded part of what is new, whatever was written."""
    file = place.file()
    for step in range(1, 5000):
        file.append(scalar(step))
    read, pread = [], os.pread
    monkeypatch.setattr(os, "pread", lambda fd, size, at: read.append(size) or pread(fd, size, at))
    file.check()
    assert sum(read) <= segment_module.CHECK_BYTES + segment_module.LAST_BYTES
    read.clear()
    file.check()
    assert sum(read) <= segment_module.LAST_BYTES


@pytest.mark.parametrize("reused", [False, True])
def test_a_descriptor_that_the_program_has_closed_is_opened_again(place, tmp_path, reused):
    """A program that becomes a daemon closes all: nothing is lost, and no file of its own is cut or closed."""
    file = place.file()
    file.append(scalar(1))
    number = file._series.current.fd
    if reused:  # not writable, so the next record is refused
        (tmp_path / "own").write_bytes(b"x" * 10_000)
        own = os.open(tmp_path / "own", os.O_RDONLY)
        os.dup2(own, number)
        os.close(own)
    else:
        os.close(number)
    file.append(scalar(2))
    file.flush()
    file.close()
    assert place.steps() == [1, 2]
    assert len(place.paths()) == 1
    if reused:
        assert os.fstat(number).st_size == 10_000
        os.close(number)
    else:
        with pytest.raises(OSError, match="descriptor"):
            os.fstat(number)


def test_a_file_of_the_program_on_the_number_is_not_cut(place, tmp_path):
    """Even one that takes a part of a record before its disk is full."""
    file = place.file()
    file.append(scalar(1))
    segment = file._series.current
    segment.under_way = (b"a record",)
    own = os.open(tmp_path / "own", os.O_RDWR | os.O_CREAT)
    os.write(own, b"x" * 10_000)
    os.dup2(own, segment.fd)
    segment.mend()
    assert os.fstat(own).st_size == 10_000
    os.close(own)
    file.append(scalar(2))
    assert place.steps() == [1, 2]
