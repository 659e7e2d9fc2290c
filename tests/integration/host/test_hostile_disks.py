"""Hostile disks under a running system: full, without inodes, read-only, lying about syncs, damaged, from elsewhere."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from event_places import Place
from programs import wait_for
from runs import (
    LOG_AND_EXIT,
    WORKER,
    acknowledged,
    all_acknowledged,
    check_oracle,
    finished,
    kill_uploaders,
    no_uploader,
)
from support import events, failing, keys, scalar
from waits import timing

from hf_mpwriter.delivery.sinks import HubSink
from hf_mpwriter.events import series
from hf_mpwriter.events.event_file import EventFile
from hf_mpwriter.spool.layout import Spool
from hf_mpwriter.system import process
from hf_mpwriter.testing import read_journals

SMALL_SEGMENTS = "from hf_mpwriter.events import series\nseries.SEGMENT_MIN = series.SEGMENT_MAX = 20000\n"


# a disk that refuses for a while


def shell(*command: object) -> None:
    """Run a tool of the system, which must end well."""
    subprocess.run([*map(str, command)], check=True, capture_output=True)


@contextlib.contextmanager
def mounted(place: Path, *options: str) -> Iterator[None]:
    """Mount something for the block."""
    try:
        shell("mount", *options, place)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"nothing can be mounted here: {error}")
    try:
        yield
    finally:
        shell("umount", "--lazy", place)


@contextlib.contextmanager
def full(run_dir: Path) -> Iterator[None]:
    """Leave no free block, not even for a record."""
    filler = run_dir.parent / "filler"
    with open(filler, "wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))
    yield
    filler.unlink()


@contextlib.contextmanager
def read_only(run_dir: Path) -> Iterator[None]:
    """Make the run directory and its spool refuse every new open for writing."""
    with mounted(run_dir, "--bind", str(run_dir)):
        shell("mount", "-o", "remount,bind,ro", run_dir)
        yield


@pytest.mark.root
@pytest.mark.parametrize("refusing", [full, read_only])
def test_a_disk_that_refuses_for_a_while_delays_the_upload_and_costs_nothing(hub, tmp_path, start, refusing):
    """Training logs on, even if the uploader is killed; when the disk accepts writes again all arrives exactly once."""
    if os.geteuid():
        pytest.skip("only root may mount and change attributes")
    small, end, journals = tmp_path / "small", tmp_path / "end", tmp_path / "journals"
    small.mkdir()
    with mounted(small, "-t", "tmpfs", "-o", "size=4m,nr_inodes=120", "small"):
        run_dir = small / "exp1"
        impatient = timing(disk_retry_first=0.1, disk_retry_longest=0.1)
        worker = start(SMALL_SEGMENTS + WORKER, run_dir, journals, end, env={"HF_MPWRITER_TIMING": impatient})
        wait_for(lambda: acknowledged(run_dir), "a commit")
        with refusing(run_dir):
            before = sum(path.stat().st_size for path in journals.iterdir())
            wait_for(lambda: sum(path.stat().st_size for path in journals.iterdir()) > before + 50_000, "it logs on")
            kill_uploaders(run_dir)
            had = acknowledged(run_dir)
            assert worker.process.poll() is None
        wait_for(lambda: acknowledged(run_dir) > had, "it is uploaded again")
        end.touch()
        code, _, errors = worker.finish()
        assert (code, "Traceback" in errors) == (0, False), errors
        wait_for(lambda: all_acknowledged(run_dir), "all arrives")
        wait_for(lambda: no_uploader(run_dir), "the uploader leaves")
        check_oracle(run_dir, hub)
        found = Counter(key for path in run_dir.glob("*tfevents*") for key in keys(path))
        assert found == {(note.tag, note.step): 1 for note in read_journals(str(journals))}, "in any file"


# a disk that fails to sync


def test_a_flush_after_a_failed_one_does_not_trust_the_kernel(tmp_path, monkeypatch):
    """The kernel marks the bytes of a failed fsync as written, so they are written again before the next fsync."""
    file = EventFile(Place(tmp_path))
    file.append(scalar(1))
    file.flush()
    calls, synced = [], file.length

    def watch(name) -> None:
        real = getattr(os, name)

        def call(fd, *arguments):
            if os.fstat(fd).st_ino == os.stat(file.path).st_ino:
                calls.append((name, *arguments))
            return real(fd, *arguments)

        monkeypatch.setattr(os, name, call)

    watch("pwrite")
    watch("fsync")
    file.append(scalar(2))
    with failing("event_file.fsync=eio"):
        file.flush()
    assert calls == []
    file.append(scalar(3))
    file.flush()
    assert calls == [("pwrite", Path(file.path).read_bytes()[synced:], synced), ("fsync",)]
    file.append(scalar(4))
    file.flush()
    assert calls[2:] == [("fsync",)]
    file.close()
    assert [event.step for event in events(file.path)[1:]] == [1, 2, 3, 4]


def test_a_flush_syncs_a_segment_that_was_sealed_while_the_disk_refused_to(tmp_path, monkeypatch):
    """What was appended before a flush survives a power cut after it, in any segment."""
    monkeypatch.setattr(series, "SEGMENT_MIN", 1)
    file = EventFile(Place(tmp_path))
    file.append(scalar(1))
    first = os.stat(file.path).st_ino
    with failing("event_file.fsync=eio"):
        file.append(scalar(2))
    assert os.stat(file.path).st_ino != first
    synced, fsync = [], os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: (synced.append(os.fstat(fd).st_ino), fsync(fd)))
    file.flush()
    assert {first, os.stat(file.path).st_ino} <= set(synced)
    synced.clear()
    file.flush()
    assert not synced, "it was done"
    file.close()


# damage


def test_a_ledger_that_claims_too_much_is_corrected_by_the_hub(hub, run_dir, start):
    """A flipped bit, a restored backup: what the Hub really has is read back, and what it lacks is sent."""
    start(LOG_AND_EXIT, run_dir, 20).succeed()
    wait_for(lambda: finished(run_dir), "the first run is over")
    path = Path(Spool(str(run_dir)).host(process.host_id()).ledger)
    content = json.loads(path.read_text())
    for held in content["files"].values():
        held |= {"length": held["length"] + 10_000, "sha256": "5" * 64}
    path.write_text(json.dumps(content))
    start(LOG_AND_EXIT, run_dir, 20, env={"RANK": "1"}).succeed()
    wait_for(lambda: finished(run_dir), "the second run is over")
    report = check_oracle(run_dir, hub)
    lengths = {file: held.length for file, held in HubSink(Spool(str(run_dir))).ledger().files.items()}
    assert lengths == {file.path: file.hub_bytes for file in report.files.values()}


# a spool from elsewhere
