"""Records of a staged run: its logdir, what its mirror has brought there, and what the mirror does.

    mirror.json                       {"to": "/mnt/bucket/exp1", "made_at": 1795236610.0,
                                       "mount": {"point": "/mnt/bucket", "fstype": "fuse.gcsfuse", ...}}
                                      its presence makes a run staged; published once, by the first worker
    hosts/<host>/mirrored.json        {"files": {"events.out...": 4711}, "refused": {"events.out...": "reason"},
                                       "way": "rename", "late": 0}
                                      way: "in place" where names cannot change; late: copies in a row over their limit
    hosts/<host>/mirror_status.json   {"process": {...}, "started_at": 1795236610.0, "beat": ..., "phase": "idle",
                                       "copy": 0, "waiting": 0, "is_refused": false, "reason": "", "failures": 0,
                                       "failed_at": 0.0, "next_try": 0.0, "checked": ..., "listed": ...,
                                       "returning": 3, "unread": {"events.out...": "reason"}}
    hosts/<host>/copy.lock            held by the copy that runs; never unlinked
    hosts/<host>/compare.lock         the same, of `verify`, whose copy only reads

Invariants:
- `files` claims only what a copy has reported: whole in the logdir, by its length.
- None is made durable. Damaged, it counts as empty. Each mirror compares `files` with the logdir when it starts.
- No secret stands in them.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field, replace
from typing import NamedTuple, Self

from hf_mpwriter.base import state
from hf_mpwriter.base.names import is_run_path
from hf_mpwriter.spool.layout import HostSpool, Spool
from hf_mpwriter.spool.status import DaemonStatus
from hf_mpwriter.system import disk, locks
from hf_mpwriter.system.directory import Place
from hf_mpwriter.system.filesystem import Mount

logger = logging.getLogger("hf_mpwriter")

RUN_SHARE = 64  # the parts of a run's age of which one is the least age of a sealed segment


def least_age(run_age: float, commit_every: float) -> float:
    """Seconds after which an open segment of a staged run is sealed, so that it comes to the logdir."""
    return max(60 * commit_every, run_age / RUN_SHARE)


class MirrorPlaces(NamedTuple):
    """The files of one host's mirror."""

    mirrored: Place  # what is in the logdir
    copy_lock: Place  # held by the copy that runs
    compare_lock: Place  # held by the one that only compares

    @classmethod
    def of(cls, host: HostSpool) -> Self:
        """Those of a host."""
        return cls(*(host.root / name for name in ("mirrored.json", "copy.lock", "compare.lock")))


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
        except (state.DamagedError, OSError):
            return None

    def publish(self, spool: Spool) -> None:
        """Write the record, unless there is one; OSError if the disk refuses."""
        locks.publish(self.place(spool), state.dump(self), "mirror.record")

    def replace(self, spool: Spool) -> None:
        """Write the record in place of the one that is there; OSError if the disk refuses."""
        disk.replace(self.place(spool), state.dump(self), "mirror.record")


@dataclass(frozen=True)
class Mirrored:
    """What of a run is in its logdir."""

    files: dict[str, int] = field(default_factory=dict)  # bytes per path
    refused: dict[str, str] = field(default_factory=dict)  # why a path cannot be brought there, per path
    # how files get there: "rename" under a temporary name, or "in place" where names cannot change; "" if that is
    # not known yet
    way: str = ""
    late: int = 0  # copies that took longer than their limit, in a row

    def __post_init__(self) -> None:
        if not all(map(is_run_path, (*self.files, *self.refused))):
            raise ValueError("not paths of a run directory")

    @classmethod
    def read(cls, host: HostSpool) -> Self:
        """The record of a host; an empty one if there is none, or if it cannot be read."""
        return state.read(cls, MirrorPlaces.of(host).mirrored)

    def having(self, path: str, length: int) -> Self:
        """The same with a file that is there, whole."""
        if self.files.get(path) == length and path not in self.refused:
            return self
        refused = {other: reason for other, reason in self.refused.items() if other != path}
        return replace(self, files=self.files | {path: length}, refused=refused)

    def lacking(self, path: str, reason: str) -> Self:
        """The same with a file that cannot be brought there, and why."""
        files = {other: length for other, length in self.files.items() if other != path}
        return replace(self, files=files, refused=self.refused | {path: reason})

    def save(self, host: HostSpool) -> None:
        """Write the record; OSError if the disk refuses."""
        disk.replace(MirrorPlaces.of(host).mirrored, state.dump(self), "mirror.mirrored", durable=False)


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
