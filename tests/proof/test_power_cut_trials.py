"""Power cuts, a small sample: a few seeded ones on each disk, and a build that is broken on purpose."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from loop_disks import KINDS, LoopDisk
from repository import PROOF

from hf_mpwriter.snapshot import attachments
from hf_mpwriter.system.directory import Directory, at

SCRIPT = PROOF / "power_cut.py"


def run(*options):
    """Run the script; the output of a failure has its seed."""
    command = [sys.executable, str(SCRIPT), *map(str, options)]
    return subprocess.run(command, capture_output=True, text=True, timeout=580, check=False)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("kind", KINDS)
def test_a_power_cut_between_any_two_steps_of_a_write_leaves_the_old_or_the_new(kind):
    """Files, outbox and ledger: each write that returned is on disk, and nothing is torn."""
    result = run("--cuts", 15, "--kind", kind, "--seed", 7)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.timeout(600)
@pytest.mark.parametrize("kind", KINDS[:1])
def test_a_batch_before_its_bytes_are_durable_is_found(kind):
    """The trials fail a build that does not sync event files before a batch refers to them."""
    result = run("--cuts", 100, "--kind", kind, "--seed", 1, "--sabotage", "unsynced")
    assert result.returncode == 0, result.stdout + result.stderr
    assert "a batch refers to bytes" in result.stdout


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
