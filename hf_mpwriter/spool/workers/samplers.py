"""Samplers: the processes that log what the machine does, one per host; and how long others wait for them.

    hosts/<host>/sampler_status.json    which process holds the sampler lock, see spool/status

A sampler has a claim and a member file, as a worker has. It seals its event file when no worker of its host lives, and
opens none without one. So there is a moment in which all workers are gone and its last records are still to come:

    workers live --the last one ends--> SEALING, at most SEAL_WAIT --its file is sealed--> the last batch

Invariants:
- Where liveness is asked for, a sampler does not count: it ends because workers do, not the other way round.
- One that hangs costs SEAL_WAIT seconds, once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from hf_mpwriter.base.names import is_worker
from hf_mpwriter.spool.layout import Spool
from hf_mpwriter.spool.status import DaemonStatus
from hf_mpwriter.spool.workers.member_lines import Member, MemberName
from hf_mpwriter.system import locks

SEAL_WAIT = 5.0  # seconds after the end of the last worker, in which its host's sampler seals its file


@dataclass(frozen=True)
class SamplerStatus(DaemonStatus):
    """What a sampler publishes about itself, once: which process it is."""

    daemon = "sampler"


class Workers:
    """Whether a worker of one host lives; as a rule one lock is looked at, however many workers there are."""

    def __init__(self, spool: Spool, host: str) -> None:
        self._spool, self._host = spool, host
        self._last = ""  # member file of the worker that was seen alive last

    def any_alive(self) -> bool:
        """Whether one lives; OSError if the spool cannot be read."""
        if self._last and locks.is_held(self._spool.members / self._last):
            return True
        for file_name in self._spool.members.names():
            name = MemberName.parse(file_name)
            is_here = name is not None and name.host == self._host and is_worker(name.worker)
            if is_here and locks.is_held(self._spool.members / file_name):
                self._last = file_name
                return True
        return False


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
