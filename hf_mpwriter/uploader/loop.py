"""The uploader: the process on the uploader lock. It looks, decides with a pure function, acts, sleeps.

    recover -> look -> decide -> SNAPSHOT   survey event files, put what is new into the queue
                              -> PUSH       start a push for the oldest entry; its verdict is taken in at a later look
                              -> ATTACH     while no event file is due: look at attachments, push what is new
                              -> WAIT
                              -> LEAVE

Order of writes: fsync(event files) -> put entry -> drop superseded entries -> in_flight -> push -> ledger -> drop
in_flight and entry (of attachments: copies -> in_flight -> push -> ledger -> drop in_flight, copies). If interrupted, the
next uploader derives the rest again from what the ledger does not cover.

Invariants:
- It holds the uploader lock for its whole life; on every tick the lock is checked to be the file at the path.
- It imports the standard library, psutil and filelock; the network client lives in the push only.
- While a request without a parent may still be under way, for SETTLE_TIME, all that is sent names its parent and is
  nothing newer. A request that names its parent needs no such wait: once the branch has moved, the Hub refuses it.
"""

from __future__ import annotations

import logging
import math
import os
import random
import signal
import time
from collections.abc import Callable

from hf_mpwriter.base.errors import HfMpWriterError
from hf_mpwriter.base.settings import Environment, Settings
from hf_mpwriter.base.verdicts import Done, Quarantine, Refused, Retry, Split, Unknown, Verdict
from hf_mpwriter.push.handle import PushHandle
from hf_mpwriter.push.job import Job, deadline
from hf_mpwriter.snapshot import event_files
from hf_mpwriter.spool import ledger, outbox
from hf_mpwriter.spool.layout import Spool
from hf_mpwriter.spool.members import OBSERVER, Member, Members
from hf_mpwriter.spool.outbox import Batch, Outbox
from hf_mpwriter.spool.status import StatusFile
from hf_mpwriter.system import disk, hf_home, launch, locks
from hf_mpwriter.system.daemon import GRACE, end_within, keep_on, start_logging
from hf_mpwriter.system.process import Process
from hf_mpwriter.uploader import attachment_lane, backoff
from hf_mpwriter.uploader.backoff import Step
from hf_mpwriter.uploader.decision import LINGER, Action, Situation, decide
from hf_mpwriter.uploader.pacing import Pacing
from hf_mpwriter.uploader.priority import lower
from hf_mpwriter.uploader.rate_limit import USED_UP, RateLimit, folders
from hf_mpwriter.uploader.requests import Requests

logger = logging.getLogger("hf_mpwriter")

TICK = 1.0  # seconds between two looks; the end of a push is heard at once
FIRST_DELAY = 2.0  # seconds after the start until the first snapshot, if nobody asks for one
BLIND_LOOKS = 12  # snapshots in a row that fail for a file that cannot be read, before it is left out
SETTLE_TIME = 120.0  # seconds; the Hub ends a request in 60, a proxy may take as long


