"""The uploader's end of a push: start it, listen, end it.

    PushHandle(job, limit)      the process is started, and finds the job with descriptors of its runs in a socket
    listen                      its notices; its verdicts once it has ended, or has done a job and lingers
    take                        the next job for one that lingers; `Spare` keeps that one
    kill, wait, let_go          end it; wait until it says something; end one that lingers

Invariants:
- However a push ends, there is a verdict for each part. Without one of its own the outcome is unknown.
- The uploader never waits for a push to read or to write: the job is a whole file, and the pipe is not blocking.
- What a push reads and sends lies beneath the directories that it is given, whatever becomes of their names.
- A job that one has taken is done by it. It takes none when it has failed, has ended, or was made for another client.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
import socket
import time
from collections.abc import Sequence

from hf_mpwriter.base import state
from hf_mpwriter.base.verdicts import Done, Unknown, Verdict
from hf_mpwriter.push.job import Contact, Job, Notice, Quota, deadline, from_line
from hf_mpwriter.spool.layout import Spool
from hf_mpwriter.system import launch
from hf_mpwriter.system.launch import Child
from hf_mpwriter.system.process import take_standard

ENVIRONMENT = {"MALLOC_ARENA_MAX": "2"}  # what the user has not set: else each thread of hf_xet keeps memory of its own


class PushHandle(Child):
    """A push, seen from the uploader."""

    def __init__(self, job: Job, limit: float, spools: Sequence[Spool], linger: int = 0) -> None:
        self._more: socket.socket | None = None
        self.quota: Quota | None = None  # what it was told last of the requests of the account
        self._linger, self._client, self._reads_many = linger, _client_of(job), _reads_many(job)
        take_standard()
        with contextlib.ExitStack() as stack:
            self._more, theirs = socket.socketpair()
            stack.enter_context(theirs)
            on_error = stack.enter_context(contextlib.ExitStack())
            on_error.callback(self._more.close)
            self._send(job, spools)  # before there is a process: it finds its first job
            descriptors = {launch.MORE_FD: theirs.fileno()}
            env, repository = ENVIRONMENT | os.environ, job.destination.repo_id
            super().__init__("push", b"", spools[0].run_dir, descriptors, env=env, subject=repository)
            on_error.pop_all()
        self._begin(job, limit)

    def _send(self, job: Job, spools: Sequence[Spool]) -> None:
        if self._more is None:
            raise OSError(errno.ENOTCONN, os.strerror(errno.ENOTCONN))
        directories = [fd for spool in spools for fd in (spool.run.fd, spool.directory.fd)]
        with launch.record_file(state.dump(dataclasses.replace(job, linger=self._linger))) as record:
            socket.send_fds(self._more, [b"+"], [record, *directories])

    def _begin(self, job: Job, limit: float) -> None:
        self.allow(limit)
        self._parts, self._verdicts = len(job.parts), list[Verdict]()
        self.asked_at, self.is_answered = 0.0, False

    def listen(self) -> tuple[list[Notice], list[Verdict]]:
        """The notices since the last time, and the verdicts once the push has ended or lingers; never waits."""
        lines, ended = self.hear()
        notices = []
        for message in map(from_line, lines):
            if isinstance(message, Notice):
                notices.append(message)
            elif isinstance(message, Contact):
                self.asked_at, self.is_answered = self.asked_at or time.time(), message.answered
                self.allow(self._limit)
            elif isinstance(message, Quota):
                self.quota = message
            elif message is not None:
                self._verdicts.append(message)
        if ended:
            missing = self._parts - len(self._verdicts)
            return notices, self._verdicts[: self._parts] + [self._without_verdict()] * missing
        is_done = len(self._verdicts) >= self._parts and all(isinstance(one, Done) for one in self._verdicts)
        return notices, self._verdicts if self.lingers and is_done else []

    def _without_verdict(self) -> Unknown:
        if self.has_hung:  # HTTP ends by a clock of its own
            return Unknown(f"the push {self.how_it_ended}", xet="failing", too_slow=True)
        return Unknown(f"the push {self.how_it_ended}")

    def take(self, job: Job, limit: float, spools: Sequence[Spool]) -> bool:
        """Hand the next job to a process that lingers; False if there is none, or none that may do it."""
        if self._more is None or self.has_ended() or _client_of(job) != self._client:
            return False
        if self._reads_many and job.xet and job.is_large:  # hf_xet has read its settings with its first content
            return False
        try:
            self._send(job, spools)
        except OSError:
            return False
        self._begin(job, limit)
        self._reads_many = self._reads_many or _reads_many(job)
        return True

    @property
    def lingers(self) -> bool:
        """Whether it takes another job after one that went well."""
        return self._more is not None and self._linger > 0

    def let_go(self) -> None:
        """End a process that lingers: no request of it is under way."""
        if self._more is not None:
            self._more.close()
        self.end(launch.GRACE)  # it may hang in the kernel, on a mount that is gone

    def kill(self) -> None:
        """End the push; whether what it has sent arrives is unknown then. It takes no job while it dies."""
        if self._more is not None:
            self._more.close()
            self._more = None
        super().kill()


class Spare:
    """The push that has gone well, or was prepared, and may take the next job; there may be none."""

    def __init__(self) -> None:
        self._push: PushHandle | None = None

    def __bool__(self) -> bool:
        return self._push is not None

    def begin(self, job: Job, spools: Sequence[Spool], linger: int) -> PushHandle:
        """Hand a job to it, else to a new one that lingers for so many seconds; OSError of the system."""
        spare, self._push = self._push, None
        if spare is not None:
            if spare.take(job, deadline(job), spools):
                return spare
            spare.let_go()
        return PushHandle(job, deadline(job), spools, linger)

    def keep(self, push: PushHandle) -> None:
        """Keep one for the next job."""
        self._push = push

    def let_go(self) -> None:
        """End it, if there is one."""
        if self._push is not None:
            self._push.let_go()
        self._push = None

    def reap(self) -> None:
        """Collect it, if it has ended."""
        if self._push is not None and self._push.has_ended():
            self.let_go()


def _reads_many(job: Job) -> bool:
    """Whether hf_xet may read many files at once, as those of its first job are small."""
    return bool(job.files) and not job.is_large


def _client_of(job: Job) -> tuple[object, ...]:
    """What a process sets up its client for, once."""
    return job.destination.endpoint, job.xet
