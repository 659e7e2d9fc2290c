"""What travels between a mirror and its copy: the job one way, a line per file the other way.

    mirror  --CopyJob, on an inherited descriptor-->    copy
    mirror  <--lines, on the standard output--     copy
                CopyWay {"way": "rename"}                      how files get there
                Arrived {"path": ..., "length": 4711}          it is there, whole
                Conflict {"path": ..., "reason": ...}          something else is there
                Withheld {"path": ..., "reason": ...}              it cannot be brought as it is; others can
                Absent {"path": ...}                           it is not; or here it was removed
                Failure {"reason": ..., "is_refused": ...}     last
                Finished {}                                    last

A line is the name of a dataclass and its JSON, see `base/state`. Any other line is ignored: libraries may print, too.
"""

from __future__ import annotations

import typing
from collections.abc import Collection
from dataclasses import dataclass, replace

from hf_mpwriter.base import state
from hf_mpwriter.base.names import is_run_path
from hf_mpwriter.snapshot.event_files import writer_of
from hf_mpwriter.spool.staging.record import Mirrored
from hf_mpwriter.system.filesystem import Mount

LIMIT_BASE = 60.0  # seconds for a copy, however small: a mount that hangs is given up after that
LIMIT_RATE = 500_000.0  # bytes per second that a slow mount takes
LIMIT_LONGEST = 3600.0  # seconds up to which the limit is doubled for what took too long
JOB_FILES = 200  # files in one job
JOB_BYTES = 256 << 20  # bytes in one job; a single file may have more


@dataclass(frozen=True)
class Item:
    """A file that is to be in the logdir."""

    path: str  # relative to the run directory
    length: int  # bytes

    def __post_init__(self) -> None:
        if not is_run_path(self.path) or self.length < 0:
            raise ValueError(f"not a file of a run directory: {self!r:.200}")


@dataclass(frozen=True)
class CopyJob:
    """What a copy has to know."""

    run_dir: str  # absolute path
    to: str  # the logdir: an absolute path, or a URL
    mark: str  # what begins the temporary names of this mirror, and of no other
    items: tuple[Item, ...]  # in an order of which any prefix may be there without the rest
    way: str = ""  # "rename", "in place", or "" if it has to be found out
    only_compare: bool = False  # whether nothing is written
    only_lengths: bool = True  # of a comparison, whether contents are left out
    mount: Mount | None = None  # on which the logdir has to be, None for any


@dataclass(frozen=True)
class CopyWay:
    """How files get there: "rename" or "in place"."""

    way: str


@dataclass(frozen=True)
class Arrived:
    """A file is there, whole."""

    path: str
    length: int


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
class Failure:
    """The copy has failed."""

    reason: str  # for people
    is_refused: bool  # whether it will fail again for the same reason: no permission, no space, no such bucket
    is_gone: bool = False  # whether what was mounted is not there any more: what it held has to be compared anew
    is_late: bool = False  # whether it took longer than its limit
    is_of_files: bool = False  # whether only files have failed, and those of other writers are worth a try


@dataclass(frozen=True)
class Finished:
    """All was done."""


Message = CopyWay | Arrived | Absent | Conflict | Withheld | Failure | Finished
_KINDS: tuple[type[Message], ...] = typing.get_args(Message)


def limit(job: CopyJob, late: int = 0) -> float:
    """Seconds after which a copy is given up."""
    first = LIMIT_BASE + sum(item.length for item in job.items) / LIMIT_RATE
    return max(first, min(LIMIT_LONGEST, first * 2.0 ** min(late, 20)))


def bounded(items: list[Item]) -> tuple[Item, ...]:
    """The first items, as many as one job may hold."""
    size = 0
    for count, item in enumerate(items):
        size += item.length
        if count and (count == JOB_FILES or size > JOB_BYTES):
            return tuple(items[:count])
    return tuple(items)


def turned(items: list[Item], failures: int, behind: Collection[tuple[str, str]] = ()) -> list[Item]:
    """The items with those of other writers first after failures: a file that cannot be brought holds up only its
    own.
    """
    writers = list(dict.fromkeys(writer_of(item.path) for item in items))
    start = failures % max(1, len(writers))
    rank = {writer: place for place, writer in enumerate(writers[start:] + writers[:start])}
    return sorted(items, key=lambda item: (writer_of(item.path) in behind, rank[writer_of(item.path)]))


def chosen(waiting: list[Item], failures: int, behind: Collection[tuple[str, str]]) -> tuple[Item, ...]:
    """The files of the next job; see `turned` for the arguments."""
    return bounded(turned(waiting, failures, behind))


def recorded(known: Mirrored, message: Message) -> Mirrored:
    """What is known to be in the logdir after a message."""
    match message:
        case Arrived(path, length):
            return known.having(path, length)
        case Conflict(path, reason) | Withheld(path, reason):
            return known.lacking(path, reason)
        case CopyWay(way):
            return replace(known, way=way)
        case Failure():  # it may be another mount by now
            return replace(known, way="", late=known.late + message.is_late)
        case Finished():
            return replace(known, late=0)
    return known


def from_line(line: bytes) -> Message | None:
    """What a line says, None if it is not from a copy."""
    return state.from_line(_KINDS, line)
