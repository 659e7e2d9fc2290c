"""A daemon: the uploader or the mirror of a run, or the sampler of a host; what is the same of all.

    started with its lock --> recover --> tick, tick ... --> close, release the lock, look once more --> over
                                 ^------- taken back: something came in between ---------'

Invariants:
- It works only while it holds its lock. On every tick the lock is checked to be the file at the path.
- It lets others start the next one at once, if it has done well itself: the count of its starts is forgotten once it
  has run for a minute, or leaves in good order.
"""

from __future__ import annotations

import abc
import contextlib
import logging
import signal
from collections.abc import Callable

from hf_mpwriter.spool.layout import Spool
from hf_mpwriter.spool.starts import STARTS_WINDOW
from hf_mpwriter.system import disk, locks
from hf_mpwriter.system.daemon import GRACE, end_within, keep_on
from hf_mpwriter.system.process import Process

logger = logging.getLogger("hf_mpwriter")


class Daemon(abc.ABC):
    """The process that holds the lock of its kind."""

    def __init__(self, kind: str, spool: Spool, lock: int, clock: Callable[[], float]) -> None:
        self._kind, self._spool, self._lock, self._clock = kind, spool, lock, clock
        self._process = Process.current()
        self.host = spool.host(self._process.host)  # what it writes
        self._sound_at, self._is_sound = clock() + STARTS_WINDOW, False

    @abc.abstractmethod
    def recover(self) -> None:
        """Read what is on disk, as it has taken the lock, or taken it back; nothing in memory counts."""

    @abc.abstractmethod
    def close(self) -> None:
        """Publish that it leaves, and end what waits for it."""

    @abc.abstractmethod
    def tick(self) -> bool:
        """One round; False when it is time to end. OSError if the disk refuses."""

    def is_in_place(self) -> bool:
        """Whether the spool, and the lock in it, are where they were."""
        is_there = self._spool.directory.is_at_path() and disk.same_file(self._lock, self._spool.lock_of(self._kind))
        if not is_there:
            logger.info("the spool was removed")
        return is_there

    def forget_starts(self, *, is_over: bool) -> None:
        """Forget the starts once the process is sound, or when it leaves in good order; call it at each tick."""
        if is_over or (not self._is_sound and self._clock() >= self._sound_at):
            with contextlib.suppress(OSError):
                disk.remove(self.host.daemon(self._kind).starts, "starts", durable=False)
                self._is_sound = True

    def leave(self) -> bool:
        """Give up the lock, look once more, take it back if something came in between; True if it is over."""
        self.close()
        locks.release(self._lock)
        if self.is_over() or (lock := locks.try_exclusive(self._spool.lock_of(self._kind))) is None:
            return True
        self._lock = lock
        self.recover()  # another one may have been here
        return False

    def is_over(self) -> bool:
        """Look once more, without the lock: whether nothing has come in between."""
        return True

    def terminate(self) -> None:
        """SIGTERM: do a last time what is to be done, then leave."""
        end_within(GRACE)

    def serve(self, pause: float) -> None:
        """Work until it is time to leave; `pause` seconds after the disk has refused something."""
        signal.signal(signal.SIGTERM, lambda *_: self.terminate())
        logger.info("took the %s lock of %s", self._kind, self._spool.run_dir)
        keep_on(self.tick, pause)
        logger.info("left the %s lock", self._kind)
