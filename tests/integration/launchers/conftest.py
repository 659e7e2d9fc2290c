"""The place of a case of a launcher."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from launching.stage import Stage


@pytest.fixture
def stage(hub, tmp_path) -> Iterator[Stage]:
    """A Hub, folders and processes, which end with the test."""
    place = Stage(tmp_path, hub, hurry=True)
    yield place
    place.close()
