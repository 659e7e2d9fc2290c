"""What the disk refuses waits in memory, and is on no Hub: `push`, `status` and the Future count it."""

from __future__ import annotations

import pytest
from programs import succeed, wait_for
from runs import no_uploader

SMALL_DISK = """
import os, sys, time
from hf_mpwriter import HFSummaryWriter
place = sys.argv[1]
def fill():
    with open(f"{place}/filler", "ab", buffering=0) as file:
        try:
            while True: file.write(bytes(1024))
        except OSError: pass
def room(size):
    os.truncate(f"{place}/filler", max(0, os.path.getsize(f"{place}/filler") - size))
def on_disk():
    return sum(e.stat().st_size for e in os.scandir(f"{place}/exp1") if "tfevents" in e.name)
"""


@pytest.mark.root
def test_what_the_disk_refuses_is_not_on_the_hub(hub, small_disk):
    """While records wait, `push` is False and the Future has no outcome; once the disk takes them, both have."""
    source = """
writer = HFSummaryWriter("me/run", logdir=f"{place}/exp1")
writer.add_scalar("loss", 1.0, 0)
assert writer.push(wait=150), writer.status()
fill()
for step in range(2000):
    writer.add_scalar("loss", 1.0, step)
status = writer.status()
assert status.in_memory > 1000 and "No space left" in status.error, status
future = writer.scheduler.trigger()
room(16_000)
assert not writer.push(wait=3), writer.status()
assert writer.status().in_memory and not future.done()
room(1 << 30)
assert writer.push(wait=150), writer.status()
assert future.result(150)
status = writer.status()
assert (status.in_memory, status.dropped, status.waiting) == (0, 0, 0) and status.on_hub == on_disk(), status
"""
    succeed(SMALL_DISK + source, small_disk)


@pytest.mark.root
def test_an_event_file_that_cannot_be_created_is_not_on_the_hub(hub, small_disk):
    """Without any file there is nothing to upload, and all that was logged is missing."""
    source = """
writer = HFSummaryWriter("me/run", logdir=f"{place}/exp1")
fill()
writer.add_scalar("loss", 1.0, 0)
assert writer.status().in_memory == 1, writer.status()
assert not writer.push(wait=1)
assert not writer.scheduler.trigger().done()
room(1 << 30)
assert writer.push(wait=150), writer.status()
assert writer.status().on_hub == on_disk() > 0
"""
    succeed(SMALL_DISK + source, small_disk)


DROPPED = """
import sys
from hf_mpwriter import HFSummaryWriter
from hf_mpwriter.writer.hf_summary_writer import UploadError
writer = HFSummaryWriter("me/run", logdir=sys.argv[1], memory_limit=0)
home = writer._worker.files
def refuse():
    raise OSError(28, "No space left on device")
home.directory, directory = refuse, home.directory
writer.add_scalar("loss", 1.0, 0)
home.directory = directory
assert writer.status().dropped == 1, "before it is closed"
writer.flush()
writer.add_scalar("loss", 1.0, 1)
assert not writer.push(wait=150)
try:
    writer.scheduler.trigger().result(150)
except UploadError as error:
    print(error)
assert writer.status().waiting == 0
"""


def test_what_was_dropped_is_never_on_the_hub(hub, run_dir):
    """Neither `push` nor the Future says otherwise, although all that is on disk is there."""
    assert succeed(DROPPED, run_dir) == "The disk refused 1 records for good; the others are on the Hub.\n"
    wait_for(lambda: no_uploader(run_dir), "the uploader leaves")
