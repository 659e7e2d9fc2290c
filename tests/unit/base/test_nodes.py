"""How many nodes a job has, and which one this is."""

from __future__ import annotations

import pytest

from hf_mpwriter.base.job import Nodes, nodes_of

TORCHRUN = {"WORLD_SIZE": "16", "LOCAL_WORLD_SIZE": "4", "RANK": "9", "GROUP_RANK": "2", "GROUP_WORLD_SIZE": "4"}
STEP = {"SLURM_STEP_ID": "0", "SLURM_NNODES": "4", "SLURM_NODEID": "3"}


@pytest.mark.parametrize(
    ("environ", "nodes"),
    [
        ({}, Nodes(1, None)),
        (TORCHRUN, Nodes(4, 2)),
        ({"GROUP_WORLD_SIZE": "4", "GROUP_RANK": "2"}, Nodes(1, None)),
        ({"WORLD_SIZE": "8", "RANK": "3"}, Nodes(1, None)),
        ({"WORLD_SIZE": "6", "LOCAL_WORLD_SIZE": "4", "RANK": "5"}, Nodes(2, 1)),
        ({"WORLD_SIZE": "16", "LOCAL_SIZE": "8", "RANK": "8"}, Nodes(2, 1)),
        (
            {"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_LOCAL_SIZE": "2", "OMPI_COMM_WORLD_RANK": "2"},
            Nodes(2, 1),
        ),
        ({"PMI_SIZE": "4", "MPI_LOCALNRANKS": "2", "PMI_RANK": "0"}, Nodes(2, 0)),
        (STEP, Nodes(4, 3)),
        (STEP | {"SLURM_STEP_NUM_NODES": "2", "SLURM_NODEID": "1"}, Nodes(2, 1)),
        # the batch script, and a shell that salloc has opened, are on one node of many
        ({"SLURM_NNODES": "4", "SLURM_NODEID": "0"}, Nodes(1, None)),
        (STEP | {"SLURM_STEP_ID": "batch"}, Nodes(1, None)),
        (STEP | {"SLURM_STEP_ID": "4294967291"}, Nodes(1, None)),
        # two agents on each of two nodes
        (TORCHRUN | STEP | {"SLURM_NNODES": "2", "SLURM_NODEID": "1"}, Nodes(2, 1)),
        # torchrun in the batch script, reached by ssh
        (TORCHRUN | {"SLURM_NNODES": "4"}, Nodes(4, 2)),
        ({"HF_MPWRITER_NODES": "64"}, Nodes(64, None)),
        (TORCHRUN | {"HF_MPWRITER_NODES": "2"}, Nodes(2, None)),
        (TORCHRUN | {"HF_MPWRITER_NODES": "8"}, Nodes(8, 2)),
        (TORCHRUN | {"HF_MPWRITER_NODES": "many"}, Nodes(4, 2)),
        ({"WORLD_SIZE": "0", "LOCAL_WORLD_SIZE": "0"}, Nodes(1, None)),
        ({"WORLD_SIZE": "16", "LOCAL_WORLD_SIZE": "²"}, Nodes(1, None)),
    ],
)
def test_the_nodes_of_a_job(environ, nodes):
    """Each launcher, two agents on one node, and what only looks like several nodes."""
    assert nodes_of(environ) == nodes
