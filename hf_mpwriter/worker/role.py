"""The role: what this process is in its run.

The rank comes from the environment of the launcher. A child (multiprocessing, fork) inherits that environment but is
not that rank. It counts as a rank only if it was given one of its own after its start, as `mp.spawn` scripts,
`notebook_launcher` and torchelastic's function launcher do, or if a framework trains in it as the first of its ranks.

    Role(None, None)      lone process            worker `main`
    Role(3, None)         rank 3                  worker `rank_00003`; rank 0 is `main`
    Role(3, "Process-1")  child of rank 3         worker `rank_00003_Process-1`
    Role(None, "")        fork of a lone process  worker `proc_00001`

multiprocessing counts the children of a process without end, and a pool may replace its workers every few seconds. A
child whose number it has counted beyond OWN_NAMES has no name of its own: such children share `ForkPoolWorker`,
`ForkPoolWorker~2` and so on, as many as live at once. The first ones keep theirs, so a restart finds them again.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass

from hf_mpwriter.base import job
from hf_mpwriter.base.names import is_reserved
from hf_mpwriter.system.process import (
    Process,
    ancestors,
    host_name,
    initial_environment,
    parent_started_at,
    safe_name,
)
from hf_mpwriter.system.supervision import contact

# The rank and the number of ranks, one launcher each: torchrun, Accelerate, DeepSpeed and Ray Train; Open MPI; MPICH
# and Intel MPI; MVAPICH; PMIx; LSF's jsrun; Cray's PALS; Flux; horovodrun.
LAUNCHERS = (
    ("RANK", "WORLD_SIZE"),
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
    ("PMI_RANK", "PMI_SIZE"),
    ("MV2_COMM_WORLD_RANK", "MV2_COMM_WORLD_SIZE"),
    ("PMIX_RANK", ""),
    ("JSM_NAMESPACE_RANK", "JSM_NAMESPACE_SIZE"),
    ("PALS_RANKID", ""),
    ("FLUX_TASK_RANK", "FLUX_JOB_SIZE"),
    ("HOROVOD_RANK", "HOROVOD_SIZE"),
)
SLURM_VARIABLES = ("SLURM_PROCID", "SLURM_NTASKS")  # only in a step, and not in what Ray's daemon in a step has started
OWN_NAMES = 64  # children that multiprocessing numbers, each with a directory of its own
_COUNTED = re.compile(r"(?P<kind>\w*(?:Process|PoolWorker))-(?P<numbers>\d+(?::\d+)*)")
LAUNCHED_AT = "HF_MPWRITER_LAUNCHED_AT"  # set by a supervisor for the ranks below it


def rank_of(environ: Mapping[str, str]) -> int | None:
    """The global rank that the launcher gave, None outside a launcher."""
    return _rank_and_size(environ)[0]


def world_size_of(environ: Mapping[str, str]) -> int | None:
    """How many ranks the launcher started, None if it does not tell."""
    return _rank_and_size(environ)[1]


def _rank_and_size(environ: Mapping[str, str]) -> tuple[int | None, int | None]:
    """Both from one launcher: the variables of an outer one may be there, too."""
    in_step = job.slurm_step(environ) is not None
    is_of_daemon = in_step and job.is_ray_worker(environ)  # all but RANK; it is the same for all workers of the daemon
    in_step, launchers = in_step and not is_of_daemon, LAUNCHERS[: 1 if is_of_daemon else None]
    of_step = tuple(_number(environ, name) if in_step else None for name in SLURM_VARIABLES)
    for rank_name, size_name in launchers:
        if (rank := _number(environ, rank_name)) is not None:
            size = _number(environ, size_name)
            return rank, of_step[1] if size is None and of_step[0] == rank else size
    return of_step[0], of_step[1]


def _number(environ: Mapping[str, str], name: str) -> int | None:
    return int(environ[name]) if environ.get(name, "").isdecimal() else None


@dataclass(frozen=True)
class Role:
    """What a process is in its run: a rank, the lone main process, or a child of one of them.

    Attributes:
        rank: global rank; of a child, the rank it descends from.
        child: the multiprocessing name of a child, "" for a fork without one, None for a rank or a lone process.
    """

    rank: int | None
    child: str | None

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
    def waits(self) -> bool:
        """Whether this process may wait for the Hub at its end; children never do."""
        return self.child is None

    @property
    def answers_for_attachments(self) -> bool:
        """Whether this process counts all attachments of the run as its own: rank 0 or the lone main process."""
        return self.waits and not self.rank


def _kind(child: str) -> str:
    """The name of a child; without the numbers of multiprocessing if they are too many."""
    counted = _COUNTED.fullmatch(child)
    if counted is None:
        return child
    numbers = counted["numbers"].split(":")  # of a child of a child: 3:1
    own = len(numbers) <= 2 and all(len(number) < 9 and int(number) <= OWN_NAMES for number in numbers)
    return child if own else counted["kind"]


def role_of(environ: Mapping[str, str], inherited_rank: int | None, child: str | None) -> Role:
    """Decide the role.

    Args:
        environ: the environment now.
        inherited_rank: the rank in the environment that a child came with.
        child: the multiprocessing name of a child process, None if this is not a child.
    """
    rank = rank_of(environ)
    if child is not None and rank is not None and rank != inherited_rank:
        return Role(rank, None)
    return Role(rank, child)


_forked_from_rank: list[int | None] = []
_first_rank_pid: list[int] = []  # a fork of it is a child again


def _after_fork_in_child() -> None:
    _forked_from_rank[:] = [rank_of(os.environ)]


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)


def take_first_rank() -> None:
    """Note that a framework trains here as the first of its ranks: a child without a rank of its own is rank 0."""
    _first_rank_pid[:] = [os.getpid()]


def current_role() -> Role:
    """The role of this process.

    multiprocessing knows the children that were spawned. The workers of torch's DataLoader have new process names in
    every epoch, so their ids are taken. Both are asked only if the program has loaded them.
    """
    multiprocessing = sys.modules.get("multiprocessing")
    parent = multiprocessing.parent_process() if multiprocessing else None
    name = multiprocessing.current_process().name if multiprocessing and parent else ""
    loader = sys.modules.get("torch.utils.data")
    if parent and loader is not None and (info := loader.get_worker_info()) is not None:
        name = f"DataLoader-{info.id}"
    elif (_forked_from_rank or parent) and _first_rank_pid == [os.getpid()] and not rank_of(os.environ):
        return Role(0, None)
    if _forked_from_rank:
        return role_of(os.environ, _forked_from_rank[0], name)
    if parent:
        return role_of(os.environ, rank_of(initial_environment()), name)
    return role_of(os.environ, None, None)


def launch_time(rank: int | None, environ: Mapping[str, str] = os.environ) -> float:
    """When this job started: for a rank the start of its launcher, so that all ranks of a host agree."""
    return time.time() if rank is None else told_launch(environ) or parent_started_at()


def default_logdir(comment: str, environ: Mapping[str, str] = os.environ) -> str:
    """The logdir of a writer without one: the same for all ranks of a job, and after a requeue.

    Args:
        comment: appended.
        environ: the environment, in which the launcher names the job.
    """
    if named := environ.get("HF_MPWRITER_LOGDIR"):
        return named + comment
    launched_at = launch_time(rank_of(environ), environ)
    return os.path.join("runs", job.run_name(environ, launched_at, host_name()) + comment)


def told_launch(environ: Mapping[str, str]) -> float | None:
    """When the launcher started, as a supervisor between it and this rank has found out; None without one."""
    with contextlib.suppress(ValueError):
        if math.isfinite(at := float(environ.get(LAUNCHED_AT, ""))):
            return at
    return None


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
