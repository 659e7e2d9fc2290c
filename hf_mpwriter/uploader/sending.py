"""What is sent, and when: the ledger, both lanes, their waits, and what is in flight.

    uploader lock taken, or taken back -> ledger, outbox, lanes, in flight -> the status is published -> recover
    scan, or attach -> may_push -> start -> listen -> `outcome`

Invariants:
- What is recovered comes from disk; nothing in memory counts. A batch that the ledger covers is dropped.
- The destination is that of the start record: a file does not tell where to send.
"""

from __future__ import annotations

import logging
import os
import random
import time
from collections.abc import Callable

from hf_mpwriter.base.settings import Environment
from hf_mpwriter.base.timing import USUAL, Timing
from hf_mpwriter.base.verdicts import Verdict
from hf_mpwriter.spool import ledger
from hf_mpwriter.spool.layout import HostSpool, Spool
from hf_mpwriter.spool.outbox import Batch, Outbox, filesystem_time
from hf_mpwriter.spool.starts import StartRecord
from hf_mpwriter.spool.status import StatusFile
from hf_mpwriter.spool.workers.member_lines import Member
from hf_mpwriter.spool.workers.members import ASK_FOR_ALL, Members
from hf_mpwriter.uploader.attachment_lane import AttachmentLane
from hf_mpwriter.uploader.decision import Situation
from hf_mpwriter.uploader.in_flight import InFlight
from hf_mpwriter.uploader.lanes import EventFileLane, Lane
from hf_mpwriter.uploader.pacing import Backoff, Pacing, Step
from hf_mpwriter.uploader.peers import Peers
from hf_mpwriter.uploader.rate_limit import RateLimit, folders
from hf_mpwriter.uploader.requests import Requests
from hf_mpwriter.uploader.retries import Retries

logger = logging.getLogger("hf_mpwriter")

NOTABLE_WAIT = 60.0  # seconds, from which on the user is told why


def _loaded(spool: Spool, host: HostSpool, start: StartRecord) -> ledger.Ledger:
    if aside := ledger.set_aside(spool, host.root.basename):
        logger.info("the ledger could not be read, it is now %s; lengths are read back from the Hub", aside)
    loaded = ledger.load(spool, start.destination)
    if not start.destination.can_be(loaded.repo_id):
        loaded.repo_id = ""  # the first push resolves it again
    return loaded


