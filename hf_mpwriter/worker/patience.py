"""Patience: how long a process waits at its end, as pure functions.

In seconds; the first row that fits; no row exceeds `exit_timeout`:

    end                    uploader                                   in all            without progress
    after an exception     fails or stands                            AFTER_FAILURE     any
    after an exception,    any other                                  BESIDE_PEERS      IDLE_BESIDE_PEERS
      of a rank of several
    the user asked for it  any                                        `exit_timeout`    any
    it is the last time    any, but below `hf-mpwriter run` one that  `exit_timeout`    any
                             waits in line
    any other              may push only later than SOON, or waits    0                 any
                             in line for longer than RETRY            (SOON while a live bucket is to get the rest)
                           fails                                      RETRY             any
                           stands                                     SOON              any
                           asks a Hub that has not answered for SOON  0                 any
                           any other                                  `exit_timeout`    any

In line: the repository has got many commits in a short time, as of the trials of a sweep, and each has to wait for its
turn. So another trial follows, and the uploader goes on; not in a container or batch job, whose end may be near.

An end is the last time to wait if the uploader ends with this process (see Lifetime), or below `hf-mpwriter run`,
which limits the wait to its grace. Elsewhere a process waits only while that helps: the uploader goes on without it.

After an exception in a `with` block, the block does not wait: the end of the interpreter does, when it has printed the
traceback. Progress is what the Hub has taken, and each step of the uploader: it starts a push, or ends one.

Lifetime: what ends with this process, and takes the uploader along. Then its end is the last time to wait.

    a batch job         of SLURM, PBS, LSF, Grid Engine or Hugging Face Jobs: its end takes all its processes
    a container         its process 1 is an ancestor of this process, or this process, and no init of a system; when it
                        ends, the kernel kills what is left in its pid namespace

Facts behind this module: the pid namespace of the machine has a fixed inode (PROC_PID_INIT_INO in include/linux/
proc_ns.h). `docker run --init`, tini and dumb-init end with the command that they were given.
"""

from __future__ import annotations

import math
import os
from collections.abc import Collection, Mapping
from typing import NamedTuple

from hf_mpwriter.base import job
from hf_mpwriter.delivery.sinks import Outlook
from hf_mpwriter.system import process

SOON = 10.0  # seconds
RETRY = 3.0  # seconds, in which a push is tried, and perhaps once more
AFTER_FAILURE = 2.0  # seconds after an exception, while nothing gets to the Hub
IDLE_BESIDE_PEERS = 2.0  # seconds
BESIDE_PEERS = 10.0  # seconds; the launcher restarts the others only when this process has ended
MACHINE = 0xEFFFFFFC  # inode of the pid namespace of the machine
INITS = frozenset({"systemd", "init", "runit", "s6-svscan", "supervisord", "dinit", "openrc-init", "launchd", "pause"})


class Terms(NamedTuple):
    """How a process ends."""

    exit_timeout: float  # seconds that it may wait for the Hub
    failed: bool = False  # whether it ends after an exception
    has_peers: bool = False  # whether it is a rank of several
    spent: float = 0.0  # seconds that it has waited for other run directories
    is_asked: bool = False  # whether the user has asked for the wait
    is_last: bool = False  # whether it is the last time
    ends_with: str = ""  # what takes the uploader along, see above


class Patience(NamedTuple):
    """How long a process waits at its end."""

    longest: float  # seconds in all
    idle: float = math.inf  # seconds without progress


def patience(terms: Terms, outlook: Outlook) -> Patience:
    """How long a process waits at its end; for the rows, see the head of this module."""
    longest, idle = terms.exit_timeout, math.inf
    if terms.failed and (outlook.fails or outlook.stands):
        longest = AFTER_FAILURE
    elif terms.failed and terms.has_peers:
        longest, idle = BESIDE_PEERS, IDLE_BESIDE_PEERS
    elif not terms.is_asked and (not terms.is_last or (outlook.in_line and not terms.ends_with)):
        longest = _while_it_helps(longest, outlook)
    return Patience(max(0.0, min(longest, terms.exit_timeout) - terms.spent), idle)


def _while_it_helps(longest: float, outlook: Outlook) -> float:
    if outlook.turn_in > (RETRY if outlook.in_line else SOON) or outlook.unanswered >= SOON:
        return SOON if outlook.safe_soon else 0.0
    return RETRY if outlook.fails else SOON if outlook.stands else longest


def is_failure(error: BaseException | None) -> bool:
    """Whether an exception that leaves a block is a failure; the end of a generator and `sys.exit(0)` are none."""
    if isinstance(error, SystemExit):
        return error.code not in (None, 0)
    return error is not None and not isinstance(error, GeneratorExit)


def ends_with(environ: Mapping[str, str], namespace: int, above: Collection[int], first: str) -> str:
    """What takes the uploader along when training ends, "" if nothing does."""
    if system := job.batch_system(environ):
        return f"the {system} job"
    return "this container" if namespace not in (0, MACHINE) and 1 in above and first not in INITS else ""


def ends_here(environ: Mapping[str, str] = os.environ) -> str:
    """The same of this process."""
    above, first = {os.getpid(), *process.ancestors()}, process.contents("/proc/1/comm").decode().strip()
    return ends_with(environ, process.pid_namespace(), above, first)
