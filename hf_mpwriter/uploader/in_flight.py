"""In flight: the batch of a run that is being sent, and what its outcome may be.

    IDLE  --mark-->  PUSHING  --the outcome is known----------------------------->  IDLE
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

import logging
import time

from hf_mpwriter.base.names import is_attachment
from hf_mpwriter.base.verdicts import Done, Refused, Retry, Sent, Verdict
from hf_mpwriter.push.job import SCRATCH, Part
from hf_mpwriter.spool.layout import HostSpool, Spool
from hf_mpwriter.spool.ledger import Ledger
from hf_mpwriter.spool.outbox import Batch, Outbox, interrupted, stamp
from hf_mpwriter.spool.workers.peers import is_apart, living_others
from hf_mpwriter.system import disk
from hf_mpwriter.uploader.pacing import Clocks

logger = logging.getLogger("hf_mpwriter")

SETTLE_TIME = 120.0  # seconds; the Hub ends a request in 60, a proxy may take as long


class InFlight:
    """What is being sent of a run, what may still arrive, and the ledger that takes the outcome."""

    def __init__(self, spool: Spool, host: HostSpool, outbox: Outbox, ledger: Ledger, clocks: Clocks) -> None:
        self.spool, self._host, self._outbox = spool, host, outbox
        self.ledger, self._clocks = ledger, clocks
        self.may_create = self._creates = False
        self.of_others = ""  # the event files of other writers that the last scan has found
        newest = max(ledger.files.values(), key=lambda held: held.time, default=None)
        self._last_commit = (newest.commit if newest else "") or None
        self._settling: frozenset[str] = frozenset()  # records of other hosts that the settle time is for
        self._settled_at: float | None = None  # None unless SETTLING
        self._unsaved = False  # whether the ledger in memory knows more than the one on disk

    def recover(self) -> None:
        """Take over what the pushes of earlier uploaders have left.

        The record of another host stays for that host; the ledger knows which of them need no more care.
        """
        disk.remove_tree(self._host.cache / SCRATCH)
        before, known, news = self.ledger.taken_over, set[str](), False
        for host in map(self.spool.host, self.spool.host_ids()):
            if (lost := interrupted(host)) is None:
                continue
            name, other = stamp(host), host.root != self._host.root
            if other and name in before:
                known.add(name)
                continue
            logger.info("a push (%s, batch %s) was interrupted, its outcome is unknown", host.root, lost.batch)
            news |= self.ledger.mark_uncertain(lost.attachments)
            if not lost.fenced:
                self.settle()
            if other and name:
                known.add(name)
                self._settling |= frozenset() if lost.fenced else {name}
        self.ledger.taken_over = frozenset(known - self._settling)
        if news or self.ledger.taken_over != before:
            self.save_ledger()
        self.clear()

    @property
    def is_settling(self) -> bool:
        """Whether a request without a parent may still be under way."""
        return self._settled_at is not None

    def settle(self) -> None:
        """A request without a parent may be under way from now on."""
        self._settled_at = self._clocks.now() + SETTLE_TIME

    @property
    def is_fenced(self) -> bool:
        """Whether a commit has to name its parent."""
        return self.is_settling or not self._is_alone()

    def _is_alone(self) -> bool:
        """Whether no uploader of another host can send: there is none, it has left, or it says nothing any more."""
        if is_apart(self.spool):  # those of other hosts have spools of their own, and nothing tells of them here
            return False
        return not living_others(self.spool, self._host.root.basename, 0.0, self._clocks.there)

    @property
    def creates(self) -> bool:
        """Whether a push may create what is missing: it was asked for, or nothing of the run has arrived yet."""
        return self.may_create or not self.ledger.has_arrived

    def mark(self, batch: Batch, *, fenced: bool) -> None:
        """Record that a push of a batch starts; OSError if the disk refuses."""
        if self._unsaved:
            self.save_ledger()
        if self._unsaved:
            raise OSError("the ledger cannot be written")
        self._creates = self.creates
        self._outbox.mark_in_flight(batch, fenced=fenced and not self.is_settling)

    def part(self, batch: Batch, *, private: bool | None, is_trusted: bool) -> Part:
        """What a push has to know of this run."""
        return Part(
            **vars(self.spool.paths),
            folder=self.ledger.resolved.path_in_repo,
            copies=self._host.copies.name,
            cache=self._host.cache.name,
            private=private,
            files=batch.files,
            known=self.ledger.known(),
            uncertain=possible(self.ledger),
            is_trusted=is_trusted,
            last_commit=self._last_commit,
            of_others="" if self.ledger.has_arrived else self.of_others,
            created_at=self.ledger.created_at,
        )

    def acknowledge(self, verdict: Done, batch: Batch) -> None:
        """Enter what the Hub has into the ledger, and remove the record."""
        self.ledger.repo_id, host = verdict.repo_id, self._host.root.basename
        if verdict.private is not None:
            self.ledger.private = verdict.private
        self.ledger.created_at = verdict.created_at or self.ledger.created_at
        self.ledger.acknowledge(verdict.files, verdict.commit, time.time())
        if verdict.own:
            self.ledger.commits[host] = self.ledger.commits.get(host, 0) + 1
        if verdict.checked:
            self.ledger.note_checked(host, time.time())
        if verdict.asked:
            self.ledger.note_asked(host, time.time())
        self.ledger.note_stamps(batch.files)
        self.save_ledger()
        self.clear()
        self._last_commit = verdict.commit
        self.may_create = self.may_create and not self._creates  # a request may have come since the push started

    def judged(self, verdict: Verdict) -> Verdict:
        """A verdict on this run: a refusal is no answer to a request for a new repository that has come since."""
        if isinstance(verdict, Refused) and self.may_create and not self._creates:
            return Retry(verdict.reason, cause=verdict.cause, hint=verdict.hint)
        return verdict

    def save_ledger(self) -> None:
        """Save what is known. If that fails, the next tick does it, and until then the record stays."""
        try:
            self.ledger.save(self._host.ledger)
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

    def catch_up(self) -> bool:
        """Save a ledger that the disk has refused. Whether the settle time is over, so that the Hub is read back."""
        if self._unsaved:
            self.save_ledger()
            self.clear()
        if self._settled_at is None or self._clocks.now() < self._settled_at:
            return False
        self._settled_at = None
        if self._settling:
            self.ledger.taken_over |= self._settling
            self.save_ledger()
        self.clear()
        return True


def possible(ledger: Ledger) -> dict[str, list[Sent]]:
    """What the Hub may hold of this run where the ledger does not know it: of uncertain and of refused attachments."""
    found = {path: list(contents) for path, contents in ledger.uncertain.items()}
    for path in filter(is_attachment, ledger.quarantined):
        held = ledger.files.get(path)
        if held is not None and not held.sent.is_gone and not held.foreign:
            found.setdefault(path, []).append(held.sent)
    return found
