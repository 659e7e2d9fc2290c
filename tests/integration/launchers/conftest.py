"""The place of a case of a launcher, and programs below a supervisor."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from launching.stage import Stage
from programs import wait_for
from runs import kill_uploaders
from supervised import Supervised

from hf_mpwriter.testing import processes


@pytest.fixture
def stage(hub, tmp_path) -> Iterator[Stage]:
    """A Hub, folders and processes, which end with the test."""
    place = Stage(tmp_path, hub, hurry=True)
    yield place
    place.close()


@pytest.fixture
def run_below(run_dir) -> Iterator[Callable[..., Supervised]]:
    """Start programs below a supervisor, and end what still runs at the end of the test."""
    started: list[Supervised] = []

    def begin(*command: object, **more: object) -> Supervised:
        started.append(Supervised(*command, **more))
        return started[-1]

    yield begin
    for one in started:
        one.kill()
    kill_uploaders(run_dir)
    wait_for(lambda: not processes.left_behind(str(run_dir)), "nothing is left behind")
