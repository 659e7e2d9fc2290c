"""Records of a staged run: its logdir, and what its mirror has brought there.

    mirror.json                       {"to": "s3://bucket/runs/exp1", "made_at": 1795236610.0}
                                      its presence makes a run staged; published once, by the first worker
    mirror.lock                       the mirror lock; never unlinked
    hosts/<host>/mirrored.json        {"files": {"events.out...": 4711}, "refused": {"events.out...": "reason"},
                                       "way": "rename"}
    hosts/<host>/mirror_status.json   {"process": {...}, "phase": "idle", "beat": ..., "next_try": ..., ...}
    hosts/<host>/mirror_starts.json   starts of mirrors, see `spool/starts`
    hosts/<host>/mirror.log           rotating log of the mirror and its copies
    hosts/<host>/copy.lock            held by the copy that runs; never unlinked

Invariants:
- `files` claims only what a copy has reported: whole in the logdir, by its length.
- Neither file is made durable. Each mirror compares `files` with the logdir when it starts.
- The status is for display. No secret stands in it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple, Self

from hf_mpwriter.base import state
from hf_mpwriter.base.names import is_run_path
from hf_mpwriter.spool.layout import HostSpool, Spool
from hf_mpwriter.system import disk
from hf_mpwriter.system.directory import Place
from hf_mpwriter.system.process import Process

SILENCE = 60.0  # seconds without a heartbeat, after which a mirror that lives counts as stuck


class MirrorPlaces(NamedTuple):
    """The files of one host's mirror.

    Attributes:
        mirrored: what is in the logdir.
        status: what the mirror does.
        starts: starts of mirrors.
        log: of the mirror and its copies.
        copy_lock: held by the copy that runs.
    """

    mirrored: Place
    status: Place
    starts: Place
    log: Place
    copy_lock: Place

    @classmethod
    def of(cls, host: HostSpool) -> Self:
        """Those of a host."""
        names = ("mirrored.json", "mirror_status.json", "mirror_starts.json", "mirror.log", "copy.lock")
        return cls(*(host.root / name for name in names))


def mirror_lock(spool: Spool) -> Place:
    """The lock of the mirror."""
    return spool.directory / "mirror.lock"


@dataclass(frozen=True)
class MirrorRecord:
    """What `mirror.json` holds.

    Attributes:
        to: the logdir: an absolute path, or a URL.
        made_at: unix time.
    """

    to: str
    made_at: float

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
        disk.publish(self.place(spool), state.dump(self), "mirror.record")


@dataclass(frozen=True)
class Mirrored:
    """What of a run is in its logdir.

    Attributes:
        files: bytes per path.
        refused: why a path cannot be brought there, per path.
        way: how files get there: "rename" under a temporary name, or "in place" where names cannot change; "" if that
            is not known yet.
    """

    files: dict[str, int] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    way: str = ""

    def __post_init__(self) -> None:
        if not all(map(is_run_path, (*self.files, *self.refused))):
            raise ValueError("not paths of a run directory")

    @classmethod
    def read(cls, host: HostSpool) -> Self:
        """The record of a host; an empty one if there is none, or if it cannot be read."""
        try:
            return state.load(cls, disk.read(MirrorPlaces.of(host).mirrored) or b"")
        except (state.DamagedError, OSError):
            return cls()

    def save(self, host: HostSpool) -> None:
        """Write the record; OSError if the disk refuses."""
        disk.replace(MirrorPlaces.of(host).mirrored, state.dump(self), "mirror.mirrored", durable=False)


@dataclass(frozen=True)
class MirrorStatus:
    """What a mirror publishes about itself.

    Attributes:
        phase: idle, copying, waiting, stuck or left; "" if no mirror was here.
        beat: unix time of the last heartbeat.
        started_at: unix time when the mirror started.
        process: the mirror, None if there was none.
        copy: process id of the copy that runs, 0 if none does.
        waiting: files that are to be brought to the logdir.
        is_refused: whether the logdir refuses, so that it is tried slowly.
        reason: why the last copy failed, "" if it did not.
        failures: in a row.
        failed_at: unix time of the last failure.
        next_try: unix time; no copy starts before.
        checked: unix time when all that is here was compared with the logdir last, 0 if it never was.
    """

    phase: str = ""
    beat: float = 0.0
    started_at: float = 0.0
    process: Process | None = None
    copy: int = 0
    waiting: int = 0
    is_refused: bool = False
    reason: str = ""
    failures: int = 0
    failed_at: float = 0.0
    next_try: float = 0.0
    checked: float = 0.0

    @classmethod
    def read(cls, host: HostSpool) -> Self:
        """The status of the last mirror of a host; an empty one if there is none, or if it cannot be read."""
        try:
            return state.load(cls, disk.read(MirrorPlaces.of(host).status) or b"")
        except (state.DamagedError, OSError):
            return cls()

    @property
    def pid(self) -> int:
        """Process id of the mirror, 0 if there was none."""
        return self.process.pid if self.process else 0

    @property
    def is_over(self) -> bool:
        """Whether the mirror left in good order."""
        return self.phase == "left"

    def stillness(self, now: float) -> str:
        """What keeps a living mirror from its work, "" if nothing is known.

        Args:
            now: unix time.
        """
        if not self.is_over and self.process and self.process.is_stopped():
            return f"process {self.pid} is stopped; to let it go on: kill -CONT {self.pid}"
        if self.phase == "stuck":
            return "a process hangs in the logdir, and cannot be killed"
        if self.beat and now - self.beat > SILENCE:
            return f"process {self.pid} has said nothing for {now - self.beat:.0f} s"
        return ""
