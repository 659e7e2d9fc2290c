"""Mounts that go away: the directory beneath is never taken for the logdir, and what is there later gets everything."""

from __future__ import annotations

import os
from pathlib import Path

import fuse_models
import pytest
from fuse_models import GCSFUSE, MOUNTPOINT_S3, mounted
from programs import wait_for
from runs import run
from staged import stage
from support import keys

from hf_mpwriter.base.home import Way
from hf_mpwriter.mirror.copy import do
from hf_mpwriter.spool import homes
from hf_mpwriter.spool.staging.job import Arrived, CopyJob, Finished, Item
from hf_mpwriter.spool.staging.logdir import Logdir
from hf_mpwriter.system.filesystem.mounts import find_mount

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
    return sorted(step for name in mount.everything() for _, step in keys(mount.store / name))


@pytest.mark.timeout(300)
def test_a_mount_that_goes_and_comes_back_gets_all_of_the_run(local, tmp_path, start):
    """In the middle of a run, and before a start: meanwhile nothing is written beneath it, and it is told."""
    flags = tmp_path / "flags"
    flags.mkdir()

    def go(number: int) -> None:
        (flags / f"{number}.go").touch()
        wait_for((flags / f"{number}.done").exists, f"the answer to push {number}")

    with mounted(GCSFUSE, tmp_path / "mount") as mount:
        logdir = mount.place / "exp1"
        program = start(LOG, logdir, flags, 0, 100, 5, 100)
        go(0)
        spool = homes.spool_of(homes.find(str(logdir)))
    go(1)
    assert list(mount.place.iterdir()) == []
    assert Logdir(spool).status().reason == f"gcsfuse (bucket) at {mount.place} is not mounted; mount it again"
    with mounted(GCSFUSE, mount.place, mount.store) as again:
        go(2)
        assert program.succeed().split() == ["True", "False", "True"]
        assert steps(again) == [0, 1, 2]

    home = homes.find(str(logdir))
    assert (home.way, home.run_dir) == (Way.STAGED, spool.run_dir)
    (flags / "3.go").touch()
    code, out, err = start(LOG, logdir, flags, 3, 5).finish()
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
        job = CopyJob(spool.run_dir, str(place / "exp1"), "mark", (Item(name, 5),), mount=find_mount(str(place)))
        do(job, spool.run, told.append)
        assert told[1:] == [Arrived(name, 5), Finished()]
        mount.die()
        do(job, spool.run, told.append)
        assert told[-1].is_gone
        assert "the program behind the mount has ended" in told[-1].reason
    with mounted(MOUNTPOINT_S3, place, tmp_path / "other") as other:
        do(job, spool.run, told.append)
        assert told[-1].is_gone
        assert f"is on mountpoint-s3 (mountpoint-s3) at {place} now" in told[-1].reason
        assert other.everything() == {}


def test_a_mount_that_removes_nothing_keeps_one_file_of_a_probe(local, tmp_path):
    """Of the first one: other processes read what it has found."""
    with mounted(MOUNTPOINT_S3.unknown(), tmp_path / "mount") as mount:
        logdir = str(mount.place / "exp1")
        for _ in range(2):
            homes._homes.clear()
            homes._probed.clear()
            assert homes.find(logdir).way is Way.STAGED
        assert list(mount.everything().values()) == [b""]
        run("doctor", logdir)
        assert len(mount.everything()) > 1, "a person who asks gets an answer of now"


def test_a_start_on_a_dead_mount_is_staged_or_told_what_helps(local, tmp_path):
    """Of a store that is known by name all goes on; on another mount the error says what to do."""
    with mounted(GCSFUSE, tmp_path / "mount") as mount:
        mount.die()
        home = homes.find(str(mount.place / "exp1"))
        assert home.way is Way.STAGED
        assert os.path.isdir(os.path.dirname(os.path.dirname(home.run_dir)))
    with mounted(fuse_models.PLAIN, tmp_path / "plain") as mount:
        mount.die()
        with pytest.raises(OSError, match="mount it again"):
            homes.spool_of(homes.find(str(mount.place / "exp1"))).create()
