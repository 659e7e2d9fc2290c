"""The loop of a mirror, the process that holds the mirror lock: it brings what is final to the logdir, and what is only
there back.

    recover -> tick:  note members -> take in what the copy says -> decide -> SCAN    what is final, and not there
                                                                           -> LIST    what is there
                                                                           -> COPY    start a copy of the first files
                                                                           -> FETCH   one of files that are only there
                                                                           -> WAIT
                                                                           -> LEAVE

A file is final when it never grows again: it is sealed, or its worker has closed or died. One that is not ours counts
once it has not changed for a while, or when no worker lives.

Order of writes: seal -> copy -> fsync and rename in the logdir -> mirrored.json. After an interruption the next mirror
compares with the logdir, and brings what is not there.

Invariants:
- It never touches the logdir: that is done by a copy, which may hang.
- Of the files of one writer, one gets to the logdir only when all earlier ones are there.

What a mirror finds in its run directory: event files, and the files of `add_embedding`.

    event files    see `EventFileScan`: final at some time, and never changed after that
    embeddings     `projector_config.pbtxt` grows, the others may be written again: brought as often as they change

TensorBoard reads the files of the projector anew at each request, so these may be replaced under their names.

Invariant: of a file that changes while it is copied, the next scan brings what it has become.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import logging
import os
import random
import time
from collections.abc import Callable, Collection, Mapping

from hf_mpwriter.base.files import LocalFile, git_hasher
from hf_mpwriter.base.names import is_embedding, is_event_file, is_ours, is_worker
from hf_mpwriter.base.timing import USUAL, Timing
from hf_mpwriter.mirror.decision import MirrorAction, MirrorSituation, Tries, chosen, decide, limit, recorded
from hf_mpwriter.mirror.handle import CopyHandle, CopyLivesError
from hf_mpwriter.mirror.posix import mark_of
from hf_mpwriter.mirror.returning import Returning
from hf_mpwriter.snapshot.attachments import CHUNK, stamp_of
from hf_mpwriter.snapshot.event_files import EventFileScan, Statuses, pending, walk, writer_of
from hf_mpwriter.spool.daemons import Daemon
from hf_mpwriter.spool.layout import Spool
from hf_mpwriter.spool.staging.job import (
    Absent,
    Arrived,
    CopyJob,
    Failure,
    Fetched,
    Finished,
    Item,
    Listed,
    Message,
    Unread,
)
from hf_mpwriter.spool.staging.listing import ARRIVING, length
from hf_mpwriter.spool.staging.record import Mirrored, MirrorStatus
from hf_mpwriter.spool.starts import MirrorStart, inherited
from hf_mpwriter.spool.status import LINGER, DaemonStatusFile
from hf_mpwriter.spool.workers.member_lines import Member, News
from hf_mpwriter.spool.workers.members import OBSERVER, Members
from hf_mpwriter.spool.workers.samplers import Seals
from hf_mpwriter.system import disk, launch, locks
from hf_mpwriter.system.daemon import prepare_process
from hf_mpwriter.system.directory import Directory, Place

logger = logging.getLogger("hf_mpwriter")

BLIND_SCANS = 5  # in a row that wait for a file that cannot be read: later ones of its writer must not pass it
SCAN_EVERY = 30.0  # seconds between two scans for files that are not ours
UNREAD_TOLD = 100  # files that the status names
STUCK = "a process that copies hangs in it, and cannot be killed; no other one starts while it lives"


class Mirror(Daemon):
    """The holder of the mirror lock."""

    def __init__(
        self,
        spool: Spool,
        to: str,
        lock: int,
        clock: Callable[[], float],
        rng: random.Random,
        timing: Timing = USUAL,
    ) -> None:
        super().__init__("mirror", spool, lock, clock)
        self._timing = timing
        self._to, self._rng, self._mark = to, rng, mark_of(self._process.host, spool.run_dir)
        status = MirrorStatus(process=self._process)
        self._status_file = DaemonStatusFile(self.host, status, clock, beat_every=timing.heartbeat_every)
        self._is_ending = self._is_unsaved = False
        self._copy: CopyHandle | None = None
        self._alive_at, self._seals = clock(), Seals(clock)
        self.recover()

    def recover(self) -> None:
        """Read what is on disk; what the logdir holds is compared anew."""
        self._mirrored = Mirrored.read(self.host)
        self._members, self._news = Members(self._spool), News()
        known = lambda path: self._mirrored.files.get(path, 0)  # noqa: E731
        self._scan_of = MirrorScan(self._spool.run, known, lambda path: self._there.pop(path, None))
        self._tries = Tries(self._clock, self._rng, self._timing)
        self._items: tuple[Item, ...] = ()  # of the copy that runs, or has run last
        self._brings_here = False  # whether that one lists or fetches
        self._returning = Returning(self._spool.run, self._clock)
        disk.remove_tree(self._spool.directory / ARRIVING)  # of a copy that was killed
        self._due: frozenset[str] = frozenset()  # files that were held back and are tried again
        self._final: list[LocalFile] = []
        self._compare()

    def _compare(self) -> None:
        """Believe nothing of what is known to be there."""
        self._there: dict[str, int] = {}
        self._queue: list[LocalFile] | None = None  # None if it has to be found anew
        self._seen: list[Member] | None = None  # the members at the last scan
        self._next_scan, self._compared_at = 0.0, time.time()
        self._returning.begin()
        self._mirrored = dataclasses.replace(self._mirrored, refused={})

    @property
    def _is_abandoned(self) -> bool:
        return self._clock() - self._alive_at > LINGER  # no member was alive, and nothing has arrived

    @property
    def _status(self) -> MirrorStatus:
        return self._status_file.status

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
            if action in (MirrorAction.LIST, MirrorAction.COPY, MirrorAction.FETCH):
                self._start_copy(self._job(action))
        self._publish()
        self._sleep()
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
        now = self._clock()
        return MirrorSituation(
            living=sum(member.works for member in members) + self._seals.are_pending(members),
            abandoned_for=now - self._alive_at,
            may_try=self._tries.may_start(writer_of(file.path) for file in self._waiting()),
            is_due=members != self._seen or now >= self._next_scan,
            waiting=len(self._waiting()),
            is_ending=self._is_ending,
            # what cannot be listed keeps nothing from the logdir
            is_unlisted=self._returning.is_unlisted and not (self._waiting() and self._status.failures),
            missing=len(self._returning.missing),
        )

    # scan

    def _scan(self, members: list[Member]) -> None:
        """See which files are final."""
        self._seen, self._next_scan, self._queue = members, self._clock() + SCAN_EVERY, None
        alone = not any(member.alive and is_worker(member.name.worker) for member in members)
        open_then = {path for member in members for path in member.growing if is_ours(os.path.basename(path))}
        try:  # what is open is not parsed: it may be long
            files = self._scan_of.files(lambda path: path not in open_then, self._members.growing, BLIND_SCANS)
            open_now = self._members.growing()
        except OSError as error:
            logger.info("cannot scan the event files: %s", error)
            self._seen = None
            self._tries.not_before(self._timing.copy_retry_first)
            return
        settled = self._scan_of.settled(time.time())
        self._final = [LocalFile(path, 0, growing=True) for path in open_then | open_now]
        for file in files:
            if is_ours(os.path.basename(file.path)):
                self._final += [] if file.growing else [file]
            elif alone or file.path in settled:
                self._final.append(dataclasses.replace(file, growing=False))

    def _waiting(self) -> list[LocalFile]:
        """What is to be brought, in an order of which any prefix may be there."""
        if self._queue is None or self._due != self._tries.due():
            self._due, there = self._tries.due(), self._there
            # of those that are to come back only a beginning is here; as behind a refused one, later ones wait
            held = (self._mirrored.refused.keys() - self._due) | self._returning.missing.keys()
            covers = lambda file: file.growing or file.length <= there.get(file.path, 0)  # noqa: E731
            self._queue = pending(self._final, covers, held)
        return self._queue

    # copy

    def _job(self, action: MirrorAction) -> CopyJob:
        job = CopyJob(self._spool.run_dir, self._to, self._mark, (), self._mirrored.way)
        if action is MirrorAction.LIST:
            return dataclasses.replace(job, lists=True)
        if action is MirrorAction.FETCH:
            return dataclasses.replace(job, fetches=True, items=self._returning.next_items(self._members.growing()))
        waiting = [Item(file.path, file.length) for file in self._waiting()]
        return dataclasses.replace(job, items=chosen(waiting, self._status.failures, self._tries.behind))

    def _start_copy(self, job: CopyJob) -> None:
        self._tries.start()
        self._items, self._brings_here = job.items, job.lists or job.fetches
        try:
            self._copy = CopyHandle(self._spool, job, limit(job, self._mirrored.late, self._timing.copy_limit))
        except CopyLivesError:
            self._failed(STUCK, is_refused=False, phase="stuck")
        except OSError as error:
            self._failed(f"cannot start a copy: {error}", is_refused=False)

    def _listen(self, copy: CopyHandle) -> None:
        """Take in what the copy says; conclude when it has ended."""
        told, end = copy.listen()
        before = self._mirrored
        for message in told:
            self._take(message)
            self._queue = None
        if end is not None:
            self._mirrored = recorded(self._mirrored, end)
        if self._mirrored != before:
            self._save()
        if copy.is_stuck and self._status.phase != "stuck":
            self._failed(STUCK, is_refused=False, phase="stuck")
        if end is not None:
            self._copy = None
            self._conclude(end)

    def _conclude(self, end: Finished | Failure) -> None:
        if self._is_ending and self._brings_here:
            return
        if isinstance(end, Finished):
            if self._status.failures:
                logger.info("the logdir takes files again")
            self._tries.succeeded()
            self._status_file.change(phase="", failures=0, reason="", is_refused=False, failed_at=0.0, next_try=0.0)
            return
        self._returning.failed(self._items)
        if end.is_gone:
            self._compare()
        failed = {writer_of(item.path) for item in self._items if item.path not in self._there}
        self._tries.behind = self._tries.behind | failed if end.is_of_files else frozenset()  # else all writers wait
        self._failed(end.reason, is_refused=end.is_refused)

    def _take(self, message: Message) -> None:
        before, self._mirrored = self._mirrored, recorded(self._mirrored, message)
        self._returning.note(message)
        if isinstance(message, Listed):
            self._find_there(message.files)
        elif isinstance(message, Arrived | Fetched):
            self._there[message.path] = message.length
            self._alive_at = self._clock()
        elif isinstance(message, Unread):
            logger.info("%s cannot be read there: %s", message.path, message.reason)
        elif isinstance(message, Absent):  # here it was removed since the scan
            self._next_scan = 0.0
        self._tries.note(message)
        for path in self._mirrored.refused.keys() - before.refused.keys():
            logger.info("%s: %s", path, self._mirrored.refused[path])

    def _find_there(self, files: Mapping[str, int]) -> None:
        """Note which files are there as long as here; those of the projector are compared by a copy."""
        same = {
            path: size
            for path, size in files.items()
            if size and is_event_file(os.path.basename(path)) and length(self._spool.run / path) == size
        }
        self._there |= same
        self._mirrored = dataclasses.replace(self._mirrored, files=self._mirrored.files | same)

    def _failed(self, reason: str, *, is_refused: bool, phase: str = "") -> None:
        """A copy has failed: the next one waits."""
        failures, before, now = self._status.failures + 1, self._status.reason, time.time()
        wait = self._tries.failed(failures, is_refused=is_refused)
        if reason != before:
            logger.info("the logdir does not take files: %s", reason)
        self._status_file.change(
            phase=phase, reason=reason, is_refused=is_refused, failures=failures, failed_at=now, next_try=now + wait
        )

    # status, sleep, leave

    def _save(self) -> None:
        try:
            self._mirrored.save(self.host)
            self._is_unsaved = False
        except OSError as error:  # tried again at each tick; the next mirror compares with the logdir
            if not self._is_unsaved:
                logger.info("what is in the logdir cannot be recorded: %s", error)
            self._is_unsaved = True

    def _publish(self, phase: str = "") -> None:
        """Write the status if something has changed, or if the heartbeat is due."""
        self.forget_starts(is_over=phase == "left")
        if self._is_unsaved:
            self._save()
        waiting = len(self._waiting())
        if not self._returning.is_unlisted:
            self._status_file.change(
                listed=self._compared_at,
                returning=len(self._returning.missing),
                unread=dict(sorted(self._returning.unread.items())[:UNREAD_TOLD]),
            )
        if not waiting and self._seen is not None and self._returning.is_over:
            self._status_file.change(checked=self._compared_at)
        if self._copy is not None:
            phase = phase or ("stuck" if self._copy.is_stuck else "copying")
        elif self._status.phase == "stuck" and self._status.failures:
            phase = phase or "stuck"
        phase = phase or ("waiting" if waiting else "idle")
        self._status_file.change(phase=phase, waiting=waiting, copy=self._copy.pid if self._copy else 0)
        self._status_file.beat()

    def _sleep(self) -> None:
        if self._copy is not None:
            self._copy.wait(self._timing.mirror_tick)
        else:
            time.sleep(self._timing.mirror_tick)

    def close(self) -> None:
        """Publish that it leaves."""
        self._publish("left")

    def is_over(self) -> bool:
        """Whether nobody works, and nobody has come or gone since the last scan."""
        members = self._members.all()
        over = self._is_ending or self._is_abandoned
        return over or (members == self._seen and not any(member.works for member in members))

    def terminate(self) -> None:
        """SIGTERM: one last scan and copy, then leave."""
        self._is_ending = True
        self._next_scan = 0.0
        self._tries.at_once()
        if self._copy is not None and self._brings_here:  # it would take the time of what is to go there
            self._copy.kill()
        super().terminate()


def main() -> None:
    """Entry point of the process; what it needs is on the descriptors that `system.launch` names."""
    (start, spool), timing = inherited(MirrorStart, "mirror"), Timing.of()
    prepare_process()
    locks.adopt(launch.LOCK_FD)
    rng = random.Random()  # noqa: S311 - jitter
    Mirror(spool, start.to, launch.LOCK_FD, time.monotonic, rng, timing).serve(timing.mirror_tick)


class MirrorScan(EventFileScan):
    """Scans the files that go to the logdir."""

    def __init__(self, run: Directory, known: Callable[[str], int], changed: Callable[[str], object]) -> None:
        super().__init__(run, known)
        self._directory, self._changed = run, changed
        self._embedded: dict[str, LocalFile] = {}

    def files(
        self, allows: Callable[[str], bool], growing: Callable[[], Collection[str]], patience: int = 0
    ) -> list[LocalFile]:
        """All event files with whole records, then the embeddings; for arguments and errors see `EventFileScan`."""
        return super().files(allows, growing, patience) + self._embeddings()

    def _embeddings(self) -> list[LocalFile]:
        found = {}
        with Statuses(self._directory) as statuses:
            for path in filter(is_embedding, walk(self._directory)):
                with contextlib.suppress(OSError):  # removed since it was listed
                    before, stamp = self._embedded.get(path), stamp_of(statuses.of(path))
                    file = before if before and before.stamp == stamp else _read(statuses.place(path), path, stamp)
                    if before and before.sha256 != file.sha256:
                        self._changed(path)
                    found[path] = file
        self._embedded = found
        return list(found.values())

    def settled(self, now: float) -> set[str]:
        """The files that may go now, and are not ours: those that have not changed for a while, and embeddings."""
        return super().settled(now) | self._embedded.keys()


def _read(place: Place, path: str, stamp: tuple[int, ...]) -> LocalFile:
    """A file by its content; OSError if it cannot be read."""
    fd = disk.open_beneath(place)
    try:
        size = os.fstat(fd).st_size
        sha256, blob, position = hashlib.sha256(), git_hasher(size), 0
        while chunk := os.pread(fd, min(CHUNK, size - position), position):
            sha256.update(chunk)
            blob.update(chunk)
            position += len(chunk)
        return LocalFile(path, position, False, sha256.hexdigest(), blob.hexdigest(), stamp)
    finally:
        os.close(fd)
