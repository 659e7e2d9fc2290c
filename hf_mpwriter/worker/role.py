"""The role: what this process is in its run.

A rank is, the first that is known:

    rank=                 what the program has said to a writer
    given                 what a launcher gave this process after its start, as `notebook_launcher` does
    torch.distributed     if it is loaded, and initialised in this process
    environment           of the launcher. A child (multiprocessing, fork) inherits it, but is not that rank

    Role(None, None)               process alone          worker `main`
    Role(3, None)                  rank 3                 worker `rank_00003`; rank 0 is `main`
    Role(3, "Process-1")           child of rank 3        worker `rank_00003_Process-1`
    Role(None, "")                 fork of a lone process worker `proc_00001`
    Role(None, None, is_task=True) task of a pool         worker `main`, or the next free `proc_00001`

A worker process of a pool (multiprocessing.Pool, concurrent.futures, loky, joblib) is no one in particular: which of
them takes a task is chance. So a task is a process alone, or a fork of its rank.

multiprocessing counts the children of a process without end. A child with a number above OWN_NAMES has no name of its
own: such children share `Process`, `Process~2` and so on, as many as live at once. The first ones keep
theirs, so a restart finds them again. So it is with the children of a task, which are counted per worker of the pool.

Invariants:
- torch is only asked if the program has loaded it. A fork inherits the process group of its parent; it is not its own.
- A process that has begun to log keeps its role, see `worker/membership`.
"""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from hf_mpwriter.base import job
from hf_mpwriter.base.job import GivenRank, launched, rank_of
from hf_mpwriter.base.names import is_reserved
from hf_mpwriter.system import contact
from hf_mpwriter.system.interrupts import ours
from hf_mpwriter.system.process import (
    Process,
    ancestors,
    host_name,
    initial_environment,
    parent_started_at,
    safe_name,
)
from hf_mpwriter.system.process_state import after_fork

OWN_NAMES = 64  # children that multiprocessing numbers, each with a directory of its own
POOLS = ("multiprocessing.pool", "multiprocess.pool", "concurrent.futures.process", "loky.process_executor")
_COUNTED = re.compile(r"(?P<kind>\w*(?:Process|PoolWorker))-(?P<numbers>\d+(?::\d+)*)")


@dataclass(frozen=True)
class Role:
    """What a process is in its run: a rank, a process alone, a task of a pool, or a child of one of them."""

    rank: int | None  # global rank; of a child, the rank it descends from
    # the multiprocessing name of a child, "" for a fork without one, None for a rank or a lone process
    child: str | None
    world: int | None = field(default=None, compare=False)  # how many ranks there are, None if that is not known
    is_task: bool = False  # whether it is a task of a pool that descends from no rank

    @property
    def worker(self) -> str:
        """The name that the worker wants; if it is claimed, the next free one is taken."""
        if self.child is None:
            return "main" if not self.rank else f"rank_{self.rank:05d}"
        name = safe_name(_kind(self.child)) or "proc_00001"
        if is_reserved(name):
            name = f"proc_{name}"
        return name if self.rank is None else f"rank_{self.rank:05d}_{name}"

    @property
    def substitute(self) -> str:
        """What its other names begin with: those of rank 0 tell that they are of a rank."""
        return "rank_00000" if self.rank == 0 and self.child is None else self.worker

    @property
    def is_child(self) -> bool:
        """Whether another process of the program has started this one: it waits at its end only if it reports."""
        return self.child is not None or self.is_task

    @property
    def answers_for_attachments(self) -> bool:
        """Whether this process counts all attachments of the run as its own: rank 0 or a process alone."""
        return self.child is None and not self.rank

    @property
    def has_peers(self) -> bool:
        """Whether it is a rank of several."""
        return self.rank is not None and (self.rank > 0 if self.world is None else self.world > 1)


def _kind(child: str) -> str:
    """The name of a child; without the numbers of multiprocessing if they are too many."""
    counted = _COUNTED.fullmatch(child)
    if counted is None:
        return child
    numbers = counted["numbers"].split(":")  # of a child of a child: 3:1
    own = len(numbers) <= 2 and all(len(number) < 9 and int(number) <= OWN_NAMES for number in numbers)
    return child if own else counted["kind"]


def role_of(
    environ: Mapping[str, str],
    *,
    said: int | None = None,
    at_start: int | None = None,
    group: GivenRank | None = None,
    child: str | None = None,
    is_task: bool = False,
    parent: int | None = None,
) -> Role:
    """Decide the role; for the order see the head of this module.

    `said`: the rank that the program has given to a writer. `at_start`: the one in the environment that this process
    came with. `group`: the one in torch.distributed, initialised in this process. `child`: the multiprocessing name of
    a child process. `is_task`: whether it is a worker process of a pool. `parent`: the rank from which a child
    descends, where its environment does not tell. None of each if there is none.
    """
    launcher = launched(environ)
    if said is not None:
        known = [found for found in (launcher, group) if found is not None and found.rank == said]
        return Role(said, None, known[0].size if known else None)
    is_given = launcher.rank is not None and launcher.rank != at_start
    if group is not None and not is_given:
        return Role(group.rank, None, group.size)
    if is_given or (child is None and not is_task):
        return Role(launcher.rank, None, launcher.size)
    rank = parent if launcher.rank is None else launcher.rank
    if is_task:
        return Role(None, None, is_task=True) if rank is None else Role(rank, "")
    return Role(rank, child)


class _Fork(NamedTuple):
    """What a forked child has from its parent."""

    rank: int | None  # in the environment
    parent: int | None  # the rank of the parent, from whatever source
    group: object  # the process group of torch.distributed
    of_task: bool  # whether the parent is a worker process of a pool


