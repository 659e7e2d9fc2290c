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

import atexit
import errno
import logging
import os
import threading
import time
from collections.abc import Callable

from hf_mpwriter import attachment, ending, identity, locks, progress, purge, roster
from hf_mpwriter.election import Election, unfinished_siblings
from hf_mpwriter.errors import HfMpWriterError, LogdirError
from hf_mpwriter.eventfile import EventFile
from hf_mpwriter.identity import Process, Role
from hf_mpwriter.limits import MEMORY_LIMIT, Limits
from hf_mpwriter.progress import Progress, Status
from hf_mpwriter.settings import Destination, Settings
from hf_mpwriter.spool import Spool, worker_dir

logger = logging.getLogger("hf_mpwriter")

LOOK_EVERY = 3.0  # seconds between two looks
ASK_EVERY = 1.0  # seconds between two requests on a card
REAP_EVERY = 0.2  # seconds until the next look, while a started process is to be reaped
MTIME_LAG = 0.02  # seconds that the kernel's clock for modification times may be behind

_workers: dict[str, Worker] = {}
_registry_lock = threading.RLock()


def enter(
    spool: Spool,
    destination: Destination | None,
    settings: Settings,
    token: str | None,
    memory_limit: int = MEMORY_LIMIT,
    *,
    join: bool = True,
) -> Worker:
    """The worker of this process for a run directory; one more writer uses it now.

    Args:
        spool: of the run directory.
        destination: None for a local run.
        settings: how it is uploaded.
        token: for the Hub, None leaves it to the environment.
        memory_limit: bytes of records that may wait in memory while the disk refuses them.
        join: whether to take a name now rather than at the first event.

    Raises:
        LogdirError, SpoolFormatError, DestinationError: see `Spool`.
    """
    spool.create()
    _check_locks(spool)
    if destination is not None:
        spool.record_destination(destination)
    with _registry_lock:
        if not _workers:
            atexit.register(_at_exit)
        worker = _workers.get(spool.run_dir)
        if worker is None:
            worker = _workers[spool.run_dir] = Worker(spool)
        worker.configure(destination, settings, token, memory_limit)
        worker.users += 1
        if join:
            worker.try_to_join()
        return worker


def _check_locks(spool: Spool) -> None:
    try:
        if locks.work_in(spool.root):
            return
    except OSError as error:
        if error.errno not in (errno.EROFS, errno.EACCES, errno.EPERM):
            return  # a full disk, no free descriptor: that passes, and the first event tries again
        raise LogdirError(
            f"The logdir {spool.run_dir!r} cannot be written: {error.strerror}.", hint="Give another logdir."
        ) from error
    raise LogdirError(
        f"The filesystem of {spool.run_dir!r} has no file locks.",
        hint="Use another one (Lustre: mount with flock).",
    )


