"""Rewinding a staged run of which not everything is here yet."""

from __future__ import annotations

import os
import subprocess

from support import event_file, events

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