_fork: list[_Fork] = []  # of this process, if it is forked
_first_rank_pid: list[int] = []  # a fork of it is a child again


def _note_parent() -> None:
    """Note what is of the parent; `_fork` is still the parent's here, and so is the process of multiprocessing."""
    rank, inherited, group = rank_of(os.environ), _fork[0] if _fork else None, distributed()
    parent = rank if rank is not None else group.rank if group else inherited.parent if inherited else None
    of_task = any(_is_task(process) for process, _ in _processes())
    _fork[:] = [_Fork(rank, parent, _default_group(), of_task)]


after_fork(_note_parent)


def _default_group() -> Any:
    """The default process group of torch.distributed, None without one; torch is not imported for it."""
    collectives = sys.modules.get("torch.distributed.distributed_c10d")
    return getattr(getattr(collectives, "GroupMember", None), "WORLD", None)


def distributed() -> GivenRank | None:
    """The rank of this process in torch.distributed, None unless this process itself has initialised it."""
    group = _default_group()
    if group is None or (_fork and group is _fork[0].group):
        return None
    try:
        return GivenRank(int(group.rank()), int(group.size()))
    except ours(Exception):
        return None


def _processes() -> Iterator[tuple[Any, Any]]:
    """This process as multiprocessing knows it, and its parent; the library of pathos and datasets counts, too."""
    for name in ("multiprocessing", "multiprocess"):
        library = sys.modules.get(f"{name}.process")
        if library is not None and (parent := library.parent_process()) is not None:
            yield library.current_process(), parent


def _is_task(process: Any) -> bool:
    """Whether a process of multiprocessing takes the tasks of a pool: by its function, as its name is the user's."""
    return str(getattr(getattr(process, "_target", None), "__module__", "")).endswith(POOLS)


def is_daemon() -> bool:
    """Whether multiprocessing ends this process with the one that has started it."""
    return any(process.daemon for process, _ in _processes())


def take_first_rank() -> None:
    """Note that a framework trains here as the first of its ranks: a child without a rank of its own is rank 0."""
    _first_rank_pid[:] = [os.getpid()]


def current_role(said: int | None = None, parent: int | None = None) -> Role:
    """The role of this process.

    multiprocessing knows the children that were spawned. The workers of torch's DataLoader have new process names in
    every epoch, so their ids are taken. Both are asked only if the program has loaded them.
    """
    fork, process = _fork[0] if _fork else None, next((process for process, _ in _processes()), None)
    child = None if fork is None and process is None else "" if process is None else str(process.name)
    is_task, loader = process is not None and _is_task(process), sys.modules.get("torch.utils.data")
    if process is not None and loader is not None and (info := loader.get_worker_info()) is not None:
        child, is_task = f"DataLoader-{info.id}", False
    elif child is not None and said is None and _first_rank_pid == [os.getpid()] and not rank_of(os.environ):
        return Role(0, None)
    if fork is not None and fork.of_task and child and (counted := _COUNTED.fullmatch(child)):
        child = counted["kind"]
    group, at_start = distributed(), fork.rank if fork is not None else None
    if fork is None and (process is not None or group is not None):  # else it decides nothing
        at_start = rank_of(initial_environment())
    parent = fork.parent if parent is None and fork is not None else parent
    return role_of(os.environ, said=said, at_start=at_start, group=group, child=child, is_task=is_task, parent=parent)


class Attempt(NamedTuple):
    """What the processes of a program have in common from its start on, as its children know it."""

    started_at: float  # unix time
    mark: str  # in the first record of their event files
    is_inherited: bool  # whether another process began it

    @classmethod
    def of_this_process(cls, *, is_child: bool) -> Attempt:
        """That of this process, or of the one that has started it."""
        if is_child:
            return cls(parent_started_at(), Process.of(os.getppid()).digest, is_inherited=True)
        return cls(time.time(), Process.current().digest, is_inherited=False)


def launch_time(rank: int | None, environ: Mapping[str, str] = os.environ) -> float:
    """When this job started: for a rank the start of its launcher, so that all ranks of a host agree."""
    return time.time() if rank is None else contact.launched_at(environ) or parent_started_at()


def default_logdir(comment: str, environ: Mapping[str, str] = os.environ) -> str:
    """The logdir of a writer without one: the same for all ranks of a job, and after a requeue."""
    if named := environ.get("HF_MPWRITER_LOGDIR"):
        return named + comment
    rank, group = rank_of(environ), distributed()
    if rank is None and group is not None and any(_processes()):  # the ranks are children of one process
        rank = group.rank
    launched_at = launch_time(rank, environ)
    return os.path.join("runs", job.run_name(environ, launched_at, host_name()) + comment)


def launcher_of(role: Role, environ: Mapping[str, str] = os.environ) -> Process | None:
    """The process that has started a rank, or its supervisor if that serves this rank alone; None for others.

    Process 1 counts as none: it adopts what a launcher leaves that ends at once, as `ssh node 'python train.py &'`.
    """
    if role.rank is None or role.child is not None:
        return None
    parent, supervisor = os.getppid(), contact.supervisor(environ)
    above = ancestors()[1:2] if supervisor is not None and supervisor.pid == parent else []
    found = above[0] if above else parent
    return None if found == 1 else Process.of(found)


def agent_of(role: Role, environ: Mapping[str, str] = os.environ) -> Process | None:
    """The process without which a worker is an orphan: its supervisor, else the launcher of a rank."""
    return contact.supervisor(environ) or launcher_of(role, environ)
