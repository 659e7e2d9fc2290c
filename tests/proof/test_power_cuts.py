"""Disks whose power is cut: they take what was not synced, and nothing else. `test_scripts` cuts between any steps."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from loop_disks import KINDS, LoopDisk, has_power

from hf_mpwriter import SummaryWriter
from hf_mpwriter.snapshot import attachments
from hf_mpwriter.system import disk
from hf_mpwriter.system.directory import Directory, at
from hf_mpwriter.testing import Journal, read_journals
from hf_mpwriter.testing.losses import forget_lost


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


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_sent_of_an_attachment_outlives_a_power_cut(tmp_path, monkeypatch, kind):
    """Else its rest after the cut, perhaps nothing, would replace the Hub's copy."""
    monkeypatch.setattr(attachments, "RESERVE", 0)
    with LoopDisk(str(tmp_path), kind) as drive:
        run_dir, copies = os.path.join(drive.path, "run"), os.path.join(drive.path, "copies")
        os.mkdir(run_dir)
        path = Path(run_dir, "metadata.tsv")
        path.write_bytes(b"x" * 5000)
        file = attachments.Attachments(Directory(run_dir)).identify(path.name)
        attachments.Copies(at(copies), Directory(run_dir)).take(file)
        drive.cut()
        drive.restart()
        assert path.read_bytes() == b"x" * 5000
