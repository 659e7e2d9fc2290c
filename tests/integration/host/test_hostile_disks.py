"""Hostile disks under a running system: full, without inodes, read-only, lying about syncs, damaged, from elsewhere."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from event_places import Place
from programs import wait_for
from runs import (
    LOG_AND_EXIT,
    LOG_FOR_EVER,
    OTHER_BOOT,
    WORKER,
    acknowledged,
    all_acknowledged,
    check_oracle,
    finished,
    living_uploader,
    no_uploader,
    silent_hub,
    uploader_pid,
)
from support import event_file, events, failing, keys, scalar
from waits import timing

from hf_mpwriter.base.files import LocalFile
from hf_mpwriter.base.settings import Destination
from hf_mpwriter.base.verdicts import Sent
from hf_mpwriter.delivery.sinks import HubSink
from hf_mpwriter.events import series
from hf_mpwriter.events.event_file import EventFile
from hf_mpwriter.spool import ledger, outbox
from hf_mpwriter.spool.layout import Spool
from hf_mpwriter.spool.outbox import InFlightRecord, Outbox
from hf_mpwriter.system import process
from hf_mpwriter.system.directory import Directory
from hf_mpwriter.testing import processes, read_journals

HERE = Destination("https://hub", "me/run")
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
            if pid := uploader_pid(run_dir):
                os.kill(pid, signal.SIGKILL)
                wait_for(lambda: uploader_pid(run_dir) != pid, "it is dead")
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


def records_on_disk(tmp_path) -> dict[str, Path]:
    """A real ledger, a real batch and a real record in flight."""
    run_dir = tmp_path / "run"
    length = event_file(run_dir / "a.tfevents", 3)
    spool = Spool(str(run_dir))
    spool.create()
    host = spool.host("h")
    made = Outbox(host, Directory(run_dir))
    made.put([[LocalFile("a.tfevents", length, growing=True)]])
    made.mark_in_flight(made.batches[0], fenced=True)
    held = ledger.Ledger(HERE, "me/run")
    held.acknowledge({"a.tfevents": Sent(length, "5" * 64)}, "c" * 40, 1.0)
    held.save(host.ledger)
    return {"ledger": Path(host.ledger), "batch": Path(host.outbox, "00000001.json"), "in_flight": Path(host.in_flight)}


def test_a_record_that_is_cut_anywhere_is_known_to_be_damaged(tmp_path):
    """Each truncation of a ledger, a batch and a record in flight: no part of it is trusted."""
    paths = records_on_disk(tmp_path)
    spool = Spool(str(tmp_path / "run"))
    host = spool.host("h")
    whole = {name: path.read_bytes() for name, path in paths.items()}
    for cut in range(len(whole["ledger"])):
        paths["ledger"].write_bytes(whole["ledger"][:cut])
        assert ledger.load(spool, HERE).files == {}
        assert ledger.set_aside(spool, "h")
    for cut in range(len(whole["in_flight"])):
        paths["in_flight"].write_bytes(whole["in_flight"][:cut])
        assert outbox.interrupted(host) == InFlightRecord(0, fenced=False)
    for cut in range(len(whole["batch"])):
        paths["batch"].write_bytes(whole["batch"][:cut])
        assert Outbox(host, spool.run).batches == []
        assert not paths["batch"].exists()


def test_a_record_with_any_byte_changed_raises_nothing(tmp_path):
    """It is damaged, or it claims something else and the Hub is asked."""
    paths = records_on_disk(tmp_path)
    spool, rng = Spool(str(tmp_path / "run")), random.Random(1)
    for path in paths.values():
        whole = path.read_bytes()
        for place in range(0, len(whole), 3):
            path.write_bytes(whole[:place] + bytes([rng.randrange(256)]) + whole[place + 1 :])
            ledger.set_aside(spool, "h")
            ledger.load(spool, HERE)
            outbox.interrupted(spool.host("h"))
            Outbox(spool.host("h"), spool.run)
            path.write_bytes(whole)


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


def test_a_run_that_was_copied_from_another_machine_goes_on_here(hub, run_dir, tmp_path, start):
    """Its member files, outbox, ledger, and a push that was in flight there: all is delivered, nothing twice."""
    journals = tmp_path / "journals"
    worker = start(LOG_FOR_EVER, run_dir, journals)
    wait_for(lambda: acknowledged(run_dir), "a commit")
    hub.stop()
    with silent_hub(hub.port):
        wait_for(lambda: processes.push(str(run_dir)), "a push that hangs")
        os.kill(worker.pid, signal.SIGKILL)
        os.kill(living_uploader(run_dir), signal.SIGKILL)
        worker.process.wait()
        wait_for(lambda: no_uploader(run_dir), "both are dead")
    hub.start()
    move_to_another_machine(run_dir)
    spool = Spool(str(run_dir))
    assert outbox.interrupted(spool.host("elsewhere-01234567")) is not None
    assert not os.path.exists(spool.host(process.host_id()).root)
    start(LOG_AND_EXIT, run_dir, 20).succeed()
    wait_for(lambda: finished(run_dir), "everything arrives")
    report = check_oracle(run_dir, hub, journals)
    assert len(report.files) == 2


def move_to_another_machine(run_dir) -> None:
    """Rewrite the spool as if it came from a machine of another name, machine id and boot."""
    root = Path(run_dir, ".hf_mpwriter")
    for path in sorted(root.rglob("*"), reverse=True):  # what is in a directory comes before it
        if path.is_file():
            data = path.read_bytes().replace(process.boot_id().encode(), OTHER_BOOT.encode())
            path.write_bytes(data.replace(process.host_id().encode(), b"elsewhere-01234567"))
        path.rename(path.with_name(path.name.replace(process.host_id(), "elsewhere-01234567")))
