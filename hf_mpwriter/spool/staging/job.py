"""What travels between a copy and who starts it: the job one way, lines the other way.

    mirror  --CopyJob, on an inherited descriptor-->    copy
    mirror  <--lines, on the standard output--     copy
                CopyWay {"way": "rename"}                      how files get there
                Arrived {"path": ..., "length": 4711}          it is there, whole
                Conflict {"path": ..., "reason": ...}          something else is there
                Withheld {"path": ..., "reason": ...}              it cannot be brought as it is; others can
                Absent {"path": ...}                           it is not; or here it was removed
                Listed {"files": {...}}                        what the logdir holds
                Fetched {"path": ..., "length": 4711}          it is here, whole
                Unread {"path": ..., "reason": ...}            it cannot be read there
                Failure {"reason": ..., "is_refused": ...}     last
                Finished {}                                    last

A line is the name of a dataclass and its JSON, see `base/state`. Any other line is ignored: libraries may print, too.
"""

from __future__ import annotations

import typing
from dataclasses import dataclass

from hf_mpwriter.base import state
from hf_mpwriter.base.names import is_run_path
from hf_mpwriter.system.filesystem import Mount


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
    lists: bool = False  # whether it is only to tell what is there
    fetches: bool = False  # whether the items come from there
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
class Listed:
    """What the logdir holds; nothing of a spool."""

    files: dict[str, int]  # bytes per path

    def __post_init__(self) -> None:
        if not all(map(is_run_path, self.files)):
            raise ValueError("not paths of a run directory")


@dataclass(frozen=True)
class Fetched:
    """A file of the logdir is here, whole."""

    path: str
    length: int


@dataclass(frozen=True)
class Unread:
    """A file of the logdir cannot be read, while others may."""

    path: str
    reason: str


@dataclass(frozen=True)
class Failure:
    """The copy has failed."""

    reason: str  # for people
    is_refused: bool  # whether it will fail again for the same reason: no permission, no space, no such bucket
    is_gone: bool = False  # whether what was mounted is not there any more: what it held has to be compared anew
    is_late: bool = False  # whether it took longer than its limit
    is_setting: bool = False  # whether the logdir cannot be reached from this Python
    is_of_files: bool = False  # whether only files have failed, and those of other writers are worth a try


@dataclass(frozen=True)
class Finished:
    """All was done."""


Message = CopyWay | Arrived | Absent | Conflict | Withheld | Listed | Fetched | Unread | Failure | Finished
_KINDS: tuple[type[Message], ...] = typing.get_args(Message)


def from_line(line: bytes) -> Message | None:
    """What a line says, None if it is not from a copy."""
    return state.from_line(_KINDS, line)
