"""The processes of a run: which to kill, to stop, to wait for.

    uploader, push    found in the status file, and checked by the command line of the process
    workers           found in the member files, and checked by host and start time
    left_behind       found among all processes of the machine, by their command lines

Each takes the absolute path of the run directory. A pid is compared with the process that has it now, so it is never
that of a stranger. The process may still end between the answer and a signal.
"""

from __future__ import annotations

import contextlib

import psutil

from hf_mpwriter.delivery.sinks import HubSink
from hf_mpwriter.spool.storage import find, spool_of
from hf_mpwriter.spool.workers.members import Members
from hf_mpwriter.system.launch import KINDS, is_command_of
from hf_mpwriter.system.process import host_id, start_ticks


def _is(kind: str, pid: int, run_dir: str | None) -> bool:
    """Whether a process is of a kind, and of the run if one is given. A zombie is none: it has no command line."""
    with contextlib.suppress(psutil.Error):
        return pid > 0 and is_command_of(kind, psutil.Process(pid).cmdline(), run_dir)
    return False


def uploader(run_dir: str) -> int:
    """Pid of the uploader on this host, 0 if there is none."""
    status = HubSink(spool_of(find(run_dir))).status()
    return status.pid if not status.is_over and _is("uploader", status.pid, None) else 0  # started for any run


def push(run_dir: str) -> int:
    """Pid of the running push on this host, 0 if there is none."""
    pid = HubSink(spool_of(find(run_dir))).status().push
    return pid if _is("push", pid, None) else 0


def workers(run_dir: str) -> list[int]:
    """Pids of the processes that log on this host, outside of other containers."""
    names = [member.name for member in Members(spool_of(find(run_dir))).all() if member.works]
    return [name.pid for name in names if name.host == host_id() and name.ticks == start_ticks(name.pid)]


def left_behind(run_dir: str, *kinds: str) -> list[int]:
    """Pids of all living processes of these kinds, see `launch.KINDS`, whatever the status files of a run say."""
    pids = [process.pid for process in psutil.process_iter()]
    return [pid for pid in pids if any(_is(kind, pid, run_dir) for kind in kinds or KINDS)]
