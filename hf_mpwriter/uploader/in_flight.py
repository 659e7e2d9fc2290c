"""In flight: the batch that is being sent, and what its outcome may be.

    IDLE  --start-->  PUSHING  --the outcome is known----------------------------->  IDLE
                               --it is not, but the commit named its parent------->  IDLE
                               --it is not, and the commit named none-->  SETTLING  --SETTLE_TIME-->  IDLE

A commit that names its parent is applied only while the branch stands there, so one that is late is refused once the
branch has moved. A commit that names none may arrive at any moment and put a shorter file over a longer one.

Invariants:
- `in_flight.json` is durable before a push starts. It goes once the outcome is known and in the ledger on disk.
- While SETTLING, every commit names its parent and carries nothing newer. After that the Hub is read back.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from hf_mpwriter.base.verdicts import Done, Unknown, Verdict
from hf_mpwriter.push.handle import PushHandle
from hf_mpwriter.push.job import Job, deadline
from hf_mpwriter.spool.layout import HostSpool, Spool
from hf_mpwriter.spool.ledger import Ledger
from hf_mpwriter.spool.outbox import Batch, Outbox, interrupted
from hf_mpwriter.uploader.lanes import Lane
from hf_mpwriter.uploader.pacing import Pacing

logger = logging.getLogger("hf_mpwriter")

SETTLE_TIME = 120.0  # seconds; the Hub ends a request in 60, a proxy may take as long


class InFlight:
    """What is being sent, what may still arrive, and the ledger that takes the outcome.

    Args:
        spool: of the run directory.
        host: what this uploader writes.
        outbox: keeps the record of the batch.
        ledger: what the Hub is known to hold.
        pacing: tells by which way the next push goes.
        clock: monotonic seconds.

    Attributes:
        push: the push that runs, None while there is none.
        own_head: the last commit of this uploader; None if there is none, or if it may have been overtaken.
    """

    def __init__(
        self,
        spool: Spool,
        host: HostSpool,
        outbox: Outbox,
        ledger: Ledger,
        pacing: Pacing,
        clock: Callable[[], float],
    ) -> None:
        self._spool, self._host, self._outbox = spool, host, outbox
        self._ledger, self._pacing, self._clock = ledger, pacing, clock
        self.push: PushHandle | None = None
        self.own_head: str | None = None
        self._sent: tuple[Lane, Batch] | None = None
        self._fenced = True  # whether the commit that is under way names its parent
        self._settled_at: float | None = None  # None unless SETTLING
        self._unsaved = False  # whether the ledger in memory knows more than the one on disk

    def recover(self) -> None:
        """Take over what the pushes of earlier uploaders have left.

        The record of another host stays for that host. So each start waits for the settle time of an unfenced one.
        """
        for host_id in self._spool.host_ids():
            if (lost := interrupted(self._spool.host(host_id))) is not None:
                logger.info("a push of %s (batch %s) was interrupted, its outcome is unknown", host_id, lost.batch)
                if not lost.fenced:
                    self._settled_at = self._clock() + SETTLE_TIME
                if self._ledger.mark_uncertain(lost.attachments):
                    self.save_ledger()
        self.clear()

    @property
    def is_settling(self) -> bool:
        """Whether a request without a parent may still be under way."""
        return self._settled_at is not None

    def carries(self, lane: Lane) -> bool:
        """Whether a push of this lane runs."""
        return self._sent is not None and self._sent[0] is lane

    def start(self, lane: Lane, batch: Batch, *, squash: bool) -> None:
        """Start a push.

        Args:
            lane: that the batch comes from.
            batch: what is sent; without files the Hub is only read back.
            squash: whether to squash the history after the commit.

        Raises:
            OSError: the disk refuses the record, or the process cannot be started; `end` takes the verdict all the
                same.
        """
        self._fenced = batch.has_attachments or self._pacing.is_fenced or self.is_settling
        self._sent = (lane, batch)
        job = Job(
            run_dir=self._spool.run_dir,
            copies=self._host.copies.name,
            cache=str(self._host.cache),
            destination=self._ledger.resolved,
            private=lane.settings.private,
            squash=squash,
            files=batch.files,
            known=self._ledger.known(),
            uncertain=self._ledger.uncertain,
            own_head=self.own_head,
            fenced=self._fenced,
            xet=self._pacing.uses_xet,
        )
        self._outbox.mark_in_flight(batch, fenced=self._fenced and not self.is_settling)
        self.push = PushHandle(job, deadline(job), (self._spool.run.fd, self._spool.directory.fd))

    def end(self, verdict: Verdict) -> tuple[Lane, Batch]:
        """Take in a verdict; returns what it is about."""
        if self._sent is None:
            raise RuntimeError("a verdict without a push")
        sent, self._sent, self.push = self._sent, None, None
        if not isinstance(verdict, Done):
            self.own_head = None
        if isinstance(verdict, Unknown) and not self._fenced:
            self._settled_at = self._clock() + SETTLE_TIME
        return sent

    def save_ledger(self) -> None:
        """Save what is known. If that fails, the next tick does it, and until then the record stays."""
        try:
            self._ledger.save(self._host.ledger)
            self._unsaved = False
        except OSError as error:  # nothing is lost: where the ledger is behind, the Hub is read back
            if not self._unsaved:
                logger.info("the ledger cannot be written: %s", error)
            self._unsaved = True

    def clear(self) -> None:
        """Remove the record, unless a request may still be under way or the outcome is not on disk."""
        if self.is_settling or self._unsaved:
            return
        try:
            self._outbox.clear_in_flight()
        except OSError as error:
            logger.info("the record of the batch in flight cannot be removed: %s", error)

    def catch_up(self) -> None:
        """Save a ledger that the disk has refused. When the settle time is over the Hub is read back."""
        if self._unsaved:
            self.save_ledger()
            self.clear()
        if self._settled_at is not None and self._clock() >= self._settled_at:
            self._settled_at, self.own_head = None, None
            self.clear()
