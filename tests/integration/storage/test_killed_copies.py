"""A copy to a mount is killed in the middle of a file; the mount publishes the half, as the kernel closes the file."""

from __future__ import annotations

import os
import signal

import fuse_models
import pytest
from fuse_models import MOUNTPOINT_S3, MOUNTPOINT_S3_ALLOWED, mounted
from programs import wait_for
from runs import run

from hf_mpwriter.spool import storage
from hf_mpwriter.testing import processes

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(bool(fuse_models.why_not()), reason=fuse_models.why_not() or "-"),
]

SIZE = 16_000_000  # bytes
LOG = f"""
import os, sys, time
from hf_mpwriter import SummaryWriter
logdir, patience, goes_on = sys.argv[1:]
writer = SummaryWriter(logdir)
writer.add_text("long", "x" * {SIZE}, 1)
assert not writer.push(wait=0.1)
while not os.path.exists(goes_on):
    time.sleep(0.05)
del os.environ["HF_MPWRITER_FAILPOINT"]
print(writer.push(wait=float(patience)), flush=True)
writer.close()
"""


@pytest.mark.parametrize(
    ("model", "is_mended"),
    [(MOUNTPOINT_S3_ALLOWED, True), (MOUNTPOINT_S3, False)],
    ids=lambda value: getattr(value, "name", ""),
)
def test_a_copy_that_is_killed_in_the_middle_of_a_file(model, is_mended, start, tmp_path, monkeypatch):
    """What it leaves is replaced where the mount allows it; elsewhere `push` and `sync` say that it is not there."""
    (tmp_path / "local").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "local"))
    monkeypatch.setenv("HF_MPWRITER_EXIT_TIMEOUT", "5")
    goes_on = tmp_path / "goes_on"
    with mounted(model, tmp_path / "mount") as mount:
        logdir = mount.place / "exp1"
        killed = {"HF_MPWRITER_FAILPOINT": "copy.write=kill:5"}  # each copy that this process has started
        program = start(LOG, logdir, 100 if is_mended else 10, goes_on, env=killed)
        wait_for(lambda: any(0 < len(data) < SIZE for data in mount.everything().values()), "half a file")
        run_dir = storage.find(str(logdir)).run_dir
        for pid in processes.left_behind(run_dir, "mirror"):  # the program starts the next one when it goes on
            os.kill(pid, signal.SIGKILL)
        wait_for(lambda: not processes.left_behind(run_dir, "mirror", "copy"), "their end")
        goes_on.touch()
        assert program.succeed().strip() == str(is_mended)
        synced = run("sync", logdir)
        there = {name: data for name, data in mount.everything().items() if "tfevents" in name}
        here = {name: (tmp_path / run_dir / name).read_bytes() for name in os.listdir(run_dir) if "tfevents" in name}
        assert (synced.exit_code == 0) == is_mended, synced.output
        assert ({f"exp1/{name}": data for name, data in here.items()} == there) == is_mended
        if not is_mended:
            assert all(data.startswith(there[f"exp1/{name}"]) for name, data in here.items())
            assert next(iter(here)) in run("status", logdir).output
