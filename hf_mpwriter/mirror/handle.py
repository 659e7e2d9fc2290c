"""The other end of a copy: start it, listen, end it.

    CopyHandle(spool, job)      the process is started, with descriptors of the job, the run directory and the copy lock
    listen                      what has become of files since; how it ended, once it has
    is_stuck                    it was killed, and lives: it hangs in the kernel

Invariants:
- One copy at a time lives for a run directory and host: each holds the copy lock until the kernel has ended it. One
  that only compares holds a lock of its own: it may read for long, and keeps no file from the logdir.
- No process waits for a copy: the job is a whole file, and the pipe is not blocking.
- A copy knows on which mount the logdir has to be, from the record of the run.
- A copy whose own timer does not end it is killed GRACE seconds after its limit.
"""

from __future__ import annotations

import dataclasses
import errno
import os
import signal
import time

from hf_mpwriter.base import state
from hf_mpwriter.mirror.decision import limit
from hf_mpwriter.spool.layout import Spool
from hf_mpwriter.spool.staging.job import CopyJob, Failure, Finished, Message, from_line
from hf_mpwriter.spool.staging.record import MirrorPlaces, MirrorRecord
from hf_mpwriter.system import launch, locks
from hf_mpwriter.system.launch import Child
from hf_mpwriter.system.process import host_id

GRACE = 5.0  # seconds after its limit until a copy is killed, and until one that was killed counts as stuck


class CopyLivesError(OSError):
    """A copy of an earlier mirror lives."""


class CopyHandle:
    """A copy, seen from the process that has started it."""

    def __init__(self, spool: Spool, job: CopyJob, seconds: float | None = None, late: int = 0) -> None:
        self._limit = limit(job, late) if seconds is None else seconds
        recorded = MirrorRecord.read(spool)
        if recorded is None and not job.only_compare:
            raise OSError(
                errno.EIO, "it does not tell on which mount the logdir has to be", os.fspath(MirrorRecord.place(spool))
            )
        if recorded is not None and recorded.to == job.to:
            job = dataclasses.replace(job, mount=recorded.mount)
        places = MirrorPlaces.of(spool.host(host_id()))
        lock = locks.try_exclusive(places.compare_lock if job.only_compare else places.copy_lock)
        if lock is None:
            raise CopyLivesError
        try:
            record, descriptors = state.dump(job), {launch.RUN_DIR_FD: spool.run.fd}
            self._child = Child("copy", record, spool.run_dir, descriptors, lock=lock, limit=self._limit)
        finally:
            locks.release(lock)
        self._end = time.monotonic() + self._limit + GRACE
        self._killed_at = 0.0
        self._last: Finished | Failure | None = None

    @property
    def pid(self) -> int:
        """Process id."""
        return self._child.pid

    def listen(self) -> tuple[list[Message], Finished | Failure | None]:
        """What has become of files since the last time, and how the copy ended, None before that; never waits."""
        ended = self._child.has_ended()
        if not ended and time.monotonic() > self._end:
            self.kill()
        told: list[Message] = []
        for message in map(from_line, self._child.lines()):
            if isinstance(message, Finished | Failure):
                self._last = message
            elif message is not None:
                told.append(message)
        if not ended:
            return told, None
        self._child.close()
        return told, self._last or self._how_it_ended(self._child.code or 0)

    def _how_it_ended(self, code: int) -> Failure:
        if code == -signal.SIGALRM or self._killed_at:
            return Failure(f"it hung, and was given up after {self._limit:.0f} s", is_refused=False, is_late=True)
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        return Failure(f"the copy ended by {how}", is_refused=False)

    @property
    def is_stuck(self) -> bool:
        """Whether it lives although it was killed a while ago."""
        return bool(self._killed_at) and time.monotonic() > self._killed_at + GRACE and not self._child.has_ended()

    def kill(self) -> None:
        """End the copy, as far as the kernel can; what it has brought so far is there."""
        self._killed_at = self._killed_at or time.monotonic()
        self._child.kill()

    def wait(self, timeout: float) -> None:
        """Return when the copy says something or ends, or after `timeout` seconds."""
        self._child.wait(timeout)
