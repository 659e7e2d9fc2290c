"""The election: how a process has a daemon at work, and hands it the lock of its kind.

    process that wants a daemon              daemon
    try the lock, without waiting
    count the start, see `starts`
    posix_spawn, descriptor duplicated to 3  starts with the lock, its start record, both directories
    close own descriptor                     is the only holder; the kernel frees the lock when it ends
                                             removes the count when it does well, or leaves in good order

Workers do so whenever they keep house, for an uploader, a mirror and a sampler; commands and the supervisor while they
wait; an uploader for unfinished runs beside it (`uploader/siblings`).

Invariants:
- The lock is never free between the two, so two processes never both start a daemon.
- A daemon that this process cannot start is tried ever more rarely: the pauses double from FIRST_PAUSE to LONGEST_PAUSE
  seconds. What ends soon after its start is counted for all workers of the host. Of either a worker warns once.
- A disk that refuses the count prevents no start: then each process counts for itself.
- A token is as old as the worker that brought it. When the Hub refuses a token, its uploader leaves; for a while only
  workers that joined later start the next one. After one that has left as it was offline, none starts one that is, too.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import replace

from hf_mpwriter.base import state
from hf_mpwriter.base.errors import HfMpWriterError
from hf_mpwriter.base.settings import is_offline
from hf_mpwriter.base.verdicts import Cause
from hf_mpwriter.daemon.starts import STATUSES, AnyStart, StartRecord, opened
from hf_mpwriter.events.deferred_log import logger
from hf_mpwriter.spool import status as counting
from hf_mpwriter.spool.layout import Spool
from hf_mpwriter.spool.status import DaemonStatus, Starts, UploaderStatus
from hf_mpwriter.system import disk, hf_home, launch, locks, redaction
from hf_mpwriter.system.interrupts import ours
from hf_mpwriter.system.process import boot_id, host_id, start_directory

_WITHOUT = {  # what is so while none can be started; not that all is on disk, as a full one keeps nothing
    "uploader": "nothing is uploaded meanwhile",
    "mirror": "nothing is copied to the logdir meanwhile",
    "sampler": "no system metrics are logged",
}
_LOADS_CODE = ("PYTHONSTARTUP", "PYTHONINSPECT", "PYTHONWARNINGS", "COVERAGE_PROCESS_START")


def environment(kind: str, environ: Mapping[str, str], token: str | None, directory: str) -> dict[str, str]:
    """The environment of a daemon: the user's, with absolute paths, without what loads more code.

    Only an uploader gets tokens of the Hub; None leaves that to the environment.
    """
    knows_home = os.path.isabs(environ.get("HOME", ""))  # then no user database is asked, which may be on the network
    env = hf_home.settled(environ, directory, "" if knows_home else hf_home.account_home())
    unwanted = set(_LOADS_CODE)
    if kind != "uploader":
        unwanted |= set(redaction.VARIABLES)
    elif token is not None:
        env["HF_TOKEN"] = token
        unwanted.add("HF_HUB_DISABLE_IMPLICIT_TOKEN")
    return {name: value for name, value in env.items() if name not in unwanted}


class Election:
    """The part of one process in having a daemon of one kind at work for a run directory."""

    def __init__(
        self, spool: Spool, kind: str, clock: Callable[[], float] = time.monotonic, *, by_hand: bool = False
    ) -> None:
        """`by_hand`: a user asks for it now, so the pauses of workers do not count."""
        self._spool, self._kind, self._clock, self._by_hand = spool, kind, clock, by_hand
        self._directory = start_directory()  # that relative paths in the environment refer to
        self.forget()

    def forget(self) -> None:
        """After fork: started processes are the parent's."""
        self.children: list[int] = []  # processes that were started here and are not collected yet
        self._unsaved = Starts() if self._by_hand else None  # the count that is not, or cannot be, on disk
        self.quiet_until = 0.0  # monotonic seconds; as far as this process knows, no start before
        self._pause = 0.0  # seconds; this process fails to start one
        self._warned_of = ""

    def ensure(self, record: AnyStart | None, token: str | None = None) -> bool:
        """Start a daemon if a record says that the run needs one, and its lock is free; never waits, never raises.

        True if one was started.
        """
        if record is None:
            return False
        self.reap()
        if self._clock() < self.quiet_until:
            return False
        try:
            is_started = self._start_if_free(record, token)
        except ours(OSError, ValueError, HfMpWriterError) as error:
            self._pause = min(counting.LONGEST_PAUSE, 2 * self._pause or counting.FIRST_PAUSE)
            self.quiet_until = self._clock() + self._pause
            self._warn(f"cannot start {'an' if self._kind == 'uploader' else 'a'} {self._kind}", str(error))
            return False
        self._pause = 0.0
        if self._clock() < self.quiet_until:
            log = self._spool.host(host_id()).daemon(self._kind).log
            self._warn(f"{self._kind}s end soon after their start", f"see {log}")
        elif is_started:
            self._warned_of = ""
        return is_started

    def _warn(self, trouble: str, more: str) -> None:
        if trouble != self._warned_of:
            self._warned_of = trouble
            logger.warning("%s: %s: %s; %s", self._spool.run_dir, trouble, more, _WITHOUT[self._kind])

    def _start_if_free(self, record: AnyStart, token: str | None) -> bool:
        """Start a process, unless one lives, or workers that joined later are to do it, or there is a pause."""
        host = self._spool.host(host_id())
        if self._kind == "sampler":
            disk.make_dirs(host.root, durable=False)  # its lock is there
        lock = locks.try_exclusive(self._spool.lock_of(self._kind))
        if lock is None:
            return False
        try:
            before = STATUSES[self._kind].read(host)
            if is_left_to_others(record, before):
                return False
            return self._start(lock, record, token, before)
        finally:
            locks.release(lock)

    def _start(self, lock: int, record: AnyStart, token: str | None, status: DaemonStatus) -> bool:
        host = self._spool.host(host_id())
        self._spool.check_format()
        now = self._clock()
        before = (self._unsaved or status.starts).as_of(now, boot_id())
        self.quiet_until = before.quiet_until
        if now < before.quiet_until:
            return False
        disk.make_dirs(host.root)
        self._save(status, before.with_start(now))
        try:
            env = environment(self._kind, os.environ, token, self._directory)
            with opened(self._spool, host.daemon(self._kind).log) as fds:
                subject = record.destination.repo_id if isinstance(record, StartRecord) else ""
                given, run_dir = state.dump(record), self._spool.run_dir
                pid = launch.start(self._kind, given, run_dir, fds, lock=lock, env=env, subject=subject)
        except BaseException:
            self._save(status, before)  # another process may have what this one lacks
            raise
        self.children.append(pid)
        self.quiet_until = before.with_start(now).quiet_until
        return True

    def _save(self, status: DaemonStatus, count: Starts) -> None:
        self._unsaved = count
        if self._by_hand:
            return
        host = self._spool.host(host_id())
        place = host.daemon(self._kind).status
        try:
            heard_of = place.stat().st_mtime_ns if place.exists() else 0
            replace(status, starts=count).save(host)
            self._unsaved = None
            disk.set_time(place, heard_of)  # a heartbeat is of the daemon alone: hosts go by its time
        except ours(OSError):  # the next start tries again
            return

    def reap(self) -> bool:
        """Collect processes that were started here and ended, without waiting; whether one will end soon."""
        launch.collect_orphans()
        self.children = [pid for pid in self.children if not launch.has_ended(pid)]
        return bool(self.children)


def is_left_to_others(record: AnyStart, before: DaemonStatus) -> bool:
    """Whether the last uploader has left because its token was refused, and this one is no younger; or as offline."""
    if not isinstance(record, StartRecord) or not isinstance(before, UploaderStatus):
        return False
    if before.is_over and before.cause is Cause.OFFLINE:
        return is_offline()
    is_young = record.token_issued_at > before.left_to_younger_than
    return not is_young and abs(time.time() - before.beat) < counting.LONGEST_PAUSE
