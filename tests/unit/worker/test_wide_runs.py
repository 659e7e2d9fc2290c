"""Wide runs: thousands of event files of one process, in sub directories, cost little at each housekeeping."""

from __future__ import annotations

import errno
import os
import shutil

import pytest
from support import events

from hf_mpwriter import SummaryWriter
from hf_mpwriter.events import limits
from hf_mpwriter.events.segment import Segment
from hf_mpwriter.system import disk
from hf_mpwriter.worker import files as files_module
from hf_mpwriter.worker import registry

GROUPS = 40


@pytest.fixture
def writer(tmp_path, monkeypatch):
    """A writer with many groups, of which few have a descriptor, and few are looked at at once."""
    monkeypatch.setattr(registry, "_limits", limits.Limits(open_files=4))
    monkeypatch.setattr(files_module, "CHECKED_AT_ONCE", 5)
    writer = SummaryWriter(tmp_path / "run")
    writer._worker.next_housekeeping = float("inf")
    writer.add_scalar("loss", 0.5, 0)
    log(writer, 0)
    yield writer
    writer.close()


def log(writer: SummaryWriter, step: int) -> None:
    """Log a scalar to each group."""
    writer.add_scalars("main", {f"group_{number:02d}": float(step) for number in range(GROUPS)}, step)


@pytest.fixture
def looked_at(monkeypatch):
    """The paths that were looked at."""
    found, look = [], Segment.is_there
    monkeypatch.setattr(Segment, "is_there", lambda self: found.append(str(self.path)) or look(self))
    return found


def test_a_housekeeping_looks_at_few_files_and_all_of_them_come_in_turn(writer, looked_at):
    """Those with a descriptor each time, the others within a bounded number of housekeepings."""
    awake = {file.path for file in registry._limits.awake()}
    seen = set()
    for _ in range((GROUPS + 1) // 5 + 1):
        looked_at.clear()
        writer._worker.keep_house()
        assert len(looked_at) <= len(awake) + 5
        assert awake <= set(looked_at)
        seen.update(looked_at)
    assert len(seen) == GROUPS + 1


def test_a_file_that_was_deleted_is_noticed_in_bounded_time(writer, caplog):
    """At once if it is written to; one that rests is found in its turn, or by its next record."""
    worker = writer._worker
    resting = next(file for file in worker.files._all() if file not in set(registry._limits.awake()))
    shutil.rmtree(os.path.dirname(resting.path))
    for _ in range((GROUPS + 1) // 5 + 1):
        worker.keep_house()
    assert not resting.is_open
    assert f"{resting.path} was removed" in caplog.text


def test_a_deleted_file_with_a_descriptor_keeps_what_comes_after(writer):
    """The next housekeeping opens another one, which has what was written since the last look."""
    worker = writer._worker
    file = next(file for file in reversed(worker.files._all()) if file in set(registry._limits.awake()))
    worker.files.check()
    directory = os.path.dirname(file.path)
    os.unlink(file.path)
    log(writer, 1)
    worker.keep_house()
    (name,) = os.listdir(directory)
    assert [event.step for event in events(os.path.join(directory, name)) if event.HasField("summary")] == [1]


def test_records_that_wait_are_tried_at_each_housekeeping(writer, monkeypatch):
    """Of a resting file, too: the disk has refused to open it again."""
    worker = writer._worker
    monkeypatch.setattr(Segment, "wake", lambda _: (_ for _ in ()).throw(OSError(errno.EACCES, "refused")))
    log(writer, 1)
    waiting = [file for file in worker.files._all() if file.waiting]
    assert len(waiting) > 20
    monkeypatch.undo()
    for file in waiting:
        file._backlog.retry_at = 0.0
    worker.keep_house()
    assert worker.files.in_memory == 0


class Syncs:
    """The syncs of the event files of this process, and whether the whole filesystem can be synced."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.together, self.single, self.works, self.meanwhile = 0, 0, True, lambda: None
        fsync = disk.fsync
        monkeypatch.setattr(disk, "sync_filesystem", self._sync_filesystem)
        monkeypatch.setattr(disk, "fsync", lambda fd, word: self._count() or fsync(fd, word))
        monkeypatch.setattr(disk, "MANY", 10)

    def _sync_filesystem(self, *_: object) -> bool:
        self.together += 1
        self.meanwhile()
        return self.works

    def _count(self) -> None:
        self.single += 1


@pytest.fixture
def syncs(monkeypatch):
    """Count."""
    return Syncs(monkeypatch)


def test_many_files_are_synced_at_once(writer, syncs):
    """A flush of thousands of files is one sync; another one has nothing to do."""
    writer.flush()
    assert (syncs.together, syncs.single) == (1, 0)
    writer.flush()
    assert (syncs.together, syncs.single) == (1, 0)
    writer.add_scalar("loss", 0.5, 1)
    writer.flush()
    assert (syncs.together, syncs.single) == (1, 1), "few files are synced one by one"


def test_a_close_syncs_at_once(writer, syncs):
    """The end of a wide run takes no second for each thousand files."""
    writer.close()
    assert (syncs.together, syncs.single) == (1, 0)


def test_where_the_filesystem_cannot_be_synced_each_file_is(writer, syncs):
    """A network filesystem, or a disk that has refused something."""
    syncs.works = False
    writer.flush()
    assert (syncs.together, syncs.single) == (1, GROUPS + 1)


def test_what_is_logged_during_the_sync_is_not_taken_for_durable(writer, syncs):
    """Another thread logs meanwhile: its record came after the call began, so its file is synced again."""
    syncs.meanwhile = lambda: writer.add_scalar("loss", 0.5, 1)
    writer.flush()
    assert (syncs.together, syncs.single) == (1, 1)


def test_a_file_that_the_disk_has_refused_to_sync_is_written_again(writer, syncs, monkeypatch):
    """The kernel has forgotten its bytes: the sync of the filesystem would find nothing to write."""
    segment = writer._worker.files._all()[0].segments.current
    segment._refusals, again, write_again = 1, [], disk.write_again
    monkeypatch.setattr(disk, "write_again", lambda place, *ends: again.append(str(place)) or write_again(place, *ends))
    writer.flush()
    assert (syncs.together, syncs.single, again) == (1, 1, [str(segment.path)])
