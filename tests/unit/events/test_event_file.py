"""Event files: what returned is kept, nothing is torn, and training never hears of a disk in trouble."""

from __future__ import annotations

import errno
import gc
import os
import weakref

from support import events, scalar

from hf_mpwriter.base import names as names_module
from hf_mpwriter.system import disk


def test_a_writer_that_logs_nothing_leaves_nothing(place):
    """No file is made before the first record, also not by flush and close."""
    file = place.file()
    file.flush()
    file.close()
    assert place.paths() == []
    assert place.reported == []


def test_a_file_begins_with_its_version(place):
    """The first record of a segment says `brain.Event:2`."""
    file = place.file()
    file.append(scalar(1))
    assert events(file.path)[0].file_version == "brain.Event:2"
    assert place.steps() == [1]


def test_a_returned_record_is_in_the_file_at_once(place):
    """No buffer of ours: another process sees it before anything else is called."""
    file = place.file()
    for step in range(1, 20):
        file.append(scalar(step))
        assert place.steps() == list(range(1, step + 1))
        assert os.path.getsize(file.path) == file.length


def test_a_closed_file_that_is_forgotten_is_freed_without_garbage_collection(place):
    """Training loops switch the collector off, and a search with `add_hparams` makes thousands of files."""
    gc.disable()
    try:
        file = place.file(sub="trial")
        file.append(scalar(1))
        file.close()
        forgotten = weakref.ref(file)
        del file
        assert forgotten() is None
    finally:
        gc.enable()


def test_flush_makes_file_and_name_durable(place, monkeypatch):
    """The file is synced when something is new, the directory once per segment."""
    synced = []
    monkeypatch.setattr(disk.os, "fsync", lambda fd: synced.append(os.fstat(fd).st_ino))
    file = place.file()
    file.append(scalar(1))
    file.flush()
    assert synced == [os.stat(file.path).st_ino, os.stat(place.path).st_ino]
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
    assert file._series.current.is_durable


def test_a_segment_is_sealed_by_its_age_if_records_are_in_it(place):
    """One that is young, or holds only its first records, stays open; the next record goes into a later file."""
    file = place.file(purge=0)
    file.ensure_open()
    place.now += 10
    file.seal_older(place.now)
    assert file.is_open, "it holds nothing but START"
    file.append(scalar(1))
    file.seal_older(place.now - 10)
    assert file.is_open, "it is not older than that"
    file.seal_older(place.now)
    assert not file.is_open
    (first,) = place.paths()
    content = open_content(first)
    file.append(scalar(2))
    file.purge(2)
    file.seal_older()
    file.check()
    file.flush()
    file.close()
    assert open_content(first) == content
    assert place.steps() == [1, 2]
    assert [kind for kind, *_ in place.reported] == ["open", "seal", "open", "seal"]
    assert place.reported[1][2] == len(content)


def open_content(path: str) -> bytes:
    """The bytes of a file."""
    with open(path, "rb") as file:
        return file.read()


def test_to_seal_by_age_waits_for_no_disk(place, monkeypatch):
    """It is done in a call of training: the next flush syncs the sealed file."""
    file, synced = place.file(), []
    monkeypatch.setattr(disk.os, "fsync", lambda fd: synced.append(os.fstat(fd).st_ino))
    file.append(scalar(1))
    file.seal_older()
    assert synced == []
    file.flush()
    assert synced == [os.stat(place.paths()[0]).st_ino, os.stat(place.path).st_ino]


def test_a_segment_is_not_sealed_by_age_inside_a_write(place, monkeypatch):
    """A signal handler that seals while a record is on its way to the file: the record is counted first."""
    file, write = place.file(), os.write
    file.append(scalar(1))

    def write_and_seal(fd: int, data: bytes) -> int:
        written = write(fd, data)
        file.seal_older()
        return written

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", write_and_seal)
        file.append(scalar(2))
    assert file.is_open
    file.seal_older()
    assert place.steps() == [1, 2]
    assert place.reported[-1][2] == os.path.getsize(place.paths()[0])


def test_a_name_lies_behind_what_is_known_to_be_elsewhere(place):
    """Files of an earlier attempt may be in a place that does not answer, and younger by the clock."""
    place.after = 4_000_000_000
    file = place.file()
    file.append(scalar(1))
    file.seal_older()
    file.append(scalar(2))
    names = [os.path.basename(path) for path in place.paths()]
    assert [names_module.event_second(name) for name in names] == [4_000_000_001, 4_000_000_002]
    assert place.steps() == [1, 2]
