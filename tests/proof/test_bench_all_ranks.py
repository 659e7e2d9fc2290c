"""The benchmark of the view of all ranks in small: it shows its figures."""

from __future__ import annotations

import subprocess
import sys

from repository import BENCH


def test_the_benchmark_shows_its_figures():
    """Both kinds of records, with processor, memory and a second reading; the target is for a quiet machine."""
    command = [sys.executable, str(BENCH / "all_ranks.py"), "--ranks", "3", "--tags", "4", "--seconds", "10"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    assert result.returncode in (0, 1), result.stdout + result.stderr
    assert [line.split("  ")[0] for line in result.stdout.splitlines()[1:3]] == [
        "one record a step",
        "one record a value",
    ]
    assert "MiB with it" in result.stdout
    assert "target below 2.0 %" in result.stdout
