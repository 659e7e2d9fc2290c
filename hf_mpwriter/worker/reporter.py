"""The reporter of a run directory: the one process that tells the user what becomes of the run.

    reporter.lock    held by the reporter; where its process ends or dies, the next one takes it

    process                      takes the lock when it is free
    rank 0, a process alone      at any time
    a child, a task of a pool    at any time; below a member only while it keeps house, as that one may wait for it to
                                 end: the member reports the end, and waits for all
    any other rank               while no lower rank is a member: at its end, or every LATER seconds from its join on

    told.json        {"numbers": {"<host>": 1795236610123}, "unsent": 1795236610.0, "start": ..., "outage": ...,
                      "why": "...", "done": ..., "host": "<host>"}    for each see `ToldRecord`

The reporter tells where the run goes, outages, recoveries and the end. The first rank of every other node tells its
user what is wrong; what it has told is in told.json in the folder of that host. Of the run, rank 3 tells nothing while
rank 0 is a member; the last to leave tells `done`, or what is missing. Of itself, each rank warns: `rank 3: ...` if it
fails with something missing, a name that is held, a disk that refuses records, an uploader that it cannot start.

Invariants:
- The last member tells the end of the run, once; its own daemonic children do not count. A reporter that others
  outlive releases the lock, then looks again: if they left while it held the lock, it tells the end itself.
- A process that fails tells what is missing although another one reports: the launcher may kill that one. So does a
  program of its own that shares the run directory: it may have another terminal.
- Where the disk refuses the lock, all report but children, of which there may be hundreds.
"""

from __future__ import annotations

import dataclasses
import math
import time
from dataclasses import dataclass, field
from typing import Self

from hf_mpwriter.base import state
from hf_mpwriter.base.names import MAIN_WORKER, rank_of_directory
from hf_mpwriter.spool.layout import Spool
from hf_mpwriter.system import disk, locks, process_state
from hf_mpwriter.system.directory import Place
from hf_mpwriter.system.interrupts import suppress
from hf_mpwriter.system.process import host_id
from hf_mpwriter.worker import holders
from hf_mpwriter.worker.membership import Membership

LATER = 10.0  # seconds that a rank leaves to the lower ones to join first


@dataclass(frozen=True)
class ToldRecord:
    """What `told.json` holds; all times are unix times."""

    numbers: dict[str, int] = field(default_factory=dict)  # of the last notice that was told, per host
    unsent: float = 0.0  # when the user was told last what is not on the Hub, 0 if all of that has arrived
    start: float = 0.0  # when it was told last where the run goes
    outage: float = 0.0  # when the outage that goes on was told, 0 if none does
    why: str = ""  # what was told of it
    done: float = 0.0  # when it was told last that all is on the Hub
    host: str = ""  # of the last reporter

    @classmethod
    def read(cls, place: Place) -> Self:
        """The record; an empty one if there is none, or if it cannot be read."""
        return state.read(cls, place)

    def save(self, place: Place) -> bool:
        """Write the record; where the disk refuses, which is False, something is told again."""
        with suppress(OSError):
            disk.replace(place, state.dump(self), "told.save", durable=False)
            return True
        return False


