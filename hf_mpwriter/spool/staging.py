"""Staging: what the processes of a staged run share about its logdir: where it is, and what of the run is there.

    mirror.json                       {"to": "/mnt/bucket/exp1", "made_at": 1795236610.0,
                                       "mount": {"point": "/mnt/bucket", "fstype": "fuse.gcsfuse", ...}}
                                      its presence makes a run staged; published once, by the first worker
    listed.json                       {"missing": {"rank_00001/events.out...": 4711}, "first": 1795233002,
                                       "last": 1795236610, "at": 1795236615.2, "failure": ""}
                                      what was there and not here when an attempt began; a mirror lists for itself
    look.lock                         held by the process that looks, and by the copy that lists for it
    arriving/<32 hex>                 files on their way from the logdir
    hosts/<host>/mirrored.json        {"files": {"events.out...": 4711}, "refused": {"events.out...": "reason"},
                                       "late": 0}                    late: copies in a row over their limit
    hosts/<host>/mirror_status.json   {"process": {...}, "started_at": 1795236610.0, "beat": ..., "phase": "idle",
                                       "copy": 0, "waiting": 0, "is_refused": false, "reason": "", "failures": 0,
                                       "failed_at": 0.0, "next_try": 0.0, "checked": ..., "listed": ...,
                                       "returning": 3, "unread": {"events.out...": "reason"}}
    hosts/<host>/copy.lock            held by the copy that runs
    hosts/<host>/compare.lock         the same, of `verify`, whose copy only reads

Invariants:
- `files` claims only what a copy has reported: whole in the logdir, by its length.
- Names of event files that are made after a look sort behind `last`, whether the files themselves are here or not.
- Only `mirror.json` is made durable. Damaged, a file counts as empty. Each mirror compares with the logdir when it
  starts.
- No secret stands in them, and no lock file is ever unlinked.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Self

from hf_mpwriter.base import names, state
from hf_mpwriter.spool.layout import HostSpool, Spool
from hf_mpwriter.spool.status import DaemonStatus
from hf_mpwriter.system import disk
from hf_mpwriter.system.directory import Directory, Place
from hf_mpwriter.system.filesystem import Mount
from hf_mpwriter.system.interrupts import ours

ARRIVING = "arriving"  # directory of the temporary files, in the spool
COPY_LOCK, COMPARE_LOCK = "copy.lock", "compare.lock"  # of a host
RUN_SHARE = 64  # the parts of a run's age of which one is the least age of a sealed segment


def least_age(run_age: float, commit_every: float) -> float:
    """Seconds after which an open segment of a staged run is sealed, so that it comes to the logdir."""
    return max(60 * commit_every, run_age / RUN_SHARE)


@dataclass(frozen=True)
class MirrorRecord:
    """What `mirror.json` holds."""

    to: str  # the logdir: an absolute path, or a URL
    made_at: float  # unix time
    mount: Mount | None = None  # on which the logdir is, None if it is a URL, or the system does not tell

    @staticmethod
    def place(spool: Spool) -> Place:
        """Where it is."""
        return spool.directory / "mirror.json"

    @classmethod
    def read(cls, spool: Spool) -> Self | None:
        """The record, None for a run that is not staged, or if it cannot be read."""
        try:
            return state.load(cls, disk.read(cls.place(spool)) or b"")
        except ours(state.DamagedError, OSError):
            return None

    def publish(self, spool: Spool) -> None:
        """Write the record, unless there is one; OSError if the disk refuses."""
        disk.publish(self.place(spool), state.dump(self), "mirror.record")

    def replace(self, spool: Spool) -> None:
        """Write the record in place of the one that is there; OSError if the disk refuses."""
        disk.replace(self.place(spool), state.dump(self), "mirror.record")


@dataclass(frozen=True)
class Mirrored:
    """What of a run is in its logdir."""

    files: dict[str, int] = field(default_factory=dict)  # bytes per path
    refused: dict[str, str] = field(default_factory=dict)  # why a path cannot be brought there, per path
    late: int = 0  # copies that took longer than their limit, in a row

    def __post_init__(self) -> None:
        if not all(map(names.is_run_path, (*self.files, *self.refused))):
            raise ValueError("not paths of a run directory")

    @classmethod
    def read(cls, host: HostSpool) -> Self:
        """The record of a host; an empty one if there is none, or if it cannot be read."""
        return state.read(cls, mirrored_place(host))

    def save(self, host: HostSpool) -> None:
        """Write the record; OSError if the disk refuses."""
        disk.replace(mirrored_place(host), state.dump(self), "mirror.mirrored", durable=False)


def mirrored_place(host: HostSpool) -> Place:
    """Where it is recorded what of the run is in the logdir."""
    return host.root / "mirrored.json"


@dataclass(frozen=True)
class MirrorStatus(DaemonStatus):
    """What a mirror publishes about itself; its phases are idle, copying, waiting, stuck and left."""

    daemon = "mirror"

    copy: int = 0  # process id of the copy that runs, 0 if none does
    is_refused: bool = False  # whether the logdir refuses, so that it is tried slowly
    next_try: float = 0.0  # unix time; no copy starts before
    checked: float = 0.0  # unix time when all that is here and there was compared last, 0 if it never was
    listed: float = 0.0  # the same of a list of what is there
    returning: int = 0  # files that are there, and are still to come here
    unread: dict[str, str] = field(default_factory=dict)  # those that cannot be read there: the reason, per path

    def _hindrance(self, now: float) -> str:
        stuck = "a process hangs in the logdir, and cannot be killed"
        return stuck if self.phase == "stuck" else super()._hindrance(now)


@dataclass(frozen=True)
class LastPlace:
    """Where the run was kept whose copy came to the logdir last: what `.hf_mpwriter/ELSEWHERE` there holds."""

    host: str  # see `system/process.host_id`
    run_dir: str

    @classmethod
    def read(cls, data: bytes) -> Self | None:
        """What a logdir says, None if that is not for us."""
        try:
            return state.load(cls, data)
        except ours(state.DamagedError):
            return None


@dataclass(frozen=True)
class Listing:
    """What a look has found."""

    missing: dict[str, int] = field(default_factory=dict)  # bytes there, per path of an event file of ours
    first: int = 0  # the least second in the name of an event file there, 0 if there is none
    last: int = 0  # the greatest one
    at: float = 0.0  # unix time when it ended
    failure: str = ""  # why nothing is known, "" if it is

    def __post_init__(self) -> None:
        if not all(map(names.is_run_path, self.missing)):
            raise ValueError("not paths of a run directory")

    @classmethod
    def of(cls, spool: Spool, files: Mapping[str, int], at: float) -> Self:
        """What follows from the names and lengths in the logdir."""
        base_names = list(map(os.path.basename, files))
        seconds = filter(None, map(names.event_second, base_names))
        missing = {path: size for path, size in lacking(spool.run, files).items() if not names.is_config(path)}
        return cls(missing, min(seconds, default=0), names.last_second(base_names), at)

    @classmethod
    def read(cls, spool: Spool) -> Self:
        """The record of the last look; an empty one if there is none, or if it cannot be read."""
        return state.read(cls, _place(spool))

    def save(self, spool: Spool) -> None:
        """Write the record; OSError if the disk refuses."""
        disk.replace(_place(spool), state.dump(self), "mirror.listed", durable=False)

    def still_missing(self, spool: Spool) -> dict[str, int]:
        """Bytes there, per path of a file that is not here, or not so long."""
        return lacking(spool.run, self.missing)


def lacking(run: Directory, files: Mapping[str, int]) -> dict[str, int]:
    """Of the files of a logdir, those that are to come here: event files of ours, and lists of embeddings."""
    return {
        path: size
        for path, size in files.items()
        if (names.is_config(path) or names.is_ours(os.path.basename(path))) and size > max(0, length(run / path))
    }


def length(place: Place) -> int:
    """Bytes of a file here; -1 if there is none."""
    try:
        return place.stat().st_size
    except ours(OSError):
        return -1


def look_lock(spool: Spool) -> Place:
    """The lock of a look."""
    return spool.directory / "look.lock"


def _place(spool: Spool) -> Place:
    return spool.directory / "listed.json"
