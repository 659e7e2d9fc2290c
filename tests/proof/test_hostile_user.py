"""A second user of the group attacks a run: the script for a third of a minute, and what it must be able to find."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from repository import PROOF

SCRIPT = PROOF / "hostile_user.py"


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become other users")
@pytest.mark.timeout(900)
@pytest.mark.parametrize("where", ["a run directory of the group", "a parent of the group", "a shared spool"])
def test_a_hostile_user_gets_no_token_and_stops_no_training(where):
    """Renames, replacements, links and modes at seeded moments, above all when an uploader or a push starts."""
    command = [sys.executable, str(SCRIPT), "--minutes", "0.15", "--seed", "7", "--only", where]
    result = subprocess.run(command, capture_output=True, text=True, timeout=880, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
