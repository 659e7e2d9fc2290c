"""In flight: the batch that is being sent, and what its outcome may be.

    IDLE  --start-->  PUSHING  --the outcome is known----------------------------->  IDLE
                               --it is not, but the commit named its parent------->  IDLE
                               --it is not, and the commit named none-->  SETTLING  --SETTLE_TIME-->  IDLE

A commit that names its parent is applied only while the branch stands there, so one that is late is refused once the
branch has moved. A commit that names none may arrive at any moment and put a shorter file over a longer one.

Invariants:
- `in_flight.json` is durable before a push starts. It goes once the outcome is known and in the ledger on disk. No
  push starts before that: its record would take the place of one that still says something.
- A commit names no parent only while no uploader of another host can send. One that starts says so before it reads
  records, and its status is looked at again after the record is written: one of the two sees the other.
- While SETTLING, every commit names its parent and carries nothing newer. After that the Hub is read back.
"""

from __future__ import annotations

import contextlib
import logging
import math
import time

from hf_mpwriter.base.names import is_attachment
from hf_mpwriter.base.verdicts import Done, Refused, Retry, Sent, Unknown, Verdict
from hf_mpwriter.push.handle import PushHandle
from hf_mpwriter.push.job import SCRATCH, Job, deadline
from hf_mpwriter.spool.layout import HostSpool, Spool
from hf_mpwriter.spool.ledger import Ledger
from hf_mpwriter.spool.outbox import Batch, Outbox, interrupted, stamp
from hf_mpwriter.spool.workers.peers import is_apart, living_others
from hf_mpwriter.system import disk
from hf_mpwriter.uploader.lanes import Lane
from hf_mpwriter.uploader.pacing import Clocks, Pacing

logger = logging.getLogger("hf_mpwriter")

LINGER = 10  # seconds for which a push that went well waits for the next batch
CLOSELY = 6  # times LINGER; a push that began so soon after another one waits as long, as the next may come as soon
SETTLE_TIME = 120.0  # seconds; the Hub ends a request in 60, a proxy may take as long


