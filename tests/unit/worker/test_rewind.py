"""Rewinding a staged run of which not everything is here yet."""

from __future__ import annotations

import os
import subprocess
import time

import pytest
from support import event_file, events

from hf_mpwriter.base.names import event_second
from hf_mpwriter.events.limits import Limits
from hf_mpwriter.snapshot.search import LEVELS
from hf_mpwriter.spool.layout import Spool
from hf_mpwriter.spool.staging import Listing
from hf_mpwriter.worker import rewind
from hf_mpwriter.worker.role import Role
from hf_mpwriter.worker.worker import Worker

NAME = "events.out.tfevents.1795233020.h.1.00000001"
MISSING = "rank_00007/many_a/events.out.tfevents.1795233020.h.1.00000001"
START = 1  # SessionLog.START


def test_what_is_still_to_come_back_is_hidden_too(tmp_path):
    """Of a rank that is missing in a smaller world: else its old steps would stand beside the new ones one day."""
    spool = Spool(str(tmp_path / "exp1"))
    spool.create()
    worker = Worker(spool, Limits())
    worker.membership.directory()
    worker.membership.role = Role(0, None, 2)
    for expected in ([], [5, 5]):
        worker.files.rewind.start(5, is_alone=True)
        found = list((tmp_path / "exp1" / "rank_00007").rglob("many_a/*"))
        starts = [event.step for path in found for event in events(path) if event.session_log.status == START]
        assert starts == expected
        Listing({MISSING: 80}).save(spool)
    worker.leave_all()


@pytest.mark.parametrize("there", [("rank_00001~2",), ("rank_00001~2", "rank_00001~3")])
def test_a_rank_sorts_behind_what_it_has_logged_under_other_names(tmp_path, monkeypatch, there):
    """As after a pull: the lock files of those names are not here, and the clock is behind theirs."""
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "3")
    ahead = [int(time.time()) + 3600 * (number + 1) for number in range(len(there))]
    for name, second in zip(there, ahead, strict=True):
        event_file(tmp_path / "exp1" / name / f"events.out.tfevents.{second}.h.1.00000001", 1)
    spool = Spool(str(tmp_path / "exp1"))
    spool.create()
    worker = Worker(spool, Limits())
    worker.files.open("", "", None).ensure_open()
    (name,) = os.listdir(tmp_path / "exp1" / "rank_00001")
    assert event_second(name) > max(ahead)
    worker.leave_all()


def test_a_rewind_goes_no_deeper_than_a_search(tmp_path):
    """A chain of folders longer than Python nests calls ends no training; a directory that members name is found."""
    spool = Spool(str(tmp_path / "exp1"))
    spool.create()
    worker = Worker(spool, Limits())
    worker.membership.directory()
    below = f"a/{'/'.join('b' * LEVELS)}"
    event_file(tmp_path / "exp1" / "a" / NAME, 1)
    event_file(tmp_path / "exp1" / below / NAME, 1)
    fd = os.open(tmp_path / "exp1", os.O_RDONLY)
    try:
        for _ in range(1500):
            os.mkdir("d", dir_fd=fd)
            fd, above = os.open("d", os.O_RDONLY, dir_fd=fd), fd
            os.close(above)
        assert [place.name for place in rewind._directories(spool, "main")] == ["a"]
        worker.membership.record_opened(f"{below}/{NAME}")
        assert [place.name for place in rewind._directories(spool, "main")] == ["a", below]
    finally:
        os.close(fd)
        subprocess.run(["rm", "-rf", tmp_path / "exp1" / "d"], check=True)  # deeper than others can remove
    worker.leave_all()
