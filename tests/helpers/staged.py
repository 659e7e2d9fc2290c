"""Staged runs: a run directory with a logdir elsewhere, what its mirror has done, and what TensorBoard would read."""

from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path

from support import keys

from hf_mpwriter.delivery.sinks import LogdirSink
from hf_mpwriter.spool.layout import Spool
from hf_mpwriter.spool.staging import MirrorRecord
from hf_mpwriter.testing import processes

LOG_SEGMENTS = """
import os, sys, time
from hf_mpwriter import SummaryWriter
from hf_mpwriter.testing import Journal
run_dir, journals, first, last = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
writer, journal = SummaryWriter(run_dir, exit_timeout=60), Journal(journals)
for step in range(first, last):
    writer.add_scalar("loss", step / 2, step)
    journal.note(writer, "loss", step)
    if step % 5 == 4:
        writer.close()  # a segment is sealed; the next record opens another one
        time.sleep(0.05)  # files stay few, however long the test waits
"""


def stage(run_dir: str | os.PathLike, logdir: str | os.PathLike) -> Spool:
    """Make a run directory whose runs are brought to a logdir."""
    spool = Spool(os.fspath(run_dir))
    spool.create()
    MirrorRecord(os.fspath(logdir), time.time()).publish(spool)
    return spool


def machine(disk: Path) -> dict[str, str]:
    """The environment of a machine with a disk of its own, on which it stages every run."""
    disk.mkdir(exist_ok=True)
    return {"HF_MPWRITER_STAGING": str(disk), "XDG_STATE_HOME": str(disk / "state")}


def event_files(directory: str | os.PathLike) -> dict[str, Path]:
    """What TensorBoard would open in a directory, per relative path."""
    found = {}
    for path in Path(directory).rglob("*"):
        if "tfevents" in path.name and path.is_file() and ".hf_mpwriter" not in path.parts:
            found[str(path.relative_to(directory))] = path
    return found


def digests(directory: str | os.PathLike) -> dict[str, str]:
    """The content of the event files of a directory, per relative path."""
    return {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in event_files(directory).items()}


def steps(directory: str | os.PathLike, tag: str) -> list[int]:
    """The steps of a tag in a directory; each event file there must consist of whole records."""
    found = [key for path in event_files(directory).values() for key in keys(path)]
    return [step for name, step in found if name == tag]


def lengths(run_dir: str | os.PathLike) -> dict[str, int]:
    """Bytes of the event files of a run directory."""
    return {name: path.stat().st_size for name, path in event_files(run_dir).items()}


def is_there(spool: Spool) -> bool:
    """Whether all event files of a run directory are in the logdir, as far as its mirror tells."""
    return not LogdirSink(spool).missing(lengths(spool.run_dir))


def leftovers(logdir: str | os.PathLike) -> list[str]:
    """Temporary names in a logdir."""
    return [path.name for path in Path(logdir).rglob("*.part")]


def mirror_pid(spool: Spool) -> int:
    """Pid of the living mirror, 0 if there is none."""
    return next(iter(processes.left_behind(spool.run_dir, "mirror")), 0)


def copy_pid(spool: Spool) -> int:
    """Pid of the living copy, 0 if there is none."""
    return next(iter(processes.left_behind(spool.run_dir, "copy")), 0)
