"""The kill test in small: a few seeded repetitions, and builds that are broken on purpose."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent / "scripts" / "kill_test.py"


def run(*options):
    """Run the script; its seed is in the output that a failure shows."""
    command = [sys.executable, str(SCRIPT), *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


@pytest.mark.timeout(300)
def test_kills_of_workers_uploaders_and_pushes_lose_nothing():
    """The oracle holds with kills of each kind, victims seen at their work; fifty repetitions are for the script."""
    result = run("--repetitions", "1", "--seed", "7")
    assert result.returncode == 0, result.stdout + result.stderr
    assert "0 lost, 0 duplicated" in result.stdout


@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", ["buffered", "early-ack"])
def test_the_oracle_finds_a_sabotaged_build(name):
    """Records in a buffer, or an acknowledgement before the commit: the same test fails."""
    result = run("--repetitions", "20", "--seed", "1", "--sabotage", name)
    assert result.returncode == 0, result.stdout + result.stderr
