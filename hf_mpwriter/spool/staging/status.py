"""The status of a mirror: what it publishes about itself; what others read of that.

    hosts/<host>/mirror_status.json
    {"process": {...}, "started_at": 1795236610.0, "beat": ..., "phase": "idle", "copy": 0, "waiting": 0,
     "is_refused": false, "reason": "", "failures": 0, "failed_at": 0.0, "next_try": 0.0, "checked": ...}

Invariants:
- It is for display, and not made durable. Damaged, it counts as empty.
- No secret stands in it.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

from hf_mpwriter.base import state
from hf_mpwriter.spool.layout import HostSpool
from hf_mpwriter.spool.staging.record import MirrorPlaces
from hf_mpwriter.spool.status import BEAT_EVERY, SILENCE
from hf_mpwriter.system import disk
from hf_mpwriter.system.daemon import rotate_log
from hf_mpwriter.system.process import Process

logger = logging.getLogger("hf_mpwriter")


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
    checked: float = 0.0  # unix time when all that is here was compared with the logdir last, 0 if it never was

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
        self.status = dataclasses.replace(self.status, **fields)  # type: ignore[arg-type]

    def publish(self, *, phase: str, waiting: int, copy: int) -> None:
        """Write the file if something has changed, or if the heartbeat is due; see `MirrorStatus`."""
        self.change(phase=phase, waiting=waiting, copy=copy)
        if self.status == self._published and self._clock() - self._beat_at < BEAT_EVERY:
            return
        self._published, self._beat_at = self.status, self._clock()
        data = state.dump(dataclasses.replace(self.status, beat=time.time()))
        try:
            disk.replace(self._places.status, data, "mirror.status", durable=False)
            rotate_log(self._places.log)
        except OSError as error:
            logger.info("the status cannot be published: %s", error)
