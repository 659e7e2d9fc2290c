"""The other end of a copy: start it, listen, end it.

    CopyHandle(spool, job)      the process is started, with descriptors of the job, the run directory and the copy lock
    listen                      what has become of files since; how it ended, once it has
    is_stuck                    it was killed, and lives: it hangs in the kernel

Invariants:
- One copy at a time lives for a run directory and host: each holds the copy lock until the kernel has ended it. One
  that only compares holds a lock of its own: it may read for long, and keeps no file from the logdir.
- No process waits for a copy: the job is a whole file, and the pipe is not blocking.
- A copy knows on which mount the logdir has to be, from the record of the run.
"""

from __future__ import annotations

import dataclasses
import errno
import os

from hf_mpwriter.base import state
from hf_mpwriter.mirror.decision import limit
from hf_mpwriter.spool.layout import Spool
from hf_mpwriter.spool.staging.job import CopyJob, Failure, Finished, Message, from_line
from hf_mpwriter.spool.staging.record import MirrorPlaces, MirrorRecord
from hf_mpwriter.system import launch, locks
from hf_mpwriter.system.launch import Child
from hf_mpwriter.system.process import host_id


class CopyLivesError(OSError):
    """A copy of an earlier mirror lives."""


class CopyHandle(Child):
    """A copy, seen from the process that has started it."""

    def __init__(self, spool: Spool, job: CopyJob, seconds: float | None = None) -> None:
        seconds = limit(job) if seconds is None else seconds
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
            super().__init__("copy", record, spool.run_dir, descriptors, lock=lock, limit=seconds)
        finally:
            locks.release(lock)
        self._last: Finished | Failure | None = None

    def listen(self) -> tuple[list[Message], Finished | Failure | None]:
        """What has become of files since the last time, and how the copy ended, None before that; never waits."""
        lines, ended = self.hear()
        told: list[Message] = []
        for message in map(from_line, lines):
            if isinstance(message, Finished | Failure):
                self._last = message
            elif message is not None:
                told.append(message)
        if not ended:
            return told, None
        why = f"the copy {self.how_it_ended}"
        return told, self._last or Failure(why, is_refused=False, is_late=self.has_hung)
