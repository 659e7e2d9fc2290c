"""Parts: which names a process takes where several parts of a job share a run directory.

    root        the names without a prefix: main, rank_00001, ...
    prefixed    the names of a part of its own: task_00003, task_00003_rank_00001, step_00001_rank_00001

    parts/root.task.00000001                {"part": "task_00003"}    this array task has the root
    parts/root.step.00000002                {"part": "step_00001"}    this step has it, after another one
    parts/task_00004.step.00000001          the same among the names of an array task
    parts/step_00002                        this step has names of its own

An array task is a run of its own that comes back after a requeue. The first one that comes has the root for good, so
a run directory that only one task uses has no prefix. A step of `srun` goes on with the run of the step before it,
unless that one is alive: then the two are different runs, in this attempt and in all later ones.

Invariants:
- Which part has the root is decided by publishing a file, so all processes of all parts agree.
- The process that publishes that its step has the root holds a lock until it has a name in it. So a step that has the
  root, and of which no process holds one of both, is over. A step that does not have the root holds no name in it.
- No process waits for another.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from hf_mpwriter.base import state
from hf_mpwriter.base.names import is_within, within
from hf_mpwriter.events.deferred_log import logger
from hf_mpwriter.spool.layout import Spool
from hf_mpwriter.spool.workers.claims import claim
from hf_mpwriter.system import disk, locks
from hf_mpwriter.system.directory import Place
from hf_mpwriter.worker.naming import holders
from hf_mpwriter.worker.role import Role

_CLAIM = re.compile(r"(?P<worker>.+)\.lock")


@dataclass(frozen=True)
class Owner:
    """What a file of the parts says: the part that has the names of a scope."""

    part: str


class Taken(NamedTuple):
    """A name that this process holds."""

    name: str  # of the worker
    claim: int  # descriptor of the lock of the name
    wanted: str  # name that it has if no other process holds that
    substitute: str  # what its other names begin with
    prefix: str  # of all names of its part of the job, "" for the root


def take(spool: Spool, role: Role, parts: Iterable[str]) -> Taken:
    """Take the name of a process, or the next free one."""
    prefix, step = "", None
    for part in parts:
        scope = _Scope(spool, prefix, part)
        if not (scope.is_of_first() if scope.kind == "task" else scope.is_of_living()):
            prefix = within(prefix, part)
        elif scope.kind == "step":
            step = scope
    if step is None or step.is_mine:
        return _claim(spool, role, prefix)
    guard = locks.try_exclusive(step.guard(step.part))  # or another process of this step has it
    try:
        if not step.publish():  # another step was faster
            step.set_apart()
            prefix = within(prefix, step.part)
        return _claim(spool, role, prefix)
    finally:
        if guard is not None:
            locks.release(guard)


def _claim(spool: Spool, role: Role, prefix: str) -> Taken:
    wanted, substitute = within(prefix, role.worker), within(prefix, role.substitute)
    name, fd = claim(spool, wanted, substitute)
    return Taken(name, fd, wanted, substitute, prefix)


class _Scope:
    """Names with one prefix, and the question whether a part of the job has them."""

    def __init__(self, spool: Spool, prefix: str, part: str) -> None:
        self._spool, self._prefix, self.part = spool, prefix, part
        self.kind = part.partition("_")[0]  # "task" or "step"
        self.is_mine = False  # whether the part has had the names as of the last look
        self._parts = spool.directory / "parts"
        self._newest = 0  # number of the file that says which part has them

    def _look(self) -> str:
        """The part that has the names, "" if there is none."""
        start = f"{self._prefix or 'root'}.{self.kind}."
        found = [name for name in _names(self._parts) if name.startswith(start)]
        numbers = [int(number) for name in found if (number := name.removeprefix(start)).isdecimal()]
        self._newest = max(numbers, default=0)
        if not self._newest:
            return ""
        try:
            owner = state.load(Owner, disk.read(self._place(self._newest)) or b"").part
        except state.DamagedError:
            owner = "damaged"
        self.is_mine = owner == self.part
        return owner

    def _place(self, number: int) -> Place:
        return self._parts / f"{self._prefix or 'root'}.{self.kind}.{number:08d}"

    @property
    def _own(self) -> Place:
        return self._parts / within(self._prefix, self.part)

    def guard(self, part: str) -> Place:
        """The lock of a process that takes the names for a part and has none of them yet."""
        return self._spool.claim(f"{within(self._prefix, part)}~root")

    def publish(self) -> bool:
        """Take the names for this part; whether it has them now, and none of its own."""
        disk.make_dirs(self._parts)
        locks.publish(self._place(self._newest + 1), state.dump(Owner(self.part)), "spool.part")
        return self._look() == self.part and not self._own.exists()

    def is_of_first(self) -> bool:
        """Whether this part has come first, now or at any time."""
        return self._look() == self.part or (not self._newest and not self._has_logged() and self.publish())

    def _has_logged(self) -> bool:
        """Whether there are directories of this part: the run was pulled, or its spool was removed."""
        own = re.compile(rf"{re.escape(within(self._prefix, self.part))}(?![0-9])")
        return any(map(own.match, _names(Place(self._spool.run))))

    def is_of_living(self) -> bool:
        """Whether this part has the names, or may take them because no process of another part holds one."""
        if self._own.exists():
            return False
        owner = self._look()
        if owner in ("", self.part):
            return True
        holder = self._holder()
        if not holder and not locks.is_held(self.guard(owner)):
            return True
        self.set_apart(holder)
        return False

    def set_apart(self, holder: str = "") -> None:
        """Give this part names of its own, for good; the first process that does so says why."""
        disk.make_dirs(self._parts)
        if locks.publish(self._own, state.dump(Owner(self.part)), "spool.part"):
            member = holders.find(self._spool, holder or within(self._prefix, "main"))
            logger.warning(
                "%s: another step of this job is at work here%s; this step logs below the names %s*, now and after a "
                "requeue.%s",
                self._spool.logdir,
                f" ({holders.describe(member)})" if member else "",
                within(self._prefix, self.part),
                f" If that process is left from a step that is over, end it ({holders.command(member)}) and remove "
                f"{self._own}: then the next step goes on with its run."
                if member
                else "",
            )

    def _holder(self) -> str:
        """A name of this scope that a process holds, "" if there is none."""
        claims = self._spool.claim("main").parent
        matches = filter(None, map(_CLAIM.fullmatch, sorted(_names(claims))))  # main comes before the ranks
        workers = [worker for match in matches if is_within(self._prefix, worker := match["worker"])]
        return next((worker for worker in workers if locks.is_held(claims / f"{worker}.lock")), "")


def _names(place: Place) -> list[str]:
    try:
        return place.names()
    except FileNotFoundError:
        return []
