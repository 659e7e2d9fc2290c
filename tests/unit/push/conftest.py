"""Fixtures of pushes."""

from __future__ import annotations

import pytest


@pytest.fixture
def run_dir(tmp_path):
    """A run directory with one file of six bytes."""
    (tmp_path / "a.tfevents").write_bytes(b"abcdef")
    return tmp_path
