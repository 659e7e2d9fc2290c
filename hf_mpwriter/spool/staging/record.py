"""Records of a staged run: its logdir, what its mirror has brought there, and what the mirror does.

    mirror.json                       {"to": "/mnt/bucket/exp1", "made_at": 1795236610.0,
                                       "mount": {"point": "/mnt/bucket", "fstype": "fuse.gcsfuse", ...}}
                                      its presence makes a run staged; published once, by the first worker
    mirror.lock                       the mirror lock; never unlinked
    hosts/<host>/mirrored.json        {"files": {"events.out...": 4711}, "refused": {"events.out...": "reason"},
                                       "way": "rename", "late": 0}
                                      way: "in place" where names cannot change; late: copies in a row over their limit
    hosts/<host>/mirror_status.json   {"process": {...}, "started_at": 1795236610.0, "beat": ..., "phase": "idle",
                                       "copy": 0, "waiting": 0, "is_refused": false, "reason": "", "failures": 0,
                                       "failed_at": 0.0, "next_try": 0.0, "checked": ..., "listed": ...,
                                       "returning": 3, "unread": {"events.out...": "reason"}}
    hosts/<host>/mirror_starts.json   starts of mirrors, see `spool/starts`
    hosts/<host>/mirror.log           rotating log of the mirror and its copies
    hosts/<host>/copy.lock            held by the copy that runs; never unlinked
    hosts/<host>/compare.lock         the same, of `verify`, whose copy only reads

Invariants:
- `files` claims only what a copy has reported: whole in the logdir, by its length.
- None is made durable. Damaged, it counts as empty. Each mirror compares `files` with the logdir when it starts.
- No secret stands in them.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import NamedTuple, Self

from hf_mpwriter.base import state
from hf_mpwriter.base.names import is_run_path
from hf_mpwriter.spool.layout import HostSpool, Spool
from hf_mpwriter.spool.status import BEAT_EVERY, SILENCE
from hf_mpwriter.system import disk, locks
from hf_mpwriter.system.daemon import rotate_log
from hf_mpwriter.system.directory import Place
from hf_mpwriter.system.filesystem import Mount
from hf_mpwriter.system.process import Process

logger = logging.getLogger("hf_mpwriter")

RUN_SHARE = 64  # the parts of a run's age of which one is the least age of a sealed segment


def least_age(run_age: float, mirror_every: float) -> float:
    """Seconds after which an open segment of a staged run is sealed, so that it comes to the logdir."""
    return max(60 * mirror_every, run_age / RUN_SHARE)


class MirrorPlaces(NamedTuple):
    """The files of one host's mirror."""

    mirrored: Place  # what is in the logdir
    status: Place  # what the mirror does
    starts: Place  # starts of mirrors
    log: Place  # of the mirror and its copies
    copy_lock: Place  # held by the copy that runs
    compare_lock: Place  # held by the one that only compares

    @classmethod
    def of(cls, host: HostSpool) -> Self:
        """Those of a host."""
        names = ("mirrored.json", "mirror_status.json", "mirror_starts.json", "mirror.log", "copy.lock", "compare.lock")
        return cls(*(host.root / name for name in names))


def mirror_lock(spool: Spool) -> Place:
    """The lock of the mirror."""
    return spool.directory / "mirror.lock"


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
class MirrorStatus:
    """What a mirror publishes about itself."""

    phase: str = ""  # idle, copying, waiting, stuck or left; "" if no mirror was here
    beat: float = 0.0  # unix time of the last heartbeat
    started_at: float = 0.0  # unix time when the mirror started
    process: Process | None = None  # the mirror, None if there was none
    copy: int = 0  # process id of the copy that runs, 0 if none does
    waiting: int = 0  # files that are to be brought to the logdir
    is_refused: bool = False  # whether the logdir refuses, so that it is tried slowly
    reason: str = ""  # why the last copy failed, "" if it did not
    failures: int = 0  # in a row
    failed_at: float = 0.0  # unix time of the last failure
    next_try: float = 0.0  # unix time; no copy starts before
    checked: float = 0.0  # unix time when all that is here and there was compared last, 0 if it never was
    listed: float = 0.0  # the same of a list of what is there
    returning: int = 0  # files that are there, and are still to come here
    unread: dict[str, str] = field(default_factory=dict)  # those that cannot be read there: the reason, per path

    @classmethod
    def read(cls, host: HostSpool) -> Self:
        """The status of the last mirror of a host; an empty one if there is none, or if it cannot be read."""
        return state.read(cls, MirrorPlaces.of(host).status)

    @property
    def pid(self) -> int:
        """Process id of the mirror, 0 if there was none."""
        return self.process.pid if self.process else 0

    @property
    def is_over(self) -> bool:
        """Whether the mirror left in good order."""
        return self.phase == "left"

    def stillness(self, now: float) -> str:
        """What keeps a living mirror from its work, "" if nothing is known."""
        if not self.is_over and self.process and self.process.is_stopped():
            return f"process {self.pid} is stopped; to let it go on: kill -CONT {self.pid}"
        if self.phase == "stuck":
            return "a process hangs in the logdir, and cannot be killed"
        if self.beat and now - self.beat > SILENCE:
            return f"process {self.pid} has said nothing for {now - self.beat:.0f} s"
        return ""


class MirrorStatusFile:
    """The status file of a running mirror."""

    def __init__(self, host: HostSpool, process: Process, clock: Callable[[], float]) -> None:
        self._places, self._clock = MirrorPlaces.of(host), clock
        self.status = MirrorStatus(process=process, started_at=time.time())  # as it is now
        self._published, self._beat_at = MirrorStatus(), 0.0

    def change(self, **fields: object) -> None:
        """Change fields of the status."""
        self.status = replace(self.status, **fields)  # type: ignore[arg-type]

    def publish(self, *, phase: str, waiting: int, copy: int) -> None:
        """Write the file if something has changed, or if the heartbeat is due; see `MirrorStatus`."""
        self.change(phase=phase, waiting=waiting, copy=copy)
        if self.status == self._published and self._clock() - self._beat_at < BEAT_EVERY:
            return
        self._published, self._beat_at = self.status, self._clock()
        data = state.dump(replace(self.status, beat=time.time()))
        try:
            disk.replace(self._places.status, data, "mirror.status", durable=False)
            rotate_log(self._places.log)
        except OSError as error:
            logger.info("the status cannot be published: %s", error)
