"""The loop of an uploader, the process that holds the uploader lock.

    recover -> tick:  note members -> take in what the push says -> decide -> SCAN    put what is new into the outbox
                                                                           -> PUSH    start a push of the oldest batch
                                                                           -> ATTACH  scan or push attachments
                                                                           -> WAIT
                                                                           -> LEAVE

What is recovered, and kept between two ticks, is in `run_state`; what follows a verdict is in `outcome`.

Order of writes: fsync(event files) -> put batch -> drop superseded batches -> in_flight -> push -> ledger -> drop
in_flight and batch. Of attachments: copies -> in_flight -> push -> ledger -> drop in_flight and copies. After an
interruption the next uploader derives the rest from what the ledger does not cover.

Invariants:
- It writes only while it holds the uploader lock. On every tick the lock is checked to be the file at the path.
- It imports no network client; that lives in the push only.
- While a request without a parent may still be under way, all that is sent names its parent and is nothing newer.
"""

from __future__ import annotations

import logging
import os
import random
import signal
import time
from collections.abc import Callable

from hf_mpwriter.base.errors import HfMpWriterError
from hf_mpwriter.base.job import Nodes
from hf_mpwriter.base.settings import Destination
from hf_mpwriter.base.verdicts import Refused
from hf_mpwriter.spool.layout import Spool
from hf_mpwriter.spool.outbox import Batch
from hf_mpwriter.spool.starts import StartRecord, inherited
from hf_mpwriter.spool.status import LINGER
from hf_mpwriter.spool.workers.member_lines import Member
from hf_mpwriter.spool.workers.members import ASK_FOR_ALL, OBSERVER
from hf_mpwriter.system import disk, hf_home, launch, locks
from hf_mpwriter.system.daemon import GRACE, end_within, keep_on, prepare_process
from hf_mpwriter.uploader import outcome
from hf_mpwriter.uploader.decision import Action, Ending, Situation, decide
from hf_mpwriter.uploader.lanes import Lane
from hf_mpwriter.uploader.pacing import FIRST_WAIT, Step
from hf_mpwriter.uploader.rate_limit import ONE_NODE
from hf_mpwriter.uploader.run_state import RunState
from hf_mpwriter.uploader.siblings import Search

logger = logging.getLogger("hf_mpwriter")

TICK = 1.0  # seconds between two ticks, more of very large runs; the end of a push is noticed at once


