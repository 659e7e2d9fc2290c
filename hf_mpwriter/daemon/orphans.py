"""Orphans: processes of ours that became children of this process because it is process 1, as in a container.

    this worker   --posix_spawn-->  uploader          a child of ours, and the leader of its session
    other ranks   --posix_spawn-->  first half        leads the session, and ends; its uploader becomes a child of ours
    an uploader   ------------->    push, search      become children of ours when the uploader is killed
    a mirror      ------------->    copy              the same, when the mirror is killed

Process 1 has to collect them when they end, or they stay as zombies. An init would do that.

Invariants:
- Only zombies of known sessions are collected: those of what this worker started, or saw at work for its run directory.
  The user's children keep their exit codes.
- A session keeps its number while a process of it is left, zombies included. So no process of the user is in it, unless
  the number was used again; such a process has started after the uploader ended.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator, Mapping

from hf_mpwriter.daemon.starts import STATUSES
from hf_mpwriter.spool.layout import Spool
from hf_mpwriter.system import launch, process

PATIENCE = 60.0  # seconds after the end of a leader; what it has started ends later


class Orphans:
    """The processes that this one has to collect."""

    def __init__(self, spool: Spool, kind: str) -> None:
        self._spool, self._kind = spool, kind
        self._living: dict[int, tuple[int, int]] = {}  # session -> pid and start ticks of its leader
        self._over: dict[int, float] = {}  # session -> seconds since boot when its uploader was seen to be over

    def add_child(self, pid: int) -> None:
        """Note a process that this one has started."""
        if os.getpid() == 1:
            self._living[pid] = pid, process.start_ticks(pid)

    def collect(self) -> None:
        """Collect what has ended; only process 1 has anything to do."""
        if os.getpid() != 1:
            return
        self._note_leader()
        for session, (pid, ticks) in list(self._living.items()):
            if process.start_ticks(pid) != ticks or not ticks:
                del self._living[session]
                self._over[session] = _since_boot()
        if not self._over:
            return
        for pid in _zombies(self._over):
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)
        self._over = {session: at for session, at in self._over.items() if _since_boot() - at < PATIENCE}

    def _note_leader(self) -> None:
        """Note the one at work, whichever rank has started it. The status is only a hint: it is verified."""
        pid = STATUSES[self._kind].read(self._spool.host(process.host_id())).pid
        ticks = process.start_ticks(pid) if pid > 1 else 0
        if not ticks or (pid, ticks) in self._living.values():
            return
        with contextlib.suppress(OSError):
            if launch.is_command_of(self._kind, process.command_line(pid), self._spool.run_dir):
                self._living[os.getsid(pid)] = pid, ticks


def has_ended(pid: int) -> bool:
    """Whether a child of this process has ended; then it is collected."""
    try:
        return os.waitpid(pid, os.WNOHANG)[0] == pid
    except ChildProcessError:  # the user's own wait() took it
        return True


def _since_boot() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def _zombies(over: Mapping[int, float]) -> Iterator[int]:
    """The zombies of these sessions that are children of this process."""
    tick = 1 / os.sysconf("SC_CLK_TCK")
    for pid, found in process.processes().items():
        is_ours = found.state == "Z" and found.parent == os.getpid()
        if is_ours and found.ticks * tick < over.get(found.session, 0.0):
            yield pid
