"""The election: take the uploader lock without waiting, hand it to an uploader.

    worker                                   uploader
    try the uploader lock, without waiting
    posix_spawn, descriptor duplicated to 3  starts with the lock, its start record, both directories
    close own descriptor                     is the only holder; the kernel frees the lock when it ends

Invariants:
- The lock is never free between the two, so two workers never both start an uploader.
- An uploader that cannot start, or ends soon, is started ever more rarely: the pauses double from FIRST_BACKOFF to
  LONGEST_BACKOFF seconds, with one warning.
- A token is as old as the worker that brought it. When the Hub refuses a token, its uploader leaves; for a while only
  workers that joined later start the next one.
"""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from hf_mpwriter.base import state
from hf_mpwriter.base.errors import SpoolFormatError
from hf_mpwriter.base.settings import Destination
from hf_mpwriter.base.start import StartRecord
from hf_mpwriter.events.deferred_log import logger
from hf_mpwriter.spool.layout import Spool
from hf_mpwriter.spool.progress import Progress
from hf_mpwriter.spool.status import UploaderStatus
from hf_mpwriter.system import disk, hf_home, launch, locks
from hf_mpwriter.system.process import host_id, start_directory

STARTS_LIMIT = 3  # uploaders started within STARTS_WINDOW that did not end well; more make the election back off
STARTS_WINDOW = 60.0  # seconds; an uploader that lives so long is sound
FIRST_BACKOFF = 5.0  # seconds
LONGEST_BACKOFF = 300.0  # seconds
SIBLINGS_LIMIT = 200  # run directories beside this one that are examined
SIBLINGS_SERVED = 4  # of these, so many get an uploader


def child_environment(environ: Mapping[str, str], token: str | None, directory: str) -> dict[str, str]:
    """The environment of the uploader: the user's, with the token and absolute paths, without what loads more code.

    Args:
        environ: of this process.
        token: of the writer, None leaves it to the environment.
        directory: that relative paths in the environment refer to.
    """
    env = hf_home.settled(environ, directory, hf_home.account_home())
    env["HF_HUB_DISABLE_TELEMETRY"] = env.get("HF_HUB_DISABLE_TELEMETRY", "1")
    for name in ("PYTHONSTARTUP", "PYTHONINSPECT", "PYTHONWARNINGS", "COVERAGE_PROCESS_START"):
        env.pop(name, None)
    if token is not None:
        env["HF_TOKEN"] = token
        env.pop("HF_HUB_DISABLE_IMPLICIT_TOKEN", None)
    return env


