"""Selection: whose files a node needs to go on with its run.

    the environment tells                                    pulled
    LOCAL_RANK and RANK, as torchrun and others set them     that rank
    a rank of SLURM or MPI, of more than its known nodes     that rank
    NODE_RANK and LOCAL_WORLD_SIZE, and no RANK              the ranks of that node
    anything else, or the command starts ranks itself        all

Where there is one task per node, its rank may be the number of a node, as that of a torchrun that `srun` has started:
the ranks below it have other numbers. So such a rank counts for nothing. Too much costs time, too little tears a curve.

Rank 0 also needs the ranks that the world has no more, to hide their later steps: see `worker/naming/rewind`.
An array task leaves other tasks' files alone. What has a name without a task may be its own.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hf_mpwriter.base.job import array_task
from hf_mpwriter.base.nodes import nodes_of
from hf_mpwriter.worker.role import rank_of, world_size_of

LAUNCHERS = {"torchrun", "accelerate", "deepspeed", "mpirun", "mpiexec", "horovodrun", "srun"}
LAUNCHER_MODULES = ("torch.distributed.", "accelerate.commands.", "deepspeed.launcher.", "horovod.runner")

_RANK = re.compile(r"(?:^|_)rank_(\d{5,})$")
_TASK = re.compile(r"task_(\d{5,})(?!\d)")


@dataclass(frozen=True)
class Selection:
    """The workers whose files are pulled."""

    ranks: range = range(sys.maxsize)  # of this process, or of this node
    world: int | None = None  # ranks from here on belong to rank 0; None if that is not known
    task: int | None = None  # of an array, None outside of one

    def __call__(self, worker: str) -> bool:
        """Whether the files of a worker are pulled."""
        if self.task is not None and (task := _TASK.match(worker)) and int(task[1]) != self.task:
            return False
        match = _RANK.search(worker)
        rank = int(match[1]) if match else 0
        return rank in self.ranks or (0 in self.ranks and self.world is not None and rank >= self.world)


def selection_of(environ: Mapping[str, str], command: Sequence[str]) -> Selection:
    """Whose files a program needs."""
    task = array_task(environ)
    if (rank := _own_rank(environ)) is not None and not _starts_ranks(command):
        return Selection(range(rank, rank + 1), world_size_of(environ), task)
    node, size = (environ.get(name, "") for name in ("NODE_RANK", "LOCAL_WORLD_SIZE"))
    if "RANK" not in environ and node.isdecimal() and size.isdecimal() and int(size):
        first, count = int(node) * int(size), nodes_of(environ).count
        if first or count > 1:
            return Selection(range(first, first + int(size)), count * int(size) if count > 1 else None, task)
    return Selection(task=task)


def _own_rank(environ: Mapping[str, str]) -> int | None:
    """The rank of this process, None if the number may be that of a node."""
    rank, world = rank_of(environ), world_size_of(environ)
    if "RANK" in environ:
        return rank if environ.get("LOCAL_RANK", "").isdecimal() else None
    nodes = nodes_of(environ)
    is_told = nodes.count > 1 or nodes.rank is not None  # else it is one because no launcher tells
    return rank if is_told and rank is not None and world is not None and world > nodes.count else None


def _starts_ranks(command: Sequence[str]) -> bool:
    """Whether a program is a launcher, as far as its arguments tell."""
    return any(os.path.basename(word) in LAUNCHERS or word.startswith(LAUNCHER_MODULES) for word in command)
