"""The state of an uploader between two ticks, and how it is recovered from disk.

    uploader lock taken, or taken back -> recover: ledger, outbox, lanes, in flight -> the loop goes on from there

Invariants:
- What is recovered comes from disk; nothing in memory counts. A batch that the ledger covers is dropped.
- The destination is that of the start record. A run that is recorded for another one is left alone.
"""

from __future__ import annotations

import logging
import os
import random
import time
from collections.abc import Callable

from hf_mpwriter.base.errors import HfMpWriterError
from hf_mpwriter.base.job import Nodes
from hf_mpwriter.base.settings import Destination, Environment
from hf_mpwriter.base.verdicts import Refused
from hf_mpwriter.spool import ledger
from hf_mpwriter.spool.layout import Spool
from hf_mpwriter.spool.outbox import Outbox, filesystem_time
from hf_mpwriter.spool.staging.logdir import Logdir
from hf_mpwriter.spool.starts import Tenure
from hf_mpwriter.spool.status import BEAT_EVERY, StatusFile
from hf_mpwriter.spool.workers.member_lines import Member
from hf_mpwriter.spool.workers.members import Members
from hf_mpwriter.spool.workers.peers import Share, is_apart, living_others
from hf_mpwriter.spool.workers.samplers import Seals
from hf_mpwriter.system.process import Process
from hf_mpwriter.system.redaction import printable
from hf_mpwriter.uploader.attachment_lane import AttachmentLane
from hf_mpwriter.uploader.decision import abandoned_for
from hf_mpwriter.uploader.in_flight import InFlight
from hf_mpwriter.uploader.lanes import EventFileLane
from hf_mpwriter.uploader.pacing import Backoff, Pacing
from hf_mpwriter.uploader.rate_limit import RateLimit, folders
from hf_mpwriter.uploader.requests import Requests
from hf_mpwriter.uploader.retries import Retries

logger = logging.getLogger("hf_mpwriter")

LOOK_EVERY = 5.0  # seconds between two looks for uploaders of other hosts
LOCKS_DO_NOT_REACH = "locks do not reach from host to host here, so each host has an uploader; this one is beside"
OTHER_RUNS = "has other runs below it: folders with a .hf_mpwriter of their own are not uploaded as part of it"
NOTABLE_WAIT = 60.0  # seconds, from which on the user is told why
SWEEP_EVERY = 60.0  # seconds between two looks for member files that cannot be read
SHARE = 0.004  # of a core, for looks at the members
LONGEST_PAUSE = 5.0  # seconds
FIRST_DELAY = 2.0  # seconds after the start until the first scan, if nothing is asked for


