"""Mounts that go away: the directory beneath is never taken for the logdir, and what is there later gets everything."""

from __future__ import annotations

import dataclasses
import errno
import os
from pathlib import Path

import fuse_models
import hanging
import pytest
from fuse_models import FILES, GCSFUSE, MOUNTPOINT_S3, PLAIN, mounted
from programs import wait_for
from runs import check_oracle, no_uploader, run
from staged import stage
from support import keys

from hf_mpwriter import SummaryWriter
from hf_mpwriter.base.errors import LogdirError
from hf_mpwriter.base.storage import Layout
from hf_mpwriter.delivery.sinks import LogdirSink
from hf_mpwriter.localhub.faults import Fault
from hf_mpwriter.mirror.copy import do
from hf_mpwriter.spool import storage
from hf_mpwriter.spool.copies import Arrived, CopyJob, Finished, Item, Task
from hf_mpwriter.system.filesystem import find_mount

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(bool(fuse_models.why_not()), reason=fuse_models.why_not() or "-"),
]

LOG = """
import os, sys, time
from hf_mpwriter import SummaryWriter
logdir, flags, first, *waits = sys.argv[1:]
writer = SummaryWriter(logdir)
for number, seconds in enumerate(waits, int(first)):
    while not os.path.exists(f"{flags}/{number}.go"):
        time.sleep(0.02)
    writer.add_scalar("loss", 1.0, number)
    print(writer.push(wait=float(seconds)), flush=True)
    open(f"{flags}/{number}.done", "w").close()
while not os.path.exists(f"{flags}/end"):
    time.sleep(0.02)
writer.close()
"""


@pytest.fixture
def local(tmp_path, monkeypatch) -> Path:
    """A directory in which runs are staged, and short ends."""
    (tmp_path / "local").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "local"))
    monkeypatch.setenv("HF_MPWRITER_EXIT_TIMEOUT", "5")
    monkeypatch.delenv("HF_MPWRITER_STAGING", raising=False)
    return tmp_path / "local"


def steps(mount) -> list[int]:
    """The steps in the store of a mount."""
    files = [mount.store / name for name in mount.everything() if "tfevents" in name]
    return sorted(step for file in files for _, step in keys(file))


def test_a_mount_that_goes_and_comes_back_gets_all_of_the_run(local, tmp_path, start):
    """In the middle of a run, and before a start: meanwhile nothing is written beneath it, and it is told."""
    flags = tmp_path / "flags"
    flags.mkdir()

    def go(number: int) -> None:
        (flags / f"{number}.go").touch()
        wait_for((flags / f"{number}.done").exists, f"the answer to push {number}")

    with mounted(GCSFUSE, tmp_path / "mount") as mount:
        logdir = mount.place / "exp1"
        program = start(LOG, logdir, flags, 0, 100, 1, 100)
        go(0)
        spool = storage.spool_of(storage.find(str(logdir)))
    told = f"gcsfuse (bucket) at {mount.place} is not mounted; mount it again"
    go(1)
    wait_for(lambda: LogdirSink(spool).status().reason == told, "the mirror tells it")
    assert list(mount.place.iterdir()) == []
    with mounted(GCSFUSE, mount.place, mount.store) as again:
        go(2)
        (flags / "end").touch()
        assert program.succeed().split() == ["True", "False", "True"]
        assert steps(again) == [0, 1, 2]

    kept = storage.find(str(logdir))
    assert (kept.layout, kept.run_dir) == (Layout.STAGED, spool.run_dir)
    (flags / "end").unlink()
    program = start(LOG, logdir, flags, 3, 1)
    go(3)
    wait_for(lambda: LogdirSink(spool).status().reason == told, "the mirror tells it once more")
    (flags / "end").touch()
    code, out, err = program.finish()
    assert (code, out.split()) == (0, ["False"])
    assert "is not mounted" in err
    assert list(mount.place.iterdir()) == []
    with mounted(GCSFUSE, mount.place, mount.store) as again:
        synced = run("sync", logdir)
        assert synced.exit_code == 0, synced.output
        assert steps(again) == [0, 1, 2, 3]


