"""The loop of a mirror, the process that holds the mirror lock: it brings what is final to the logdir, and what is only
there back.

    recover -> tick:  note members -> take in what the copy says -> decide -> SCAN    what is final, and not there
                                                                           -> LIST    what is there
                                                                           -> COPY    start a copy of the first files
                                                                           -> FETCH   one of files that are only there
                                                                           -> WAIT
                                                                           -> LEAVE

Order of writes: seal -> copy -> fsync and rename in the logdir -> mirrored.json. After an interruption the next mirror
compares with the logdir, and brings what is not there.

Invariant: it never touches the logdir. That is done by a copy, which may hang.
"""

from __future__ import annotations

import contextlib
import logging
import random
import time
from collections.abc import Callable
from dataclasses import replace

from hf_mpwriter.base.names import is_embedding, is_loss
from hf_mpwriter.base.timing import USUAL, Timing
from hf_mpwriter.daemon import loop
from hf_mpwriter.daemon.starts import MirrorStart
from hf_mpwriter.daemon.status_file import DaemonStatusFile
from hf_mpwriter.delivery.sinks import HubSink
from hf_mpwriter.mirror.decision import MirrorAction, MirrorSituation, Tries, decide, turned
from hf_mpwriter.mirror.outgoing import OutgoingFiles
from hf_mpwriter.mirror.returning import Returning
from hf_mpwriter.snapshot import attachments
from hf_mpwriter.snapshot.event_files import writer_of
from hf_mpwriter.spool import storage
from hf_mpwriter.spool.copies import (
    Absent,
    Arrived,
    Conflict,
    CopyHandle,
    CopyJob,
    CopyLivesError,
    Failure,
    Finished,
    Item,
    Listed,
    Message,
    Task,
    Unread,
    Withheld,
    bounded,
    limit,
)
from hf_mpwriter.spool.layout import Spool
from hf_mpwriter.spool.pulled import pulled_files
from hf_mpwriter.spool.staging import ARRIVING, Mirrored, MirrorStatus
from hf_mpwriter.spool.status import LINGER
from hf_mpwriter.spool.workers.losses import losses
from hf_mpwriter.spool.workers.member_lines import Member, News
from hf_mpwriter.spool.workers.members import OBSERVER, Members
from hf_mpwriter.system import disk

logger = logging.getLogger("hf_mpwriter")

SCAN_EVERY = 30.0  # seconds between two scans for files that are not ours
UNREAD_TOLD = 100  # files that the status names
STUCK = "a process that copies hangs in it, and cannot be killed; no other one starts while it lives"