@dataclass
class Election:
    """The part of one process in the election of one run directory.

    Attributes:
        spool: of the run directory.
        destination: the only one that the uploader sends to; None starts none.
        token: for the uploader, None leaves it to the environment.
        clock: monotonic seconds.
        token_issued_at: unix time when the worker that brings the token joined.
        directory: that relative paths in the environment refer to; where the program was when the first one was made.
    """

    spool: Spool
    destination: Destination | None = None
    token: str | None = field(default=None, repr=False)
    clock: Callable[[], float] = time.monotonic
    token_issued_at: float = field(default_factory=time.time)
    directory: str = field(default_factory=start_directory)
    _starts: list[float] = field(default_factory=list)
    _children: list[int] = field(default_factory=list)
    _last_try: float = 0.0
    _predecessor_started_at: float = 0.0  # of the uploader before the one that was started last
    _quiet_until: float = 0.0  # monotonic seconds
    _backoff: float = FIRST_BACKOFF

    def ensure_uploader(self) -> bool:
        """Start an uploader if the uploader lock is free; never waits, never raises. True if one was started."""
        self.reap()
        if self.destination is None or self.clock() < self._quiet_until:
            return False
        try:
            lock = locks.try_exclusive(self.spool.uploader_lock)
            if lock is None:
                self._note_held()
                return False
            try:
                return self._start(lock, self.destination, Progress(self.spool).uploader())
            finally:
                locks.release(lock)
        except (OSError, ValueError, SpoolFormatError) as error:
            self._last_try = self.clock()
            self._back_off(f"cannot start an uploader: {error}")
            return False

    def _start(self, lock: int, destination: Destination, before: UploaderStatus) -> bool:
        """Start an uploader with our lock, unless workers that joined later are to do it.

        Args:
            lock: descriptor of the uploader lock.
            destination: of the uploader.
            before: last status of the uploader before it.
        """
        if before.is_over and before.started_at != self._predecessor_started_at:  # ours, or a later one
            self._recover()
        if self.token_issued_at <= before.left_to_younger_than and abs(time.time() - before.beat) < LONGEST_BACKOFF:
            return False
        self.spool.check_format()
        host, env = self.spool.host(host_id()), child_environment(os.environ, self.token, self.directory)
        disk.make_dirs(host.root)
        record = state.dump(StartRecord(self.spool.run_dir, destination, self.token_issued_at))
        log = disk.open_anew(host.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)  # no pipe without a reader
        try:
            pid = launch.start_uploader(
                record,
                self.spool.run_dir,
                lock=lock,
                run_dir_fd=self.spool.run.fd,
                spool_fd=self.spool.directory.fd,
                log_fd=log,
                env=env,
            )
        finally:
            os.close(log)
        self._children.append(pid)
        self._predecessor_started_at = before.started_at
        self._count_start()
        return True

    def _count_start(self) -> None:
        now = self._last_try = self.clock()
        if self._backoff == FIRST_BACKOFF:  # while backing off, pauses between starts prove nothing
            self._starts = [start for start in self._starts if now - start < STARTS_WINDOW]
        self._starts = [*self._starts[-STARTS_LIMIT:], now]
        if len(self._starts) > STARTS_LIMIT:
            self._back_off(f"uploaders end soon after their start, see {self.spool.host(host_id()).log}")

    def _note_held(self) -> None:
        """Note that the lock is held; if it has been for STARTS_WINDOW seconds, the trouble is over."""
        if self.clock() - self._last_try >= STARTS_WINDOW:
            self._recover()

    def _recover(self) -> None:
        self._starts.clear()
        self._backoff = FIRST_BACKOFF

    def _back_off(self, reason: str) -> None:
        if self._backoff == FIRST_BACKOFF:
            logger.warning("%s: %s; events are kept on disk", self.spool.run_dir, reason)
        self._quiet_until = self.clock() + self._backoff
        self._backoff = min(LONGEST_BACKOFF, 2 * self._backoff)

    def reap(self) -> bool:
        """Collect processes that were started here and ended, without waiting; whether some are left."""
        self._children = [pid for pid in self._children if not _has_ended(pid)]
        return bool(self._children)

    def forget(self) -> None:
        """After fork: started processes are the parent's."""
        self._children.clear()
        self._starts.clear()


def _has_ended(pid: int) -> bool:
    try:
        return os.waitpid(pid, os.WNOHANG)[0] == pid
    except ChildProcessError:  # the user's own wait() took it
        return True


def unfinished_siblings(spool: Spool, destination: Destination | None) -> list[Election]:
    """Elections for runs beside this one that have unsent data.

    Only private runs of this user for the same Hub count: an uploader sends the user's token to the endpoint in
    `run.json`.
    """
    if destination is None:
        return []
    parent, endpoint = os.path.dirname(spool.run_dir), destination.endpoint
    try:
        names = sorted(os.listdir(parent))[-SIBLINGS_LIMIT:]
    except OSError:  # a directory that can be passed but not listed, as on scratch disks
        return []
    others = (Spool(os.path.join(parent, name)) for name in names)
    ours = (
        Election(other, other.destination())
        for other in others
        if other.run_dir != spool.run_dir and other.is_unfinished(endpoint) and other.is_private()
    )
    return list(itertools.islice(ours, SIBLINGS_SERVED))
