"""Each function of snapshot, events and spool that training reaches fails, and training goes on.

`python tests/helpers/failing_functions.py /tmp/place 0 1 all` tries all of them with all errors.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from programs import DEADLINE

PROGRAM = Path(__file__).resolve().parents[2] / "helpers" / "failing_functions.py"
SLICES = 8


@pytest.mark.parametrize("first", range(SLICES))
def test_no_function_that_fails_ends_a_training(tmp_path, first):
    """By ValueError, OSError, MemoryError or UnicodeError, from the constructor on or after it."""
    env = os.environ | {
        "HF_ENDPOINT": "http://127.0.0.1:9",
        "HF_MPWRITER_PYTHON": "true",  # an uploader that ends at once
        "HF_MPWRITER_TIMING": "housekeeping_every=0.0001 disk_retry_first=0.001",
    }
    command = [sys.executable, PROGRAM, tmp_path, str(first), str(SLICES)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=DEADLINE, check=False)
    assert done.returncode == 0, done.stderr
    *raised, last = done.stdout.splitlines()
    assert raised == []
    assert int(last.split()[0]) > 150 // SLICES, last
