"""The election: take the uploader lock without waiting, hand it to a spawned uploader.

    worker                                   uploader
    try the lock of the uploader lock, not waiting
    posix_spawn, descriptor duplicated to 3  starts with the lock in its hands
    close own copy                           is now the only holder; the kernel frees the uploader lock when it ends

There is no moment at which the uploader lock is free between the two, so two workers never both start one. `subprocess` is
not used: its error pipe can block when another thread forks at that moment.

A token is as old as the worker that brought it. Where the Hub refuses it, the uploader leaves the uploader lock to younger
workers, and those who are no younger leave it to them too.
"""

from __future__ import annotations

import itertools
import logging
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from hf_mpwriter.base.errors import SpoolFormatError
from hf_mpwriter.base.settings import Destination
from hf_mpwriter.spool.layout import Spool
from hf_mpwriter.spool.progress import Progress
from hf_mpwriter.spool.status import UploaderStatus
from hf_mpwriter.system import disk, launch, locks
from hf_mpwriter.system.process import host_id

logger = logging.getLogger("hf_mpwriter")
STARTS_LIMIT = 3  # starts within STARTS_WINDOW of uploaders that did not end well; after that looks back off
STARTS_WINDOW = 60.0  # seconds; an uploader that lives so long is sound
FIRST_BACKOFF = 5.0  # seconds
LONGEST_BACKOFF = 300.0  # seconds
SIBLINGS_LIMIT = 200  # run directories beside one that a start looks at
SIBLINGS_SERVED = 4  # of these, so many get an uploader


def child_environment(environ: Mapping[str, str], token: str | None) -> dict[str, str]:
    """The environment of the uploader: the user's, the token of the writer, nothing that would load more code."""
    env = dict(environ)
    env["HF_HUB_DISABLE_TELEMETRY"] = env.get("HF_HUB_DISABLE_TELEMETRY", "1")
    for name in ("PYTHONSTARTUP", "PYTHONINSPECT", "PYTHONWARNINGS", "COVERAGE_PROCESS_START"):
        env.pop(name, None)
    if token is not None:
        env["HF_TOKEN"] = token
        env.pop("HF_HUB_DISABLE_IMPLICIT_TOKEN", None)
    return env


@dataclass
class Election:
    """One worker's part in the election of one run directory.

    Attributes:
        spool: of the run directory.
        token: for the uploader, None leaves it to the environment.
        clock: monotonic seconds.
        token_issued_at: unix time of the worker that brings the token.
    """

    spool: Spool
    token: str | None = field(default=None, repr=False)
    clock: Callable[[], float] = time.monotonic
    token_issued_at: float = field(default_factory=time.time)
    _starts: list[float] = field(default_factory=list)
    _children: list[int] = field(default_factory=list)
    _last_try: float = 0.0
    _last_report: float = 0.0  # `UploaderStatus.started_at` of the uploader before the one that was started last
    _quiet_until: float = 0.0
    _backoff: float = FIRST_BACKOFF

    def ensure_uploader(self) -> bool:
        """Start an uploader if the uploader lock is free; never waits, never raises. True if one was started."""
        self.reap()
        if self.clock() < self._quiet_until:
            return False
        try:
            lock = locks.try_exclusive(self.spool.uploader_lock)
            if lock is None:
                self._note_life()
                return False
            try:
                return self._start(lock, Progress(self.spool).uploader())
            finally:
                locks.release(lock)
        except (OSError, ValueError, TypeError, SpoolFormatError) as error:  # TypeError: an embedded sys.executable
            self._last_try = self.clock()
            self._back_off(f"cannot start an uploader: {error}")
            return False

    def _start(self, lock: int, before: UploaderStatus) -> bool:
        """Start an uploader on our uploader lock, unless younger workers are to do it.

        Args:
            lock: descriptor of its lock.
            before: what the uploader before it said last.
        """
        if before.is_over and before.started_at != self._last_report:  # the one that we have started, or a later one
            self._recover()
        if self.token_issued_at <= before.left_to_younger_than and abs(time.time() - before.beat) < LONGEST_BACKOFF:
            return False
        self.spool.check_format()
        host, env = self.spool.host(host_id()), child_environment(os.environ, self.token)
        disk.make_dirs(host.root)
        self._children.append(launch.start_uploader(self.spool.run_dir, lock, host.log, env, self.token_issued_at))
        self._last_report = before.started_at
        self._count_start()
        return True

    def _count_start(self) -> None:
        now = self._last_try = self.clock()
        if self._backoff == FIRST_BACKOFF:  # in trouble there is no long while without a start that tells anything
            self._starts = [start for start in self._starts if now - start < STARTS_WINDOW]
        self._starts = [*self._starts[-STARTS_LIMIT:], now]
        if len(self._starts) > STARTS_LIMIT:
            self._back_off(f"uploaders end soon after their start, see {self.spool.host(host_id()).log}")

    def _note_life(self) -> None:
        """The lock is taken: the trouble is over if that has lasted."""
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
        """Collect what this process started, without waiting; whether something is still to be collected."""
        self._children = [pid for pid in self._children if not _is_over(pid)]
        return bool(self._children)

    def forget(self) -> None:
        """After fork: the children are the parent's."""
        self._children.clear()
        self._starts.clear()


def _is_over(pid: int) -> bool:
    try:
        return os.waitpid(pid, os.WNOHANG)[0] == pid
    except ChildProcessError:  # the user's own wait() took it
        return True


def unfinished_siblings(spool: Spool, destination: Destination | None) -> list[Election]:
    """Elections for earlier runs beside this one that have unsent data.

    Only our own runs for the same Hub: an uploader carries the user's token to the endpoint in `run.json`.
    """
    if destination is None:
        return []
    parent, endpoint = os.path.dirname(spool.run_dir), destination.endpoint
    try:
        names = sorted(os.listdir(parent))[-SIBLINGS_LIMIT:]
    except OSError:  # a directory through which one may only pass, as on scratch disks
        return []
    others = (Spool(os.path.join(parent, name)) for name in names)
    ours = (
        Election(other)
        for other in others
        if other.run_dir != spool.run_dir and other.is_unfinished(endpoint) and other.is_private()
    )
    return list(itertools.islice(ours, SIBLINGS_SERVED))
