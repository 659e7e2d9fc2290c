"""Whose files a node pulls, by the environment of its launcher."""

from __future__ import annotations

import pytest

from hf_mpwriter.base import names
from hf_mpwriter.cli.pull import selection_of

ALL = ["main", "rank_00001", "rank_00002", "rank_00003", "rank_00005"]
TORCHRUN = {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2"}
STEP = {"SLURM_STEP_ID": "0", "SLURM_NNODES": "2", "SLURM_NODEID": "1", "SLURM_PROCID": "1"}
PROGRAM = ("python", "train.py")


@pytest.mark.parametrize(
    ("environ", "command", "pulled"),
    [
        pytest.param({}, PROGRAM, ALL, id="alone"),
        pytest.param(TORCHRUN, PROGRAM, ["rank_00001"], id="torchrun"),
        pytest.param(TORCHRUN | {"RANK": "0", "LOCAL_RANK": "0"}, PROGRAM, ["main", "rank_00005"], id="rank 0"),
        pytest.param(TORCHRUN | {"RANK": "2", "WORLD_SIZE": "x"}, PROGRAM, ["rank_00002"], id="no world"),
        pytest.param({"RANK": "1", "WORLD_SIZE": "2"}, ("bash", "start.sh"), ALL, id="RANK of a node"),
        pytest.param(STEP | {"SLURM_NTASKS": "4"}, PROGRAM, ["rank_00001"], id="two tasks a node"),
        pytest.param(STEP | {"SLURM_NTASKS": "2"}, PROGRAM, ALL, id="one task a node"),
        pytest.param(STEP | {"SLURM_NTASKS": "4"}, ("/opt/bin/torchrun", "train.py"), ALL, id="two agents a node"),
        pytest.param(
            STEP | {"SLURM_NTASKS": "4"}, ("python", "-m", "torch.distributed.run", "train.py"), ALL, id="module"
        ),
        pytest.param(
            {"OMPI_COMM_WORLD_RANK": "3", "OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_LOCAL_SIZE": "2"},
            PROGRAM,
            ["rank_00003"],
            id="MPI",
        ),
        pytest.param({"FLUX_TASK_RANK": "1", "FLUX_JOB_SIZE": "2"}, ("bash", "start.sh"), ALL, id="nodes not told"),
        pytest.param(
            {"FLUX_TASK_RANK": "1", "FLUX_JOB_SIZE": "4", "HF_MPWRITER_NODES": "2"},
            PROGRAM,
            ["rank_00001"],
            id="nodes told",
        ),
        pytest.param(
            {"NODE_RANK": "1", "LOCAL_WORLD_SIZE": "2"}, ("torchrun",), ["rank_00002", "rank_00003"], id="node"
        ),
        pytest.param(
            {"NODE_RANK": "0", "LOCAL_WORLD_SIZE": "2", "HF_MPWRITER_NODES": "2"},
            ("torchrun",),
            ["main", "rank_00001", "rank_00005"],
            id="first node",
        ),
        pytest.param({"NODE_RANK": "0", "LOCAL_WORLD_SIZE": "2"}, ("torchrun",), ALL, id="first of how many"),
    ],
)
def test_a_node_pulls_what_its_own_ranks_need(environ, command, pulled):
    """Its own ranks where they are certain; rank 0 also what is missing in the world; else all."""
    assert list(filter(selection_of(environ, command), ALL)) == pulled


def test_children_and_other_names_of_a_rank_are_of_that_rank():
    """The worker of a path is the one that the selection is asked for."""
    paths = ["rank_00001~2/e", "rank_00001_Process-1/many/e", "rank_00011/e", "rank_00001/sub/e", "e"]
    selected = selection_of(TORCHRUN, PROGRAM)
    assert [path for path in paths if selected(names.worker_of(path))] == [paths[0], paths[1], paths[3]]
