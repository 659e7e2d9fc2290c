"""The loop of an uploader, the process that holds the uploader lock.
It is longer than other modules, so that the order of a tick and of what follows a verdict reads in one place.

    recover -> tick:  note members -> take in what the push says -> decide -> SCAN    put what is new into the outbox
                                                                           -> PUSH    start a push of the oldest batch
                                                                           -> ATTACH  scan or push attachments
                                                                           -> WAIT
                                                                           -> LEAVE

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

from hf_mpwriter.base import state
from hf_mpwriter.base.errors import HfMpWriterError
from hf_mpwriter.base.settings import Destination, Environment
from hf_mpwriter.base.start import StartRecord
from hf_mpwriter.base.verdicts import Done, Quarantine, Refused, Retry, Unknown, Verdict
from hf_mpwriter.spool import ledger
from hf_mpwriter.spool.layout import Spool
from hf_mpwriter.spool.member_lines import Member
from hf_mpwriter.spool.members import ASK_FOR_ALL, OBSERVER, Members
from hf_mpwriter.spool.outbox import Batch, Outbox, filesystem_time
from hf_mpwriter.spool.starts import Tenure
from hf_mpwriter.spool.status import LINGER, StatusFile
from hf_mpwriter.system import disk, hf_home, launch, locks
from hf_mpwriter.system.daemon import GRACE, end_within, keep_on, lower_priority, raise_limits, start_logging
from hf_mpwriter.system.process import Process
from hf_mpwriter.uploader.attachment_lane import AttachmentLane
from hf_mpwriter.uploader.decision import Action, Ending, Situation, decide
from hf_mpwriter.uploader.in_flight import InFlight
from hf_mpwriter.uploader.lanes import EventFileLane, Lane
from hf_mpwriter.uploader.pacing import FIRST_WAIT, Backoff, Pacing, Retries, Step
from hf_mpwriter.uploader.rate_limit import USED_UP, RateLimit, folders
from hf_mpwriter.uploader.requests import Requests
from hf_mpwriter.uploader.siblings import Search

logger = logging.getLogger("hf_mpwriter")

TICK = 1.0  # seconds between two ticks; the end of a push is noticed at once
SWEEP_EVERY = 60.0  # seconds between two looks for member files that cannot be read
FIRST_DELAY = 2.0  # seconds after the start until the first scan, if nothing is asked for


class Uploader:
    """The state between two ticks.

    Args:
        spool: of the run directory.
        destination: the only one that it sends to, whatever files say.
        lock: descriptor that holds the uploader lock.
        clock: monotonic seconds.
        rng: source of the jitter.
        token_issued_at: unix time when the worker that brought the token joined.

    Raises:
        HfMpWriterError: another destination is recorded, or the recorded one cannot be read.
    """

    def __init__(
        self,
        spool: Spool,
        destination: Destination,
        lock: int,
        clock: Callable[[], float],
        rng: random.Random,
        token_issued_at: float = 0,
    ) -> None:
        self._spool, self._destination, self._lock, self._clock = spool, destination, lock, clock
        process = Process.current()
        self._host = spool.host(process.host)
        self._status = StatusFile(self._host, process, clock, token_issued_at)
        self._tenure = Tenure(self._host, clock)
        self._requests = Requests()
        self._token_stamp = hf_home.token_stamp(os.environ)
        self._rng, self._abandoned_since = rng, clock()
        self._ending = Ending.NOT_ASKED
        self._audit = False  # whether a request waits until the Hub's copies were read back
        self._recover()

    def _recover(self) -> None:
        """Read what is on disk; nothing in memory counts."""
        destination = self._destination
        self._check_recorded()
        if aside := ledger.set_aside(self._spool, self._host.root.basename):
            logger.info("the ledger could not be read, it is now %s; lengths are read back from the Hub", aside)
        self._ledger = ledger.load(self._spool, destination)
        if not destination.can_be(self._ledger.repo_id):
            self._ledger.repo_id = ""  # the first push resolves it again: a file does not tell where to send
        self._retries = Retries(self._ledger, self._clock, lambda: filesystem_time(self._host))
        self._members, waiting = Members(self._spool), Outbox(self._host, self._spool.run)
        self._members.sweep()
        self._next_sweep = self._clock() + SWEEP_EVERY
        first = self._clock() + FIRST_DELAY
        limit = RateLimit(destination, Environment.read().commits_per_hour, folders(os.environ, self._spool.directory))
        self._pacing, backoff = Pacing(self._clock, self._rng, limit, first), Backoff(self._clock, self._rng)
        self._events = EventFileLane(self._spool.run, waiting, self._ledger, self._pacing, self._retries, self._clock)
        self._attachments = AttachmentLane(
            self._spool, self._host.copies, self._ledger, backoff, self._retries, self._clock, first
        )
        self._in_flight = InFlight(self._spool, self._host, waiting, self._ledger, self._pacing, self._clock)
        # those of other hosts name their parents from here on, or we see their records
        self._status.publish(phase="idle", waiting=len(waiting.batches), push=None, commits=0, blocked_until=0.0)
        self._in_flight.recover()
        for batch in list(waiting.batches):
            if all(map(self._ledger.covers, batch.files)):
                waiting.remove(batch)

    def _check_recorded(self) -> None:
        """Refuse to work if the run is recorded for another destination: the token belongs to ours."""
        recorded = self._spool.destination()
        if recorded is None or recorded.is_same(self._destination):
            return
        reason = f"the recorded destination has changed; it is {recorded}, but this run goes to {self._destination}"
        hint = f"If others have not changed it, use another logdir. Else remove run.json in {self._spool.root}."
        self._status.failed(Refused(reason, hint), 1)
        self._status.publish(phase="left", waiting=0, push=None, commits=0, blocked_until=0.0)
        raise HfMpWriterError(f"{reason}.", hint=hint)

    # tick

    def tick(self) -> bool:
        """One round; False when it is time to end."""
        if not (self._spool.directory.is_at_path() and disk.same_file(self._lock, self._spool.uploader_lock)):
            logger.info("the spool was removed")
            return False
        if self._clock() >= self._next_sweep:  # the disk may have refused it at the start
            self._next_sweep = self._clock() + SWEEP_EVERY
            self._members.sweep()
        members = self._members.all()
        self._note(members)
        if self._in_flight.push is not None:
            self._listen(members)
        if self._in_flight.push is None:
            if self._is_better_token_there(members):
                logger.info("a newer worker may have a better token; leaving the uploader lock to it")
                self._attachments.close()
                self._publish("left")
                return False
            self._in_flight.catch_up()
            action = decide(self._situation(members))
            if action is Action.LEAVE:
                return not self._leave()
            if self._act(action, members):
                return True
        self._publish()
        self._sleep()
        return True

    def _act(self, action: Action, members: list[Member]) -> bool:
        """Act; True if the next tick follows at once."""
        if action is Action.SCAN:
            self._scan(members)
        elif action is Action.PUSH:
            self._start_push(self._events, self._events.start(), members)
        elif action is Action.ATTACH:
            self._attach(members)
            if self._in_flight.push is None:  # there may be more, or it is time to leave
                self._publish()
                return True
        return False

    def _note(self, members: list[Member]) -> None:
        living = [member for member in members if member.alive]
        if living:
            self._abandoned_since = self._clock()
        if members:
            self._ledger.settings = max(living or members, key=lambda member: member.started_at).settings
        for member in members:
            if self._requests.note(member):
                self._hurry(member)
        self._requests.keep(members)

    def _hurry(self, member: Member) -> None:
        """A request or an end is news: it ends a wait of ours, not one that the Hub asked for."""
        self._attachments.request()
        self._retries.request()
        if member.name.worker == OBSERVER and member.alive:  # `sync` trusts no ledger
            self._audit, self._in_flight.may_create = True, self._in_flight.may_create or member.create
        self._pacing.requested()

    def _is_better_token_there(self, members: list[Member]) -> bool:
        """Whether a younger worker may have a better token; it may have closed already and wait for its data."""
        if self._status.failure != Refused.__name__:
            return False
        if (stamp := hf_home.token_stamp(os.environ)) != self._token_stamp:  # `hf auth login`: the next push reads it
            self._token_stamp = stamp
            self._pacing.hold(Step(0.0))
        younger = (member for member in members if member.started_at > self._status.token_issued_at)
        return any(member.alive or not self._requests.is_satisfied(member) for member in younger)

    def _situation(self, members: list[Member]) -> Situation:
        living = sum(member.alive for member in members)
        return Situation(
            living=living,
            abandoned_for=self._clock() - self._abandoned_since,
            may_try=self._clock() >= self._pacing.next_try,
            due=self._is_due(members) or self._retries.is_due(attachments=False),
            outgoing=self._events.outgoing,
            settling=self._in_flight.is_settling,
            attached=self._attachments.state(living),
            ending=self._ending,
            orphaned=self._requests.any_orphaned(members),
            undecided=self._retries.is_open,
        )

    def _is_due(self, members: list[Member]) -> bool:
        """Whether event files should go: the commit interval of live workers is over, or they are urgent."""
        over = self._clock() >= self._pacing.next_commit and any(member.alive for member in members)
        return over or self._is_urgent(members)

    def _is_urgent(self, members: list[Member]) -> bool:
        """Whether event files should go at once: for a request, or for what was left behind."""
        unseen = not any(member.alive for member in members) and not self._events.has_scanned
        return unseen or self._audit or self._requests.any_urgent(members)

    # scan and push

    def _scan(self, members: list[Member]) -> None:
        try:
            alone, quarantined = not any(member.alive for member in members), dict(self._ledger.quarantined)
            observers = [member for member in members if member.alive and member.name.worker in ASK_FOR_ALL]
            everything = alone or self._audit or self._requests.any_urgent(observers)
            files = self._events.scan(self._members, everything=everything)
            if self._ledger.quarantined != quarantined:  # a large file is left out, or is not any more
                self._in_flight.save_ledger()
        except OSError as error:
            logger.info("cannot scan the event files: %s", error)
            self._pacing.hold(Step(FIRST_WAIT))
            return
        self._pacing.scanned(self._events.settings.commit_every)
        self._requests.scanned(members, files)
        self._requests.satisfy(self._events.batches, self._ledger, self._members)
        if self._ending is not Ending.NOT_ASKED:
            self._ending = Ending.ASKED if self._events.batches else Ending.TRIED
        if self._audit and not self._events.batches:  # nothing to send, but a request asks what the Hub really has
            self._start_push(self._events, Batch(0, ()), members)

    def _attach(self, members: list[Member]) -> None:
        """Scan attachments, as no event file is due; push what the Hub lacks."""
        alone = not any(member.alive for member in members)
        if not self._attachments.batches and self._attachments.scan(alone=alone):
            self._in_flight.save_ledger()
        if self._attachments.batches:
            self._start_push(self._attachments, self._attachments.start(), members)

    def _start_push(self, lane: Lane, batch: Batch, members: list[Member]) -> None:
        """Start a push if the rate limit allows it; a mere read-back needs no token."""
        last = self._ending is not Ending.NOT_ASKED or not any(member.alive for member in members)
        refused = any(file.path in self._ledger.quarantined for file in batch.files)
        if batch.files and not self._pacing.take(urgent=not refused and (last or self._is_urgent(members))):
            if self._pacing.used_up:
                self._status.notify([USED_UP])
                self._events.require_scan()
            return
        if self._audit:  # whatever was in flight when it was asked for
            self._in_flight.own_head = None
        if self._ending is not Ending.NOT_ASKED:
            self._ending = Ending.TRIED if len(self._events.batches) <= 1 else Ending.ASKED
        try:
            self._in_flight.start(lane, batch, squash=self._may_squash(batch, last=last))
        except OSError as error:
            self._conclude(Retry(f"cannot start a push: {error}"))

    def _may_squash(self, batch: Batch, *, last: bool) -> bool:
        settings = self._events.settings
        final = last and not batch.has_attachments and len(self._events.batches) <= 1
        return settings.squash_history and self._pacing.may_squash(0 if final else settings.commit_every)

    # outcome

    def _listen(self, members: list[Member]) -> None:
        """Take in what the push says; conclude when it has ended. One of attachments is ended if it is in the way."""
        push = self._in_flight.push
        if push is None:
            return
        if self._in_flight.carries(self._attachments):
            terminating = self._ending is not Ending.NOT_ASKED
            if self._attachments.must_yield(due=self._is_due(members), terminating=terminating):
                push.kill()
        notices, verdict = push.listen()
        self._status.notify(notices)
        if verdict is not None:
            self._conclude(verdict)

    def _conclude(self, verdict: Verdict) -> None:
        """Take in the verdict on what was in flight."""
        verdict, lane, batch = self._in_flight.end(verdict)
        if isinstance(verdict, Done):
            self._acknowledge(verdict, lane, batch)
        else:
            self._fail(verdict, lane, batch)

    def _acknowledge(self, verdict: Done, lane: Lane, batch: Batch) -> None:
        released = verdict.files.keys() & self._ledger.quarantined.keys()
        carried = {file.path for file in batch.files if batch.has_attachments}
        if any(self._ledger.is_ahead(path, sent) for path, sent in verdict.files.items() if path not in carried):
            self._start_over("the Hub has less than it had: what is missing is sent again")
        self._in_flight.acknowledge(verdict, batch)
        self._audit = self._audit and not verdict.checked
        lane.done(batch, committed=verdict.own)
        self._requests.satisfy(self._events.batches, self._ledger, self._members)
        if released:  # the later files of their writers waited for them, and what refused them may be over
            self._scan_again()
            self._retries.request()
        if self._events.settings.squash_history:
            self._in_flight.own_head = None
        self._abandoned_since = self._clock()  # progress is as good a reason to stay as a worker
        self._pacing.done(committed=verdict.own)
        self._status.recovered()

    def _fail(self, verdict: Verdict, lane: Lane, batch: Batch) -> None:
        """Take in any other verdict.

        A failed push of attachments delays event files only if the Hub refuses the destination or asks for a pause.
        """
        self._pacing.learn(verdict)
        self._events.require_scan()
        is_known = not isinstance(verdict, Unknown)
        if is_known and not batch.has_attachments:  # the ledger has nothing to learn of these first
            self._in_flight.clear()
        verdict, step = lane.failed(verdict, batch)
        if batch.has_attachments or isinstance(verdict, Quarantine):
            self._in_flight.save_ledger()
        if is_known:
            self._in_flight.clear()
        if isinstance(verdict, Quarantine):
            lane.drop(batch)
            self._scan_again()
        if lane is self._attachments and (isinstance(verdict, Refused) or not step.may_hurry):
            self._pacing.hold(step)
        if not lane.yielded:
            self._status.failed(verdict, lane.backoff.attempts)

    def _start_over(self, why: str) -> None:
        """Scan everything again, and take all members for unsatisfied."""
        logger.info(why)
        self._scan_again()
        self._attachments.restart()
        self._requests.forget()

    def _scan_again(self) -> None:
        """Scan soon: of the last scan, something is not sent."""
        self._events.has_scanned = False
        self._pacing.soon()

    # status, sleep, leave

    def _publish(self, phase: str = "") -> None:
        self._tenure.note(is_over=phase == "left")
        waiting = self._events.batches + self._attachments.batches
        push = self._in_flight.push
        self._status.publish(
            phase=phase or ("pushing" if push else "waiting" if self._events.batches else "idle"),
            waiting=len(waiting),
            push=push.pid if push else None,
            commits=self._events.commits + self._attachments.commits,
            blocked_until=0.0 if self._pacing.may_hurry else self._pacing.next_try,
        )

    def _sleep(self) -> None:
        if self._in_flight.push is not None:
            self._in_flight.push.wait(TICK)
            return
        due_in = self._pacing.next_try - self._clock() if self._events.batches else TICK
        time.sleep(min(TICK, max(0.0, due_in)))

    def _leave(self) -> bool:
        """Give up the uploader lock, look once more, take it back if something came in between; True if it is over."""
        self._members.sweep()  # again: at the start a killed process may not have been reaped yet
        self._publish("left")
        self._attachments.close()
        locks.release(self._lock)
        over = self._ending is not Ending.NOT_ASKED or self._clock() - self._abandoned_since > LINGER
        if over or all(not member.alive and self._requests.is_satisfied(member) for member in self._members.all()):
            return True
        if (lock := locks.try_exclusive(self._spool.uploader_lock)) is None:
            return True
        self._lock = lock
        self._recover()  # another uploader may have been here
        return False

    def terminate(self) -> None:
        """SIGTERM: one last scan and push, and what dead members left behind, then leave."""
        if self._ending is Ending.NOT_ASKED:
            self._ending = Ending.ASKED
        self._events.blind_scans = 0
        if not self._pacing.attempts:  # a wait that is not the Hub's: for the disk, or for a token
            self._pacing.requested()
        end_within(GRACE)


def main() -> None:
    """Entry point of the process; what it needs is on the descriptors that `system.launch` names."""
    record = state.load(StartRecord, launch.read_record(launch.START_RECORD_FD))
    try:
        spool = Spool.adopt(record.run_dir, launch.RUN_DIR_FD, launch.SPOOL_FD)
    except HfMpWriterError as error:
        raise SystemExit(f"no upload: {error}") from None
    upload(record, spool, launch.UPLOADER_LOCK_FD)


def upload(start: StartRecord, spool: Spool, lock: int) -> None:
    """Upload until nothing is left.

    Args:
        start: what the worker has handed over.
        spool: of the run directory.
        lock: descriptor that holds the uploader lock.
    """
    start_logging()
    raise_limits()
    lower_priority()
    locks.adopt(lock)
    rng = random.Random()  # noqa: S311 - jitter
    try:
        uploader = Uploader(spool, start.destination, lock, time.monotonic, rng, start.token_issued_at)
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