def test_a_copy_to_a_dead_mount_or_to_another_one_writes_nothing(tmp_path):
    """A program that has ended is told with what helps; so is another bucket at the same place."""
    name, told, place = "events.out.tfevents.1000000000.there.1.0123abcd", [], tmp_path / "mount"
    spool = stage(tmp_path / "run", place / "exp1")
    (tmp_path / "run" / name).write_bytes(b"12345")
    with mounted(GCSFUSE, place) as mount:
        job = CopyJob(Task.BRING, spool.run_dir, str(place / "exp1"), (Item(name, 5),), mount=find_mount(str(place)))
        told = list(do(job, spool.run))
        assert told == [Arrived(name, 5), Finished()]
        mount.die()
        told = list(do(job, spool.run))
        assert told[-1].is_gone
        assert "the program behind the mount has ended" in told[-1].reason
    with mounted(MOUNTPOINT_S3, place, tmp_path / "other") as other:
        told = list(do(job, spool.run))
        assert told[-1].is_gone
        assert f"is on mountpoint-s3 (mountpoint-s3) at {place} now" in told[-1].reason
        assert other.everything() == {}


@pytest.mark.parametrize("model", [GCSFUSE, PLAIN], ids=lambda model: model.name)
def test_a_start_on_a_dead_mount_is_staged(local, tmp_path, model):
    """Of a program that is known, or not known, by its name."""
    with mounted(model, tmp_path / "mount") as mount:
        mount.die()
        kept = storage.find(str(mount.place / "exp1"))
        assert kept.layout is Layout.STAGED
        assert os.path.isdir(os.path.dirname(os.path.dirname(kept.run_dir)))


def test_a_start_on_a_dead_mount_that_needs_no_staging_is_told_what_helps(local, tmp_path):
    """Where the logdir itself would hold the run."""
    with mounted(FILES, tmp_path / "mount") as mount:
        mount.die()
        with pytest.raises(OSError, match="mount it again"):
            storage.spool_of(storage.find(str(mount.place / "exp1"))).create()


@pytest.mark.parametrize("error", [errno.ENOLCK, errno.ENOSYS])
def test_a_mount_without_locks_is_refused_with_what_helps(local, tmp_path, error):
    """One that is known to keep files; nothing is tried out before."""
    model = dataclasses.replace(FILES, lock_error=error)
    refused = pytest.raises(LogdirError, match=r"has no file locks\. Set HF_MPWRITER_STAGING")
    with mounted(model, tmp_path / "mount") as mount, refused:
        SummaryWriter(str(mount.place / "exp1")).add_scalar("loss", 1.0, 0)


ON_IT = """
import os, sys, time
from hf_mpwriter import HFSummaryWriter
logdir, flags, *last = sys.argv[1:]
writer, rank = HFSummaryWriter("me/run", logdir=logdir, exit_timeout=100), os.environ["RANK"]
for part in range(4):
    while not os.path.exists(f"{flags}/{part}.go"):
        time.sleep(0.02)
    for step in range(100 * part, 100 * (part + 1)):
        writer.add_scalar("loss", 1.0, step)
    pushed = writer.push(wait=100 if part in (0, 3) else 0) if last[0] != "close" or part < 3 else None
    print(pushed, writer.dropped, flush=True)
    open(f"{flags}/{part}.{rank}.done", "w").close()
writer.close()
"""


@pytest.mark.parametrize(("ranks", "last"), [(1, "push"), (2, "push"), (1, "close")])
def test_a_run_on_a_mount_that_is_made_anew_loses_nothing(hub, tmp_path, start, ranks, last):
    """Descriptors on it are dead for ever; the path is not. Meanwhile nothing is written beneath it."""
    flags, logdir = tmp_path / "flags", tmp_path / "mount" / "exp1"
    flags.mkdir()

    def go(part: int) -> None:
        (flags / f"{part}.go").touch()
        wait_for(lambda: len(list(flags.glob(f"{part}.*.done"))) == ranks, f"part {part} is logged")

    with mounted(FILES, tmp_path / "mount") as mount:
        rank_of = [{"RANK": str(rank), "WORLD_SIZE": str(ranks)} for rank in range(ranks)]
        programs = [start(ON_IT, logdir, flags, last, env=env) for env in rank_of]
        go(0)
        mount.die()
        go(1)
    go(2)
    assert list(mount.place.iterdir()) == []
    with mounted(FILES, mount.place, mount.store):
        go(3)
        for program in programs:
            program.succeed()
        wait_for(lambda: no_uploader(logdir), "the uploader leaves")
        report = check_oracle(logdir, hub)
        found = [keys(logdir / path) for path in report.files]
    assert sorted(step for file in found for _, step in file) == sorted(ranks * [*range(400)])


