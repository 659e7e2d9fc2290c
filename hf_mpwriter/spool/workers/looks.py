"""Looks: which member files of this host a look has to read, where thousands of workers live, and which are ruins.

    at most AT_ONCE live workers     all
    more                             those whose file has changed, or whose process is gone; of the rest AT_ONCE in turn

To read a member file and to ask for its lock takes ten system calls, and an uploader looks every second. So a file that
was as it is now for QUIET is not read, and the lock of a process that is there is not asked for, but in turn. A worker
that was killed, and whose process id is taken by now, is found dead after as many looks as there are turns.

Invariants:
- What a worker writes is seen by the next look: the file was unchanged for longer than the clock of a filesystem is
  coarse when it was read, so any later write changes its time.
- A worker of another host is always read: attributes may be old there.
"""

from __future__ import annotations

import os
import time

from hf_mpwriter.spool.workers.member_lines import MemberName, Reading
from hf_mpwriter.system import locks
from hf_mpwriter.system.directory import Place
from hf_mpwriter.system.process import host_id, start_ticks

AT_ONCE = 64  # live workers that each look reads
QUIET = 2 * 10**9  # nanoseconds, the coarsest clock of a filesystem


class Looks:
    """The looks of one observer at the member files of its host."""

    def __init__(self) -> None:
        self._number = self._turns = 0
        self._quiet_before = 0  # unix time (ns)
        self._stamps: dict[Reading, tuple[int, ...]] = {}
        self._before: dict[Reading, tuple[int, ...]] = {}

    def begin(self) -> None:
        """A look begins."""
        self._turns = -(-len(self._stamps) // AT_ONCE)
        self._number += 1
        self._quiet_before = time.time_ns() - QUIET
        self._before, self._stamps = self._stamps, {}

    def may_skip(self, known: Reading, place: Place) -> bool:
        """Whether a live worker of this host need not be read by this look."""
        before, stamp = self._before.get(known), _stamp(place)
        is_in_turn = self._turns <= 1 or (self._number + len(self._stamps)) % self._turns == 0
        self._stamps[known] = stamp if stamp and stamp[2] < self._quiet_before else ()
        return bool(before) and before == stamp and not is_in_turn and _may_live(known.name.pid)


def is_ruin(file_name: str, path: Place) -> bool:
    """Whether this is the member file of a dead worker that cannot be read, or was never finished."""
    unfinished = file_name.startswith(".") and file_name.endswith(".tmp")
    name = MemberName.parse(file_name[1:-4] if unfinished else file_name)
    if name is None or locks.is_held(path):
        return False
    if unfinished:  # it is not locked yet for a moment after it was made
        return name.host == host_id() and start_ticks(name.pid) != name.ticks
    found = Reading(name)
    found.read(path)
    return found.member is None


def _stamp(place: Place) -> tuple[int, ...]:
    """Inode, size and modification time (ns), () if there is no file."""
    try:
        status = os.stat(place.name, dir_fd=place.directory.fd, follow_symlinks=False)
    except OSError:
        return ()
    return status.st_ino, status.st_size, status.st_mtime_ns


def _may_live(pid: int) -> bool:
    """Whether a process of this id lives here; of another pid namespace it seems not to, and is asked for its lock."""
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True
    except (OSError, OverflowError):
        return False
    return True