class Uploader:
    """The holder of the uploader lock."""

    def __init__(
        self,
        spool: Spool,
        destination: Destination,
        lock: int,
        clock: Callable[[], float],
        rng: random.Random,
        token_issued_at: float = 0,
        nodes: Nodes = ONE_NODE,
    ) -> None:
        self.run, self._lock = RunState(spool, destination, clock, rng, token_issued_at, nodes), lock
        self._token_stamp, self._ending = hf_home.token_stamp(os.environ), Ending.NOT_ASKED

    # tick

    def tick(self) -> bool:
        """One round; False when it is time to end."""
        if not (self.run.spool.directory.is_at_path() and disk.same_file(self._lock, self.run.spool.uploader_lock)):
            logger.info("the spool was removed")
            return False
        members = self.run.members_here()  # first: it knows who lives on other hosts
        self._note(members)
        self.run.keep_house(members)
        if self.run.in_flight.push is not None:
            self._listen(members)
        if self.run.in_flight.push is None:
            if self._is_better_token_there(members):
                logger.info("a newer worker may have a better token; leaving the uploader lock to it")
                self.run.leave()
                return False
            self.run.in_flight.catch_up()
            action = decide(self._situation(members))
            if action is Action.LEAVE:
                return not self._leave()
            if self._act(action, members):
                return True
        self.run.publish()
        self._sleep()
        return True

    def _act(self, action: Action, members: list[Member]) -> bool:
        """Act; True if the next tick follows at once."""
        if action is Action.SCAN:
            self._scan(members)
        elif action is Action.PUSH:
            self._start_push(self.run.events, self.run.events.batches[0], members)
        elif action is Action.ATTACH:
            self._attach(members)
            if self.run.in_flight.push is None:  # there may be more, or it is time to leave
                self.run.publish()
                return True
        return False

    def _note(self, members: list[Member]) -> None:
        living = [member for member in members if member.works]
        if living:
            self.run.abandoned_since = self.run.clock()
        self.run.for_all = any(member.name.worker == OBSERVER for member in living)
        # a sampler has those of the worker that has started it, which others may have changed since
        deciding = living or [member for member in members if not member.is_sampler]
        if deciding := deciding or (members if self.run.ledger.settings is None else []):
            self.run.ledger.settings = max(deciding, key=lambda member: member.started_at).settings
        for member in members:
            if self.run.requests.note(member):
                self._hurry(member)
        self.run.requests.keep(members)
        self.run.pacing.saw({member.name.host for member in members}, self.run.elsewhere)

    def _hurry(self, member: Member) -> None:
        """A request or an end is news: it ends a wait of ours, not one that the Hub asked for."""
        self.run.attachments.request()
        self.run.retries.request()
        if member.name.worker == OBSERVER and member.alive:  # `sync` trusts no ledger
            self.run.audit, self.run.in_flight.may_create = True, self.run.in_flight.may_create or member.create
        self.run.pacing.requested()

    def _is_better_token_there(self, members: list[Member]) -> bool:
        """Whether a younger worker may have a better token; it may have closed already and wait for its data."""
        if self.run.status.failure != Refused.__name__:
            return False
        if (stamp := hf_home.token_stamp(os.environ)) != self._token_stamp:  # `hf auth login`: the next push reads it
            self._token_stamp = stamp
            self.run.pacing.hold(Step(0.0))
        younger = (member for member in members if member.started_at > self.run.status.token_issued_at)
        return any(one.works or not self.run.requests.is_satisfied(one) for one in younger if not one.is_sampler)

    def _situation(self, members: list[Member]) -> Situation:
        living = sum(member.works for member in members)
        return Situation(
            living=living,
            abandoned_for=self.run.abandoned_for(),
            may_try=self.run.clock() >= self.run.pacing.next_try,
            due=self._is_due(members) or self.run.retries.is_due(attachments=False),
            outgoing=self.run.events.outgoing,
            settling=self.run.in_flight.is_settling,
            attached=self.run.attachments.state(living),
            ending=self._ending,
            orphaned=self.run.requests.any_orphaned(members),
            undecided=self.run.is_undecided,
            sealing=self.run.seals.are_pending(members),
        )

    def _is_due(self, members: list[Member]) -> bool:
        """Whether event files should go: the commit interval of live workers is over, or they are urgent."""
        over = self.run.clock() >= self.run.pacing.next_commit and any(member.works for member in members)
        return over or self._is_urgent(members)

    def _is_urgent(self, members: list[Member]) -> bool:
        """Whether event files should go at once: for a request, or for what was left behind."""
        unseen = not any(member.works for member in members) and not self.run.events.has_scanned
        return unseen or self.run.audit or self.run.requests.any_urgent(members)

    # scan and push

    def _scan(self, members: list[Member]) -> None:
        if self.run.audit:  # a push is sure to come, even if there is nothing to send
            self.run.in_flight.prepare(self.run.events)
        try:
            alone, quarantined = not any(member.works for member in members), dict(self.run.ledger.quarantined)
            observers = [member for member in members if member.alive and member.name.worker in ASK_FOR_ALL]
            everything = alone or self.run.audit or self.run.requests.any_urgent(observers)
            files = self.run.events.scan(self.run.members, everything=everything)
            if self.run.ledger.quarantined != quarantined:  # a large file is left out, or is not any more
                self.run.in_flight.save_ledger()
        except OSError as error:
            logger.info("cannot scan the event files: %s", error)
            self.run.pacing.hold(Step(FIRST_WAIT))
            return
        self.run.pacing.scanned(self.run.events.settings.commit_every)
        self.run.requests.scanned(members, files)
        self.run.satisfy()
        self.run.tell_other_runs()
        if self._ending is not Ending.NOT_ASKED:
            self._ending = Ending.ASKED if self.run.events.batches else Ending.TRIED
        # nothing to send, but a request asks what the Hub really has
        if self.run.audit and not self.run.events.batches:
            self._start_push(self.run.events, Batch(0, ()), members)

    def _attach(self, members: list[Member]) -> None:
        """Scan attachments, as no event file is due; push what the Hub lacks."""
        alone = not any(member.works for member in members)
        if not self.run.attachments.batches and self.run.attachments.scan(alone=alone):
            self.run.in_flight.save_ledger()
        if self.run.attachments.batches:
            self._start_push(self.run.attachments, self.run.attachments.start(), members)

    def _start_push(self, lane: Lane, batch: Batch, members: list[Member]) -> None:
        """Start a push if the rate limit allows it; a mere read-back needs no token."""
        last = self._ending is not Ending.NOT_ASKED or not any(member.works for member in members)
        refused = any(file.path in self.run.ledger.quarantined for file in batch.files)
        urgent = not refused and (last or self._is_urgent(members))
        asking = [member for member in members if member.alive and member.name.worker in ASK_FOR_ALL]
        at_once = self._ending is not Ending.NOT_ASKED or self.run.requests.any_urgent(asking)
        if batch.files and not self.run.pacing.take(urgent=urgent, at_once=at_once):
            if self.run.pacing.used_up:
                self.run.explain_wait()
                self.run.events.require_scan()
            return
        if self.run.audit:  # whatever was in flight when it was asked for
            self.run.in_flight.own_head = None
        if self._ending is not Ending.NOT_ASKED:
            self._ending = Ending.TRIED if len(self.run.events.batches) <= 1 else Ending.ASKED
        try:
            self.run.in_flight.start(lane, batch, squash=self._may_squash(batch, last=last))
        except OSError as error:
            outcome.refused_start(self.run, error)

    def _may_squash(self, batch: Batch, *, last: bool) -> bool:
        settings = self.run.events.settings
        final = last and not batch.has_attachments and len(self.run.events.batches) <= 1
        return settings.squash_history and self.run.pacing.may_squash(0 if final else settings.commit_every)

    def _listen(self, members: list[Member]) -> None:
        """Take in what the push says; conclude when it has ended. One of attachments is ended if it is in the way."""
        if (push := self.run.in_flight.push) is None:
            return
        if self.run.in_flight.carries(self.run.attachments):
            terminating = self._ending is not Ending.NOT_ASKED
            if self.run.attachments.must_yield(due=self._is_due(members), terminating=terminating):
                push.kill()
        notices, verdict = push.listen()
        self.run.status.notify(notices)
        if verdict is not None:
            outcome.conclude(self.run, verdict)

    # status, sleep, leave

    def _sleep(self) -> None:
        if self.run.in_flight.push is not None:
            self.run.in_flight.push.wait(TICK)
            return
        time.sleep(self.run.pause(TICK))

    def _leave(self) -> bool:
        """Give up the uploader lock, look once more, take it back if something came in between; True if it is over."""
        self.run.members.sweep()  # again: at the start a killed process may not have been reaped yet
        self.run.leave()
        locks.release(self._lock)
        over = self._ending is not Ending.NOT_ASKED or self.run.abandoned_for() > LINGER
        members, is_satisfied = self.run.members_here(), self.run.requests.is_satisfied
        if over or all(not member.works and is_satisfied(member) for member in members):
            return True
        if (lock := locks.try_exclusive(self.run.spool.uploader_lock)) is None:
            return True
        self._lock = lock
        self.run.recover()  # another uploader may have been here
        return False

    def terminate(self) -> None:
        """SIGTERM: one last scan and push, and what dead members left behind, then leave."""
        if self._ending is Ending.NOT_ASKED:
            self._ending = Ending.ASKED
        self.run.events.blind_scans = 0
        if not self.run.pacing.attempts:  # a wait that is not the Hub's: for the disk, or for a token
            self.run.pacing.requested()
        end_within(GRACE)


def main() -> None:
    """Entry point of the process; what it needs is on the descriptors that `system.launch` names."""
    record, spool = inherited(StartRecord, "upload")
    upload(record, spool, launch.LOCK_FD)


def upload(start: StartRecord, spool: Spool, lock: int) -> None:
    """Upload until nothing is left."""
    prepare_process()
    locks.adopt(lock)
    rng = random.Random()  # noqa: S311 - jitter
    try:
        uploader = Uploader(spool, start.destination, lock, time.monotonic, rng, start.token_issued_at, start.nodes)
    except HfMpWriterError as error:
        raise SystemExit(f"no upload: {error}") from None
    signal.signal(signal.SIGTERM, lambda *_: uploader.terminate())
    logger.info("took the uploader lock of %s", start.run_dir)
    search = Search(start)

    def tick() -> bool:
        search.reap()
        return uploader.tick()

    keep_on(tick, TICK)
    logger.info("left the uploader lock")