WAITING = """
import os, sys, time
from hf_mpwriter import HFSummaryWriter
logdir, flags = sys.argv[1:]
writer = HFSummaryWriter("me/run", logdir=logdir, exit_timeout=3)
writer.add_scalar("loss", 1.0, 0)
open(f"{flags}/logged", "w").close()
while not os.path.exists(f"{flags}/gone"):
    time.sleep(0.02)
writer.close()
"""


def test_an_end_while_the_mount_is_away_tells_of_nothing_removed(hub, tmp_path, start):
    """The files are not there, as the directory beneath is: they wait on the mount."""
    hub.fault(Fault("/commit/main$", "status", "POST", "before", times=1000, status=503))
    flags, logdir = tmp_path / "flags", tmp_path / "mount" / "exp1"
    flags.mkdir()
    with mounted(FILES, tmp_path / "mount") as mount:
        program = start(WAITING, logdir, flags)
        wait_for((flags / "logged").exists, "a record is logged")
        mount.die()
    (flags / "gone").touch()
    code, _, told = program.finish()
    assert (code, "removed" in told) == (0, False), told
    assert "are not on the Hub yet" in told, told


FORKING = """
import os, sys, time
from hf_mpwriter import SummaryWriter
logdir, flags = sys.argv[1:]
writer = SummaryWriter(logdir)
writer.add_scalar("loss", 1.0, 0)
open(f"{flags}/logged", "w").close()
while not os.path.exists(f"{flags}/gone"):
    time.sleep(0.02)
if (pid := os.fork()) == 0:
    for step in range(7):
        writer.add_scalar("loss", 1.0, step)
    writer.close()
    os._exit(0)
os.waitpid(pid, 0)
os._exit(0)
"""


def test_a_child_that_ends_while_its_mount_is_dead_tells_its_loss_once(tmp_path, start):
    """No file can hold the count, so the line is all that a user gets."""
    flags = tmp_path / "flags"
    flags.mkdir()
    with mounted(FILES, tmp_path / "mount") as mount:
        program = start(FORKING, mount.place / "exp1", flags)
        wait_for((flags / "logged").exists, "a record is logged")
        mount.die()
        (flags / "gone").touch()
        code, _, told = program.finish()
    assert (code, told.count("7 records were lost"), told.count("were lost")) == (0, 1, 1), told


@pytest.mark.skipif(bool(hanging.why_not()), reason=hanging.why_not() or "-")
@pytest.mark.parametrize("setting", ["", "never"])
def test_no_command_calls_damaged_or_gone_what_a_dead_mount_does_not_show(local, tmp_path, monkeypatch, setting):
    """Nothing is to be removed: the files are whole when it is mounted again."""
    monkeypatch.setenv("HF_MPWRITER_STAGING", setting)
    with hanging.dead(tmp_path / "m"):
        for command in ("status", "sync", "verify", "stop", "logs", "doctor"):
            done = run(command, tmp_path / "m" / "exp1")
            assert done.exit_code > 0, done.output
            assert "Transport endpoint is not connected" in done.output
            assert not any(word in done.output for word in ("is damaged", "Remove", "does not exist")), done.output


FIRST = """
import os, sys, time
from hf_mpwriter import SummaryWriter
logdir, flags = sys.argv[1:]
writer = SummaryWriter(logdir)
open(f"{flags}/built", "w").close()
while not os.path.exists(f"{flags}/gone"):
    time.sleep(0.02)
writer.add_scalar("loss", 1.0, 0)
print("returned", writer.status().in_memory, flush=True)
os._exit(0)
"""


def test_a_first_record_on_a_mount_that_has_died_returns(tmp_path, start):
    """The other names of its rank are looked for, and a dead mount tells of none that it is free."""
    flags = tmp_path / "flags"
    flags.mkdir()
    with mounted(FILES, tmp_path / "mount") as mount:
        program = start(FIRST, mount.place / "exp1", flags, env={"RANK": "1", "WORLD_SIZE": "2"})
        wait_for((flags / "built").exists, "the writer is built")
        mount.die()
        (flags / "gone").touch()
        assert program.succeed(deadline=60.0) == "returned 1\n"
