"""A copy to a mount is killed in the middle of a file; the mount publishes the half, as the kernel closes the file."""

from __future__ import annotations

import contextlib
import os
import signal
from dataclasses import replace

import fuse_models
import pytest
from fuse_models import HF_MOUNT, MOUNTPOINT_S3, MOUNTPOINT_S3_ALLOWED, mounted
from programs import wait_for
from runs import run

from hf_mpwriter.spool import homes
from hf_mpwriter.testing import processes

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(bool(fuse_models.why_not()), reason=fuse_models.why_not() or "-"),
]

LOG = """
import sys
from hf_mpwriter import SummaryWriter
writer = SummaryWriter(sys.argv[1])
writer.add_text("long", "x" * 16_000_000, 1)
print("logged", flush=True)
print(writer.push(wait=float(sys.argv[2])), flush=True)
writer.close()
"""


@pytest.mark.parametrize(
    ("model", "is_mended"),
    [(MOUNTPOINT_S3_ALLOWED, True), (HF_MOUNT, True), (MOUNTPOINT_S3, False)],
    ids=lambda value: getattr(value, "name", ""),
)
def test_a_copy_that_is_killed_in_the_middle_of_a_file(model, is_mended, start, tmp_path, monkeypatch):
    """What it leaves is replaced where the mount allows it; elsewhere `push` and `sync` say that it is not there."""
    (tmp_path / "local").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "local"))
    monkeypatch.setenv("HF_MPWRITER_EXIT_TIMEOUT", "5")
    with mounted(replace(model, delay=0.02), tmp_path / "mount") as mount:
        logdir = mount.place / "exp1"
        program = start(LOG, logdir, 60 if is_mended else 10)
        run_dir = homes.find(str(logdir)).run_dir

        def unpublished() -> bool:
            """Whether a file with some content is on its way."""
            names = os.listdir(logdir) if logdir.is_dir() else []
            drafts = [name for name in names if mount.elsewhere(f"exp1/{name}") is None]
            with contextlib.suppress(OSError):
                return any((logdir / name).stat().st_size > 1_000_000 for name in drafts)
            return False

        wait_for(unpublished, "the first megabyte of a copy")
        for pid in processes.left_behind(run_dir, "copy"):
            os.kill(pid, signal.SIGKILL)
        wait_for(lambda: any(0 < len(data) < 16_000_000 for data in mount.everything().values()), "half a file")
        assert program.succeed().split() == ["logged", str(is_mended)]
        synced = run("sync", logdir)
        there = {name: data for name, data in mount.everything().items() if "tfevents" in name}
        here = {name: (tmp_path / run_dir / name).read_bytes() for name in os.listdir(run_dir) if "tfevents" in name}
        assert (synced.exit_code == 0) == is_mended, synced.output
        assert ({f"exp1/{name}": data for name, data in here.items()} == there) == is_mended
        if not is_mended:
            assert all(data.startswith(there[f"exp1/{name}"]) for name, data in here.items())
            assert next(iter(here)) in run("status", logdir).output