class InFlight:
    """What is being sent, what may still arrive, and the ledger that takes the outcome."""

    def __init__(
        self, spool: Spool, host: HostSpool, outbox: Outbox, ledger: Ledger, pacing: Pacing, clocks: Clocks
    ) -> None:
        self._spool, self._host, self._outbox = spool, host, outbox
        self._ledger, self._pacing, self._clocks = ledger, pacing, clocks
        self.push: PushHandle | None = None  # the push that runs, None while there is none
        self._lingering: PushHandle | None = None  # has gone well, or was prepared, and may take the next batch
        self._began_at = self._ended_at = -math.inf  # when the last push began, and when it ended
        # the last commit of this uploader; None if there is none, or if it may have been overtaken
        self.own_head: str | None = None
        self.may_create = self._creates = False
        newest = max(ledger.files.values(), key=lambda held: held.time, default=None)
        self._last_commit = (newest.commit if newest else "") or None
        self._settling: frozenset[str] = frozenset()  # records of other hosts that the settle time is for
        self._sent: tuple[Lane, Batch] | None = None
        self._fenced = True  # whether the commit that is under way names its parent
        self._settled_at: float | None = None  # None unless SETTLING
        self._unsaved = False  # whether the ledger in memory knows more than the one on disk

    def recover(self) -> None:
        """Take over what the pushes of earlier uploaders have left.

        The record of another host stays for that host; the ledger knows which of them need no more care.
        """
        disk.remove_tree(self._host.cache / SCRATCH)
        before, known, news = self._ledger.taken_over, set[str](), False
        for host in map(self._spool.host, self._spool.host_ids()):
            if (lost := interrupted(host)) is None:
                continue
            name, other = stamp(host), host.root != self._host.root
            if other and name in before:
                known.add(name)
                continue
            logger.info("a push (%s, batch %s) was interrupted, its outcome is unknown", host.root, lost.batch)
            news |= self._ledger.mark_uncertain(lost.attachments)
            if not lost.fenced:
                self._settled_at = self._clocks.now() + SETTLE_TIME
            if other and name:
                known.add(name)
                self._settling |= frozenset() if lost.fenced else {name}
        self._ledger.taken_over = frozenset(known - self._settling)
        if news or self._ledger.taken_over != before:
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
        """Start a push."""
        self._sent, self._began_at = (lane, batch), self._clocks.now()
        self._fenced = batch.has_attachments or self._pacing.is_fenced or self.is_settling or not self._is_alone()
        if batch.files:
            lane.started(batch)
        if self._unsaved:
            self.save_ledger()
        if self._unsaved:
            raise OSError("the ledger cannot be written")
        self._creates = self.may_create or not self._ledger.has_arrived
        self._outbox.mark_in_flight(batch, fenced=self._fenced and not self.is_settling)
        self._fenced = self._fenced or not self._is_alone()  # one that came before the record did has not seen it
        self.push = self._begin(self._job(lane, batch, squash=squash))

    @property
    def took(self) -> float:
        """Seconds that the last push took."""
        return self._ended_at - self._began_at

    def prepare(self, lane: Lane) -> None:
        """Start the process of a push that is sure to come, so that it has its client when there is something to send.

        Where that fails, the push itself tells why.
        """
        if self.push is None and self._lingering is None:
            with contextlib.suppress(OSError):
                job = self._job(lane, Batch(0, ()), prepares=True)
                self._lingering = PushHandle(job, deadline(job), self._spool, LINGER)

    def _job(self, lane: Lane, batch: Batch, *, squash: bool = False, prepares: bool = False) -> Job:
        return Job(
            **vars(self._spool.paths),
            copies=self._host.copies.name,
            cache=self._host.cache.name,
            destination=self._ledger.resolved,
            private=lane.settings.private,
            squash=squash,
            files=batch.files,
            known={} if prepares else self._ledger.known(),
            uncertain={} if prepares else possible(self._ledger),
            own_head=self.own_head,
            fenced=self._fenced,
            xet=self._pacing.uses_xet,
            create=self._creates,
            last_commit=self._last_commit,
            was_private=self._ledger.private,
            prepares=prepares,
        )

    def _begin(self, job: Job) -> PushHandle:
        """Hand a job to the push that lingers or was prepared, else to a new one."""
        lingering, self._lingering = self._lingering, None
        if lingering is not None:
            if lingering.take(job, deadline(job)):
                return lingering
            lingering.let_go()
        closely = self._clocks.now() - self._ended_at < CLOSELY * LINGER
        return PushHandle(job, deadline(job), self._spool, CLOSELY * LINGER if closely else LINGER)

    def let_go(self) -> None:
        """End the push that lingers, if there is one."""
        if self._lingering is not None:
            self._lingering.let_go()
        self._lingering = None

    def _is_alone(self) -> bool:
        """Whether no uploader of another host can send: there is none, it has left, or it says nothing any more."""
        if is_apart(self._spool):  # those of other hosts have spools of their own, and nothing tells of them here
            return False
        return not living_others(self._spool, self._host.root.basename, 0.0, self._clocks.there)

    def acknowledge(self, verdict: Done, batch: Batch) -> None:
        """Enter what the Hub has into the ledger, and remove the record."""
        self._ledger.repo_id, host = verdict.repo_id, self._host.root.basename
        if verdict.private is not None:
            self._ledger.private = verdict.private
        self._ledger.acknowledge(verdict.files, verdict.commit, time.time())
        if verdict.own:
            self._ledger.commits[host] = self._ledger.commits.get(host, 0) + 1
        if verdict.checked:
            self._ledger.note_checked(host, time.time())
        self._ledger.note_stamps(batch.files)
        self.save_ledger()
        self.clear()
        self.own_head = self._last_commit = verdict.commit
        self.may_create = self.may_create and not self._creates  # a request may have come since the push started

    def end(self, verdict: Verdict) -> tuple[Verdict, Lane, Batch]:
        """Take in a verdict; returns it and what it is about.

        A refusal is no answer to a request for a new repository that came while the push was under way.
        """
        if self._sent is None:
            raise RuntimeError("a verdict without a push")
        if not isinstance(verdict, Done):
            self.own_head = None
        elif self.push is not None and self.push.lingers:
            self._lingering = self.push
        sent, self._sent, self.push, self._ended_at = self._sent, None, None, self._clocks.now()
        if isinstance(verdict, Unknown) and not self._fenced:
            self._settled_at = self._clocks.now() + SETTLE_TIME
        if isinstance(verdict, Refused) and self.may_create and not self._creates:
            verdict = Retry(verdict.reason, cause=verdict.cause, hint=verdict.hint)
        return verdict, *sent

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
        if self._lingering is not None and self._lingering.has_ended():
            self.let_go()
        if self._unsaved:
            self.save_ledger()
            self.clear()
        if self._settled_at is not None and self._clocks.now() >= self._settled_at:
            self._settled_at, self.own_head = None, None
            if self._settling:
                self._ledger.taken_over |= self._settling
                self.save_ledger()
            self.clear()


def possible(ledger: Ledger) -> dict[str, list[Sent]]:
    """What the Hub may hold of this run where the ledger does not know it: of uncertain and of refused attachments."""
    found = {path: list(contents) for path, contents in ledger.uncertain.items()}
    for path in filter(is_attachment, ledger.quarantined):
        held = ledger.files.get(path)
        if held is not None and not held.sent.is_gone and not held.foreign:
            found.setdefault(path, []).append(held.sent)
    return found