class Reporter:
    """The part of one process in who reports."""

    def __init__(self, membership: Membership) -> None:
        self._membership, self._clock = membership, time.monotonic
        self._threads = process_state.thread_lock()
        self.forget()

    def forget(self) -> None:
        """After fork: the lock is the parent's."""
        self._lock: int | None = None
        self._is_refused = False  # whether the disk has refused the lock
        self._is_below = False  # whether it descended from a member when it took the lock
        self._next_look = 0.0  # monotonic seconds; of a rank above 0, 0 before its first
        self._ends_since = math.inf  # unix time

    @property
    def label(self) -> str:
        """What tells this process from the first one at its end, "" if it is that one."""
        rank = self._membership.role.rank
        return f"rank {rank}: " if rank else ""

    @property
    def spool(self) -> Spool:
        """The spool of the run."""
        return self._membership.spool

    @property
    def reports(self) -> bool:
        """Whether this process is the reporter."""
        role = self._membership.role
        return self._lock is not None or (self._is_refused and not role.is_child)

    def take(self, *, at_end: bool = False) -> bool:
        """Become the reporter if there is none, and if it is the turn of this process; whether it is the reporter."""
        with self._threads:
            if self._lock is None and (at_end or self._looks_now()):
                self._take(at_end=at_end)
        return self.reports

    def _take(self, *, at_end: bool) -> None:
        with suppress(OSError):
            self._is_refused = True
            is_free = not locks.is_held(self.spool.reporter_lock) and self._is_turn(at_end=at_end)
            with locks.taking():
                self._lock = locks.try_exclusive(self.spool.reporter_lock) if is_free else None
            if self._lock is not None and (record := ToldRecord.read(self.spool.told)).host != host_id():
                dataclasses.replace(record, host=host_id()).save(self.spool.told)
            self._is_refused = False

    def _looks_now(self) -> bool:
        """Whether it is time to see who reports: there may be a thousand ranks above 0, which rarely have to."""
        if not self._membership.is_joined or not self._membership.role.rank:
            return self._membership.is_joined
        is_due, now = 0.0 < self._next_look <= self._clock(), self._clock()
        if is_due or not self._next_look:
            self._next_look = now + LATER
        return is_due

    def _is_turn(self, *, at_end: bool) -> bool:
        """Whether this process may report, as far as the others are concerned; see the head of this module."""
        role = self._membership.role
        if role.is_child:
            self._is_below = next(holders.above(self.spool), None) is not None
            return not (self._is_below and at_end)
        if not role.rank:
            return True
        return all(_rank_of(name.worker) >= role.rank for name in holders.living(self.spool))

    def give_up(self) -> None:
        """Leave it to the others."""
        with self._threads:
            if (lock := self._lock) is None:
                return
            try:
                locks.release(lock)
            except BaseException:  # a signal handler's, which may have come first
                locks.release(lock)
                raise
            finally:
                self._lock = None

    def give_back(self) -> None:
        """Leave it to the member from which this process descends, if there is one: it may end at any time."""
        if self._is_below:
            self.give_up()

    def has_others(self) -> bool:
        """Whether others than the daemons of this process are members; True where that cannot be told."""
        with suppress(OSError):
            return any(not holders.is_daemon_below(self.spool, name) for name in holders.living(self.spool))
        return True

    @property
    def watch(self) -> Place | None:
        """Where it is recorded what this process tells of what goes wrong; None if it tells nothing."""
        if self.reports:
            return self.spool.told
        role, host = self._membership.role, host_id()
        if not role.rank or role.child is not None or ToldRecord.read(self.spool.told).host in ("", host):
            return None
        with suppress(OSError):
            here = (_rank_of(name.worker) for name in holders.living(self.spool) if name.host == host)
            return self.spool.host(host).told if min(here, default=0) == role.rank else None
        return None

    def begin_end(self, since: float) -> None:
        """Begin to wait; what was told before `since`, a unix time, concerned other ends."""
        self._ends_since = since

    @property
    def is_told(self) -> bool:
        """Whether the end was told since this process began to wait: that all is there, or what is missing."""
        record = ToldRecord.read(self.spool.told)
        return max(record.done, record.unsent) >= self._ends_since

    def may_tell_unsent(self, *, failed: bool) -> bool:
        """Whether this process is to tell what is not on the Hub, and no other has told it meanwhile."""
        role = self._membership.role
        if role.is_child:
            speaks = self.take(at_end=True) and not self.has_others()  # the next one tells it
        else:
            speaks = self.take(at_end=True) or role.rank is None or failed
        return speaks and ToldRecord.read(self.spool.told).unsent < self._ends_since

    def told_unsent(self, unix_time: float) -> None:
        """Record when it was told; as unix time 0.0 if all has arrived that was told to be missing."""
        dataclasses.replace(ToldRecord.read(self.spool.told), unsent=unix_time).save(self.spool.told)


def _rank_of(worker: str) -> float:
    """The rank in the name of a worker; that of a child, or of a program without a rank, comes after all ranks."""
    return 0 if worker == MAIN_WORKER else math.inf if (rank := rank_of_directory(worker)) is None else rank
