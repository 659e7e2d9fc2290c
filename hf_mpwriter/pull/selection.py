"""Selection: whose files a node needs to go on with its run.

    the environment tells                                    pulled
    LOCAL_RANK and RANK, as torchrun and others set them     that rank
    a rank of SLURM or MPI, of more than its known nodes     that rank
    NODE_RANK and LOCAL_WORLD_SIZE, and no RANK              the ranks of that node
    anything else, or the command starts ranks itself        all

Where there is one task per node, its rank may be the number of a node, as that of a torchrun that `srun` has started:
the ranks below it have other numbers. So such a rank counts for nothing. Too much costs time, too little tears a curve.

Rank 0 also needs the ranks that the world has no more, to hide their later steps: see `worker/rewind`.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hf_mpwriter.base.job import TORCHRUN, nodes_of, number, rank_of, world_size_of

LAUNCHERS = {"torchrun", "accelerate", "deepspeed", "mpirun", "mpiexec", "horovodrun", "srun"}
LAUNCHER_MODULES = ("torch.distributed.", "accelerate.commands.", "deepspeed.launcher.", "horovod.runner")

_RANK = re.compile(r"(?:^|_)rank_(\d{5,})$")


@dataclass(frozen=True)
class Selection:
    """The workers whose files are pulled."""

    ranks: range = range(sys.maxsize)  # of this process, or of this node
    world: int | None = None  # ranks from here on belong to rank 0; None if that is not known

    def __call__(self, worker: str) -> bool:
        """Whether the files of a worker are pulled."""
        match = _RANK.search(worker)
        rank = int(match[1]) if match else 0
        return rank in self.ranks or (0 in self.ranks and self.world is not None and rank >= self.world)


def selection_of(environ: Mapping[str, str], command: Sequence[str]) -> Selection:
    """Whose files a program needs."""
    if (rank := _own_rank(environ)) is not None and not _starts_ranks(command):
        return Selection(range(rank, rank + 1), world_size_of(environ))
    node, size = number(environ, TORCHRUN.node), number(environ, TORCHRUN.local_world)
    if TORCHRUN.rank not in environ and node is not None and size:
        first, count = node * size, nodes_of(environ).count
        if first or count > 1:
            return Selection(range(first, first + size), count * size if count > 1 else None)
    return Selection()


def _own_rank(environ: Mapping[str, str]) -> int | None:
    """The rank of this process, None if the number may be that of a node."""
    rank, world = rank_of(environ), world_size_of(environ)
    if TORCHRUN.rank in environ:
        return None if number(environ, TORCHRUN.local_rank) is None else rank
    nodes = nodes_of(environ)
    is_told = nodes.count > 1 or nodes.rank is not None  # else it is one because no launcher tells
    return rank if is_told and rank is not None and world is not None and world > nodes.count else None


def _starts_ranks(command: Sequence[str]) -> bool:
    """Whether a program is a launcher, as far as its arguments tell."""
    return any(os.path.basename(word) in LAUNCHERS or word.startswith(LAUNCHER_MODULES) for word in command)