class Uploader:
    """The state between two ticks.

    Args:
        spool: of the run directory.
        lock: descriptor that holds the uploader lock.
        clock: monotonic seconds.
        rng: source of the jitter.
        token_issued_at: unix time of the worker that brought the token.
    """

    def __init__(
        self, spool: Spool, lock: int, clock: Callable[[], float], rng: random.Random, token_issued_at: float = 0
    ) -> None:
        self._spool, self._lock, self._clock, self._rng = spool, lock, clock, rng
        self._process = Process.current()
        self._host = spool.host(self._process.host)
        self._bulletin = StatusFile(self._host, self._process, clock, token_issued_at)
        self._survey = event_files.EventFileScan(spool.run_dir)
        self._settings, self._audience = Settings(), Requests()
        # the push that runs
        self._push: PushHandle | None = None
        self._entry: Batch | None = None
        self._fenced = True
        # what the Hub said
        self._own_head: str | None = None
        self._token_stamp = hf_home.token_stamp(os.environ)
        self._commits = 0
        self._refusals: dict[str, int] = {}  # path -> times that the Hub refused it alone, in a row
        # when
        self._frozen_until = 0.0
        self._abandoned_since, self._patience = clock(), BLIND_LOOKS
        # what is under way
        self._fresh = self._surveyed = self._splitting = self._terminating = self._tried = self._audit = False
        self._behind = False  # whether the ledger in memory knows more than the one on disk
        self._recover()

    def _recover(self) -> None:
        destination = self._spool.destination()
        if destination is None:
            raise SystemExit("no destination is recorded: nothing to upload")
        if aside := ledger.set_aside(self._spool, self._process.host):
            logger.info("the ledger could not be read, it is now %s; lengths are read back from the Hub", aside)
        self._ledger = ledger.load(self._spool, destination)
        self._ledger.quarantined.clear()  # a new start tries refused paths again
        self._roster, self._queue = Members.swept(self._spool), Outbox(self._host, self._spool.run_dir)
        first = self._clock() + FIRST_DELAY
        budget = RateLimit(destination, Environment.read().commits_per_hour, folders(os.environ, self._spool.root))
        self._pace = Pacing(self._clock, self._rng, budget, first)
        self._attaching = attachment_lane.AttachmentLane(self._spool, self._host.copies, self._clock, self._rng, first)
        self._settings = self._ledger.settings or self._settings
        for host in self._spool.host_ids():
            if (lost := outbox.interrupted(self._spool.host(host))) is not None:
                logger.info("a push of %s (entry %s) was interrupted, its outcome is unknown", host, lost.entry)
                if not lost.fenced:
                    self._frozen_until = self._clock() + SETTLE_TIME
                if self._ledger.mark_uncertain(lost.files):
                    self._save_ledger()
        self._clear_in_flight()  # what our predecessor knew is in the ledger
        for entry in list(self._queue.entries):
            if all(map(self._ledger.covers, entry.files)):
                self._queue.remove(entry)

    # look

    def tick(self) -> bool:
        """One round; False when it is time to end."""
        if not disk.same_file(self._lock, self._spool.uploader_lock):
            logger.info("the spool was removed")
            return False
        members = self._roster.members()
        self._note(members)
        if self._push is not None:
            self._listen(self._push, members)
        if self._push is None:
            if self._hears_better_token(members):
                logger.info("a newer worker may have a better token; leaving the uploader lock to it")
                self._attaching.close()
                self._report("left")
                return False
            self._catch_up()
            now = self._situation(members)
            action = decide(now)
            if action is Action.LEAVE:
                return not self._leave()
            if action is Action.SNAPSHOT:
                self._snapshot(members, now)
            elif action is Action.PUSH:
                self._start_push(self._queue.entries[0], now)
            elif action is Action.ATTACH:
                self._attach(now)
                if self._push is None:  # there may be more, or it is time to leave
                    self._report()
                    return True
        self._report()
        self._sleep()
        return True

    def _catch_up(self) -> None:
        """A ledger that the disk refused is saved. After the settle time the record goes, and the Hub is read back."""
        if self._behind:
            self._save_ledger()
            self._clear_in_flight()
        if 0.0 < self._frozen_until <= self._clock():
            self._frozen_until, self._own_head = 0.0, None
            self._clear_in_flight()

    def _note(self, members: list[Member]) -> None:
        living = [member for member in members if member.alive]
        if living:
            self._abandoned_since = self._clock()
        if members:
            self._settings = self._ledger.settings = max(
                living or members, key=lambda member: member.started_at
            ).settings
        for member in members:
            self._hear(member)
        self._audience.keep(members)

    def _hear(self, member: Member) -> None:
        """A request or an end is news: it ends a wait of ours, not one that the Hub asked for."""
        if not self._audience.hear(member):
            return
        self._attaching.ask()
        if member.name.worker == OBSERVER and member.alive:  # `sync` trusts no ledger and tries refused paths again
            self._ledger.quarantined.clear()
            self._own_head, self._audit = None, True
        self._pace.hurry()

    def _hears_better_token(self, members: list[Member]) -> bool:
        """Whether a younger worker may have one; it may have closed already and wait for its data."""
        if self._bulletin.trouble != Refused.__name__:
            return False
        if (stamp := hf_home.token_stamp(os.environ)) != self._token_stamp:  # `hf auth login`: the next push reads it
            self._token_stamp = stamp
            self._pace.hold(Step(0.0))
        younger = (member for member in members if member.started_at > self._bulletin.token_issued_at)
        return any(member.alive or not self._audience.is_served(member) for member in younger)

    def _situation(self, members: list[Member]) -> Situation:
        now, living = self._clock(), sum(member.alive for member in members)
        unseen = not living and not self._surveyed  # nobody to wait for, but perhaps something was left behind
        return Situation(
            now=now,
            next_try=self._pace.next_try,
            next_commit=self._pace.next_commit if living else math.inf,
            fresh=self._fresh,
            frozen=self._splitting or self._frozen_until > 0.0,
            queued=len(self._queue.entries),
            urgent=unseen or self._audit or self._audience.is_one_urgent(members, self._ledger, self._settings),
            living=living,
            abandoned_since=self._abandoned_since,
            settling=self._frozen_until > 0.0,
            terminating=self._terminating,
            tried=self._tried,
            orphaned=self._audience.is_one_orphaned(members),
            attachable=self._attaching.is_due(living),
            starved=self._attaching.is_starved(self._settings),
            attached=self._attaching.is_over(living),
        )

    # snapshot

    def _snapshot(self, members: list[Member], now: Situation) -> None:
        try:
            files = self._survey.files(self._settings.allows, self._roster.growing, self._patience)
            waiting = event_files.pending(files, self._ledger.covers, self._ledger.quarantined)
            self._queue.put(event_files.bounded(waiting))
        except OSError as error:
            logger.info("cannot take a snapshot: %s", error)
            self._pace.hold(Step(backoff.FIRST_WAIT))
            return
        self._pace.surveyed(self._settings.commit_every)
        if self._queue.trouble:
            logger.info(self._queue.trouble)
        self._fresh = self._surveyed = True
        self._audience.see(members, files)
        self._audience.serve(self._queue.entries, self._ledger, self._roster)
        self._tried = self._terminating and not self._queue.entries
        if self._audit and not self._queue.entries:  # nothing to send, but somebody asks what the Hub really has
            self._start_push(Batch(0, ()), now)

    # push

    def _start_push(self, entry: Batch, now: Situation) -> None:
        """Start a push if the budget allows it; what asks for nothing but a read-back needs none."""
        last = now.terminating or not now.living
        if entry.files and not self._pace.take(urgent=last or now.urgent):
            self._bulletin.notice([USED_UP] if self._pace.used_up else [])
            self._fresh = self._fresh and not self._pace.used_up
            return
        self._fenced = entry.is_attached or self._pace.fenced or self._frozen_until > 0.0
        final = last and not entry.is_attached and len(self._queue.entries) <= 1
        squash = self._settings.squash_history and self._pace.may_squash(0 if final else self._settings.commit_every)
        job = Job(
            run_dir=self._spool.run_dir,
            copies=self._host.copies,
            destination=self._ledger.resolved,
            private=self._settings.private,
            squash=squash,
            files=entry.files,
            known=self._ledger.known(),
            uncertain=self._ledger.uncertain,
            own_head=self._own_head,
            fenced=self._fenced,
            xet=self._pace.xet,
        )
        self._entry = entry
        self._tried = self._terminating and len(self._queue.entries) <= 1
        settled = self._fenced and not self._frozen_until
        try:
            self._push = PushHandle(self._queue.mark_in_flight(entry, job.to_json(), fenced=settled), deadline(job))
        except OSError as error:
            self._settle(Retry(f"cannot start a push: {error}"))

    def _attach(self, now: Situation) -> None:
        """Look at attachments while no event file is due; push what the Hub does not have."""
        if not self._attaching.entries and self._attaching.look(self._ledger, self._settings, alone=not now.living):
            self._save_ledger()
        if self._attaching.entries:
            self._start_push(self._attaching.mark_in_flight(), now)

    def _listen(self, push: PushHandle, members: list[Member]) -> None:
        """Take in what the push says; settle when it has ended. One of attachments is ended if it is in the way."""
        if self._entry and self._entry.is_attached and self._attaching.must_yield(self._situation(members)):
            push.kill()
        notices, verdict = push.listen()
        self._bulletin.notice(notices)
        if verdict is not None:
            self._push = None
            self._settle(verdict)

    def _settle(self, verdict: Verdict) -> None:
        """Take in the verdict on the entry that was in flight."""
        entry = self._entry
        assert entry is not None  # noqa: S101 - for the type checker; a push always has an entry
        self._entry, self._fresh = None, False
        if isinstance(verdict, Done):
            self._acknowledge(verdict, entry)
            return
        self._own_head = None
        self._pace.learn(verdict)
        if entry.is_attached:
            self._settle_attached(verdict, entry)
            return
        if isinstance(verdict, Unknown) and not self._fenced:
            self._frozen_until = self._clock() + SETTLE_TIME
        elif not isinstance(verdict, Unknown):
            self._clear_in_flight()
        if not isinstance(verdict, (Quarantine, Split)):
            self._splitting = False
        if isinstance(verdict, Quarantine):
            self._quarantine(verdict.paths, entry)
        elif isinstance(verdict, Split):
            self._split(entry, verdict.reason)
        self._pace.failed(verdict)
        self._bulletin.complain(verdict, self._pace.attempts)

    def _acknowledge(self, verdict: Done, entry: Batch) -> None:
        self._ledger.repo_id = verdict.repo_id
        carried = {file.path for file in entry.files if entry.is_attached}
        if any(self._ledger.is_ahead(path, sent) for path, sent in verdict.files.items() if path not in carried):
            self._start_over("the Hub has less than it had: what is missing is sent again")
        self._ledger.acknowledge(verdict.files, verdict.commit, time.time())
        if verdict.checked:
            self._audit = False
            self._ledger.check(time.time())
        self._ledger.see(entry.files)
        self._save_ledger()
        self._clear_in_flight()
        if entry.is_attached:
            self._attaching.clear_in_flight(entry, self._settings, own=verdict.own)
        elif all(map(self._ledger.covers, entry.files)):
            self._queue.remove(entry)
        self._audience.serve(self._queue.entries, self._ledger, self._roster)
        self._own_head = None if self._settings.squash_history else verdict.commit
        self._refusals.clear()
        self._commits += verdict.own
        self._abandoned_since = self._clock()  # progress is as good a reason to stay as a worker
        self._pace.done(committed=verdict.own)
        self._fresh = bool(self._queue.entries)
        self._splitting = self._splitting and self._fresh
        self._bulletin.recover()

    def _settle_attached(self, verdict: Verdict, entry: Batch) -> None:
        """Take in that attachments were not taken: event files wait only if the Hub refuses us or wishes it."""
        step = self._attaching.failed(verdict, entry, self._ledger)
        self._save_ledger()
        if not isinstance(verdict, Unknown):
            self._clear_in_flight()
        if isinstance(verdict, Quarantine):
            self._look_again()
        if isinstance(verdict, Refused) or not step.patient:
            self._pace.hold(step)
        if not self._attaching.yielded:
            self._bulletin.complain(verdict, self._attaching.attempts)

    def _save_ledger(self) -> None:
        """Save what is known; where that fails, at the next tick. Until then the record of the push stays, too."""
        try:
            self._ledger.save(self._host.ledger)
            self._behind = False
        except OSError as error:  # nothing is lost: where the ledger is behind, the Hub is read back
            if not self._behind:
                logger.info("the ledger cannot be written: %s", error)
            self._behind = True

    def _start_over(self, why: str) -> None:
        """Look at everything again, whoever was served before."""
        logger.info(why)
        self._look_again()
        self._attaching.restart()
        self._audience.forget()

    def _look_again(self) -> None:
        """Take the next snapshot soon: of the last one, something is not sent."""
        self._surveyed = False
        self._pace.soon()

    def _clear_in_flight(self) -> None:
        if self._frozen_until or self._behind:  # a request may still be under way, or its outcome is not on disk
            return
        try:
            self._queue.clear_in_flight()
        except OSError as error:
            logger.info("%s cannot be removed: %s", self._host.in_flight, error)

    def _quarantine(self, paths: dict[str, str], entry: Batch) -> None:
        for path, reason in paths.items():
            logger.info("%s is refused: %s", path, reason)
        self._ledger.quarantined |= paths
        self._save_ledger()
        self._queue.remove(entry)
        self._look_again()
        self._splitting = self._splitting and bool(self._queue.entries)

    def _split(self, entry: Batch, reason: str) -> None:
        if len(entry.files) == 1:
            path = entry.files[0].path
            self._refusals[path] = self._refusals.get(path, 0) + 1
            if self._refusals[path] >= attachment_lane.REFUSALS:
                self._quarantine({path: reason}, entry)
            return
        try:
            self._queue.split(entry)
            self._splitting = True
        except OSError as error:  # a file is gone: the next snapshot knows
            logger.info("cannot split entry %s: %s", entry.number, error)

    # report, sleep, leave

    def _report(self, phase: str | None = None) -> None:
        waiting = "waiting" if self._queue.entries else "idle"
        self._bulletin.publish(
            phase=phase or ("pushing" if self._push else waiting),
            repo_id=self._ledger.repo_id,
            waiting=len(self._queue.entries) + len(self._attaching.entries),
            push=self._push.pid if self._push else None,
            commits=self._commits,
            blocked_until=0.0 if self._pace.patient else self._pace.next_try,
        )

    def _sleep(self) -> None:
        if self._push is not None:
            self._push.wait(TICK)
            return
        due_in = self._pace.next_try - self._clock() if self._queue.entries else TICK
        time.sleep(min(TICK, max(0.0, due_in)))

    def _leave(self) -> bool:
        """Give up the uploader lock, look once more, take it back if something came in between; True if it is over."""
        self._report("left")
        self._attaching.close()
        locks.release(self._lock)
        over = self._terminating or self._clock() - self._abandoned_since > LINGER
        if over or not any(member.alive or not self._audience.is_served(member) for member in self._roster.members()):
            return True
        if (lock := locks.try_exclusive(self._spool.uploader_lock)) is not None:
            self._lock = lock
        return lock is None

    def terminate(self) -> None:
        """SIGTERM: one last snapshot and push, and what those who have gone left behind, then leave."""
        self._terminating, self._patience = True, 0
        if not self._pace.attempts:  # a wait that is not the Hub's: for the disk, or for a token
            self._pace.hurry()
        end_within(GRACE)


def main(run_dir: str, token_issued_at: float) -> None:
    """Entry point of the process, see `election`: upload until nothing is left."""
    start_logging()
    lower()
    locks.adopt(launch.UPLOADER_LOCK_FD)
    spool, rng = Spool(run_dir), random.Random()  # noqa: S311 - jitter
    try:
        uploader = Uploader(spool, launch.UPLOADER_LOCK_FD, time.monotonic, rng, token_issued_at)
    except HfMpWriterError as error:
        raise SystemExit(f"no upload: {error}") from None
    signal.signal(signal.SIGTERM, lambda *_: uploader.terminate())
    logger.info("took the uploader lock of %s", run_dir)
    keep_on(uploader.tick, TICK)
    logger.info("left the uploader lock")
