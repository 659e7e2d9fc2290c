"""The background: how a daemon leaves what started it, logs, and lets training come first.

    worker  --posix_spawn-->  first half  --fork-->  uploader
                              ends at once           child of init, session of its own, log on descriptors 1 and 2

    uploader.log, uploader.log.1      lines of "2026-03-01 12:00:00 [4711] text", LOG_LIMIT bytes each

Invariants:
- After `detach` the process holds no descriptor of the worker but the one that is given to it.
- What it prints is redacted.
- Its log is bounded, and a full disk does not end it.
- It has the limits that the hard ones allow, not the soft ones of training.
- It has low priority: nice, SCHED_BATCH, idle I/O, first in line for the out-of-memory killer; all processors, as the
  worker that started it may be bound to some. Only that imports psutil, and only when it is called.
"""

from __future__ import annotations

import logging
import os
import resource
from collections.abc import Callable

from hf_mpwriter.system import disk, redaction
from hf_mpwriter.system.directory import Place
from hf_mpwriter.system.interrupts import ours, suppress
from hf_mpwriter.system.process import fill_standard

logger = logging.getLogger("hf_mpwriter")

LOG_LIMIT = 1 << 20  # bytes of the log before it is rotated to one older copy
NICENESS = 10  # a training step that wakes up need not wait for an uploader
SCORE_LENGTH = 16  # characters of a score
OOM_SCORE_ADJ = 500  # the kernel ends an uploader before it ends training


def detach(keep: int) -> None:
    """Fork and end the first half; close all descriptors above `keep`; reset the working directory and the umask.

    Call it before anything that takes time: until then the process is a child of the worker. This module imports
    little for that reason.
    """
    fill_standard()
    if os.fork():
        os._exit(0)
    _close_above(keep)
    os.chdir("/")
    os.umask(0o077)
    redaction.guard()


def let_read(directory: int) -> None:
    """Let those read what this process logs who may read a directory. Only its owner may write there."""
    os.umask(~os.fstat(directory).st_mode & 0o777 | 0o022)


def _close_above(keep: int) -> None:
    """Close what is open. The limit on descriptors may have been lowered since, or be a billion."""
    try:
        found = [int(name) for name in os.listdir("/proc/self/fd")]
    except ours(OSError):
        os.closerange(keep + 1, os.sysconf("SC_OPEN_MAX"))
        return
    for fd in found:
        if fd > keep:
            with suppress(OSError):  # the descriptor of the listing itself is closed already
                os.close(fd)


def prepare_process() -> None:
    """What such a process does first: it logs, takes the limits that it may have, and lets training come first."""
    start_logging()
    raise_limits()
    lower_priority()


def start_logging() -> None:
    """Let the logger of the package write to standard error, which is the log of this process.

    A line that a full disk refuses is dropped without a word.
    """
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s [%(process)d] %(message)s", "%Y-%m-%d %H:%M:%S"))
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    logging.raiseExceptions = False


def rotate_log(place: Place) -> None:
    """Rotate the log to one older copy when it exceeds LOG_LIMIT.

    Nothing happens if `place` is not the file on standard error.
    """
    if not disk.same_file(2, place) or os.fstat(2).st_size <= LOG_LIMIT:
        return
    disk.rename(place, place.parent / f"{place.basename}.1", "daemon.log")
    fd = disk.open_ours(place, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(fd, 1)
    os.dup2(fd, 2)
    os.close(fd)


def raise_limits() -> None:
    """Raise the soft limits on file size and on descriptors, which are meant for training, as far as is allowed."""
    for limit in (resource.RLIMIT_FSIZE, resource.RLIMIT_NOFILE):
        soft, hard = resource.getrlimit(limit)
        try:
            resource.setrlimit(limit, (hard, hard))
        except ours(OSError, ValueError) as error:
            logger.info("a limit stays at %s instead of %s: %s", soft, hard, error)


def lower_priority() -> None:
    """Let training come first, as far as the system allows; what it refuses is logged."""
    import psutil  # here: training imports this module, and needs no psutil

    steps: tuple[Callable[[], object], ...] = (
        lambda: os.sched_setaffinity(0, range(os.cpu_count() or 1)),
        lambda: os.setpriority(os.PRIO_PROCESS, 0, max(NICENESS, os.getpriority(os.PRIO_PROCESS, 0))),
        # one that wakes up waits for a processor instead of taking one from a training step
        lambda: os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0)),
        _be_expendable,
        lambda: psutil.Process().ionice(psutil.IOPRIO_CLASS_IDLE),
    )
    for step in steps:  # a refusal of one says nothing about the others
        try:
            step()
        except ours(OSError, psutil.Error, ValueError) as error:
            logger.info("the priority is not as low as wanted: %s", error)


def _be_expendable() -> None:
    """Never lower the score: containers of low priority start with a higher one."""
    with open("/proc/self/oom_score_adj", "r+", encoding="ascii") as file:
        score = max(OOM_SCORE_ADJ, int(file.read(SCORE_LENGTH)))
        file.seek(0)
        file.write(str(score))
