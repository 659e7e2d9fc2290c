"""Lifetime: what ends with this process, and takes the uploader along. Then its end is the last time to wait.

    a batch job         of SLURM, PBS, LSF, Grid Engine or Hugging Face Jobs: its end takes all its processes
    a container         its process 1 is an ancestor of this process, or this process, and no init of a system; when it
                        ends, the kernel kills what is left in its pid namespace

Facts behind this module: the pid namespace of the machine has a fixed inode (PROC_PID_INIT_INO in include/linux/
proc_ns.h). `docker run --init`, tini and dumb-init end with the command that they were given.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Mapping

from hf_mpwriter.base import job
from hf_mpwriter.system import process

MACHINE = 0xEFFFFFFC  # inode of the pid namespace of the machine
INITS = frozenset({"systemd", "init", "runit", "s6-svscan", "supervisord", "dinit", "openrc-init", "launchd", "pause"})


def ends_with(environ: Mapping[str, str], namespace: int, above: Collection[int], first: str) -> str:
    """What takes the uploader along when training ends, "" if nothing does."""
    if system := job.batch_system(environ):
        return f"the {system} job"
    return "this container" if namespace not in (0, MACHINE) and 1 in above and first not in INITS else ""


def ends_here(environ: Mapping[str, str] = os.environ) -> str:
    """The same of this process."""
    above, first = {os.getpid(), *process.ancestors()}, ""
    with contextlib.suppress(OSError), open("/proc/1/comm", encoding="utf-8", opener=process.open_above) as file:
        first = file.read().strip()
    return ends_with(environ, process.pid_namespace(), above, first)
