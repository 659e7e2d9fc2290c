"""Samples: the claim, the member file and the event file of a sampler. It is the home of that file.

    _system/<host>/events.out.tfevents...       one record a sample, with all its values

Invariants:
- The directory is written only under its claim. Hosts of one name have directories of their own.
- At its end it leaves a member file only if an uploader or a mirror has still to come for what it has written.
"""

from __future__ import annotations

import contextlib
import functools
import math
import time
from collections.abc import Callable, Mapping

from hf_mpwriter.base.names import sampler_directory, sampler_name
from hf_mpwriter.base.settings import Settings
from hf_mpwriter.delivery.sinks import HubSink, LogdirSink
from hf_mpwriter.events import framing
from hf_mpwriter.events.event_file import EventFile
from hf_mpwriter.events.series import SEGMENT_MIN
from hf_mpwriter.spool.layout import Spool
from hf_mpwriter.spool.staging.listing import Listing
from hf_mpwriter.spool.workers.members import MemberFile, MemberFiles, claim
from hf_mpwriter.system import disk, locks
from hf_mpwriter.system.directory import Place
from hf_mpwriter.system.process import Process, host_id


def summary(values: Mapping[str, float]) -> bytes:
    """The summary of some values, serialized; what is no finite number is left out."""
    return framing.scalars((tag, value) for tag, value in values.items() if math.isfinite(value))


class Samples:
    """What one sampler holds, and writes."""

    def __init__(self, spool: Spool, settings: Settings, clock: Callable[[], float] = time.monotonic) -> None:
        self._spool, self._settings = spool, settings
        taken = claim(spool, sampler_name(host_id().rpartition("-")[0]))
        self._name, self._claim = taken.name, taken.claim
        try:
            process = Process.current()
            self._member = MemberFiles(functools.partial(MemberFile, spool, self._name, process, settings))
        except BaseException:
            locks.release(self._claim)
            raise
        self.after, self.segment_min = Listing.read(spool).last, SEGMENT_MIN
        self._written: dict[str, int] = {}  # bytes per path that is sealed
        self._file = EventFile(self, clock=clock)

    # the home of the event file

    def directory(self) -> Place:
        """The directory of this sampler."""
        return Place(self._spool.run, sampler_directory(self._name))

    def opened(self, path: Place) -> None:
        """Record a segment that is about to be created."""
        self._member.opened(path.name)

    def sealed(self, path: Place, length: int) -> None:
        """Record a segment that is complete."""
        if length:
            self._written[path.name] = length
        self._member.sealed(path.name)

    # write

    @property
    def is_open(self) -> bool:
        """Whether the event file is open."""
        return self._file.is_open

    def add(self, step: int, wall_time: float, values: Mapping[str, float]) -> None:
        """Log a sample; what the disk refuses waits in memory."""
        self._file.check()
        if data := summary(values):
            self._file.append(framing.summary_event(wall_time, step, data))

    def seal_older(self, opened_before: float) -> None:
        """Seal the segment if it was opened before then, in monotonic seconds: a mirror takes what is sealed."""
        self._file.seal_older(opened_before)

    def seal(self) -> None:
        """Seal the event file, and ask for a push of it; the next sample opens another one."""
        self._file.close()
        with contextlib.suppress(OSError):  # an uploader that waits for the seal comes without it
            self._member.request()

    # leave

    def are_there(self) -> bool:
        """Whether the member file is where it was; not after the spool was deleted."""
        return self._member.is_there()

    def leave(self) -> None:
        """Give up claim and member file."""
        self._member.leave(self._file.dropped)
        if not self._are_awaited():  # asked now: an uploader that looks later finds the member dead
            for file in self._member.files:
                with contextlib.suppress(OSError):
                    disk.remove(file.path, "members.file", durable=False)
        locks.release(self._claim)

    def _are_awaited(self) -> bool:
        """Whether an uploader or a mirror has still to come for what was written."""
        lengths = {path: length for path, length in self._written.items() if self._settings.allows(path)}
        uploads = bool(lengths) and self._spool.has_destination()
        return bool(
            (uploads and HubSink(self._spool).missing(lengths)) or LogdirSink(self._spool).missing(self._written)
        )
