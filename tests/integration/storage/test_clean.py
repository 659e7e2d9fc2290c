"""`hf-mpwriter clean`: a staged run leaves this disk only where nothing is lost with it."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner
from staged import stage
from support import event_file

from hf_mpwriter.base import state
from hf_mpwriter.base.settings import Destination
from hf_mpwriter.base.storage import staging_root
from hf_mpwriter.base.verdicts import Sent
from hf_mpwriter.cli import clean as clean_module
from hf_mpwriter.cli.main import main
from hf_mpwriter.snapshot.event_files import EventFileScan
from hf_mpwriter.spool.ledger import Ledger
from hf_mpwriter.spool.pulled import note_pulled
from hf_mpwriter.spool.workers.losses import Loss, note_seen
from hf_mpwriter.system import disk, locks
from hf_mpwriter.system.process import host_id

EVENTS = "events.out.tfevents.1795233002.h.1.00000001"


@pytest.fixture
def run(tmp_path, monkeypatch) -> tuple[Path, Path]:
    """A staged run that is whole in its logdir: its directory here, and the logdir."""
    top = tmp_path / "local"
    monkeypatch.setenv("HF_MPWRITER_STAGING", str(top))
    (top / staging_root(os.geteuid())).mkdir(parents=True, mode=0o700)
    here = top / staging_root(os.geteuid()) / ("0" * 16) / "exp1"
    disk.make_dirs(stage(here, tmp_path / "bucket").host(host_id()).root)
    event_file(here / EVENTS, 3)
    event_file(tmp_path / "bucket" / EVENTS, 3)
    for place in (here, tmp_path / "bucket"):
        (place / "projector_config.pbtxt").write_text("embeddings {}\n")
    shutil.copy(here / EVENTS, tmp_path / "bucket" / EVENTS)
    return here, tmp_path / "bucket"


def clean(*options: str) -> str:
    """What the command prints."""
    done = CliRunner().invoke(main, ["clean", "--older-than", "0", *options])
    assert done.exit_code == 0, done.output
    return done.output


def test_a_run_that_is_whole_in_its_logdir_is_removed(run):
    """A dry run says the same and removes nothing; there is nothing else to remove then."""
    here, there = run
    assert f"Would remove {here} (" in clean("--dry-run")
    assert here.exists()
    out = clean()
    assert f"Removing {here} (" in out
    assert "Removed 1 run" in out
    assert os.listdir(here.parent.parent) == []
    assert (there / EVENTS).exists()
    assert clean().startswith(f"Nothing to remove: no run of yours is staged in {os.environ['HF_MPWRITER_STAGING']}")


def test_what_would_be_lost_is_kept_with_the_reason(run):
    """In the logdir, on the Hub, or a file that is nowhere else; and what was used a moment ago."""
    here, there = run
    spool = stage(here, there)
    data = (there / EVENTS).read_bytes()
    for content, reason in ((data[:-1], "is not whole in"), (data[::-1], "is not whole in"), (data, "")):
        (there / EVENTS).write_bytes(content)
        out = clean("-n")
        assert (f"Keeping {here}: {EVENTS} {reason}" in out) == bool(reason), out
    (here / "notes.txt").touch()
    assert "notes.txt is nowhere else" in clean()
    (here / "notes.txt").unlink()
    (there / "projector_config.pbtxt").write_text("other")
    assert "projector_config.pbtxt is not whole in" in clean()
    shutil.copy(here / "projector_config.pbtxt", there / "projector_config.pbtxt")
    loss = Loss("main.h-1.2.3-1", "main", "h", 2, 3, True, 1.0, "No space left on device")
    (here / "_lost").mkdir()
    (file := here / loss.path).write_bytes(state.dump(loss))
    assert f"Keeping {here}: lost: 3 records of main" in clean()
    note_seen(spool)
    assert f"Would remove {here}" in clean("-n")
    file.unlink()
    destination = Destination("http://127.0.0.1:9", "me/run")
    spool.record_destination(destination)
    assert "1 file may not be on the Hub yet; run: hf-mpwriter sync" in clean()
    ledger = Ledger(destination)
    ledger.acknowledge({EVENTS: Sent(len(data), "0" * 64)}, "commit", 1.0)
    ledger.save(spool.host(host_id()).ledger)
    assert "used 0 h ago" in clean("--older-than", "1")
    assert here.exists()
    assert f"Removing {here}" in clean()


def test_the_beginning_of_a_file_of_which_the_logdir_has_more_is_removed(run):
    """Another machine, whose file it is, has brought more of it: all that is here is there."""
    here, there = run
    data = (there / EVENTS).read_bytes()
    event_file(there / EVENTS, 5)
    (there / EVENTS).write_bytes(data + (there / EVENTS).read_bytes()[len(data) :])
    note_pulled(stage(here, there), {EVENTS: len(data)})
    assert (there / EVENTS).stat().st_size > len(data)
    assert f"Removing {here} (" in clean()


def test_a_run_on_which_a_process_works_is_kept(run):
    """A mirror, an uploader or a restore."""
    here, there = run
    spool = stage(here, there)
    for place in (spool.lock_of("mirror"), spool.uploader_lock):
        lock = locks.try_exclusive(place)
        assert "an uploader or a mirror works there" in clean()
        locks.release(lock)
    assert f"Removing {here}" in clean()


def test_what_cannot_be_read_is_kept(run, monkeypatch):
    """It is left out of a scan, and so would be of the comparison."""
    here, _ = run
    event_file(here / EVENTS.replace("1795233002", "1795233001"), 3)  # not in the logdir
    parse = EventFileScan._parse

    def fail(scan, relative, place, **options):
        if "1795233001" in relative:
            raise OSError(errno.EIO, "Input/output error")
        return parse(scan, relative, place, **options)

    monkeypatch.setattr(EventFileScan, "_parse", fail)
    assert "cannot be examined: " in clean()
    assert here.exists()


def test_a_run_that_has_begun_meanwhile_is_kept(run, monkeypatch):
    """A start waits for the lock of a restore for five minutes, and then goes on."""
    here, _ = run
    answers = ["", "a process logs there"]
    monkeypatch.setattr(clean_module, "_in_use", lambda *_, **__: answers.pop(0))
    assert f"Keeping {here}: a process logs there" in clean()
    assert here.exists()
