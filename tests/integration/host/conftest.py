"""A disk that is soon full."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from programs import wait_for
from runs import no_uploader


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Path]:
    """Mount a disk of 400 kB; skip where that is not allowed."""
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=400k", "small", str(place)]
    if (done := subprocess.run(command, capture_output=True, text=True, check=False)).returncode:
        pytest.skip(f"nothing can be mounted here: {done.stderr.strip()}")
    try:
        yield place
        wait_for(lambda: no_uploader(place / "exp1"), "the uploader leaves")
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)
