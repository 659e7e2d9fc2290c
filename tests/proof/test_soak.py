"""A short soak: one run through a storm of faults, and builds that are broken on purpose."""

from __future__ import annotations

import subprocess
import sys

import pytest
from repository import PROOF

SCRIPT = PROOF / "soak.py"


def run(*options):
    """Run the script with one lane; the output of a failure has its seed and its findings."""
    command = [sys.executable, str(SCRIPT), "--lanes", "1", *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=580, check=False)


@pytest.mark.timeout(600)
def test_a_storm_of_faults_breaks_no_promise():
    """Nothing is lost, doubled, shrunk, hung or left behind in a mix of faults; the script alone runs half an hour."""
    result = run("--minutes", "0.2", "--seed", "7")
    assert result.returncode == 0, result.stdout + result.stderr
    assert "0 lost, 0 duplicated, 0 shrunk, 0 hung, nothing left behind" in result.stdout
