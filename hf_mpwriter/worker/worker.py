"""The worker: this process as a member of a run directory. It joins, appends, makes sure an uploader lives, leaves.

One `Worker` per run directory and process, shared by all writers on it. It has no thread. What it does beside
appending happens at a look: a few system calls, every few seconds, as part of an `add_*` call.

    joined      when a writer is built: spool, destination, claim, card; bad input is refused here
    logging     at the first event: event file, first look
    left        at the last close: files sealed, card over, claim free, one more look
    forked      the child of a joined process has nothing of it: it joins for itself at its first event

Invariants:
- A child never touches what it inherited: descriptors are closed, records that wait stay with the parent.
- Nothing here raises into training: what the disk refuses is kept and told, not thrown.
"""

from __future__ import annotations

import errno
import logging
import math
import os
import threading
import time
from collections.abc import Callable

from hf_mpwriter.base.errors import ForeignSpoolError, HfMpWriterError
from hf_mpwriter.base.names import worker_dir
from hf_mpwriter.base.settings import Destination, Settings
from hf_mpwriter.events.event_file import EventFile
from hf_mpwriter.events.limits import Limits
from hf_mpwriter.snapshot import attachments
from hf_mpwriter.spool import members, progress
from hf_mpwriter.spool.layout import Spool
from hf_mpwriter.spool.ownership import check_ownership
from hf_mpwriter.spool.progress import Progress, Status
from hf_mpwriter.system import locks, process
from hf_mpwriter.system.process import Process
from hf_mpwriter.worker import files as files_module
from hf_mpwriter.worker import role, shutdown
from hf_mpwriter.worker.election import Election, unfinished_siblings
from hf_mpwriter.worker.role import Role

logger = logging.getLogger("hf_mpwriter")

HOUSEKEEPING_EVERY = 3.0  # seconds
ASK_EVERY = 1.0  # seconds between two requests on a card
STUCK_AFTER = 60.0  # seconds; no look takes so long
REAP_EVERY = 0.2  # seconds until the next look, while a started process is to be reaped
MTIME_LAG = 0.02  # seconds that the kernel's clock for modification times may be behind


