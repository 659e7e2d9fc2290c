"""Nodes with run directories of their own, in small: no node is refused more than twice, and nothing stays unsent."""

from __future__ import annotations

import subprocess
import sys

import pytest
from repository import ROOT

SCRIPT = ROOT / "scripts" / "proof" / "many_nodes.py"


@pytest.mark.timeout(600)
def test_four_nodes_share_what_the_hub_takes(tmp_path):
    """Twelve commits a minute for four nodes that would make forty."""
    command = [sys.executable, str(SCRIPT), "--nodes", "4", "--commits", "12", "--window", "60", "--seconds", "12"]
    result = subprocess.run(
        [*command, "--dir", str(tmp_path)], capture_output=True, text=True, timeout=580, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert "problems: 0" in result.stdout
