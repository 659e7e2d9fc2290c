"""Fixtures of uploaders."""

from __future__ import annotations

import pytest
from uploaders import Site


@pytest.fixture
def site(tmp_path, monkeypatch) -> Site:
    """A run directory without files."""
    return Site(tmp_path / "run", monkeypatch)
