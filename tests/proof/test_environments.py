"""Trainings in surroundings that are drawn at random: a few of them; the script alone draws more."""

from __future__ import annotations

import subprocess
import sys

import pytest
from repository import PROOF


@pytest.mark.timeout(900)
def test_whatever_surrounds_a_training_all_it_logged_is_on_the_hub():
    """HOME, XDG_*, HF_*, TMPDIR, umask, cwd, descriptors, limits, arguments, locale: the oracle judges each example."""
    command = [sys.executable, str(PROOF / "environments.py"), "--examples", "6", "--seed", "20261122"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=880, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
