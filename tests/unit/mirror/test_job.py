"""What travels between a mirror and its copy."""

from __future__ import annotations

import pytest

from hf_mpwriter.base import state
from hf_mpwriter.mirror import job
from hf_mpwriter.mirror.job import Absent, Arrived, Conflict, CopyJob, CopyWay, Failure, Finished, Item, turned


@pytest.mark.parametrize(
    "message",
    [
        CopyWay("rename"),
        Arrived("a/b", 5),
        Absent("a"),
        Conflict("a", "why\n"),
        Failure("why", is_refused=True),
        Finished(),
    ],
)
def test_messages_travel_as_lines(message):
    """There and back they are equal, and a line has no end in it."""
    line = job.to_line(message)
    assert b"\n" not in line
    assert job.from_line(line) == message
    assert job.from_line(b"x" + line) is None


@pytest.mark.parametrize("path", ["", "/etc/passwd", "../x", "a/../b", ".hf_mpwriter/run.json"])
def test_no_item_leads_out_of_the_run_directory(path):
    """A file on disk may come from anywhere."""
    with pytest.raises(ValueError, match="not a file"):
        Item(path, 1)
    with pytest.raises(state.DamagedError):
        state.load(Item, state.dump({"path": path, "length": 1}) if path else b"{}")


def test_a_job_is_bounded():
    """By files and by bytes; one file may be longer."""
    many = [Item(f"f{n}", 1) for n in range(1000)]
    assert job.bounded(many) == tuple(many[: job.JOB_FILES])
    long = [Item(f"f{n}", job.JOB_BYTES) for n in range(3)]
    assert job.bounded(long) == tuple(long[:1])
    assert job.bounded(many[:3]) == tuple(many[:3])


def test_a_long_file_gets_more_time():
    """A mount that hangs is given up soon, a slow one is not."""
    short, long = (CopyJob("/run", "/there", "m", (Item("f", size),)) for size in (1, 1 << 30))
    assert job.limit(long) > job.limit(short) + 600


def test_a_file_that_cannot_be_brought_holds_up_only_its_own_writer():
    """After a failure the files of other writers go first; those of one writer stay in their order."""
    names = [f"{where}/events.out.tfevents.100000000{n}.there.1.0123abcd" for where in ("a", "b", "c") for n in (1, 2)]
    items = [Item(name, 1) for name in names]
    assert turned(items, 0) == items
    assert turned(items, 1) == items[2:] + items[:2]
    assert turned(items, 5) == items[4:] + items[:4]
    assert turned([], 3) == []
