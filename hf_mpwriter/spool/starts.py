"""Starts: how the holder of the uploader lock hands it to an uploader, and how often that is done.

A mirror and a sampler are started in the same way, each with a lock and a count of its own.

    process that wants an uploader           uploader
    try the uploader lock, without waiting
    count the start in uploader_starts.json
    posix_spawn, descriptor duplicated to 3  starts with the lock, its start record, both directories
    close own descriptor                     is the only holder; the kernel frees the lock when it ends
                                             removes the count when it is sound, or leaves in good order

    start record                       {"run_dir": "/home/me/runs/exp1", "destination": {"endpoint": "...", ...},
                                        "token_issued_at": 1795236610.0, "seeks_siblings": true, "nodes": {...}}
    hosts/<host>/<kind>_starts.json    {"boot": "...", "at": [81.5, 84.6, 87.6, 90.6], "quiet_until": 95.6,
                                        "pause": 5.0}

Workers start uploaders, mirrors and samplers (`worker/election`), and an uploader those of unfinished runs beside it
(`uploader/siblings`).

Invariants:
- The lock is never free between the two, so two processes never both start an uploader.
- The token travels in the environment of the uploader, and it belongs to one endpoint. What stands in the files of a
  spool is input: others may have written it. So the destination of an uploader is the one of its start record.
- Only the holder of the uploader lock reads and writes the count. So all workers of a host together start no more
  uploaders than one of them alone: STARTS_LIMIT in STARTS_WINDOW, then with pauses that double.
- Times are monotonic seconds of one boot. The count of another boot, one that lies in the future, and one in which
  nothing has happened for FORGET_AFTER seconds, count as none; no pause ends later than LONGEST_PAUSE after the last
  start. So no clock prevents starts for ever.
- A disk that refuses the count prevents no start: then each process counts for itself.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from hf_mpwriter.base import state
from hf_mpwriter.base.errors import HfMpWriterError
from hf_mpwriter.base.job import Nodes
from hf_mpwriter.base.settings import Destination
from hf_mpwriter.spool.layout import RunPaths, Spool
from hf_mpwriter.spool.status import UploaderStatus
from hf_mpwriter.spool.workers.samplers import SamplerStart
from hf_mpwriter.system import disk, launch, locks
from hf_mpwriter.system.directory import Place
from hf_mpwriter.system.process import boot_id, host_id

STARTS_LIMIT = 3  # uploaders started within STARTS_WINDOW that did not end well; after one more there are pauses
STARTS_WINDOW = 60.0  # seconds; an uploader that lives so long is sound
FIRST_PAUSE = 5.0  # seconds
LONGEST_PAUSE = 300.0  # seconds
FORGET_AFTER = 2 * LONGEST_PAUSE  # seconds without a start


@dataclass(frozen=True, kw_only=True)
class StartRecord(RunPaths):
    """What an uploader needs to know at its start."""

    destination: Destination  # the only one that it sends to
    token_issued_at: float = 0.0  # unix time when the worker that brings the token joined
    seeks_siblings: bool = False  # whether it starts uploaders of unfinished runs beside this one
    nodes: Nodes = field(default_factory=Nodes)  # of the job that the worker belongs to


@dataclass(frozen=True, kw_only=True)
class MirrorStart(RunPaths):
    """What a mirror needs to know at its start."""

    to: str  # the logdir: an absolute path, or a URL


AnyStart = StartRecord | MirrorStart | SamplerStart
AnyStartT = TypeVar("AnyStartT", bound=AnyStart)


@dataclass(frozen=True)
class Starts:
    """The starts of a host that were not followed by a sound uploader."""

    boot: str = ""  # boot id
    at: tuple[float, ...] = ()  # monotonic seconds of the last ones
    quiet_until: float = 0.0  # monotonic seconds; no start before
    pause: float = 0.0  # seconds of the last pause, 0.0 before the first

    def as_of(self, now: float, boot: str) -> Starts:
        """What of it counts now."""
        is_sound = all(map(math.isfinite, (*self.at, self.quiet_until, self.pause)))  # JSON may hold NaN
        if self.boot != boot or not is_sound or not self.at or max(self.at) > now or now - self.at[-1] > FORGET_AFTER:
            return Starts(boot)
        return dataclasses.replace(self, quiet_until=min(self.quiet_until, self.at[-1] + LONGEST_PAUSE))

    def with_start(self, now: float) -> Starts:
        """The count with one more start."""
        at = self.at
        if not self.pause:  # while there are pauses, their length proves nothing
            at = tuple(start for start in at if now - start < STARTS_WINDOW)
        at = (*at[-STARTS_LIMIT:], now)
        if len(at) <= STARTS_LIMIT:
            return Starts(self.boot, at)
        pause = min(LONGEST_PAUSE, 2 * self.pause or FIRST_PAUSE)
        return Starts(self.boot, at, now + pause, pause)


def _load(place: Place) -> Starts:
    return state.read(Starts, place)


class Starter:
    """Starts uploaders, mirrors or samplers of one run directory."""

    def __init__(
        self,
        spool: Spool,
        kind: str = "uploader",
        clock: Callable[[], float] = time.monotonic,
        *,
        by_hand: bool = False,
    ) -> None:
        self._spool, self._kind, self._clock, self._by_hand = spool, kind, clock, by_hand
        self._unsaved = Starts() if by_hand else None  # what is not, or cannot be, on disk
        self.quiet_until = 0.0  # monotonic seconds; as far as this process knows, no start before
        self.children: list[int] = []  # processes that were started here and are not collected yet

    def start(self, record: AnyStart, env: Callable[[], Mapping[str, str]]) -> bool:
        """Start a process, unless one lives, or workers that joined later are to do it, or there is a pause.

        Whether one was started.
        """
        lock = locks.try_exclusive(self._spool.lock_of(self._kind))
        if lock is None:
            return False
        try:
            return self._start(lock, record, env)
        finally:
            locks.release(lock)

    def _start(self, lock: int, record: AnyStart, env: Callable[[], Mapping[str, str]]) -> bool:
        host = self._spool.host(host_id())
        files = host.daemon(self._kind)
        if isinstance(record, StartRecord) and _is_left_to_others(record, UploaderStatus.read(host)):
            return False
        self._spool.check_format()
        now = self._clock()
        starts = (self._unsaved or _load(files.starts)).as_of(now, boot_id())
        self.quiet_until = starts.quiet_until
        if now < starts.quiet_until:
            return False
        disk.make_dirs(host.root)
        self._save(files.starts, starts.with_start(now))
        try:
            with opened(self._spool, files.log) as fds:
                pid = launch.start(self._kind, state.dump(record), self._spool.run_dir, fds, lock=lock, env=env())
        except BaseException:
            self._save(files.starts, starts)  # another process may have what this one lacks
            raise
        self.children.append(pid)
        self.quiet_until = starts.with_start(now).quiet_until
        return True

    def _save(self, place: Place, starts: Starts) -> None:
        self._unsaved = starts
        if self._by_hand:
            return
        try:
            disk.replace(place, state.dump(starts), "starts", durable=False)
            self._unsaved = None
        except OSError:  # the next start tries again
            return

    def reap(self) -> bool:
        """Collect processes that were started here and ended, without waiting; whether one will end soon."""
        self.children = [pid for pid in self.children if not has_ended(pid)]
        return bool(self.children) and os.getpid() != 1  # a child of process 1 is the uploader itself, see `daemon`


def _is_left_to_others(record: StartRecord, before: UploaderStatus) -> bool:
    """Whether the last uploader has left because its token was refused, and this one is no younger."""
    return record.token_issued_at <= before.left_to_younger_than and abs(time.time() - before.beat) < LONGEST_PAUSE


@contextlib.contextmanager
def opened(spool: Spool, log: Place) -> Iterator[dict[int, int]]:
    """The run directory, the spool and a log, for what is started: descriptors by the numbers that they get there."""
    fd = disk.open_anew(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)  # no pipe without a reader
    try:
        yield {launch.RUN_DIR_FD: spool.run.fd, launch.SPOOL_FD: spool.directory.fd, 1: fd, 2: fd}
    finally:
        os.close(fd)


def has_ended(pid: int) -> bool:
    """Whether a child of this process has ended; then it is collected."""
    try:
        return os.waitpid(pid, os.WNOHANG)[0] == pid
    except ChildProcessError:  # the user's own wait() took it
        return True


def inherited(kind: type[AnyStartT], result: str) -> tuple[AnyStartT, Spool]:
    """What this process was started with: its start record, and the spool of its run."""
    record = state.load(kind, launch.read_record())
    try:
        return record, Spool.adopt(record, launch.RUN_DIR_FD, launch.SPOOL_FD)
    except HfMpWriterError as error:
        raise SystemExit(f"no {result}: {error}") from None
