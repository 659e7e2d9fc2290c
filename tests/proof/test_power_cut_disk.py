"""Disks whose power can be cut: they take what was not synced, and nothing else."""

from __future__ import annotations

import os
import subprocess

import pytest
from loop_disks import KINDS, LoopDisk, forget_lost, has_power

from hf_mpwriter import SummaryWriter
from hf_mpwriter.system import disk
from hf_mpwriter.system.directory import at
from hf_mpwriter.testing import Journal, read_journals


@pytest.mark.parametrize("kind", KINDS)
def test_a_power_cut_takes_what_was_not_synced(tmp_path, kind):
    """Else no test with such a disk could fail."""
    with LoopDisk(str(tmp_path), kind) as drive:
        kept, lost = os.path.join(drive.path, "kept"), os.path.join(drive.path, "lost")
        disk.replace(at(kept), b"x" * 5000, "test")
        disk.replace(at(lost), b"x" * 5000, "test", durable=False)
        assert has_power(drive.path)
        drive.cut()
        with pytest.raises(OSError, match=r".*"):
            disk.replace(at(kept), b"later", "test")
        assert not has_power(drive.path)
        drive.restart()
        assert disk.read(at(kept)) == b"x" * 5000
        assert not disk.read(at(lost))


@pytest.mark.parametrize("kind", KINDS)
def test_what_was_flushed_outlives_a_power_cut(tmp_path, kind):
    """The journal knows which records may be gone; those that were flushed are not."""
    journals = str(tmp_path / "journals")
    with LoopDisk(str(tmp_path), kind) as drive:
        run_dir = os.path.join(drive.path, "run")
        journal, writer = Journal(journals), SummaryWriter(run_dir)
        for step in range(40):
            writer.add_scalar("loss", 0.5, step)
            journal.note(writer, "loss", step)
            if step == 20:
                writer.flush()
                journal.flushed()
        drive.cut()
        writer.close()
        drive.restart()
        assert forget_lost(journals, run_dir) > 0, "the cut took nothing"
        assert {note.step for note in read_journals(journals)} >= set(range(21))


@pytest.mark.parametrize("kind", KINDS[:1])
def test_a_disk_that_another_mount_namespace_keeps_is_waited_for(tmp_path, kind):
    """Without power it would be mounted again as it is."""
    with LoopDisk(str(tmp_path), kind) as drive:
        keeper = subprocess.Popen(["unshare", "--mount", "sh", "-c", "echo; sleep 1"], stdout=subprocess.PIPE)
        keeper.stdout.readline()
        drive.cut()
        drive.restart()
        disk.replace(at(os.path.join(drive.path, "later")), b"x", "test")
        keeper.communicate()
