"""Programs that keep house often, and how many uploaders they had."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path

from programs import wait_for
from runs import LOG_AND_EXIT, LOG_FOR_EVER, acknowledged, finished

from hf_mpwriter.delivery.sinks import HubSink
from hf_mpwriter.spool.layout import Spool
from hf_mpwriter.system import locks

HURRY = 'import os\nos.environ["HF_MPWRITER_TIMING"] += " housekeeping_every=0.05"\n'  # seconds
HURRIED = HURRY + LOG_FOR_EVER


def lives(run_dir) -> int:
    """How many times an uploader has taken the uploader lock."""
    log = next(Path(run_dir).glob(".hf_mpwriter/hosts/*/uploader.log")).read_text()
    return len(re.findall(r"took the uploader lock", log))


def grown(run_dir, before: int):
    """A condition: more bytes are acknowledged than before."""
    return lambda: acknowledged(run_dir) > before


def end(worker, run_dir) -> None:
    """Kill the worker and wait until the rest of its data has arrived."""
    os.kill(worker.pid, signal.SIGKILL)
    wait_for(lambda: finished(run_dir), "the rest arrives")


def push_of(run_dir) -> int:
    """Process id of the push, 0 if none runs."""
    return HubSink(Spool(str(run_dir))).status().push


TAKES_THE_LOCK = """
import os, sys, time
from hf_mpwriter.daemon import loop
from hf_mpwriter.daemon.starts import StartRecord
from hf_mpwriter.system import locks
from hf_mpwriter.spool.layout import Spool
from hf_mpwriter.uploader.loop import work
from hf_mpwriter.uploader.upload import HeldRun
spool = Spool(sys.argv[1])
os.dup2(locks.try_exclusive(Spool(sys.argv[1]).uploader_lock), 3)
os.closerange(4, 100)
{}
start = StartRecord(spool.run_dir, destination=spool.destination())
locks.adopt(3)
work(HeldRun(spool, start, 3))
"""


def log_without_uploader(start, run_dir, count: int) -> None:
    """Run a worker that finds the uploader lock taken, ends and does not wait."""
    lock_fd = locks.try_exclusive(Spool(str(run_dir)).uploader_lock)
    start(LOG_AND_EXIT, run_dir, count, env={"HF_MPWRITER_EXIT_TIMEOUT": "0"}).succeed()
    if lock_fd is not None:
        locks.release(lock_fd)