class Worker:
    """This process in one run directory."""

    def __init__(self, spool: Spool, clock: Callable[[], float] = time.monotonic) -> None:
        self.spool = spool
        self.users = 0
        self.stopped = False
        self._clock = clock
        self._destination: Destination | None = None
        self._settings = Settings()
        self._memory_limit = MEMORY_LIMIT
        self._purged: dict[str, int] = {}
        self._siblings: list[Election] | None = None
        self._told_notices = False
        self._began = time.time()
        self._waited_for: dict[str, int] = {}
        self.election = Election(spool)
        self._start_fresh()

    def _start_fresh(self) -> None:
        self._lock = threading.RLock()
        self._limits = Limits(self._memory_limit)
        self._lost = self._told_dropped = 0
        self._has_logged = False
        self._last_trouble = ""
        self._look_lock = threading.Lock()
        self._asking = False
        self.next_look = self._next_ask = 0.0
        self.role: Role = identity.current_role()
        self.name = ""
        self._claim = -1
        self._card: roster.Card | None = None
        self._files: dict[tuple[str, str], EventFile] = {}
        self._lengths: dict[str, int] = {}  # of sealed segments

    def configure(
        self, destination: Destination | None, settings: Settings, token: str | None, memory_limit: int
    ) -> None:
        """Take over what the newest writer wants."""
        self._destination = destination or self._destination
        self._settings = settings
        self._memory_limit = self._limits.memory = memory_limit
        if token is not None:
            self.election.token = token

    def enter_again(self) -> None:
        """A writer that was closed logs again: what may be wrong with the disk now is found by its event file."""
        with _registry_lock:
            _workers.setdefault(self.spool.run_dir, self)
            self.users += 1
        self.try_to_join()

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
        if not self.spool.exists():
            self._make_spool()
        self.role = identity.current_role()
        name, claim = roster.claim(self.spool, self.role.worker)
        try:
            self._card = roster.Card(self.spool, name, Process.current(), self._settings)
        except OSError:
            locks.release(claim)
            raise
        self.name, self._claim = name, claim

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
            purge_step: TensorBoard is to hide what was logged there at this step and later; heeded once per
                directory, step and process.
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
        if purge_step is not None and self._purged.get(sub) != purge_step:
            self._purged[sub] = purge_step
            file.purge(purge_step)
            if not sub and self.role.rank == 0 and self.role.child is None:
                self._purge_ranks_beyond(purge_step)
        return file

    def finish(self, sub: str, suffix: str) -> None:
        """Nothing more is expected in a directory: its event file is sealed, and forgotten unless the disk refuses."""
        file = self._files.get((sub, suffix))
        if file is not None:
            file.close()
            if not file.waiting:
                self._lost += file.dropped
                self._files.pop((sub, suffix), None)

    def _purge_ranks_beyond(self, step: int) -> None:
        try:
            purge.ranks_beyond(identity.world_size_of(os.environ), self.spool, step, self._announce)
        except OSError as error:
            logger.warning("%s: ranks that are no more are not purged: %s", self.spool.run_dir, error)

    def _announce(self, kind: str, path: str, length: int) -> None:
        relative = self._relative(path)
        self._has_logged = True
        if kind == "seal":
            self._lengths[relative] = length
        if self._card is not None:
            self._card.write({kind: relative})

    def _relative(self, path: str) -> str:
        return os.path.relpath(path, self.spool.run_dir).replace(os.sep, "/")

    def lengths(self) -> dict[str, int]:
        """Bytes that this process has written, per path relative to the run directory."""
        with self._lock:
            opened = {self._relative(file.path): file.length for file in self._files.values() if file.is_open}
            return {path: n for path, n in {**self._lengths, **opened}.items() if self._settings.allows(path)}

    # look

    def touch(self) -> None:
        """Called after every record: looks when it is time to."""
        if self._clock() >= self.next_look:
            self.look()

    def look(self) -> None:
        """See that our files are still there and that an uploader lives; never waits, never raises."""
        if not self._look_lock.acquire(blocking=False):  # another thread looks, or a signal handler logs while we do
            return
        try:
            self.next_look = self._clock() + LOOK_EVERY
            for file in list(self._files.values()):
                file.check()
            self._check_card()
            self._tell_dropped()
            self._write_request()
            if self._destination is not None and not self.stopped:
                self._elect()
                if ending.speaks(self.role) and not self._told_notices:
                    self._tell_notices()
        except Exception as error:  # noqa: BLE001 - nothing of ours ever raises into training
            if str(error) != self._last_trouble:
                self._last_trouble = str(error)
                logger.warning("%s: %s", self.spool.run_dir, error)
        finally:
            self._look_lock.release()

    def _check_card(self) -> None:
        """Join again if somebody deleted the spool."""
        if self._card is None:
            if not any(file.is_open for file in self._files.values()):
                return
        elif self._card.is_there():
            return
        else:
            logger.warning("%s was removed while it was in use; making it anew", self.spool.root)
            self._let_go(dropped=0)
        self._join()
        for file in self._files.values():
            if file.is_open:
                self._announce("open", file.path, 0)

    def _tell_dropped(self) -> None:
        if self._card is not None and self.dropped > self._told_dropped:
            self._card.write({"dropped": self.dropped})
            self._told_dropped = self.dropped

    def _elect(self) -> None:
        self.election.look()
        if self._siblings is None:
            self._siblings = unfinished_siblings(self.spool, self._destination) if self.role.waits else []
            for sibling in self._siblings:
                sibling.look()
        self._siblings = [sibling for sibling in self._siblings if sibling.reap()]
        if self.election.reap() or self._siblings:
            self.next_look = self._clock() + REAP_EVERY

    def _tell_notices(self) -> None:
        """Say once what this run's uploader found out, such as that the repository is public."""
        report = Progress(self.spool).uploader()
        if report.beat > self._began and report.notices:
            self._told_notices = True
            for notice in report.notices:
                logger.warning("%s", notice)

    # ask, leave, wait

    def ask(self) -> dict[str, int]:
        """Ask for a push of what was logged so far; returns the lengths asked for."""
        self._asking = True
        self.look()
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
        return not progress.wait(Progress(self.spool), self.ask(), wait, self.look)

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
        self.touch()

    @property
    def dropped(self) -> int:
        """Records that the disk refused for good."""
        return self._lost + sum(file.dropped for file in list(self._files.values()))

    def leave(self) -> None:
        """One writer less; the last one seals the files and gives up claim and card."""
        with _registry_lock:
            self.users = max(0, self.users - 1)
            if self.users:
                return
        with self._lock:
            files = list(self._files.values())
        for file in files:  # not under the lock: a thread in `append` holds the file's lock and may want ours
            file.close()
        with self._lock:
            self._lost = self.dropped + sum(file.waiting for file in self._files.values())
            if self._lost:
                logger.warning("%s: %d records were lost, the disk refused them", self.spool.run_dir, self._lost)
            self._files.clear()
            self._let_go(self._lost)
        if self._destination is not None and (
            self._has_something() or self.spool.is_unfinished(self._destination.endpoint)
        ):
            self.look()

    def _has_something(self) -> bool:
        """Whether an uploader has to come for this worker: it has logged, or it speaks for attachments."""
        if self._has_logged:
            return True
        return ending.speaks(self.role) and bool(attachment.sizes(self.spool.run_dir, self._settings.allows))

    def _let_go(self, dropped: int) -> None:
        if self._card is not None:
            if self._destination is None or not self._has_something():
                self._card.withdraw()
            else:
                self._card.leave(dropped)
            locks.release(self._claim)
            self._card, self._claim = None, -1

    def wait(self) -> None:
        """Wait, bounded, until the Hub has what this process answers for; see `ending`."""
        if self._destination is None or self.stopped or not self.role.waits:
            return
        lengths = ending.answers_for(self.spool, self._settings, self.role, self.lengths())
        if lengths != self._waited_for:  # the end of a with block has waited already
            self._waited_for = lengths
            ending.wait(self.spool, lengths, self._settings.exit_timeout, self.role, self.look)

    def after_fork(self) -> None:
        """In the child: forget everything that is the parent's."""
        files = self._files
        self.election.forget()
        self._start_fresh()
        self._files = files  # writers hold these; each opens a file of the child's own at its next record
        for (sub, _), file in files.items():
            file.abandon(self._limits)
            if sub in self._purged:
                file.purge(self._purged[sub], unless_since=self._began - MTIME_LAG)


def _at_exit() -> None:
    """The end of the interpreter: leave, then wait."""
    with _registry_lock:
        everyone = list(_workers.values())
    for worker in everyone:
        if worker.role.waits:
            worker.users = min(worker.users, 1)
            if worker.users:
                worker.leave()
    for worker in everyone:
        try:
            worker.wait()
        except KeyboardInterrupt:
            return


def _after_fork_in_child() -> None:
    global _registry_lock
    _registry_lock = threading.RLock()
    for worker in _workers.values():
        worker.after_fork()


os.register_at_fork(after_in_child=_after_fork_in_child)
