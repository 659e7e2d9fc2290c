"""What travels between a mirror and its copy."""

from __future__ import annotations

import pytest

from hf_mpwriter.base import state
from hf_mpwriter.mirror.decision import turned
from hf_mpwriter.mirror.loop import recorded
from hf_mpwriter.snapshot.event_files import writer_of
from hf_mpwriter.spool import copies
from hf_mpwriter.spool.copies import (
    Arrived,
    CopyJob,
    Item,
    Task,
    Withheld,
)
from hf_mpwriter.spool.staging import Mirrored


@pytest.mark.parametrize("path", ["", "/etc/passwd", "../x", "a/../b", ".hf_mpwriter/run.json"])
def test_no_item_leads_out_of_the_run_directory(path):
    """A file on disk may come from anywhere."""
    with pytest.raises(ValueError, match="not a file"):
        Item(path, 1)
    with pytest.raises(state.DamagedError):
        state.load(Item, state.dump({"path": path, "length": 1}) if path else b"{}")


def test_the_bounds_of_a_job():
    """Files and bytes, but one file may be longer; a copy that took too long gets twice the time, up to an hour.

    It never gets less than its bytes need: a segment that needs longer gets there in the end.
    """
    many, large = [Item(f"f{n}", 1) for n in range(1000)], [Item(f"f{n}", copies.JOB_BYTES) for n in range(3)]
    assert copies.bounded(many) == tuple(many[: copies.JOB_FILES])
    assert copies.bounded(large) == tuple(large[:1])
    short, long = (CopyJob(Task.BRING, "/run", "/there", (Item("f", size),)) for size in (0, 10 << 30))
    assert [copies.limit(short, late) for late in range(4)] == [60.0, 120.0, 240.0, 480.0]
    assert copies.limit(short, 10_000) == copies.LIMIT_LONGEST
    assert copies.limit(long, 3) == copies.limit(long) > copies.LIMIT_LONGEST


def test_what_arrives_is_not_refused_any_more():
    """A file that was kept back is retried, and gets there."""
    known = recorded(Mirrored(), Withheld("a", "Permission denied"))
    assert (known.refused, known.files) == ({"a": "Permission denied"}, {})
    known = recorded(known, Arrived("a", 5))
    assert (known.refused, known.files) == ({}, {"a": 5})


def test_a_file_that_cannot_be_brought_holds_up_only_its_own_writer():
    """After a failure the files of other writers go first; those of one writer stay in their order."""
    names = [f"{where}/events.out.tfevents.100000000{n}.there.1.0123abcd" for where in ("a", "b", "c") for n in (1, 2)]
    items = [Item(name, 1) for name in names]
    assert turned(items, 0) == items
    assert turned(items, 1) == items[2:] + items[:2]
    assert turned(items, 5) == items[4:] + items[:4]
    assert turned([], 3) == []
    assert turned(items, 1, {writer_of(names[2])}) == items[4:] + items[:2] + items[2:4]
