"""Copies: the processes that alone touch a logdir, as who starts one sees it: the job one way, lines the other way.

    mirror, worker, `verify`  --CopyJob, on an inherited descriptor-->  copy
                              <--lines, on the standard output--------  copy

    BRING      the items are to be in the logdir    Arrived, Conflict, Withheld, Absent
    FETCH      the items are to come from there     Arrived, Conflict, Unread
    LIST       what is there?                       Listed
    COMPARE    are the items there?                 Arrived, Conflict, Absent

The last line is Finished or Failure. A line is the name of a dataclass and its JSON, see `base/state`. Any other line
is ignored: libraries may print, too.

Invariants:
- One copy at a time lives for a run directory and host: each holds `copy.lock` until the kernel has ended it. One that
  compares holds `compare.lock`: it may read for long, and keeps no file from the logdir. One that lists for a worker
  holds `look.lock`.
- No process waits for a copy: the job is a whole file, and the pipe is not blocking.
- A copy knows from the record of the run on which mount the logdir has to be; only a look and a comparison do without.
"""

from __future__ import annotations

import dataclasses
import errno
import os
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from hf_mpwriter.base import state
from hf_mpwriter.base.names import is_run_path
from hf_mpwriter.base.timing import USUAL
from hf_mpwriter.spool.layout import Spool
from hf_mpwriter.spool.staging import COMPARE_LOCK, COPY_LOCK, LastPlace, MirrorRecord
from hf_mpwriter.system import launch, locks
from hf_mpwriter.system.filesystem import Mount
from hf_mpwriter.system.launch import Child
from hf_mpwriter.system.process import host_id

LIMIT_RATE = 500_000.0  # bytes per second that a slow mount takes
LIMIT_LONGEST = 3600.0  # seconds up to which the limit is doubled for what took too long
JOB_FILES = 200  # files in one job
JOB_BYTES = 256 << 20  # bytes in one job; a single file may have more


class Task(StrEnum):
    """What a copy does."""

    BRING = "bring"
    FETCH = "fetch"
    LIST = "list"
    COMPARE = "compare"


@dataclass(frozen=True)
class Item:
    """A file that is to be in both places."""

    path: str  # relative to the run directory
    length: int  # bytes
    theirs: bool = False  # whether another machine has written it, see `pulled`

    def __post_init__(self) -> None:
        if not is_run_path(self.path) or self.length < 0:
            raise ValueError(f"not a file of a run directory: {self!r:.200}")


@dataclass(frozen=True)
class CopyJob:
    """What a copy has to know."""

    task: Task
    run_dir: str  # absolute path
    to: str  # the logdir: an absolute path, or a URL
    items: tuple[Item, ...] = ()  # in an order of which any prefix may be there without the rest
    mount: Mount | None = None  # on which the logdir has to be, None for any


@dataclass(frozen=True)
class Arrived:
    """All of a file that is in the one place is in the other."""

    path: str
    length: int  # bytes there: more than here of a file of which another machine has brought more


@dataclass(frozen=True)
class Absent:
    """A file is not there, or not whole, as a comparison has found; or it is not here any more."""

    path: str


@dataclass(frozen=True)
class Conflict:
    """Something else is in the place of a file, and is left alone."""

    path: str
    reason: str


@dataclass(frozen=True)
class Withheld:
    """A file cannot be read here, or is refused there, while others get there. It is tried again."""

    path: str
    reason: str


@dataclass(frozen=True)
class Listed:
    """What the logdir holds; nothing of a spool."""

    files: dict[str, int]  # bytes per path
    place: LastPlace | None = None  # where the run was kept before, as far as the logdir tells

    def __post_init__(self) -> None:
        if not all(map(is_run_path, self.files)):
            raise ValueError("not paths of a run directory")


@dataclass(frozen=True)
class Unread:
    """A file of the logdir cannot be read, while others may."""

    path: str
    reason: str


@dataclass(frozen=True)
class Failure:
    """The copy has failed."""

    reason: str  # for people
    is_refused: bool = False  # whether it will fail again for the same reason: no permission, no space, no such bucket
    is_gone: bool = False  # whether what was mounted is not there any more: what it held has to be compared anew
    is_late: bool = False  # whether it took longer than its limit
    is_setting: bool = False  # whether the logdir cannot be reached from this Python
    is_of_files: bool = False  # whether only files have failed, and those of other writers are worth a try


@dataclass(frozen=True)
class Finished:
    """All was done."""


Message = Arrived | Absent | Conflict | Withheld | Listed | Unread | Failure | Finished
_KINDS: tuple[type[Message], ...] = typing.get_args(Message)


def limit(job: CopyJob, late: int = 0, least: float = USUAL.copy_limit) -> float:
    """Seconds after which a copy is given up."""
    first = least + sum(item.length for item in job.items) / LIMIT_RATE
    return max(first, min(LIMIT_LONGEST, first * 2.0 ** min(late, 20)))


def bounded(items: list[Item], most: int = JOB_BYTES) -> tuple[Item, ...]:
    """The first items, as many as one job may hold."""
    size = 0
    for count, item in enumerate(items):
        size += item.length
        if count and (count == JOB_FILES or size > most):
            return tuple(items[:count])
    return tuple(items)


class CopyLivesError(OSError):
    """A copy of an earlier mirror lives."""


class CopyHandle(Child):
    """A copy, seen from the process that has started it."""

    def __init__(
        self,
        spool: Spool,
        job: CopyJob,
        seconds: float | None = None,
        *,
        lock: int | None = None,
        descriptors: Mapping[int, int] | None = None,
    ) -> None:
        """`lock`: is held here already; it is handed on."""
        recorded = MirrorRecord.read(spool)
        if recorded is None and lock is None and job.task is not Task.COMPARE:
            place = MirrorRecord.place(spool)
            raise OSError(errno.EIO, "it does not tell on which mount the logdir has to be", os.fspath(place))
        if recorded is not None and recorded.to == job.to:
            job = dataclasses.replace(job, mount=recorded.mount)
        given = {launch.RUN_DIR_FD: spool.run.fd, **(descriptors or {})}
        seconds = limit(job) if seconds is None else seconds
        taken = lock if lock is not None else _taken_lock(spool, job.task)
        try:
            super().__init__("copy", state.dump(job), spool.run_dir, given, lock=taken, limit=seconds)
        finally:
            if lock is None:
                locks.release(taken)
        self._last: Finished | Failure | None = None

    def listen(self) -> tuple[list[Message], Finished | Failure | None]:
        """What has become of files since the last time, and how the copy ended, None before that; never waits."""
        lines, ended = self.hear()
        told: list[Message] = []
        for line in lines:
            message = state.from_line(_KINDS, line)
            if isinstance(message, Finished | Failure):
                self._last = message
            elif message is not None:
                told.append(message)
        if not ended:
            return told, None
        return told, self._last or Failure(f"the copy {self.how_it_ended}", is_late=self.has_hung)


def _taken_lock(spool: Spool, task: Task) -> int:
    root = spool.host(host_id()).root
    lock = locks.try_exclusive(root / (COMPARE_LOCK if task is Task.COMPARE else COPY_LOCK))
    if lock is None:
        raise CopyLivesError
    return lock
