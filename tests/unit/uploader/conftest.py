"""Fixtures of uploaders."""

from __future__ import annotations

import pytest
from uploaders import Site, Sweep


@pytest.fixture
def site(tmp_path, monkeypatch) -> Site:
    """A run directory without files."""
    return Site(tmp_path / "run", monkeypatch)


@pytest.fixture
def sweep(tmp_path, monkeypatch) -> Sweep:
    """An uploader that serves no run yet."""
    return Sweep(tmp_path, monkeypatch)