class Worker:
    """This process in one run directory.

    Args:
        spool: of the run directory.
        limits: shared by all event files of the process.
        began: unix time when the attempt began, if another process knows it.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        spool: Spool,
        limits: Limits,
        began: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.spool = spool
        self.users: set[object] = set()
        self.stopped = False
        self._clock = clock
        self._destination: Destination | None = None
        self._settings = Settings()
        self._purge_step: int | None = None
        self._purged: dict[str, int] = {}
        self._siblings: list[Election] | None = None
        self._told_notices = False
        self._entered = time.time()
        if began is None and role.current_role().child is not None:
            began = process.parent_started_at()
        self._began = began  # of the attempt, where this process is not the one that began it
        self._waited_for: tuple[dict[str, int], dict[str, int]] = {}, {}  # lengths and changes, see `Progress`
        self.election = Election(spool)
        self._start_fresh(limits)

    def _start_fresh(self, limits: Limits) -> None:
        self._limits = limits
        self._lock = threading.RLock()
        self._lost = self._told_dropped = self._told_lost = 0
        self._has_logged = False
        self._last_trouble = ""
        self._housekeeping_lock, self._housekeeping_began = threading.Lock(), 0.0
        self._asking = self._joining = False
        self.next_housekeeping = self._next_ask = 0.0
        self.role: Role = role.current_role()
        self.name = ""
        self._claim = -1
        self._card: members.MemberFile | None = None
        self._files: dict[tuple[str, str], EventFile] = {}
        self._lengths: dict[str, int] = {}  # of sealed segments

    def configure(self, destination: Destination | None, settings: Settings, token: str | None) -> None:
        """Take over what the newest writer wants; a local one has no say in how others are uploaded."""
        if destination is not None or self._destination is None:
            self._destination, self._settings = destination, settings
        if token is not None:
            self.election.token = token

    @property
    def began(self) -> float:
        """Unix time when this attempt began, for other processes."""
        return self._entered if self._began is None else self._began

    def enter_again(self, user: object) -> None:
        """A writer that was closed logs again: what may be wrong with the disk now is found by its event file."""
        self.users.add(user)
        self.try_to_join()

    def check_files(self) -> None:
        """See that our files are still where they were."""
        for file in list(self._files.values()):
            file.check()

    # join

    def directory(self) -> str:
        """Absolute path of the worker directory; joins if that has not happened yet.

        Raises:
            OSError: the spool cannot be written.
        """
        with self._lock:
            if self._card is None:
                self._join()
            return os.path.join(self.spool.run_dir, worker_dir(self.name))

    def try_to_join(self) -> None:
        """Take a name now, so that whoever starts at the same time takes another; else at the first event."""
        try:
            self.directory()
        except OSError as error:
            logger.warning("%s: cannot join yet: %s", self.spool.run_dir, error)

    def _join(self) -> None:
        if self._joining:  # a signal handler logs while we join: it must not take a second name
            raise OSError(errno.EBUSY, "this process is joining the run at the moment")
        try:
            self._joining = True
            self._avoid_strangers()
            if not self.spool.exists():
                self._make_spool()
            self.role = role.current_role()
            name, claim = members.claim(self.spool, self.role.worker)
            try:
                self._card = members.MemberFile(self.spool, name, Process.current(), self._settings)
            except BaseException:  # an interrupt, too
                locks.release(claim)
                raise
            self.name, self._claim = name, claim
            self.election.token_issued_at = time.time()
        finally:
            self._joining = False

    def _avoid_strangers(self) -> None:
        """Somebody may have put another spool there since, or opened ours: what is logged is kept all the same."""
        try:
            check_ownership(self.spool.root)
        except ForeignSpoolError as error:
            logger.warning("%s What is logged is kept in %s and not uploaded.", error, self.spool.run_dir)
            self.spool, self.stopped, self._destination = self.spool.aside(), True, None

    def _make_spool(self) -> None:
        """Somebody has deleted it."""
        try:
            self.spool.create()
            if self._destination is not None:
                self.spool.record_destination(self._destination)
        except HfMpWriterError as error:
            raise OSError(str(error)) from error

    def open(self, sub: str, suffix: str, purge_step: int | None) -> EventFile:
        """The event file of a directory below the worker directory; writers with the same suffix share it.

        Args:
            sub: relative directory, "" for the worker directory itself.
            suffix: the user's filename_suffix.
            purge_step: TensorBoard is to hide what was logged there until now at this step and later.
        """
        with self._lock:
            file = self._files.get((sub, suffix))
            if file is None:
                file = self._files[sub, suffix] = EventFile(
                    lambda: os.path.join(self.directory(), sub),
                    self._announce,
                    suffix,
                    self._limits,
                    may_rest=bool(sub),
                )
        if purge_step is not None:
            self._purged[sub] = purge_step
            file.purge(purge_step, self._purge_unless_since())
            if any(other.is_open for (where, _), other in list(self._files.items()) if where == sub):
                file.begin()  # now: what goes into the other file from here on is not meant
        return file

    def _purge_unless_since(self) -> float:
        return math.inf if self._began is None else self._began - MTIME_LAG

    def accepts_purge(self, step: int) -> bool:
        """Whether a new writer's purge_step is heeded; not if another one that is still open has asked for the same.

        It is heeded in the directories of ranks that a smaller world lacks, too.
        """
        if len(self.users) > 1 and self._purge_step == step:
            return False
        self._purge_step = step
        if self.role.rank == 0 and self.role.child is None:
            try:
                files_module.rewind_missing_ranks(role.world_size_of(os.environ), self.spool, step, self._announce)
            except OSError as error:
                logger.warning("%s: ranks that are no more are not purged: %s", self.spool.run_dir, error)
        return True

    def finish(self, sub: str, suffix: str, *, forget: bool) -> None:
        """Nothing more is expected in a directory: its event file is sealed; forgotten if nobody else can have it."""
        file = self._files.get((sub, suffix))
        if file is not None:
            file.close()
            if forget and not file.waiting:
                self._lost += file.dropped
                self._files.pop((sub, suffix), None)

    def segments(self, sub: str) -> list[str]:
        """Absolute paths of the event files that this process has written in a directory, in order."""
        prefix = self._relative(os.path.join(self.directory(), sub))
        paths = sorted(path for path in self._written() if os.path.dirname(path) == ("" if prefix == "." else prefix))
        return [os.path.join(self.spool.run_dir, path) for path in paths]

    def _announce(self, kind: str, path: str, length: int) -> None:
        relative = self._relative(path)
        self._has_logged = True
        if kind == "seal" and length:
            self._lengths[relative] = length
        if self._card is not None:
            self._card.write({kind: relative})

    def _relative(self, path: str) -> str:
        return os.path.relpath(path, self.spool.run_dir).replace(os.sep, "/")

    def lengths(self) -> dict[str, int]:
        """Bytes that this process has written, per path relative to the run directory."""
        return {path: length for path, length in self._written().items() if self._settings.allows(path)}

    def _written(self) -> dict[str, int]:
        with self._lock:
            opened = {self._relative(file.path): file.length for file in self._files.values() if file.is_open}
            return {**self._lengths, **opened}

    # look

    def keep_house_if_due(self) -> None:
        """Called after every record: looks when it is time to."""
        if self._clock() >= self.next_housekeeping:
            self.keep_house()

    def keep_house(self) -> None:
        """See that our files are still there and that an uploader lives; never waits, never raises."""
        lock = self._housekeeping_lock
        if not lock.acquire(blocking=False):  # another thread looks, or a signal handler logs while we do
            if self._clock() > self._housekeeping_began + STUCK_AFTER:  # or it was interrupted before it could let go
                self._housekeeping_lock = threading.Lock()
            return
        try:
            self._housekeeping_began = self._clock()
            self.next_housekeeping = self._housekeeping_began + HOUSEKEEPING_EVERY
            self.check_files()
            self._check_card()
            self._tell_dropped()
            self._write_request()
            if self._destination is not None and not self.stopped:
                self._elect()
                if shutdown.speaks(self.role) and not self._told_notices:
                    self._tell_notices()
        except Exception as error:  # noqa: BLE001 - nothing of ours ever raises into training
            if str(error) != self._last_trouble:
                self._last_trouble = str(error)
                logger.warning("%s: %s", self.spool.run_dir, error)
        finally:
            lock.release()  # it may be another one by now

    def _check_card(self) -> None:
        """Join again if somebody deleted the spool."""
        with self._lock:  # another thread may be leaving
            before, removed = self.name, self._card is not None
            if self._card is None:
                if not any(file.is_open for file in self._files.values()):
                    return
            elif self._card.is_there():
                return
            else:
                self._let_go(dropped=0)
            self._join()
        if removed:
            logger.warning("%s was removed while it was in use; it was made anew", self.spool.root)
        for file in list(self._files.values()):  # not under the lock: see `leave_all`
            if before and self.name != before:  # the old directory may be another's by now
                file.close()
            else:
                file.announce_again()

    def _tell_dropped(self) -> None:
        if self._card is not None and self.dropped > self._told_dropped:
            self._card.write({"dropped": self.dropped})
            self._told_dropped = self.dropped

    def _elect(self) -> None:
        if self.spool.exists() and not self.spool.has_destination():  # who made it anew was refused in between
            self._make_spool()
        self.election.ensure_uploader()
        if self._siblings is None:
            self._siblings = unfinished_siblings(self.spool, self._destination) if self.role.waits else []
            for sibling in self._siblings:
                sibling.ensure_uploader()
        self._siblings = [sibling for sibling in self._siblings if sibling.reap()]
        if self.election.reap() or self._siblings:
            self.next_housekeeping = self._clock() + REAP_EVERY

    def _tell_notices(self) -> None:
        """Say once what this run's uploader found out, such as that the repository is public."""
        report = Progress(self.spool).uploader()
        if report.beat > self._entered and report.notices:
            self._told_notices = True
            for notice in report.notices:
                logger.warning("%s", notice)

    # ask, leave, wait

    def ask(self) -> dict[str, int]:
        """Ask for a push of what was logged so far; returns the lengths asked for."""
        self._asking = True
        self.keep_house()
        return self.lengths()

    def _write_request(self) -> None:
        """At most one line in ASK_EVERY: a script that asks at every step must not fill the disk."""
        if not self._asking or self._card is None or self._clock() < self._next_ask:
            return
        self._asking, self._next_ask = False, self._clock() + ASK_EVERY
        self._card.write({"want": self.lengths()})

    def push(self, wait: float) -> bool:
        """Ask for a push, wait for it for at most `wait` seconds; whether all that was logged is on the Hub."""
        if self._destination is None or self.stopped:
            return False
        return not progress.wait(Progress(self.spool), self.ask(), wait, self.keep_house)

    def status(self) -> Status:
        """How much of what this process has logged is on the Hub."""
        return progress.status(Progress(self.spool), self._destination, self.lengths(), self.dropped)

    def lose(self, count: int) -> None:
        """So many things that are no records could not be written."""
        self._lost += count

    def flush(self) -> None:
        """Make everything logged so far survive a power cut."""
        for file in list(self._files.values()):
            file.flush()
        self.keep_house_if_due()

    @property
    def dropped(self) -> int:
        """Records that the disk refused for good."""
        return self._lost + sum(file.dropped for file in list(self._files.values()))

    def leave(self, user: object) -> None:
        """One writer less; the last one seals the files and gives up claim and card."""
        self.users.discard(user)
        if self.users:
            self.check_files()
        else:
            self.leave_all()

    def leave_all(self) -> None:
        """Seal the files, give up claim and card; whoever logs again joins again."""
        files = list(self._files.values())
        for file in files:  # not under the lock: a thread in `append` holds the file's lock and may want ours
            file.close()
            file.give_up()
        with self._lock:
            if (lost := self.dropped) > self._told_lost:
                logger.warning(
                    "%s: %d records were lost, the disk refused them", self.spool.run_dir, lost - self._told_lost
                )
                self._told_lost = lost
            self._let_go(lost)
        if self._destination is not None and (
            self._has_something() or self.spool.is_unfinished(self._destination.endpoint)
        ):
            self.keep_house()

    @property
    def is_active(self) -> bool:
        """Whether there is something to leave."""
        return bool(self._card) or any(file.is_open or file.waiting for file in list(self._files.values()))

    def logged(self) -> None:
        """Something that is no record was logged: an uploader has to come for it."""
        self._has_logged = True
        self.keep_house_if_due()

    def _has_something(self) -> bool:
        """Whether an uploader has to come for this worker: it has logged, or it speaks for attachments."""
        if self._has_logged:
            return True
        return shutdown.speaks(self.role) and bool(attachments.sizes(self.spool.run_dir, self._settings.allows))

    def _let_go(self, dropped: int) -> None:
        if self._card is not None:
            if self._destination is None or not self._has_something():
                self._card.withdraw()
            else:
                self._card.leave(dropped)
            locks.release(self._claim)
            self._card, self._claim = None, -1

    def wait(self, spent: float = 0.0) -> None:
        """Wait, bounded, until the Hub has what this process answers for; see `ending`.

        Args:
            spent: seconds of the time that is allowed which other run directories have taken.
        """
        if self._destination is None or self.stopped or not self.role.waits:
            return
        lengths, view = (
            shutdown.answers_for(self.spool, self._settings, self.role, self.lengths()),
            Progress(self.spool),
        )
        before, self._waited_for = self._waited_for, (lengths, view.changes(lengths))
        if before == self._waited_for:  # the end of a with block has waited already
            return
        still = view.missing(before[0], asked=before[1])
        in_vain = still and not view.is_hopeless(still)  # once is enough until the Hub is back
        timeout = 0.0 if in_vain else max(0.0, self._settings.exit_timeout - spent)
        shutdown.wait(self.spool, lengths, timeout, self.role, self.keep_house)

    def after_fork(self, limits: Limits) -> None:
        """In the child: forget everything that is the parent's."""
        files = self._files
        self.election.forget()
        self._began = self.began
        self._start_fresh(limits)
        self._files = files  # writers hold these; each opens a file of the child's own at its next record
        for (sub, _), file in files.items():
            file.abandon(limits)
            if sub in self._purged:
                file.purge(self._purged[sub], self._purge_unless_since())
