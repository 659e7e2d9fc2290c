"""The derived event file that an uploader writes: which one may still grow.

    hosts/<host>/all_ranks_open.json      {"open": "_all_ranks/events.out...", "process": {...}}

The uploader is no member: no process waits for it, and it counts for no worker that lives. So its file stands here.

Invariants:
- The path is on disk before the file exists, as in a member file.
- It counts while the process that wrote it lives: an uploader of this host by its identity, one of another host as long
  as it is heard of.
"""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass

from hf_mpwriter.base import state
from hf_mpwriter.base.names import is_run_path
from hf_mpwriter.spool.layout import HostSpool, Spool
from hf_mpwriter.system import disk
from hf_mpwriter.system.directory import Place
from hf_mpwriter.system.process import Process

SEAL_WAIT = 70.0  # seconds after the end of the last worker, in which an uploader seals its derived file
SILENCE = 300.0  # seconds without a heartbeat of an uploader of another host


@dataclass(frozen=True)
class Derived:
    """The derived file that is open."""

    open: str  # its path
    process: Process  # that writes it

    def __post_init__(self) -> None:
        if not is_run_path(self.open):
            raise ValueError(f"not a path of a run directory: {self.open!r:.200}")


def _place(host: HostSpool) -> Place:
    return host.root / "all_ranks_open.json"


def record(host: HostSpool, path: str) -> None:
    """Record a derived file of this process that is about to be made; OSError if the disk refuses."""
    disk.replace(_place(host), state.dump(Derived(path, Process.current())), "all_ranks.growing", durable=False)


def clear(host: HostSpool) -> None:
    """Record that no derived file of this host grows; OSError if the disk refuses."""
    with contextlib.suppress(IsADirectoryError):  # it names no file, and `record` moves it aside
        disk.remove(_place(host), "all_ranks.growing", durable=False)


def open_files(spool: Spool) -> set[str]:
    """The derived files that may still grow."""
    found = set()
    for host in map(spool.host, spool.host_ids()):
        try:
            derived = state.load(Derived, disk.read(_place(host)) or b"")
        except (state.DamagedError, OSError):
            continue
        if _lives(host, derived.process):
            found.add(derived.open)
    return found


def _lives(host: HostSpool, process: Process) -> bool:
    current = Process.current()
    if (process.host, process.namespace) == (current.host, current.namespace):
        return process.boot == current.boot and Process.of(process.pid) == process
    try:
        return abs(time.time() - host.status.stat().st_mtime) < SILENCE
    except OSError:
        return False


class DerivedSeals:
    """What one observer sees of derived files: that one is still to be sealed, and that one was."""

    def __init__(self, spool: Spool) -> None:
        self._spool = spool
        self._open = set[str]()

    def look(self, idle_for: float) -> tuple[bool, bool]:
        """Whether the seal of one is to be waited for, and whether one was sealed since the last look."""
        before, self._open = self._open, open_files(self._spool)
        return bool(self._open) and idle_for < SEAL_WAIT, not before <= self._open
