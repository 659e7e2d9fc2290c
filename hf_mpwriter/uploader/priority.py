"""TODO uploader.priority."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable

logger = logging.getLogger("hf_mpwriter")


NICENESS = 10
OOM_SCORE_ADJ = 500  # the kernel takes this process before it takes training


def lower() -> None:
    """Low priority for processor, disk and memory: training comes first."""
    import psutil

    steps: list[Callable[[], object]] = [_use_all_processors, _be_nice, _interrupt_no_process]
    if psutil.LINUX:
        steps += [_be_expendable, lambda: psutil.Process().ionice(psutil.IOPRIO_CLASS_IDLE)]
    for step in steps:  # what one of them is refused says nothing about the others
        try:
            step()
        except (OSError, psutil.Error, ValueError) as error:
            logger.info("not as modest as wanted: %s", error)


def _be_nice() -> None:
    os.setpriority(os.PRIO_PROCESS, 0, max(NICENESS, os.getpriority(os.PRIO_PROCESS, 0)))


def _interrupt_no_process() -> None:
    """Whoever wakes up with this policy waits for a processor; else it would take one from a training step."""
    if hasattr(os, "SCHED_BATCH"):
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))


def _be_expendable() -> None:
    """Never less than it was: containers of low priority start with a higher score."""
    with open("/proc/self/oom_score_adj", "r+", encoding="ascii") as file:
        score = max(OOM_SCORE_ADJ, int(file.read()))
        file.seek(0)
        file.write(str(score))


def _use_all_processors() -> None:
    """The worker may have been bound to some, which are its own."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, range(os.cpu_count() or 1))