class Mirror(loop.Daemon[MirrorStart]):
    """The holder of the mirror lock."""

    kind = "mirror"

    def __init__(
        self,
        spool: Spool,
        start: MirrorStart,
        lock: int,
        clock: Callable[[], float],
        rng: random.Random,
        timing: Timing = USUAL,
    ) -> None:
        super().__init__(spool, start, lock, clock, rng, timing)
        status = MirrorStatus(process=self._process)
        self.status = DaemonStatusFile(self.host, status, clock, beat_every=timing.heartbeat_every)
        self._is_ending = self._is_unsaved = False
        self._copy: CopyHandle | None = None
        self._alive_at, self._seals = clock(), loop.Seals(clock)
        self.recover()

    def recover(self) -> None:
        """Read what is on disk; what the logdir holds is compared anew."""
        self._mirrored = Mirrored.read(self.host)
        self._members, self._news = Members(self._spool), News()
        self._outgoing = OutgoingFiles(self._spool.run, lambda path: self._mirrored.files.get(path, 0))
        self._returning = Returning(self._spool.run, self._clock)
        self._tries = Tries(self._clock, self._rng, self._timing)
        self._job = CopyJob(Task.LIST, self._spool.run_dir, self._start.to)  # of the copy that runs, or has run last
        disk.remove_tree(self._spool.directory / ARRIVING)  # of a copy that was killed
        self._compare()
        with contextlib.suppress(OSError):
            storage.mark_note(self._spool, is_whole=False)

    def _compare(self) -> None:
        """Believe nothing of what is known to be there."""
        self._outgoing.forget()
        self._returning.begin()
        self._seen: list[Member] | None = None  # the members at the last scan
        self._next_scan, self._compared_at = 0.0, time.time()
        self._mirrored = replace(self._mirrored, refused={})

    @property
    def _is_abandoned(self) -> bool:
        return self._clock() - self._alive_at > LINGER  # no member was alive, and nothing has arrived

    # tick

    def tick(self) -> bool:
        """One round; False when it is time to end."""
        if not self.is_in_place():
            return False
        members = self._members.all()
        self._note(members)
        if self._copy is not None:
            self._listen(self._copy)
        if self._copy is not None and self._copy.is_stuck and self._is_abandoned:
            return not self.leave()
        if self._copy is None:
            action = decide(self._situation(members))
            if action is MirrorAction.LEAVE:
                return not self.leave()
            if action is MirrorAction.SCAN:
                self._scan(members)
                if self._seen is not None:
                    return True
            elif action is not MirrorAction.WAIT:
                self._start_copy(self._next_job(action))
        self._publish()
        if self._copy is not None:
            self._copy.wait(self._timing.mirror_tick)
        else:
            time.sleep(self._timing.mirror_tick)
        return True

    def _note(self, members: list[Member]) -> None:
        if any(member.works for member in members):
            self._alive_at = self._clock()
        for member in members:
            if not self._news.covers(member):
                self._news.note(member)
                self._tries.hurry()
                if member.name.worker == OBSERVER and member.alive:  # `sync` trusts no record
                    self._compare()
        if len(members) < len(self._seen or ()):  # one has withdrawn
            self._tries.hurry()
        self._news.keep(members)

    def _situation(self, members: list[Member]) -> MirrorSituation:
        now, waiting = self._clock(), self._waiting()
        return MirrorSituation(
            living=sum(member.works for member in members) + self._seals.are_pending(members),
            abandoned_for=now - self._alive_at,
            may_try=self._tries.may_start(writer_of(item.path) for item in waiting),
            is_due=members != self._seen or now >= self._next_scan,
            waiting=len(waiting),
            is_ending=self._is_ending,
            # what cannot be listed keeps nothing from the logdir
            is_unlisted=self._returning.is_unlisted and not (waiting and self.status.status.failures),
            missing=len(self._returning.missing),
        )

    def _scan(self, members: list[Member]) -> None:
        """See which files are final."""
        self._seen, self._next_scan = members, self._clock() + SCAN_EVERY
        try:
            self._outgoing.scan(members, self._members.growing, pulled_files(self._spool))
        except OSError as error:
            logger.info("cannot scan the event files: %s", error)
            self._seen = None
            self._tries.not_before(self._timing.copy_retry_first)

    def _waiting(self) -> list[Item]:
        """What is to be brought, in an order of which any prefix may be there."""
        # of those that are to come back only a beginning is here; as behind a refused one, later ones wait
        held = (self._mirrored.refused.keys() - self._tries.due()) | self._returning.missing.keys()
        return self._outgoing.waiting(frozenset(held))

    # copy

    def _next_job(self, action: MirrorAction) -> CopyJob:
        job = CopyJob(Task.LIST, self._spool.run_dir, self._start.to)
        if action is MirrorAction.LIST:
            return job
        if action is MirrorAction.FETCH:
            return replace(job, task=Task.FETCH, items=self._returning.next_items(self._members.growing()))
        items = turned(self._waiting(), self.status.status.failures, self._tries.behind)
        return replace(job, task=Task.BRING, items=bounded(items))

    def _start_copy(self, job: CopyJob) -> None:
        self._tries.start()
        self._job = job
        try:
            self._copy = CopyHandle(self._spool, job, limit(job, self._mirrored.late, self._timing.copy_limit))
        except CopyLivesError:
            self._failed(Failure(STUCK), phase="stuck")
        except OSError as error:
            self._failed(Failure(f"cannot start a copy: {error}"))

    def _listen(self, copy: CopyHandle) -> None:
        """Take in what the copy says; conclude when it has ended."""
        told, end = copy.listen()
        before = self._mirrored
        for message in told:
            self._take(message)
        if end is not None:
            self._mirrored = recorded(self._mirrored, end)
        if self._mirrored != before:
            self._save()
        if copy.is_stuck and self.status.status.phase != "stuck":
            self._failed(Failure(STUCK), phase="stuck")
        if end is not None:
            self._copy = None
            self._conclude(end)

    def _take(self, message: Message) -> None:
        before, self._mirrored = self._mirrored, recorded(self._mirrored, message)
        self._returning.note(message)
        self._tries.note(message)
        if isinstance(message, Listed):
            same = self._outgoing.listed(message.files)
            self._mirrored = replace(self._mirrored, files=self._mirrored.files | same)
        elif isinstance(message, Arrived):
            self._outgoing.arrived(message.path, message.length)
            self._alive_at = self._clock()
        elif isinstance(message, Unread):
            logger.info("%s cannot be read there: %s", message.path, message.reason)
        elif isinstance(message, Absent):  # here it was removed since the scan
            self._next_scan = 0.0
        for path in self._mirrored.refused.keys() - before.refused.keys():
            logger.info("%s: %s", path, self._mirrored.refused[path])

    def _conclude(self, end: Finished | Failure) -> None:
        if self._is_ending and self._job.task is not Task.BRING:
            return
        if isinstance(end, Finished):
            if self.status.status.failures:
                logger.info("the logdir takes files again")
            self._tries.succeeded()
            self.status.change(phase="", failures=0, reason="", is_refused=False, failed_at=0.0, next_try=0.0)
            return
        self._returning.failed(self._job.items)
        if end.is_gone:
            self._compare()
        failed = {writer_of(item.path) for item in self._job.items if item.path not in self._outgoing.there}
        self._tries.behind = self._tries.behind | failed if end.is_of_files else frozenset()  # else all writers wait
        self._failed(end)

    def _failed(self, end: Failure, phase: str = "") -> None:
        """A copy has failed: the next one waits."""
        failures, now = self.status.status.failures + 1, time.time()
        wait = self._tries.failed(failures, is_refused=end.is_refused)
        if end.reason != self.status.status.reason:
            logger.info("the logdir does not take files: %s", end.reason)
        failure = {"reason": end.reason, "is_refused": end.is_refused, "failed_at": now, "next_try": now + wait}
        self.status.change(phase=phase, failures=failures, **failure)

    # status, leave

    def _save(self) -> None:
        try:
            self._mirrored.save(self.host)
            self._is_unsaved = False
        except OSError as error:  # tried again at each tick; the next mirror compares with the logdir
            if not self._is_unsaved:
                logger.info("what is in the logdir cannot be recorded: %s", error)
            self._is_unsaved = True

    def _publish(self, *, is_over: bool = False) -> None:
        """Write the status if something has changed, or if the heartbeat is due."""
        self.forget_starts(is_over=is_over)
        if self._is_unsaved:
            self._save()
        waiting = len(self._waiting())
        if not self._returning.is_unlisted:
            unread = dict(sorted(self._returning.unread.items())[:UNREAD_TOLD])
            missing = len(self._returning.missing)
            self.status.change(listed=self._compared_at, returning=missing, unread=unread)
            if not waiting and self._seen is not None and not missing:
                self.status.change(checked=self._compared_at)
        phase = "left" if is_over else self._phase(waiting)
        self.status.change(phase=phase, waiting=waiting, copy=self._copy.pid if self._copy else 0)
        self.status.beat()

    def _phase(self, waiting: int) -> str:
        if self._copy is not None:
            return "stuck" if self._copy.is_stuck else "copying"
        if self.status.status.phase == "stuck" and self.status.status.failures:
            return "stuck"
        return "waiting" if waiting else "idle"

    def close(self) -> None:
        """Publish that it leaves; and note if nothing is only here."""
        self._publish(is_over=True)
        is_over = self._seen is not None and not any(member.works for member in self._seen)
        with contextlib.suppress(OSError):
            if is_over and not (self._outgoing.waiting(frozenset()) or self._has_rest()):
                storage.mark_note(self._spool, is_whole=True)

    def _has_rest(self) -> bool:
        """Whether something is only here that goes to no logdir, or waits for the Hub."""
        if losses(self._spool):
            return True
        if self._spool.has_destination():
            return bool(HubSink(self._spool).late(self._outgoing.there))
        return bool(attachments.sizes(self._spool.run, lambda path: not (is_embedding(path) or is_loss(path))))

    def is_over(self) -> bool:
        """Whether no worker is left, and none has come or gone since the last scan."""
        members = self._members.all()
        over = self._is_ending or self._is_abandoned
        return over or (members == self._seen and not any(member.works for member in members))

    def terminate(self) -> None:
        """SIGTERM: one last scan and copy, then leave."""
        self._is_ending = True
        self._next_scan = 0.0
        self._tries.at_once()
        if self._copy is not None and self._job.task is not Task.BRING:  # it would take the time of what is to go there
            self._copy.kill()
        super().terminate()


def recorded(known: Mirrored, message: Message) -> Mirrored:
    """What is known to be in the logdir after a message."""
    match message:
        case Arrived(path, length):
            refused = {other: reason for other, reason in known.refused.items() if other != path}
            return replace(known, files=known.files | {path: length}, refused=refused)
        case Conflict(path, reason) | Withheld(path, reason):
            files = {other: length for other, length in known.files.items() if other != path}
            return replace(known, files=files, refused=known.refused | {path: reason})
        case Failure():
            return replace(known, late=known.late + message.is_late)
        case Finished():
            return replace(known, late=0)
    return known


def main() -> None:
    """Entry point of the process."""
    loop.main(Mirror, MirrorStart)
