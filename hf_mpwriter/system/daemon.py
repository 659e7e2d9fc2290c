"""A process that is nobody's child: it leaves the worker's tree, is modest, and writes a bounded log."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import time
from collections.abc import Callable

from hf_mpwriter.system import disk, redaction

logger = logging.getLogger("hf_mpwriter")

LOG_LIMIT = 1 << 20  # bytes of the log before it is rotated to one older copy
REFUSALS = 60  # steps in a row that may fail for the disk
GRACE = 25.0  # seconds between SIGTERM and the end; SLURM and Kubernetes kill after 30


def detach(keep: int) -> None:
    """Fork once and let the first half end; close every descriptor above `keep`, forget directory and umask.

    It comes first, and this module imports little: until then the process is the worker's child. What is printed from
    here on is redacted.
    """
    if os.fork():
        os._exit(0)
    _close_above(keep)
    os.chdir("/")
    os.umask(0o077)
    redaction.guard()


def _close_above(keep: int) -> None:
    """By what is open, where that can be told: a limit may have been lowered since, or be a thousand million."""
    try:
        found = [int(name) for name in os.listdir("/proc/self/fd")]
    except OSError:
        os.closerange(keep + 1, os.sysconf("SC_OPEN_MAX"))
        return
    for fd in found:
        if fd > keep:
            with contextlib.suppress(OSError):  # that of the listing itself
                os.close(fd)


def end_within(seconds: float) -> None:
    """Whatever this process does then, it ends after so many seconds, and its push with it."""
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, seconds)


def keep_on(step: Callable[[], bool], pause: float) -> None:
    """Repeat a step until it returns false, `pause` seconds after it has failed for the disk.

    Raises:
        OSError: it has failed REFUSALS times in a row, and once more.
    """
    refused = 0
    while True:
        try:
            if not step():
                return
            refused = 0
        except OSError as error:
            refused += 1
            if refused > REFUSALS:
                raise
            logger.info("the disk refuses something: %s", error)
            time.sleep(pause)


def start_logging() -> None:
    """From here on the logger of the package writes lines to the standard error, which is the log of this process.

    A full disk takes no line, and that is no reason to end.
    """
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s [%(process)d] %(message)s", "%Y-%m-%d %H:%M:%S"))
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    logging.raiseExceptions = False


def rotate_log(path: str) -> None:
    """Keep the log and one older copy below the limit; the log is standard output and error of this process."""
    if not disk.same_file(2, path) or os.fstat(2).st_size <= LOG_LIMIT:
        return
    disk.rename(path, f"{path}.1", "daemon.log")
    fd = disk.open_ours(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(fd, 1)
    os.dup2(fd, 2)
    os.close(fd)
