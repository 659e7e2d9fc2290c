"""Mirroring: the part of a worker in having a mirror at work, and what it tells of one that gets nowhere.

    keep house --every few seconds--> mirror lock free --daemon/election--> a mirror
                                      trouble of the mirror -----------> one warning

    trouble        told
    refused        at once: a person has to do something
    stuck          at once
    unread         at once: a file that is only there cannot be read
    any other      after SEVERAL failures in a row

Invariant: each trouble is told once by a process, and by the member that speaks.

Sealing: when the open segments of a staged run are sealed. Only what is sealed comes to the logdir.

    what                            seals segments that are older than
    the time                        `commit_every`, or 1/64 of the run's age if that is longer
    `push()`, `trigger()`           1/512 of the run's age, and a second
    a signal that asks for a push   nothing: the process may have seconds to live
    `push(wait)`, `close`, the end  nothing

It is done when the worker keeps house, or in the call itself for the last row. An idle process seals nothing until its
next call.

Invariants:
- Files stay few, whatever a program asks for at every step: TensorBoard's default reader keeps one descriptor per file.
- What is sealed is never written again. Each request concerns the segments that were open then.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable

from hf_mpwriter.base.timing import USUAL, Timing
from hf_mpwriter.base.words import command_line, counted
from hf_mpwriter.daemon.election import Election
from hf_mpwriter.delivery.sentences import mirror_trouble
from hf_mpwriter.delivery.sinks import LogdirSink
from hf_mpwriter.delivery.wait import ticks
from hf_mpwriter.events.deferred_log import logger
from hf_mpwriter.spool.layout import Spool
from hf_mpwriter.spool.staging import Listing, least_age
from hf_mpwriter.system.redaction import printable
from hf_mpwriter.worker.files import WorkerFiles

REQUESTED_SHARE = 512  # the parts of a run's age of which one is the least age of a segment that a push seals
REQUESTED_MIN = 1.0  # seconds


class Mirroring:
    """The mirror of one run, as one worker sees it; of a run that is not staged there is none."""

    def __init__(
        self,
        spool: Spool,
        is_first: Callable[[], bool],
        timing: Timing = USUAL,
    ) -> None:
        self._spool, self._is_first, self._timing = spool, is_first, timing
        self.forget()

    def forget(self) -> None:
        """After fork: started processes are the parent's."""
        self._election, self.logdir = Election(self._spool, "mirror"), LogdirSink(self._spool)
        self._told, self._has_waited = "", False

    def is_needed(self) -> bool:
        """Whether the run is staged."""
        return self.logdir.is_staged

    def begin(self) -> None:
        """Make sure that a mirror lives; never waits, never raises."""
        self._election.ensure(self.logdir.start())

    def keep_house(self) -> bool:
        """Make sure that a mirror lives, and tell what keeps it from its work; whether a child will end soon."""
        if not self.is_needed():  # the records of all hosts are read below, by each worker
            return False
        self.begin()
        status = self.logdir.status()
        found = mirror_trouble(status, self.logdir.mirrored().refused)
        if found and found != self._told and self._is_first():
            self._told = found
            stays = f"What is on disk ({self._spool.run_dir}) stays there, and all is tried again"
            logger.warning("%s", printable(f"{self.logdir.to}: {found.rstrip('.')}. {stays}; see: hf-mpwriter status"))
        elif not found and not status.failures:
            self._told = ""
        return self._election.reap()

    def wait_until_back(self, directory: str) -> None:
        """Wait a moment for what an earlier attempt has logged in a directory; once, and told if it does not come."""
        if self._has_waited or not self.is_needed():
            return
        for is_due in ticks(time.monotonic() + self._timing.logdir_wait):
            if not self._missing(directory):
                break
            if is_due:
                self.begin()
        if missing := self._missing(directory):
            what = f"{counted(len(missing), 'file')} of earlier attempts"
            lack = f"{self.logdir.to}: {what} are still to come back from there, so the last step is not known yet"
            helps = f"To have them before training: {command_line('pull', self.logdir.to)}"
            logger.warning("%s", printable(f"{lack}. {helps}"))
        self._has_waited = True

    def _missing(self, directory: str) -> list[str]:
        missing = Listing.read(self._spool).still_missing(self._spool)
        return [path for path in missing if os.path.dirname(path) == directory]


def opened_before(now: float, run_age: float, commit_every: float, requested_at: float) -> float:
    """The monotonic seconds such that segments that were opened before are to be sealed."""
    by_time = now - least_age(run_age, commit_every)
    by_request = min(requested_at, now - max(REQUESTED_MIN, run_age / REQUESTED_SHARE))
    return max(by_time, by_request)


class Sealing:
    """What one process seals for the mirror; nothing of a run that is not staged."""

    def __init__(self, files: WorkerFiles, commit_every: Callable[[], float]) -> None:
        self._files, self._commit_every, self._clock = files, commit_every, time.monotonic
        self._requested_at = -math.inf
        self.made_at: float | None = None  # unix time when the run began; None if it is not staged

    def request(self, *, at_once: bool) -> None:
        """Seal what is open now: when the worker keeps house and files stay few, or at once."""
        self._requested_at = self._clock()
        if at_once and self.made_at is not None:
            self._files.seal_older()

    def seal_due(self) -> None:
        """Seal the segments that are due; called when the worker keeps house."""
        if self.made_at is not None:
            age = max(0.0, time.time() - self.made_at)
            self._files.seal_older(opened_before(self._clock(), age, self._commit_every(), self._requested_at))