class Sending:
    """What waits to be sent, what is being sent, and what the Hub has."""

    def __init__(
        self,
        spool: Spool,
        host: HostSpool,
        start: StartRecord,
        requests: Requests,
        clock: Callable[[], float],
        rng: random.Random,
        timing: Timing = USUAL,
    ) -> None:
        self.requests, self.clock, self._timing = requests, clock, timing
        first = clock() + timing.first_scan_after
        self.ledger = _loaded(spool, host, start)
        self._outbox = waiting = Outbox(host, spool.run)
        limit = RateLimit(
            start.destination,
            Environment.read().commits_per_hour,
            folders(os.environ, spool.directory),
            nodes=start.nodes,
            host=host.root.basename,
            rng=rng,
        )
        time_there = lambda: filesystem_time(host)  # noqa: E731 - as the other clocks
        self.pacing = Pacing(clock, rng, limit, first, timing)
        self.retries = Retries(self.ledger, clock, time_there, timing)
        self.events = EventFileLane(spool.run, waiting, self.ledger, self.pacing, self.retries, clock, time_there)
        backoff = Backoff(clock, rng, timing)
        self.attachments = AttachmentLane(spool, host.copies, self.ledger, backoff, self.retries, clock, first)
        self.in_flight = InFlight(spool, host, waiting, self.ledger, self.pacing, clock)

    def recover(self) -> None:
        """Take over what earlier uploaders have left, once other hosts can see that this one is here."""
        self.in_flight.recover()
        for batch in list(self._outbox.batches):
            if all(map(self.ledger.covers, batch.files)):
                self._outbox.remove(batch)

    # what members ask for

    def note(self, members: list[Member], peers: Peers) -> None:
        """Take note of who is here, and of what is asked for."""
        # the settings: a sampler has those of the worker that has started it, which others may have changed since
        deciding = [one for one in members if one.works] or [one for one in members if not one.is_sampler]
        if deciding := deciding or (members if self.ledger.settings is None else []):
            self.ledger.settings = max(deciding, key=lambda member: member.started_at).settings
        for member in members:
            if self.requests.note(member):
                self._hurry(member)
        self.requests.keep(members)
        self.pacing.saw({member.name.host for member in members}, peers.hosts)
        if peers.take_news():
            self.scan_again()

    def _hurry(self, member: Member) -> None:
        """A request or an end is news: it ends a wait of ours, not one that the Hub asked for."""
        self.attachments.request()
        self.retries.request()
        self.in_flight.may_create |= member.alive and member.create
        self.pacing.requested()

    def terminate(self) -> None:
        """SIGTERM: do not wait for what cannot be read, nor for the disk or a token."""
        self.requests.terminate()
        self.events.blind_scans = 0
        if not self.pacing.attempts:
            self.pacing.requested()

    def satisfy(self, registered: Members) -> None:
        """Note which members have nothing left in the outbox."""
        self.requests.satisfy(self.events.batches, self.ledger, registered)

    def scan_again(self) -> None:
        """Scan soon: of the last scan, something is not sent."""
        self.events.has_scanned = False
        self.pacing.soon()

    # what to do next

    def situation(self, members: list[Member], *, abandoned_for: float, awaits_more: bool, sealing: bool) -> Situation:
        """What `decide` may know."""
        living = sum(member.works for member in members)
        return Situation(
            living=living,
            abandoned_for=abandoned_for,
            may_try=self.clock() >= self.pacing.next_try,
            due=self._is_due(members) or self.retries.is_due(attachments=False),
            outgoing=self.events.outgoing,
            settling=self.in_flight.is_settling,
            attached=self.attachments.state(living),
            ending=self.requests.ending,
            orphaned=self.requests.any_orphaned(members),
            undecided=self.retries.is_open or awaits_more,
            sealing=sealing,
        )

    def _is_due(self, members: list[Member]) -> bool:
        """Whether event files should go: the commit interval of live workers is over, or they are urgent."""
        over = self.clock() >= self.pacing.next_commit and any(member.works for member in members)
        return over or self._is_urgent(members)

    def _is_urgent(self, members: list[Member]) -> bool:
        """Whether event files should go at once: for a request, or for what was left behind."""
        unseen = not any(member.works for member in members) and not self.events.has_scanned
        return unseen or self.requests.audit or self.requests.any_urgent(members)

    def _is_last(self, members: list[Member]) -> bool:
        return self.requests.is_ending or not any(member.works for member in members)

    @property
    def other_runs(self) -> list[str]:
        """Relative paths of the folders of other runs that the last scan has passed over."""
        return self.events.other_runs

    @property
    def oldest(self) -> Batch:
        """The event files that go next; none of them, a mere read-back, if none wait."""
        return self.events.batches[0] if self.events.batches else Batch(0, ())

    # scan, push

    def scan(self, members: list[Member], peers: Peers) -> bool:
        """Put what the Hub lacks of the event files into the outbox; False if that cannot be now."""
        if self.requests.audit:  # a push is sure to come, even if there is nothing to send
            self.in_flight.prepare(self.events)
        quarantined, alone = dict(self.ledger.quarantined), not any(member.works for member in members)
        everything = alone or self.requests.audit or self._is_asked_for_all(members)
        try:
            files = self.events.scan(peers.members, peers.takes, everything=everything)
            if self.ledger.quarantined != quarantined:  # a large file is left out, or is not any more
                self.in_flight.save_ledger()
        except OSError as error:
            logger.info("cannot scan the event files: %s", error)
            self.pacing.hold(Step(self._timing.push_retry_first))
            return False
        self.pacing.scanned(self.events.settings.commit_every)
        self.requests.scanned(members, files)
        self.satisfy(peers.members)
        self.requests.tried(is_last=not self.events.batches)
        return True

    def _is_asked_for_all(self, members: list[Member]) -> bool:
        return self.requests.any_urgent(one for one in members if one.alive and one.name.worker in ASK_FOR_ALL)

    def attach(self, members: list[Member], peers: Peers) -> Batch | None:
        """Scan attachments, as no event file is due; what the Hub lacks of them, None if nothing was found yet."""
        lane, alone = self.attachments, not any(member.works for member in members)
        if not lane.batches and lane.scan(peers.takes, alone=alone):
            self.in_flight.save_ledger()
        return lane.start() if lane.batches else None

    def may_push(self, batch: Batch, members: list[Member], status: StatusFile) -> bool:
        """Whether the rate limit allows a push, else the user is told why; a mere read-back needs no token."""
        refused = any(file.path in self.ledger.quarantined for file in batch.files)
        urgent = not refused and (self._is_last(members) or self._is_urgent(members))
        at_once = self.requests.is_ending or self._is_asked_for_all(members)
        if not batch.files or self.pacing.take(urgent=urgent, at_once=at_once):
            return True
        if self.pacing.used_up:
            self.events.require_scan()
            self.explain_wait(status)
        return False

    def start(self, lane: Lane, batch: Batch, members: list[Member]) -> None:
        """Start a push; OSError if the disk or the system refuses."""
        if self.requests.audit:  # whatever was in flight when it was asked for
            self.in_flight.own_head = None
        is_last_batch, settings = len(self.events.batches) <= 1, self.events.settings
        self.requests.tried(is_last=is_last_batch)
        final = self._is_last(members) and not batch.has_attachments and is_last_batch
        squash = settings.squash_history and self.pacing.may_squash(0 if final else settings.commit_every)
        self.in_flight.start(lane, batch, squash=squash)

    @property
    def is_pushing(self) -> bool:
        """Whether a push runs."""
        return self.in_flight.push is not None

    def listen(self, members: list[Member]) -> tuple[list[str], Verdict | None]:
        """What the push says, and its verdict if it has ended. One of attachments is ended if it is in the way."""
        if (push := self.in_flight.push) is None:
            return [], None
        if self.in_flight.carries(self.attachments):
            due, terminating = self._is_due(members), self.requests.is_ending
            if self.attachments.must_yield(due=due, terminating=terminating):
                push.kill()
        return push.listen()

    def wait(self, seconds: float) -> bool:
        """Wait so long for what the push says next; False if no push runs."""
        if self.in_flight.push is not None:
            self.in_flight.push.wait(seconds)
        return self.is_pushing

    def catch_up(self) -> None:
        """Do what the disk, or the settle time, has put off."""
        self.in_flight.catch_up()

    # waits

    def hold(self, seconds: float) -> None:
        """Start no push for so long; a wait of before is over."""
        self.pacing.hold(Step(seconds))

    @property
    def blocked_until(self) -> float:
        """Monotonic seconds until which the Hub, or the share of this node in the rate limit, allows no push."""
        return self.pacing.blocked_until

    @property
    def until_push(self) -> float | None:
        """Seconds until the next try of what waits, None if nothing waits."""
        return self.pacing.next_try - self.clock() if self.events.batches else None

    @property
    def next_at(self) -> float:
        """Monotonic seconds when the next try of what waits, or else the next commit, is due."""
        tries = self.pacing.next_try, self.pacing.blocked_until
        return max(*tries, 0.0 if self.events.batches else self.pacing.next_commit)

    def explain_wait(self, status: StatusFile) -> None:
        """Tell the user why a push has to wait for the rate limit."""
        wait = self.pacing.next_try - self.clock()
        if self.pacing.is_alone or wait > NOTABLE_WAIT:
            status.notify([self.pacing.explanation])
        if self.pacing.due_at and wait > NOTABLE_WAIT:
            due = time.strftime("%H:%M", time.localtime(time.time() + wait))
            status.waits(f"the next commit is due at about {due}.")

    # status

    def publish(self, status: StatusFile, phase: str = "") -> None:
        """Publish what waits, what is sent, and when the next push is due."""
        push, waiting = self.in_flight.push, self.events.batches + self.attachments.batches
        status.goes_to(self.ledger.repo_id, private=self.ledger.private)
        status.publish(
            phase=phase or ("pushing" if push else "waiting" if self.events.batches else "idle"),
            waiting=len(waiting),
            push=push.pid if push else None,
            commits=self.events.commits + self.attachments.commits,
            blocked_until=self.pacing.blocked_until,
            next_at=self.next_at,
            asked_at=push.asked_at if push else 0.0,
            is_answered=push is not None and push.is_answered,
        )

    def close(self) -> None:
        """Remove the copies, and end the processes that wait for another batch."""
        self.attachments.close()
        self.in_flight.let_go()
