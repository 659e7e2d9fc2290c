"""The role: what this process is in its run, and the name of its job.

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

import os
import re
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass

from hf_mpwriter.system.process import initial_environment, parent_started_at, safe_name

# One launcher each: torchrun and accelerate, Open MPI, MPICH and Intel, MVAPICH, PMIx, LSF's jsrun.
RANK_VARIABLES = ("RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK", "MV2_COMM_WORLD_RANK", "PMIX_RANK", "JSM_NAMESPACE_RANK")
WORLD_SIZE_VARIABLES = ("WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE", "SLURM_NTASKS")
# SLURM sets SLURM_PROCID=0 in the batch script too, which is not a task of a step.
SLURM_STEP_VARIABLES = ("SLURM_STEP_ID", "SLURM_STEPID")
OWN_NAMES = 64  # children that multiprocessing numbers, each with a directory of its own
_COUNTED = re.compile(r"(?P<kind>\w*(?:Process|PoolWorker))-(?P<numbers>\d+(?::\d+)*)")
NOT_A_STEP = ("", "batch", "4294967291", "extern", "4294967292", "interactive", "4294967290")


def rank_of(environ: Mapping[str, str]) -> int | None:
    """The global rank that the launcher gave, None outside a launcher."""
    for name in RANK_VARIABLES:
        if environ.get(name, "").isdecimal():
            return int(environ[name])
    step = next((environ[name] for name in SLURM_STEP_VARIABLES if name in environ), "")
    if step not in NOT_A_STEP and environ.get("SLURM_PROCID", "").isdecimal():
        return int(environ["SLURM_PROCID"])
    return None


def world_size_of(environ: Mapping[str, str]) -> int | None:
    """How many ranks the launcher started, None if it does not tell."""
    return next((int(environ[name]) for name in WORLD_SIZE_VARIABLES if environ.get(name, "").isdecimal()), None)


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
        if name == "main":
            name = "proc_main"
        return name if self.rank is None else f"rank_{self.rank:05d}_{name}"

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


def job_name(environ: Mapping[str, str], launched_at: float, host: str) -> str:
    """Name of the default run directory: the same for all ranks of a job and, where possible, after a requeue.

    Args:
        environ: the environment.
        launched_at: unix time of the launcher's start for a rank, of now for a lone process.
        host: host name.
    """
    if job := environ.get("SLURM_ARRAY_JOB_ID"):
        return safe_name(f"slurm_{job}_{environ.get('SLURM_ARRAY_TASK_ID', '0')}")
    if job := environ.get("SLURM_JOB_ID"):
        return safe_name(f"slurm_{job}")
    # torchrun without --rdzv-id calls every job "none"
    if (job := environ.get("TORCHELASTIC_RUN_ID")) and job != "none":
        return safe_name(f"torchrun_{job}")
    return time.strftime("%b%d_%H-%M-%S", time.localtime(launched_at)) + f"_{host}"


def launch_time(rank: int | None) -> float:
    """When this job started: for a rank the start of its launcher, so that all ranks of a host agree."""
    return time.time() if rank is None else parent_started_at()
