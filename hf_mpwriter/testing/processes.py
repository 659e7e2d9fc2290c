"""The processes of a run: whom to kill, to stop, to wait for.

Pids are told by the run directory, as they stand there, and compared with the process that has the pid now: so nobody
else is hit. Between being told and being hit a process may end all the same.
"""

from __future__ import annotations

import contextlib

import psutil

from hf_mpwriter.spool.layout import Spool
from hf_mpwriter.spool.members import Members
from hf_mpwriter.spool.progress import Progress
from hf_mpwriter.system.launch import is_command_of
from hf_mpwriter.system.process import host_id, start_ticks


def uploader(run_dir: str) -> int:
    """Pid of this host's uploader, 0 if there is none."""
    report = Progress(Spool(run_dir)).uploader()
    return report.pid if not report.is_over and _is("uploader", report.pid, run_dir) else 0


def push(run_dir: str) -> int:
    """Pid of the push that runs, 0 if none does."""
    pid = Progress(Spool(run_dir)).uploader().push
    return pid if _is("push", pid, run_dir) else 0


def workers(run_dir: str) -> list[int]:
    """Pids of the processes that log, those of other hosts and containers excepted."""
    names = [member.name for member in Members(Spool(run_dir)).all() if member.alive]
    return [name.pid for name in names if name.host == host_id() and name.ticks == start_ticks(name.pid)]


def left_behind(run_dir: str, *kinds: str) -> list[int]:
    """Pids of all uploaders and pushes of a run that are alive, zombies excepted.

    Args:
        run_dir: the run directory.
        kinds: `uploader` or `push`; both if not given.
    """
    pids = [process.pid for process in psutil.process_iter()]
    return [pid for pid in pids if any(_is(kind, pid, run_dir) for kind in kinds or ("uploader", "push"))]


def _is(kind: str, pid: int, run_dir: str) -> bool:
    """Whether this is an uploader or a push of the run; a zombie has no command line."""
    with contextlib.suppress(psutil.Error):
        arguments = psutil.Process(pid).cmdline() if pid else []
        return is_command_of(kind, arguments, run_dir)
    return False
