"""Restoration: how far a restore has come, from the process that does it to the worker that waits for it.

    restore  --lines, on its standard output-->  worker      Restoration {"files": 12, "size": 80123, ...}

    restored.json           the last of these lines, of the last restore on this host
    unrestored.json         {"files": {"rank_00001/events.out...": 4711}}: listed in the logdir, and not here yet
    restore.lock            held by the process that asks for a restore until it has joined; never unlinked
    restoring/<32 hex>      files on their way from the logdir

Any other line is ignored: libraries may print, too.

Invariant: names of event files that are made after a restore sort behind `last`, whether the files themselves came back
or not.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Self

from hf_mpwriter.base import state
from hf_mpwriter.base.names import is_run_path
from hf_mpwriter.spool.layout import Spool
from hf_mpwriter.system import disk
from hf_mpwriter.system.directory import Place

_RECORD, _MISSING = "restored.json", "unrestored.json"


@dataclass(frozen=True)
class Restoration:
    """How far a restore has come."""

    files: int = 0  # event files that are in the logdir, and not here
    size: int = 0  # bytes of these
    came: int = 0  # bytes of these that are here by now
    first: int = 0  # the least second in the name of an event file in the logdir, 0 if there is none
    last: int = 0  # the greatest one
    unread: int = 0  # files that cannot be read there
    reason: str = ""  # one of these, and why
    failure: str = ""  # why it has failed, "" if it has not
    is_setting: bool = False  # whether that is for the user to mend: the logdir cannot be reached from this Python
    is_over: bool = False  # whether all is here that can be read
    at: float = 0.0  # unix time when it ended, in the record

    @classmethod
    def read(cls, spool: Spool) -> Self:
        """The record of the last restore; an empty one if there is none, or if it cannot be read."""
        return state.read(cls, _place(spool))

    def save(self, spool: Spool) -> None:
        """Write the record; OSError if the disk refuses."""
        disk.replace(_place(spool), state.dump(self), "mirror.restored", durable=False)


@dataclass(frozen=True)
class Unrestored:
    """What the last restore has found in the logdir and not brought: it was cut short, or could not read it."""

    files: dict[str, int] = field(default_factory=dict)  # bytes there, per path

    def __post_init__(self) -> None:
        if not all(map(is_run_path, self.files)):
            raise ValueError("not paths of a run directory")

    @classmethod
    def read(cls, spool: Spool) -> Self:
        """The record; an empty one if there is none, or if it cannot be read."""
        return state.read(cls, spool.directory / _MISSING)

    def save(self, spool: Spool) -> None:
        """Write the record, or remove an empty one; OSError if the disk refuses."""
        place = spool.directory / _MISSING
        if self.files:
            disk.replace(place, state.dump(self), "mirror.unrestored", durable=False)
        elif place.exists():
            disk.remove(place, "mirror.unrestored", durable=False)

    def still_missing(self, spool: Spool) -> dict[str, int]:
        """Bytes there, per path of a file that is not here, or not so long."""
        return {path: size for path, size in self.files.items() if _size(spool.run / path) < size}


def _size(place: Place) -> int:
    """Bytes of a file here; -1 if there is none."""
    try:
        return place.stat().st_size
    except OSError:
        return -1


def _place(spool: Spool) -> Place:
    return spool.directory / _RECORD


def restore_lock(spool: Spool) -> Place:
    """The lock of a restore, held until the process that asked for it has joined."""
    return spool.directory / "restore.lock"
