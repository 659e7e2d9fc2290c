"""The priority of an uploader: training comes first, for processor, disk and memory.

    nice, SCHED_BATCH      processor: an uploader that wakes up waits for a training step to end
    idle I/O class         disk, on Linux
    oom_score_adj          memory: the kernel ends the uploader before it ends training
    all processors         the worker that started it may have been bound to some, which are its own

This is the only module of the uploader that uses psutil.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable

import psutil

logger = logging.getLogger("hf_mpwriter")

NICENESS = 10
OOM_SCORE_ADJ = 500


def lower() -> None:
    """Lower the priority of this process as far as the system allows; what it refuses is logged."""
    steps: list[Callable[[], object]] = [_use_all_processors, _be_nice, _never_preempt]
    if psutil.LINUX:
        steps += [_be_expendable, lambda: psutil.Process().ionice(psutil.IOPRIO_CLASS_IDLE)]
    for step in steps:  # a refusal of one says nothing about the others
        try:
            step()
        except (OSError, psutil.Error, ValueError) as error:
            logger.info("the priority is not as low as wanted: %s", error)


def _be_nice() -> None:
    os.setpriority(os.PRIO_PROCESS, 0, max(NICENESS, os.getpriority(os.PRIO_PROCESS, 0)))


def _never_preempt() -> None:
    """A process of this policy that wakes up waits for a processor instead of taking one from a training step."""
    if hasattr(os, "SCHED_BATCH"):
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))


def _be_expendable() -> None:
    """Never lower the score: containers of low priority start with a higher one."""
    with open("/proc/self/oom_score_adj", "r+", encoding="ascii") as file:
        score = max(OOM_SCORE_ADJ, int(file.read()))
        file.seek(0)
        file.write(str(score))


def _use_all_processors() -> None:
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, range(os.cpu_count() or 1))
