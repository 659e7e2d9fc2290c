"""The outbox: durable intentions, the newer before the older goes, through kills and faults."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os

import pytest
from forks import KILLED, in_child
from hypothesis import example, given
from support import JSON, event_file, failing

from hf_mpwriter.base import state
from hf_mpwriter.base.files import LocalFile
from hf_mpwriter.snapshot.attachments import Attachments
from hf_mpwriter.spool.layout import HostSpool
from hf_mpwriter.spool.outbox import Batch, InFlightRecord, Outbox, interrupted
from hf_mpwriter.system import disk
from hf_mpwriter.system.directory import Directory
from hf_mpwriter.system.filesystem import Mount

PUT = [f"outbox.put.{step}" for step in ("open", "write", "fsync", "rename", "dirsync")]
DATA = ["outbox.data.fsync", "outbox.data.dirsync"]
DROP = ["outbox.drop.unlink", "outbox.drop.dirsync"]
OLD = LocalFile("a.tfevents", 10, True)
NEW = LocalFile("a.tfevents", 20, True)
MORE = LocalFile("b/b.tfevents", 30, False)


class Run:
    """A run directory with event files and the spool of a host."""

    def __init__(self, root) -> None:
        self.run_dir, self.run = str(root), Directory(root)
        self.host = HostSpool(self.run / ".hf_mpwriter" / "hosts" / "h")
        for path in (OLD.path, MORE.path):
            event_file(os.path.join(self.run_dir, path), 3)

    def outbox(self) -> Outbox:
        """As a new uploader finds it."""
        return Outbox(self.host, self.run)

    def found(self) -> list[tuple[LocalFile, ...]]:
        """The files of the batches that a new uploader finds."""
        return [batch.files for batch in self.outbox().batches]

    def leftovers(self) -> list[str]:
        """What is in the folder beside batches."""
        return [name for name in os.listdir(self.host.outbox) if not name.endswith(".json")]


def after_restart(run: Run) -> InFlightRecord | None:
    """What a new uploader finds: it opens the outbox, then asks for the record."""
    run.outbox()
    return interrupted(run.host)


@pytest.fixture
def run(tmp_path) -> Run:
    """A run directory."""
    return Run(tmp_path / "exp1")


def test_batches_are_found_again_oldest_first(run):
    """What was put is what the next uploader reads."""
    outbox = run.outbox()
    outbox.put([[OLD], [MORE]])
    assert outbox.batches == run.outbox().batches == [Batch(1, (OLD,)), Batch(2, (MORE,))]
    assert run.leftovers() == []


def test_a_newer_snapshot_supersedes_the_older_ones(run):
    """After put, only the new batches are left; their numbers are greater."""
    outbox = run.outbox()
    outbox.put([[OLD], [MORE]])
    outbox.put([[NEW]])
    assert outbox.batches == run.outbox().batches == [Batch(3, (NEW,))]
    outbox.put([])
    assert outbox.batches == run.outbox().batches == []


def test_a_batch_is_split_into_two_halves_that_are_sent_next(run):
    """A refused file is found by halving; the later batches wait behind both halves."""
    for path in ("1.tfevents", "2.tfevents", "3.tfevents", "4.tfevents"):
        event_file(os.path.join(run.run_dir, path), 3)
    files = [LocalFile(f"{number}.tfevents", 10, True) for number in range(1, 5)]
    outbox = run.outbox()
    outbox.put([files, [OLD]])
    outbox.split(outbox.batches[0])
    assert [batch.files for batch in outbox.batches] == [tuple(files[:2]), tuple(files[2:]), (OLD,)]
    outbox.split(outbox.batches[1])
    assert run.found() == [(files[2],), (files[3],), tuple(files[:2]), (OLD,)]
    outbox.put([files[:3]])
    outbox.split(outbox.batches[0])
    assert run.found() == [(files[0],), tuple(files[1:3])], "the halves of an odd number are as equal as can be"


def test_less_of_a_file_is_put_before_all_of_it(run):
    """The batch with the whole file stays, once, wherever it stands."""
    outbox = run.outbox()
    outbox.put([[NEW], [MORE]])
    outbox.shorten(outbox.batches[0], OLD)
    assert run.found() == [(OLD,), (NEW,), (MORE,)]
    shorter = dataclasses.replace(OLD, path="".join(list(OLD.path)), length=5)  # an equal path, not the same object
    outbox.shorten(outbox.batches[0], shorter)
    assert run.found() == [(shorter,), (NEW,), (MORE,)], "all of it waits already"


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("point", PUT + DATA + DROP)
def test_a_kill_while_a_batch_is_put_leaves_the_older_or_the_newer(run, point, count):
    """At any step: what is found is whole, and no older batch is gone before all newer ones are there."""
    run.outbox().put([[OLD], [MORE]])
    code = in_child(lambda: run.outbox().put([[NEW], [MORE]]), f"{point}=kill:{count}")
    assert code in (KILLED, 0)
    found = run.found()
    old_there, new_there = (OLD,) in found, (NEW,) in found
    assert old_there or new_there
    if found.count((MORE,)) == 0 or not old_there:
        assert new_there
        assert (MORE,) in found
    outbox = run.outbox()
    outbox.put([[NEW]])
    assert run.found() == [(NEW,)]


@pytest.mark.parametrize("fault", ["enospc", "eio"])
@pytest.mark.parametrize("point", PUT)
def test_a_batch_that_the_disk_refuses_is_kept_in_memory_and_the_older_one_on_disk(run, point, fault):
    """The uploader says so and goes on from memory, the next one from what is durable; the next batch clears it."""
    outbox = run.outbox()
    outbox.put([[OLD]])
    with failing(f"{point}={fault}"):
        outbox.put([[NEW]])
    assert [batch.files for batch in outbox.batches] == [(NEW,)]
    assert "memory" in outbox.trouble
    assert (OLD,) in run.found() or point == "outbox.put.dirsync"
    outbox = run.outbox()
    outbox.put([[NEW, MORE]])
    assert outbox.trouble == ""
    assert run.found() == [(NEW, MORE)]


def test_trouble_lasts_until_every_batch_is_on_disk(run):
    """Of two batches the first is refused and the second is not: the outbox is still partly in memory."""
    outbox = run.outbox()
    with failing("outbox.put.write=enospc"):
        outbox.put([[NEW], [MORE]])
    assert run.found() == [(MORE,)]
    assert outbox.trouble


@pytest.mark.parametrize("fault", ["kill", "enospc", "eio"])
@pytest.mark.parametrize("point", DATA)
def test_a_batch_refers_only_to_durable_bytes(run, point, fault):
    """If the event files cannot be synced there is no new batch, and the older one stays."""
    run.outbox().put([[OLD]])
    code = in_child(lambda: run.outbox().put([[NEW]]), f"{point}={fault}")
    assert code == (KILLED if fault == "kill" else 1)
    assert run.found() == [(OLD,)]


def test_event_files_and_their_names_are_synced_before_the_batch_exists(run, monkeypatch):
    """The order is: each file, each directory, then the batch."""
    synced = []

    def fsync(fd: int) -> None:
        status = os.fstat(fd)
        synced.append((status.st_ino, os.listdir(run.host.outbox)))

    outbox = run.outbox()
    monkeypatch.setattr(disk.os, "fsync", fsync)
    outbox.put([[NEW, MORE]])
    needed = [os.path.join(run.run_dir, path) for path in (NEW.path, MORE.path, "b", ".")]
    assert {os.stat(path).st_ino for path in needed} <= {inode for inode, names in synced if names == []}


def test_a_snapshot_of_a_file_that_is_gone_loses_no_older_batch(run):
    """The file was removed between scan and put: an OSError, and what was there stays."""
    outbox = run.outbox()
    outbox.put([[OLD]])
    with pytest.raises(OSError, match="gone"):
        outbox.put([[MORE], [LocalFile("gone.tfevents", 1, False)]])
    assert (OLD,) in run.found()
    outbox.put([[NEW]])
    assert run.found() == [(NEW,)]


@pytest.mark.parametrize("fault", ["kill", "enospc", "eio"])
@pytest.mark.parametrize("point", DROP)
def test_a_batch_that_cannot_be_removed_is_found_again_or_gone(run, point, fault):
    """Removal raises nothing; what is left is whole and can be removed later."""
    outbox = run.outbox()
    outbox.put([[OLD]])

    def remove() -> None:
        outbox.remove(outbox.batches[0])
        assert outbox.batches == []
        assert outbox.trouble

    assert in_child(remove, f"{point}={fault}") == (KILLED if fault == "kill" else 0)
    assert run.found() in ([], [(OLD,)])
    fresh = run.outbox()
    for batch in fresh.batches:
        fresh.remove(batch)
    assert run.found() == []


@pytest.mark.parametrize("fault", ["enospc", "eio"])
def test_a_damaged_batch_that_cannot_be_removed_goes_later(run, fault):
    """The disk refuses that at the start; the same uploader tries again when it scans, even if nothing is to send."""
    run.outbox().put([[OLD], [MORE]])
    damaged = run.host.outbox / "00000001.json"
    with open(damaged, "wb") as file:
        file.write(b"garbage")
    with failing(f"outbox.garbage.unlink={fault}"):
        outbox = run.outbox()
    assert outbox.batches == [Batch(2, (MORE,))]
    assert sorted(os.listdir(run.host.outbox)) == ["00000001.json", "00000002.json"]
    with failing(f"outbox.garbage.unlink={fault}"):
        outbox.put([])
    assert os.listdir(run.host.outbox) == ["00000001.json"]
    outbox.put([])
    assert os.listdir(run.host.outbox) == []


# in flight


@pytest.mark.parametrize("fault", ["kill", "enospc", "eio"])
@pytest.mark.parametrize("step", ["open", "write", "fsync", "rename", "dirsync"])
def test_a_push_starts_only_after_its_record_is_durable(run, step, fault):
    """`mark_in_flight` returns only if the record is on disk; a kill leaves the older or the new one, whole."""
    outbox = run.outbox()
    outbox.put([[OLD]])
    outbox.mark_in_flight(outbox.batches[0], fenced=False)
    batch = Batch(7, (NEW,))
    code = in_child(lambda: outbox.mark_in_flight(batch, fenced=True), f"outbox.in_flight.{step}={fault}")
    assert code == (KILLED if fault == "kill" else 1)
    after = [InFlightRecord(7, fenced=True)] if step == "dirsync" else [InFlightRecord(1, fenced=False)]
    assert after_restart(run) in after
    outbox.mark_in_flight(batch, fenced=True)
    assert after_restart(run) == InFlightRecord(7, fenced=True)


# leftovers


def test_leftovers_of_killed_writers_do_not_add_up(run):
    """An uploader that is killed again and again in the middle of a write leaves a bounded spool (promise 11)."""
    for _ in range(3):
        assert in_child(lambda: run.outbox().put([[NEW]]), "outbox.put.rename=kill") == KILLED
    run.outbox()
    assert len(run.leftovers()) <= 1


ITEM = {"path": "a.tfevents", "length": 1, "growing": True, "sha256": "", "blob_id": "", "stamp": []}


def batch_of(*items: object) -> Batch:
    """The batch that a file with these items holds."""
    return state.load(Batch, json.dumps({"number": 1, "files": items}).encode())


@given(JSON)
@example(ITEM | {"path": "../a.tfevents"})
@example(ITEM | {"path": "/a.tfevents"})
@example(ITEM | {"path": ".hf_mpwriter/a.tfevents"})
@example(ITEM | {"path": "id_rsa"})  # any other file is known by its digests
@example(ITEM | {"length": -1})
@example(ITEM | {"length": 1 << 63})
@example(ITEM | {"length": True})
@example(ITEM | {"growing": 1})
def test_only_files_within_the_run_directory_are_read_from_disk(item):
    """Anything else is damage; no JSON that hypothesis makes by chance is a file."""
    with pytest.raises(state.DamagedError):
        batch_of(item)


def test_a_batch_under_the_name_of_another_is_dropped(run):
    """Its number is its place in the order."""
    run.outbox().put([[OLD]])
    here, there = (os.path.join(run.host.outbox, f"0000000{number}.json") for number in (1, 2))
    os.rename(here, there)
    assert run.found() == []


def test_numbers_grow_while_there_are_batches(run):
    """A newer batch has the greater number, also after a restart."""
    numbers = []
    for length in range(1, 12):
        outbox = run.outbox()
        outbox.put([[dataclasses.replace(OLD, length=length)]])
        numbers.append(outbox.batches[0].number)
    assert all(a < b for a, b in itertools.pairwise(numbers))


# attachments


def attach(run: Run, path: str, data: bytes) -> LocalFile:
    """Write an attachment; what is known of it."""
    with open(os.path.join(run.run_dir, path), "wb") as file:
        file.write(data)
    (found,) = Attachments(run.run).scan(lambda other: other == path).files
    return found


def test_what_was_in_flight_tells_what_it_carried(run):
    """The next uploader must know that these contents may be on the Hub."""
    one, outbox = attach(run, "one.tsv", b"one"), run.outbox()
    outbox.mark_in_flight(Batch(0, (one,)), fenced=True)
    assert after_restart(run) == InFlightRecord(0, fenced=True, attachments=(one,))


@pytest.mark.parametrize(
    "digests",
    [("5" * 63, "6" * 40), ("../" + "5" * 61, "6" * 40), ("5" * 64, ""), ("", "6" * 40), ("F" * 64, "6" * 40), (5, 6)],
)
def test_only_digests_become_names_of_copies(digests):
    """Anything else in their place is damage."""
    item = ITEM | {"path": "a.tsv", "growing": False, "sha256": digests[0], "blob_id": digests[1]}
    with pytest.raises(state.DamagedError):
        batch_of(item)
    good = item | {"sha256": "5" * 64, "blob_id": "6" * 40}
    assert batch_of(good).files == (LocalFile("a.tsv", 1, False, "5" * 64, "6" * 40),)


@pytest.mark.parametrize("works", [True, False])
def test_many_event_files_are_made_durable_at_once(tmp_path, monkeypatch, works):
    """One sync of the filesystem instead of two calls for each file; where that is not possible, each of them."""
    monkeypatch.setattr(disk, "MANY", 5)
    calls = []
    monkeypatch.setattr(disk, "sync_filesystem", lambda place, _: calls.append(os.path.normpath(place)) or works)
    monkeypatch.setattr(disk, "fsync_path", lambda place, _: calls.append(str(place)))
    run = Run(tmp_path)
    files = [LocalFile(f"r{number}/a.tfevents", 10, False) for number in range(5)]
    for file in files:
        event_file(tmp_path / file.path, 1)
    run.outbox().put([files[:3], files[3:]])
    each = [] if works else [str(tmp_path / file.path) for file in files]
    assert [call for call in calls if ".hf_mpwriter" not in call] == [str(tmp_path), *each]
    assert run.found() == [tuple(files[:3]), tuple(files[3:])]


def test_an_error_of_the_disk_is_left_to_the_worker_whose_descriptor_this_process_has(tmp_path, monkeypatch):
    """The uploader inherits the opened run directory, of which `syncfs` tells an error once, to whoever asks first."""
    monkeypatch.setattr(disk, "MANY", 1)
    run, seen = Run(tmp_path), []

    class Libc:
        def syncfs(self, fd: int) -> int:
            seen.append((fd, os.path.realpath(f"/proc/self/fd/{fd}")))
            return 0

    monkeypatch.setattr(disk, "mount_of_descriptor", lambda _: Mount("/", "ext4", "/dev/disk"))
    monkeypatch.setattr(disk, "_libc", Libc)
    held = run.run.fd
    run.outbox().put([[OLD]])
    ((fd, path),) = seen
    assert (fd != held, path) == (True, os.path.realpath(tmp_path))