class RunState:
    """What an uploader knows of its run directory."""

    def __init__(
        self,
        spool: Spool,
        destination: Destination,
        clock: Callable[[], float],
        rng: random.Random,
        token_issued_at: float,
        nodes: Nodes,
    ) -> None:
        self._nodes = nodes
        self.spool, self.clock, self._destination, self._rng = spool, clock, destination, rng
        process = Process.current()
        self.host = spool.host(process.host)  # what this uploader writes
        self.status = StatusFile(self.host, process, clock, token_issued_at)  # what it publishes
        self._tenure = Tenure(self.host.starts, clock)
        self.requests, self.seals = Requests(), Seals(clock)
        self.abandoned_since, self._waited_until, self.audit, self.for_all = clock(), 0.0, False, False
        self._knows_other_runs = self._is_returning = False
        self._look_took = 0.0  # seconds of processor, of the last look at the members
        self.recover()

    def recover(self) -> None:
        """Read what is on disk; nothing in memory counts."""
        self._check_recorded()
        self._recover_ledger()
        waiting = Outbox(self.host, self.spool.run)
        self._forget_others()
        self._make_lanes(waiting)
        self.in_flight = InFlight(self.spool, self.host, waiting, self.ledger, self.pacing, self.clock)
        self.status.saw(None)
        self.status.goes_to(self.ledger.repo_id, private=self.ledger.private)
        # those of other hosts name their parents from here on, or we see their records
        self.status.publish(phase="idle", waiting=len(waiting.batches), push=None, commits=0, blocked_until=0.0)
        self.in_flight.recover()
        for batch in list(waiting.batches):
            if all(map(self.ledger.covers, batch.files)):
                waiting.remove(batch)

    def _recover_ledger(self) -> None:
        if aside := ledger.set_aside(self.spool, self.host.root.basename):
            logger.info("the ledger could not be read, it is now %s; lengths are read back from the Hub", aside)
        self.ledger = ledger.load(self.spool, self._destination)
        if not self._destination.can_be(self.ledger.repo_id):
            self.ledger.repo_id = ""  # the first push resolves it again: a file does not tell where to send

    def _forget_others(self) -> None:
        """Know no members, and no uploaders of other hosts, until the next look."""
        self.elsewhere = self._beside = self._all_theirs = frozenset[str]()
        self._theirs: dict[str, frozenset[str]] = {}
        self.waits_for_others = False
        self.members = Members(self.spool, lambda: self.elsewhere)
        self._next_sweep = self._next_look = self.clock()
        self._took_lock_at = filesystem_time(self.host)
        self._heard_by = self.clock() + 2 * BEAT_EVERY  # until then an uploader of another host that lives has said so

    def _make_lanes(self, waiting: Outbox) -> None:
        """Make both lanes, and what says when and which files they may take."""
        clock, first = self.clock, self.clock() + FIRST_DELAY
        time_there = lambda: filesystem_time(self.host)  # noqa: E731 - as the other clocks
        limit = RateLimit(
            self._destination,
            Environment.read().commits_per_hour,
            folders(os.environ, self.spool.directory),
            nodes=self._nodes,
            host=self.host.root.basename,
            rng=self._rng,
        )
        self.pacing, backoff = Pacing(clock, self._rng, limit, first), Backoff(clock, self._rng)
        self.retries = Retries(self.ledger, clock, time_there)
        self.events = EventFileLane(self.spool.run, waiting, self.ledger, self.pacing, self.retries, clock, time_there)
        self.attachments = AttachmentLane(
            self.spool, self.host.copies, self.ledger, backoff, self.retries, clock, first
        )
        share, self._logdir = Share(self.spool, clock), Logdir(self.spool) if is_apart(self.spool) else None
        self.events.takes = lambda path: (self.for_all or share.takes(path)) and path not in self._all_theirs
        self.attachments.takes = lambda path: self.for_all or share.takes(path)  # `sync` asks for what others left, too

    def _check_recorded(self) -> None:
        """Refuse to work if the run is recorded for another destination: the token belongs to ours."""
        recorded = self.spool.destination()
        if recorded is None or recorded.is_same(self._destination):
            return
        reason = f"the recorded destination has changed; it is {recorded}, but this run goes to {self._destination}"
        hint = f"If others have not changed it, use another logdir. Else remove run.json in {self.spool.root}."
        self.status.failed(Refused(reason, hint), 1)
        self.status.publish(phase="left", waiting=0, push=None, commits=0, blocked_until=0.0)
        raise HfMpWriterError(f"{reason}.", hint=hint)

    def members_here(self) -> list[Member]:
        """The members that this uploader answers for.

        Where locks do not reach from host to host, each host has an uploader, which takes the members of its own host.
        When that uploader has been silent for minutes, or has left, its members are taken over.
        """
        if self.clock() >= self._next_look:
            self._next_look = self.clock() + LOOK_EVERY
            beside = elsewhere = self._living_others(self._took_lock_at)
            if self.clock() < self._heard_by:  # it may live: no member of it counts as dead before it can have said so
                elsewhere = self._living_others(self._took_lock_at - 2 * BEAT_EVERY)
            if beside - self._beside:
                self.status.notify([f"{LOCKS_DO_NOT_REACH}: {', '.join(sorted(beside))}"])
            self._beside = beside
            self.members.forget(elsewhere - self.elsewhere)
            if self.elsewhere - elsewhere:
                self.scan_again()
            self.elsewhere = elsewhere
            self.status.saw(elsewhere)
            self._theirs = {host: files for host, files in self._theirs.items() if host in elsewhere}
        began = time.thread_time()
        here, everybody = [], self.members.all()
        self._look_took = time.thread_time() - began
        for member in everybody:
            if member.name.host in self.elsewhere:
                self._theirs[member.name.host] = self._theirs.get(member.name.host, frozenset()) | member.files
            else:
                here.append(member)
        self._all_theirs = frozenset().union(*self._theirs.values())
        self.waits_for_others = len(here) < len(everybody)
        return here

    def pause(self, least: float) -> float:
        """Seconds until the next tick: looks at thousands of members take no more than SHARE of a core."""
        if self.events.batches:
            return min(least, max(0.0, self.pacing.next_try - self.clock()))
        return max(least, min(LONGEST_PAUSE, self._look_took / SHARE))

    def _living_others(self, since: float) -> frozenset[str]:
        host = self.host.root.basename
        return living_others(self.spool, host, since, lambda: filesystem_time(self.host))

    def keep_house(self, members: list[Member]) -> None:
        """Remove member files that cannot be read, now and then, and see whether all has come from the logdir."""
        if self.clock() >= self._next_sweep:
            self._next_sweep = self.clock() + SWEEP_EVERY
            self.members.sweep()
        logdir = None if any(member.works for member in members) else self._logdir
        had_to_come, self._is_returning = self._is_returning, logdir is not None and logdir.is_returning
        if had_to_come and not self._is_returning:  # the last scan may have come before what has come back
            self.scan_again()

    @property
    def is_undecided(self) -> bool:
        """Whether more is to come although no worker lives: of refused paths, other hosts, a logdir."""
        return self.retries.is_open or self.waits_for_others or self._is_returning

    def abandoned_for(self) -> float:
        """Seconds since a member was last seen alive, the Hub last took something, or a wait was over.

        What counts as a wait is what the Hub has asked for, or the share of this node in the rate limit.
        """
        self._waited_until = max(self._waited_until, self.pacing.blocked_until)
        return abandoned_for(self.clock(), self.abandoned_since, self._waited_until)

    def explain_wait(self) -> None:
        """Tell the user why a push has to wait for the rate limit."""
        wait = self.pacing.next_try - self.clock()
        if self.pacing.is_alone or wait > NOTABLE_WAIT:
            self.status.notify([self.pacing.explanation])
        due = time.strftime("%H:%M", time.localtime(time.time() + wait))
        if self.pacing.due_at and wait > NOTABLE_WAIT:
            self.status.waits(f"the next commit is due at about {due}.")

    def tell_other_runs(self) -> None:
        """Tell once that runs below this one are not part of it."""
        if self.events.other_runs and not self._knows_other_runs:
            self._knows_other_runs = True
            name = printable(min(self.events.other_runs))
            self.status.notify([f"{self.spool.logdir} {OTHER_RUNS}, such as {name}"])

    def satisfy(self) -> None:
        """Note which members have nothing left in the outbox."""
        self.requests.satisfy(self.events.batches, self.ledger, self.members)

    def scan_again(self) -> None:
        """Scan soon: of the last scan, something is not sent."""
        self.events.has_scanned = False
        self.pacing.soon()

    def publish(self, phase: str = "") -> None:
        """Publish the status."""
        self._tenure.note(is_over=phase == "left")
        self.status.goes_to(self.ledger.repo_id, private=self.ledger.private)
        waiting = self.events.batches + self.attachments.batches
        push = self.in_flight.push
        self.status.publish(
            phase=phase or ("pushing" if push else "waiting" if self.events.batches else "idle"),
            waiting=len(waiting),
            push=push.pid if push else None,
            commits=self.events.commits + self.attachments.commits,
            blocked_until=self.pacing.blocked_until,
            next_at=self.next_at(),
            asked_at=push.asked_at if push else 0.0,
            is_answered=push is not None and push.is_answered,
        )

    def leave(self) -> None:
        """Publish that this uploader leaves, and end the processes that wait for it."""
        self.publish("left")
        self.attachments.close()
        self.in_flight.let_go()

    def next_at(self) -> float:
        """Monotonic seconds when the next try of what waits, or else the next commit, is due."""
        tries = self.pacing.next_try, self.pacing.blocked_until
        return max(*tries, 0.0 if self.events.batches else self.pacing.next_commit)
