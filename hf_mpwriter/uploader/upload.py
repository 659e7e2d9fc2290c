"""The upload of one run: what an uploader does for it while it holds the uploader lock of the run.

    recover -> look, take in verdicts, decide -> SCAN    put what is new into the outbox
                                              -> PUSH    a parcel for the next push of the branch
                                              -> ATTACH  scan attachments; a parcel of them
                                              -> WAIT
                                              -> LEAVE   give the lock up, look once more

Who is here is in `peers`, what goes to the Hub in `sending`, what is asked for in `requests`.

Order of writes: fsync(event files) -> put batch -> drop superseded batches -> in_flight -> push -> ledger -> drop
in_flight and batch. Of attachments: copies -> in_flight -> push -> ledger -> drop in_flight and copies. After an
interruption the next uploader derives the rest from what the ledger does not cover.

Invariants:
- The destination is that of the start record, but for the folder, see `folders`. A run that is recorded for another
  one is left alone.
- While a request without a parent may still be under way, all that is sent names its parent and is nothing newer.
- What is done for a run, and what is printed meanwhile, is in the log of the run.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NoReturn, Self

from hf_mpwriter.base import state
from hf_mpwriter.base.errors import HfMpWriterError
from hf_mpwriter.base.settings import OFFLINE, is_offline
from hf_mpwriter.base.verdicts import Cause, Refused, Verdict
from hf_mpwriter.base.words import sentence
from hf_mpwriter.daemon import loop
from hf_mpwriter.daemon.starts import StartRecord
from hf_mpwriter.daemon.status_file import StatusFile
from hf_mpwriter.spool.causes import TABLE
from hf_mpwriter.spool.layout import Spool
from hf_mpwriter.spool.outbox import filesystem_time
from hf_mpwriter.system import locks
from hf_mpwriter.system.directory import identity
from hf_mpwriter.uploader import folders
from hf_mpwriter.uploader.branch import Branch, Parcel, Result
from hf_mpwriter.uploader.decision import Situation, abandoned_for
from hf_mpwriter.uploader.live import LiveRun
from hf_mpwriter.uploader.meeting import Descriptors
from hf_mpwriter.uploader.peers import Peers
from hf_mpwriter.uploader.requests import Requests
from hf_mpwriter.uploader.sending import Sending

logger = logging.getLogger("hf_mpwriter")


@dataclass(frozen=True)
class HeldRun:
    """What a process holds of a run that it uploads."""

    spool: Spool
    start: StartRecord
    lock: int  # descriptor of the uploader lock
    log: int = -1  # descriptor of the log, -1 if this process prints to it already

    @classmethod
    def of(cls, record: bytes, descriptors: Descriptors) -> Self:
        """What another process had of the run until now; HfMpWriterError or OSError if the run cannot be served."""
        locks.adopt(descriptors.lock)
        try:
            start = state.load(StartRecord, record)
        except state.DamagedError as error:
            os.close(descriptors.run_dir)
            os.close(descriptors.spool)
            raise HfMpWriterError(f"its start record cannot be read: {error}") from error
        spool = Spool.adopt(start, descriptors.run_dir, descriptors.spool)
        return cls(spool, start, descriptors.lock, descriptors.log)


class RunUpload(loop.Holder[StartRecord]):
    """The upload of one run."""

    kind = "uploader"
    status: StatusFile

    def __init__(self, held: HeldRun, branch: Branch) -> None:
        clocks = branch.clocks
        super().__init__(held.spool, held.start, held.lock, clocks.now, clocks.rng, clocks.timing)
        self.branch, self._log = branch, held.log
        self._clocks = dataclasses.replace(clocks, there=lambda: filesystem_time(self.host))
        beat_every = clocks.timing.heartbeat_every
        self.status = StatusFile(
            self.host, self._process, clocks.now, held.start.token_issued_at, beat_every=beat_every
        )
        self.requests, self._seals = Requests(), loop.Seals(clocks.now)
        self._abandoned_since, self._waited_until = clocks.now(), 0.0
        self._ends_at = math.inf  # monotonic seconds; `stop` waits no longer
        self.refusals = 0  # of the disk, in a row
        self.identity = identity(os.fstat(held.spool.directory.fd))  # what tells its spool from all others
        with self.logging():
            self.recover()

    def recover(self) -> None:
        """Read what is on disk; nothing in memory counts but what was asked for, and what was told."""
        self._check_recorded()
        self._check_online()
        self._start, notices = folders.settle(self._spool, self._start)
        # first what the disk may refuse: nothing is sent before it is known what was in flight
        self.peers = Peers(self._spool, self.host, self.status, self._clocks)
        self.sending = Sending(self._spool, self.host, self._start, self.status, self.peers, self.requests, self.branch)
        self.live = LiveRun(self._spool, self.sending, self.peers, self.status)
        self.status.change(elsewhere=None)
        # those of other hosts name their parents from here on, or we see their records
        self.sending.publish("idle")
        self.status.notify(notices)
        self.sending.recover()

    def _check_recorded(self) -> None:
        """Refuse to work if the run is recorded for another destination: the token belongs to ours."""
        recorded, ours = self._spool.record(), self._start.destination
        if recorded is None or recorded.is_for(ours):
            return
        reason = f"the recorded destination has changed; it is {recorded.destination}, but this run goes to {ours}"
        hint = f"If others have not changed it, use another logdir. Else remove run.json in {self._spool.root}."
        self._refuse(Refused(reason, hint))

    def _check_online(self) -> None:
        """Refuse to stay for nothing: the environment of a process does not change."""
        if is_offline():
            self._refuse(Refused(OFFLINE, TABLE[Cause.OFFLINE][1], Cause.OFFLINE))

    def _refuse(self, verdict: Refused) -> NoReturn:
        self.status.failed(verdict, 1)
        self.status.publish(phase="left", waiting=0, push=0, commits=0, blocked_until=0.0)
        raise HfMpWriterError(f"{verdict.reason}.", hint=sentence(verdict.hint))

    @property
    def run_dir(self) -> str:
        """The run directory."""
        return self._spool.run_dir

    @contextlib.contextmanager
    def logging(self) -> Iterator[None]:
        """A block in which the log of this run is what this process prints to."""
        if self._log < 0:
            yield
            return
        os.dup2(self._log, 1)
        os.dup2(self._log, 2)
        try:
            yield
        finally:
            if self._log >= 0 and os.fstat(2).st_ino != os.fstat(self._log).st_ino:  # it was rotated
                os.dup2(2, self._log, inheritable=False)

    # what the loop asks for

    def look(self) -> bool:
        """See whether the run is in place, who is here, and what is asked for. OSError if the disk refuses."""
        if not self.is_in_place():
            return False
        self.peers.look()
        self.sending.note()
        waits_for_others = self.branch.push is not None and not self.branch.carries(self.sending.in_flight)
        if self.peers.works or waits_for_others:
            self._abandoned_since = self._clock()
        if self.requests.is_ending:
            self._ends_at = min(self._ends_at, self._clock() + loop.GRACE)
        return True

    @property
    def is_overdue(self) -> bool:
        """Whether it was to end, and has had its time: what is missing by now is for the next uploader."""
        return self._clock() >= self._ends_at

    def conclude(self, verdict: Verdict, parcel: Parcel, result: Result) -> None:
        """Take in the verdict on a parcel of this run; progress is as good a reason to stay as a worker."""
        if self.sending.conclude(verdict, parcel, result):
            self._abandoned_since = self._clock()

    def is_better_token_there(self) -> bool:
        """Whether a younger worker may have a better token; it may have closed already and wait for its data."""
        if self.status.status.kind != Refused.__name__:
            return False
        younger = (member for member in self.peers.here if member.started_at > self._start.token_issued_at)
        return any(one.works or not self.requests.is_satisfied(one) for one in younger if not one.is_sampler)

    def situation(self) -> Situation:
        """What `decide` may know."""
        sealing = self._seals.are_pending(self.peers.here)
        found = self.sending.situation(is_abandoned=self._is_abandoned(), sealing=sealing)
        return dataclasses.replace(found, bucket_is_behind=self.live.is_behind)

    def _is_abandoned(self) -> bool:
        """Whether it is long ago that a member was last seen alive, the Hub last took something, or a wait was over.

        What counts as a wait is what the Hub has asked for, or the share of this node in the rate limit.
        """
        self._waited_until = max(self._waited_until, self.branch.pacing.blocked_until)
        return abandoned_for(self._clock(), self._abandoned_since, self._waited_until) > self.status.status.linger

    def publish(self, phase: str = "") -> None:
        """Publish what it does."""
        is_over = phase == "left"
        self.forget_starts(is_over=is_over)
        self.status.serves = self.branch.serves - is_over
        self.sending.publish(phase)

    # the end

    def close(self) -> None:
        """Publish that the run is not served any more."""
        self.publish("left")
        self.sending.close()

    def leave(self) -> bool:
        """Give up the uploader lock, look once more, take it back if something came in between; True if it is over."""
        self.peers.sweep()  # again: at the start a killed process may not have been reaped yet
        return super().leave()

    def is_over(self) -> bool:
        """Whether no worker is left, and none asks for more."""
        over = self.requests.is_ending or self._is_abandoned()
        self.peers.look()
        return over or not (self.peers.works or self.requests.any_urgent(self.peers.here))

    def drop(self) -> None:
        """Let go of the run, whatever its state."""
        self.branch.forget(self.sending.in_flight)
        self.release()
        self._spool.release()
        if self._log >= 0:
            os.close(self._log)
        self._log = -1
