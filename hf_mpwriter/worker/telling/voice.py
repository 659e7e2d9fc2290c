"""Voices: who tells the user what is known of a run, and what was told.

    notices          told as warnings whenever a worker keeps house, and at the end of a wait, see `notices`
    voices           claims/<worker>.voice, locked: members that may speak. The first of them does: rank 0 or the
                     process alone, then the other ranks in their order
    stand-in             claims/main.stand_in, locked: one of the children. It speaks while no voice does, as for
                         multiprocessing.spawn where only children log. It tells no end: children do not wait

    told.json        {"numbers": {"<host>": 1795236610123}, "unsent": 1795236610.0,
                      "start": ..., "outage": ..., "why": "...", "done": ...}

Invariants:
- When the first member ends or dies, the kernel frees its lock, and the next one tells what was not told yet.
- What ends leave unsent is told once as well: not by a process that waits while another one tells it. A rank that fails
  is not silent because an earlier one lives, as the launcher may kill that one; nor is a process of no launcher.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Self

from hf_mpwriter.base import state
from hf_mpwriter.base.names import MAIN_WORKER
from hf_mpwriter.spool.layout import Spool
from hf_mpwriter.system import disk, locks
from hf_mpwriter.system.directory import Place
from hf_mpwriter.worker.membership import Membership


@dataclass(frozen=True)
class ToldRecord:
    """What `told.json` holds.

    Attributes:
        numbers: of the last notice that was told, per host.
        unsent: unix time when the user was told last what is not on the Hub, 0 if all of that has arrived.
        start: unix time when it was told last where the run goes.
        outage: unix time when the outage that goes on was told, 0 if none does.
        why: what was told of it.
        done: unix time when it was told last that all is on the Hub.
    """

    numbers: dict[str, int] = field(default_factory=dict)
    unsent: float = 0.0
    start: float = 0.0
    outage: float = 0.0
    why: str = ""
    done: float = 0.0

    @classmethod
    def read(cls, place: Place) -> Self:
        """The record; an empty one if there is none, or if it cannot be read."""
        try:
            return state.load(cls, disk.read(place) or b"")
        except (state.DamagedError, OSError):
            return cls()

    def save(self, place: Place) -> bool:
        """Write the record; where the disk refuses, which is False, something is told again."""
        with contextlib.suppress(OSError):
            disk.replace(place, state.dump(self), "told.save", durable=False)
            return True
        return False


class Voice:
    """The part of one process in who speaks for a run directory.

    A member that may speak holds the lock `claims/<worker>.voice`: while it logs, and while it waits at its end.

    Args:
        membership: of the process.
    """

    def __init__(self, membership: Membership) -> None:
        self._membership = membership
        self.forget()

    def forget(self) -> None:
        """After fork: the lock is the parent's."""
        self._lock: int | None = None
        self._unsent = 0.0  # of the record, as this process has seen or written it

    @property
    def label(self) -> str:
        """What tells this process from the first one at its end, "" if it is that one."""
        rank = self._membership.role.rank
        return f"rank {rank}: " if rank else ""

    @property
    def _spool(self) -> Spool:
        return self._membership.spool

    @property
    def _worker(self) -> str:
        return self._membership.name or self._membership.role.worker

    def take(self, *, at_end: bool = False) -> None:
        """Be one of those that may speak, until `give_up`, if this process has joined; of all children, one is.

        Args:
            at_end: whether it waits at its end, when it has left.
        """
        if self._lock is None and (at_end or self._membership.is_joined):
            name = (self._worker, "voice") if self._membership.role.waits else (MAIN_WORKER, "stand_in")
            with contextlib.suppress(OSError):
                self._lock = locks.try_exclusive(self._spool.claim(*name))

    def give_up(self) -> None:
        """Leave it to the others."""
        if self._lock is not None:
            locks.release(self._lock)
            self._lock = None

    def is_first(self) -> bool:
        """Whether no earlier member may speak; where the disk cannot tell, all of them speak, and no child."""
        worker, is_child = self._worker, not self._membership.role.waits
        try:
            if is_child:
                return self._lock is not None and not self._any_held(self._voices())
            earlier = [other for other in self._voices() if _order(other) < _order(worker)]
            if self._lock is None:  # an earlier process of this name may wait at its end
                earlier.append(worker)
            return not self._any_held(earlier)
        except OSError:
            return not is_child

    def _voices(self) -> list[str]:
        """The workers that have a voice, or had one, in their order."""
        names = (name.removesuffix(".voice") for name in self._spool.claims.names() if name.endswith(".voice"))
        return sorted(names, key=_order)

    def _any_held(self, workers: list[str]) -> bool:
        return any(locks.is_held(self._spool.claim(worker, "voice")) for worker in workers)

    @contextlib.contextmanager
    def last_word(self) -> Iterator[bool]:
        """Whether no member may speak any more; while the block lasts, that is so for one process only."""
        spool, lock = self._spool, None
        with contextlib.suppress(OSError):
            if not self._any_held(self._voices()):
                lock = locks.try_exclusive(spool.claim(MAIN_WORKER, "voice"))
        try:
            yield lock is not None
        finally:
            if lock is not None:
                locks.release(lock)

    def begin_end(self) -> None:
        """Begin to wait: what was told until now concerned other ends."""
        self._unsent = ToldRecord.read(self._spool.told).unsent

    def may_tell_unsent(self, *, failed: bool) -> bool:
        """Whether this process is to tell what is not on the Hub, and no other has told it meanwhile.

        Args:
            failed: whether it ends after an exception: the launcher may kill the others before they tell anything.
        """
        role, told = self._membership.role, ToldRecord.read(self._spool.told).unsent
        speaks = role.waits and (failed or role.rank is None or self.is_first())
        return speaks and told in (0.0, self._unsent)

    def told_unsent(self, unix_time: float) -> None:
        """Record when it was told; as unix time 0.0 if all has arrived that was told to be missing."""
        self._unsent = unix_time
        dataclasses.replace(ToldRecord.read(self._spool.told), unsent=unix_time).save(self._spool.told)


def _order(worker: str) -> tuple[bool, int, str]:
    """Rank 0 or a process alone first, then ranks by their number."""
    return worker != "main", len(worker), worker
