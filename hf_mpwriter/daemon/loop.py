"""The loop of a daemon: what it does while it holds its lock.

    started with its lock --> recover --> tick, tick ... --> close, release the lock, look once more --> over
                                 ^------- taken back: something came in between ---------'

Invariants:
- It works only while it holds its lock. On every tick the lock is checked to be the file at the path.
- It lets others start the next one at once, if it has done well itself: the count of its starts is forgotten once it
  has run for a minute, or leaves in good order.

A sampler seals its event file when no worker of its host lives, and opens none without one. So there is a moment in
which all workers are gone and its last records are still to come:

    workers live --the last one ends--> SEALING, at most SEAL_WAIT --its file is sealed--> the last batch, or copy

Invariant: where liveness is asked for, a sampler does not count: it ends because workers do. One that hangs costs
SEAL_WAIT seconds, once.
"""

from __future__ import annotations

import abc
import logging
import random
import signal
import time
from collections.abc import Callable, Iterable
from typing import Any, ClassVar, Generic

from hf_mpwriter.base.errors import HfMpWriterError
from hf_mpwriter.base.timing import USUAL, Timing
from hf_mpwriter.daemon.background import prepare_process
from hf_mpwriter.daemon.starts import StartT, inherited
from hf_mpwriter.daemon.status_file import DaemonStatusFile
from hf_mpwriter.spool.layout import Spool
from hf_mpwriter.spool.status import SOUND_AFTER, Starts
from hf_mpwriter.spool.workers.member_lines import Member
from hf_mpwriter.system import disk, launch, locks
from hf_mpwriter.system.interrupts import ours
from hf_mpwriter.system.process import Process

logger = logging.getLogger("hf_mpwriter")

REFUSALS = 60  # ticks in a row that the disk refuses, before a daemon gives up
SEAL_WAIT = 5.0  # seconds after the end of the last worker, in which its host's sampler seals its file
GRACE = 25.0  # seconds between SIGTERM and the end; SLURM and Kubernetes kill after 30


class Holder(abc.ABC, Generic[StartT]):
    """What holds the lock of a kind for a run."""

    kind: ClassVar[str]  # see `system/launch`
    status: DaemonStatusFile[Any]  # what it publishes

    def __init__(
        self,
        spool: Spool,
        start: StartT,
        lock: int,
        clock: Callable[[], float],
        rng: random.Random,
        timing: Timing = USUAL,
    ) -> None:
        self._spool, self._start, self._lock = spool, start, lock
        self._clock, self._rng, self._timing = clock, rng, timing
        self._process = Process.current()
        self.host = spool.host(self._process.host)  # what it writes
        self._sound_at = clock() + SOUND_AFTER

    @abc.abstractmethod
    def recover(self) -> None:
        """Read what is on disk, as it has taken the lock, or taken it back; nothing in memory counts."""

    @abc.abstractmethod
    def close(self) -> None:
        """Publish that it leaves, and end what waits for it."""

    def is_in_place(self) -> bool:
        """Whether the spool, and the lock in it, are where they were."""
        is_there = self._spool.directory.is_at_path() and disk.same_file(self._lock, self._spool.lock_of(self.kind))
        if not is_there:
            logger.info("the spool was removed")
        return is_there

    def forget_starts(self, *, is_over: bool) -> None:
        """Forget the starts once the process is sound, or when it leaves in good order; call it at each tick."""
        if is_over or self._clock() >= self._sound_at:
            self.status.change(starts=Starts())

    def leave(self) -> bool:
        """Give up the lock, look once more, take it back if something came in between; True if it is over.

        It is over, too, if the disk refuses that: what it knows from before may be wrong by now.
        """
        self.close()
        self.release()
        try:
            if self.is_over() or (lock := locks.try_exclusive(self._spool.lock_of(self.kind))) is None:
                return True
            self._lock = lock
            self.recover()  # another one may have been here
        except ours(OSError) as error:
            logger.info("the disk refuses another look: %s", error)
            return True
        return False

    def release(self) -> None:
        """Give up the lock, unless that is done."""
        if self._lock >= 0:
            locks.free(self._lock)
        self._lock = -1

    def is_over(self) -> bool:
        """Look once more, without the lock: whether nothing has come in between."""
        return True


class Daemon(Holder[StartT]):
    """A process that holds the lock of its kind for one run."""

    @abc.abstractmethod
    def tick(self) -> bool:
        """One round; False when it is time to end. OSError if the disk refuses."""

    def terminate(self) -> None:
        """SIGTERM: do a last time what is to be done, then leave; end in time by SIGALRM, whatever it does then."""
        end_in_time()

    def serve(self, pause: float) -> None:
        """Work until it is time to leave; `pause` seconds after the disk has refused something."""
        signal.signal(signal.SIGTERM, lambda *_: self.terminate())
        logger.info("took the %s lock of %s", self.kind, self._spool.run_dir)
        keep_on(self.tick, pause)
        logger.info("left the %s lock", self.kind)


def end_in_time() -> None:
    """End by SIGALRM in time, whatever this process does then."""
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, GRACE)


class Seals:
    """Whether the last records of a sampler are still to come."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._idle_since: float | None = clock()  # when no member was seen at work first

    def are_pending(self, members: Iterable[Member]) -> bool:
        """Whether no member works any more, and a sampler is about to seal its file; call it at each look."""
        found = list(members)
        if any(member.works for member in found):
            self._idle_since = None
            return False
        if self._idle_since is None:  # a push, or a pause, may have kept the observer from looking for longer
            self._idle_since = self._clock()
        is_open = any(member.is_sampler and member.growing for member in found)
        return is_open and self._clock() - self._idle_since < SEAL_WAIT


def keep_on(step: Callable[[], bool], pause: float) -> None:
    """Repeat a step until it returns False. When it raises OSError, wait and go on."""
    refused = 0
    while True:
        try:
            if not step():
                return
            refused = 0
        except ours(OSError) as error:
            refused += 1
            if refused > REFUSALS:
                raise
            logger.info("the disk refuses: %s", error)
            time.sleep(pause)


def main(make: type[Daemon[StartT]], start_type: type[StartT]) -> None:
    """Be a daemon; what it needs is on the descriptors that `system/launch` names."""
    start, spool = inherited(make.kind, start_type)
    work(make, spool, start, launch.LOCK_FD)


def work(make: type[Daemon[StartT]], spool: Spool, start: StartT, lock: int) -> None:
    """Do the work of a daemon until it leaves."""
    prepare_process()
    locks.adopt(lock)
    timing, rng = Timing.of(), random.Random()  # noqa: S311 - jitter
    try:
        daemon = make(spool, start, lock, time.monotonic, rng, timing)
    except ours(HfMpWriterError, OSError) as error:
        raise SystemExit(f"no {make.kind}: {error}") from None
    daemon.serve(timing.uploader_tick)
