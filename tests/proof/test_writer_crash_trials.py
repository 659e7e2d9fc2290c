"""The crash test of the writer, a small sample: a dozen seeded kills, and a writer that is broken on purpose."""

from __future__ import annotations

import subprocess
import sys

import pytest
from repository import PROOF

pytestmark = pytest.mark.timeout(600)  # on a busy machine
SCRIPT = PROOF / "crash_writer.py"


def run(directory, *options):
    """Run the script on our writer; the output of a failure has its seed."""
    command = [sys.executable, str(SCRIPT), "--writer", "ours", "--dir", str(directory), *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=580, check=False)


def test_processes_killed_inside_a_call_lose_nothing_that_returned(tmp_path):
    """Scalars, histograms, images and steps of up to eight processes: the script alone makes hundreds of kills."""
    result = run(tmp_path, "--kills", "12", "--seed", "7")
    assert result.returncode == 0, result.stdout + result.stderr
    assert "ours: 0 of " in result.stdout
    assert not list(tmp_path.iterdir())


def test_a_writer_that_holds_records_back_is_found(tmp_path):
    """With calls that return before anything is written, the same kills find lost records."""
    result = run(tmp_path, "--kills", "100", "--seed", "7", "--sabotage", "buffered")
    assert result.returncode == 0, result.stdout + result.stderr
    assert "events lost" in result.stdout
    assert "sabotage buffered: found" in result.stdout


def test_a_writer_that_writes_a_step_in_two_records_is_found(tmp_path):
    """A kill between the two leaves a part of a step."""
    result = run(tmp_path, "--kills", "100", "--seed", "7", "--sabotage", "split")
    assert result.returncode == 0, result.stdout + result.stderr
    assert "there in part" in result.stdout
    assert "sabotage split: found" in result.stdout
