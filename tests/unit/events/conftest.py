"""Fixtures of event files."""

from __future__ import annotations

import pytest
from event_places import Place

from hf_mpwriter.events import series


@pytest.fixture
def place(tmp_path) -> Place:
    """An empty worker directory."""
    (tmp_path / "worker").mkdir()
    return Place(tmp_path / "worker")


@pytest.fixture
def small_segments(monkeypatch):
    """Segments are sealed after some records."""
    monkeypatch.setattr(series, "SEGMENT_MIN", 300)
    monkeypatch.setattr(series, "SEGMENT_MAX", 2000)
