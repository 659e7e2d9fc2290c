"""Runs on mounts, in small: a row of `scripts/proof/storage.py` for each behaviour; the script alone tries all.

hf-mount         staged; a copy is renamed        gcsfuse, blobfuse2 and rclone differ from it in what no run uses
mountpoint-s3    staged; a copy is written in place
no-modes         local spool
bindfs           direct

Each row is a process with mounts of its own: a test that is killed leaves none behind.
"""

from __future__ import annotations

import subprocess
import sys

import fuse_models
import pytest
import real_mounts
from repository import PROOF

SCRIPT = PROOF / "storage.py"
LIMIT = 600  # seconds, to end a hang
ROWS = ("hf-mount", "mountpoint-s3", "no-modes", "bindfs")

pytestmark = pytest.mark.root


def parameter(row: str):
    """A row, skipped where it cannot be tried."""
    reason = real_mounts.why_not(row) if row in real_mounts.KINDS else fuse_models.why_not()
    return pytest.param(row, marks=pytest.mark.skipif(bool(reason), reason=reason or "-"))


@pytest.mark.timeout(LIMIT + 20)
@pytest.mark.parametrize("row", [parameter(row) for row in ROWS])
def test_no_record_is_lost_wherever_a_run_logs_to(row, tmp_path):
    """Two processes, SIGKILL of one and of the uploader, a restart, another machine: every record is there once."""
    command = [sys.executable, str(SCRIPT), "--only", row, "--ranks", "2", "--show", "--dir", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
