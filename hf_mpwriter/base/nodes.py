"""Nodes: on how many machines the job runs, and which of them this is, by the launcher's environment.

    HF_MPWRITER_NODES                            counts before all others
    SLURM_STEP_NUM_NODES, else SLURM_NNODES      of a step; the batch script and a shell are on one node of many
    WORLD_SIZE / LOCAL_WORLD_SIZE, and the like  of torchrun, accelerate, DeepSpeed, Open MPI, MPICH
    none of these                                one node

Where SLURM and the launcher differ, the smaller number counts: a node may have several agents of torchrun, each with a
LOCAL_WORLD_SIZE of its own. GROUP_WORLD_SIZE counts agents, so it is not read.

The uploader has no environment of its own to ask: the worker that starts it hands this over.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

# ranks of the job, ranks of this node, rank of this process
_RANKS = (
    ("WORLD_SIZE", "LOCAL_WORLD_SIZE", "RANK"),
    ("WORLD_SIZE", "LOCAL_SIZE", "RANK"),
    ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_SIZE", "OMPI_COMM_WORLD_RANK"),
    ("PMI_SIZE", "MPI_LOCALNRANKS", "PMI_RANK"),
)
_STEPS = ("SLURM_STEP_ID", "SLURM_STEPID")
_LAST_STEP = 4_294_967_280  # greater numbers are the batch script and its like


@dataclass(frozen=True)
class Nodes:
    """The nodes of a job."""

    count: int = 1  # how many, at least 1
    rank: int | None = None  # number of this one among them, None if no launcher tells


def nodes_of(environ: Mapping[str, str]) -> Nodes:
    """The nodes of the job of a process."""
    found = [nodes for nodes in (_of_step(environ), _of_ranks(environ)) if nodes is not None]
    known = min(found, key=lambda nodes: nodes.count, default=Nodes())
    count = _number(environ, "HF_MPWRITER_NODES") or known.count
    rank = known.rank if known.rank is not None and known.rank < count else None
    return Nodes(count, rank)


def _of_step(environ: Mapping[str, str]) -> Nodes | None:
    """The nodes of a step of SLURM, None outside of one."""
    step = next((number for name in _STEPS if (number := _number(environ, name)) is not None), _LAST_STEP)
    count = _number(environ, "SLURM_STEP_NUM_NODES") or _number(environ, "SLURM_NNODES")
    return Nodes(count, _number(environ, "SLURM_NODEID")) if count and step < _LAST_STEP else None


def _of_ranks(environ: Mapping[str, str]) -> Nodes | None:
    """The nodes over which a launcher has spread its ranks, None if it does not tell."""
    for world_name, local_name, rank_name in _RANKS:
        world, local, rank = (_number(environ, name) for name in (world_name, local_name, rank_name))
        if world and local:
            return Nodes(-(-world // local), None if rank is None else rank // local)
    return None


def _number(environ: Mapping[str, str], name: str) -> int | None:
    text = environ.get(name, "")
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 12 else None
