"""The job that an environment names, and its nodes: every system, and what only looks like it."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from hf_mpwriter.base import job
from hf_mpwriter.system.process import safe_name

SKY = "sky-managed-2026-11-22-06-05-17-090781_train_8-0"
ARN = "arn:aws:sagemaker:us-east-1:123456789012:training-job/"
HF = {"ACCELERATOR": "t4-medium", "CPU_CORES": "8", "MEMORY": "30Gi"}
HF_ID = "687f911eaea852de79c4a50a"
SUBMITTED = '{"runtime_env": {}, "metadata": {"job_submission_id": "raysubmit_A1b2"}}'
WORKER = {"RAY_JOB_ID": "02000000", "RAY_RAYLET_PID": "77"}

POSITIVE = [
    ({"SLURM_JOB_ID": "77"}, "slurm_77"),
    ({"SLURM_JOB_ID": "77", "TORCHELASTIC_RUN_ID": "3f1c"}, "slurm_77"),
    ({"SLURM_JOB_ID": "73", "SLURM_ARRAY_JOB_ID": "70", "SLURM_ARRAY_TASK_ID": "3"}, "slurm_70_3"),
    ({"SLURM_JOB_ID": "70", "SLURM_ARRAY_JOB_ID": "70", "SLURM_ARRAY_TASK_ID": "0"}, "slurm_70_0"),
    ({"PBS_JOBID": "123.pbs01", "PBS_ENVIRONMENT": "PBS_BATCH"}, "pbs_123_pbs01"),
    ({"PBS_JOBID": "123[4].pbs01", "PBS_ENVIRONMENT": "PBS_BATCH", "PBS_ARRAY_INDEX": "4"}, "pbs_123_4_pbs01"),
    ({"LSB_JOBID": "99", "LSB_JOBINDEX": "0"}, "lsf_99"),
    ({"LSB_JOBID": "99", "LSB_JOBINDEX": "12"}, "lsf_99_12"),
    ({"JOB_ID": "5", "SGE_TASK_ID": "undefined"}, "sge_5"),
    ({"JOB_ID": "5", "SGE_TASK_ID": "2"}, "sge_5_2"),
    ({"SKYPILOT_TASK_ID": SKY}, f"sky_{SKY}"),
    ({"SKYPILOT_TASK_ID": f"managed-{SKY}"[:50], **WORKER}, f"sky_managed-{SKY}"[:54]),
    ({"TRAINING_JOB_NAME": "Bert-1", "TRAINING_JOB_ARN": f"{ARN}bert-1"}, "sagemaker_Bert-1"),
    ({"JOB_ID": HF_ID, **HF}, f"hf_{HF_ID}"),
    ({"JOB_ID": HF_ID, **HF, "ACCELERATOR": ""}, f"hf_{HF_ID}"),
    ({"TORCHX_JOB_ID": "kubernetes://torchx/default:train-x1"}, "torchx_kubernetes_torchx_default_train-x1-d14e5ef7"),
    ({"RAY_JOB_CONFIG_JSON_ENV_VAR": SUBMITTED}, "ray_raysubmit_A1b2"),
    ({"TORCHELASTIC_RUN_ID": "a/b"}, "torchrun_a_b-48d1f607"),
]  # fmt: skip
IDS = st.text(min_size=1).filter(lambda text: text != "none")  # torchrun calls every job so
NEGATIVE = {
    "nothing": {},
    "Jenkins": {"JOB_NAME": "nightly/train", "BUILD_ID": "12", "JENKINS_URL": "http://ci"},
    "the manifest of a Kubernetes job": {"JOB_NAME": "train", "KUBERNETES_SERVICE_HOST": "10.0.0.1", "HOSTNAME": "t-0"},
    "an id of some queue": {"JOB_ID": "5"},
    "a Space": {"SPACE_ID": "me/x", **HF},
    "an id that is none of Hugging Face Jobs": {"JOB_ID": "5", **HF},
    "such an id elsewhere": {"JOB_ID": HF_ID},
    "SLURM's login node": {"SLURM_CONF": "/etc/slurm.conf", "SLURM_JOB_ID": ""},
    "the script of a user": {"SLURM_JOB_ID": "my-job"},
    "a variable for the tests of PBS scripts": {"PBS_JOBID": "123.pbs01"},
    "a shell that submits to LSF": {"LSB_JOBID": "", "LSF_ENVDIR": "/etc/lsf"},
    "SageMaker's training, run at home": {"TRAINING_JOB_NAME": "bert-1"},
    "an ARN of another service": {"TRAINING_JOB_NAME": "b", "TRAINING_JOB_ARN": "arn:aws:batch:x:1:training-job/b"},
    "an ARN of another job": {"TRAINING_JOB_NAME": "bert-1", "TRAINING_JOB_ARN": f"{ARN}bert-2"},
    "a template": {"SKYPILOT_TASK_ID": "${SKYPILOT_TASK_ID}", "TORCHX_JOB_ID": "${app_id}"},
    "a worker of Ray": WORKER,
    "a driver of Ray": {"RAY_ADDRESS": "127.0.0.1:6379", "RAY_JOB_CONFIG_JSON_ENV_VAR": '{"metadata": {}}'},
    "another program's JSON": {"RAY_JOB_CONFIG_JSON_ENV_VAR": '["metadata"]'},
    "damaged JSON": {"RAY_JOB_CONFIG_JSON_ENV_VAR": "{"},
    "torchrun without --rdzv-id": {"TORCHELASTIC_RUN_ID": "none"},
}


@pytest.mark.parametrize(("environ", "name"), POSITIVE)
def test_a_job_has_one_name_for_all_ranks_and_requeues(environ, name):
    """The id that lasts names the default run directory, whenever and wherever a rank starts."""
    assert job.job_name(environ) == name
    assert job.run_name(environ, 1.0, "a") == job.run_name(environ, 2e9, "b") == name


@pytest.mark.parametrize("environ", NEGATIVE.values(), ids=NEGATIVE)
def test_what_only_looks_like_a_job_names_none(environ):
    """Variables of the same name in other systems, and ids that do not last."""
    assert job.job_name(environ) == ""


def test_every_system_has_a_positive_case():
    """A new row needs its cases."""
    assert {name.partition("_")[0] for _, name in POSITIVE} >= job.ROWS.keys()


def test_a_job_without_an_id_is_named_by_its_start():
    """Torchrun's "none" is no id. Of the jobs of one Ray cluster each has its own name."""
    assert job.run_name({"TORCHELASTIC_RUN_ID": "none"}, 0.0, "h") == job.run_name({}, 0.0, "h")
    assert job.run_name({}, 0.0, "h") != job.run_name({}, 100.0, "h")
    names = {job.run_name({**WORKER, "RAY_JOB_ID": number}, 0.0, "h") for number in ("01000000", "02000000")}
    assert len(names | {job.run_name({}, 0.0, "h")}) == 3


@given(IDS, IDS)
@example("exp/1", "exp_1")
@example("exp_1", "exp_1_")
@example("tfevents", "tf_events")
@example("x" * 70, "x" * 71)
def test_any_id_makes_a_name_of_a_directory(identity, other):
    """Whatever the id holds, its name is safe, not empty, and of bounded length; no other id has the same."""
    name, its = (job.job_name({"TORCHELASTIC_RUN_ID": text}) for text in (identity, other))
    assert 0 < len(name) <= job.LONGEST_NAME
    assert safe_name(name) == name
    assert (name == its) == (identity == other)


@pytest.mark.parametrize(
    ("environ", "task"),
    [
        ({}, None),
        ({"SLURM_ARRAY_TASK_ID": "3"}, None),
        ({"SLURM_ARRAY_JOB_ID": "70", "SLURM_ARRAY_TASK_ID": "3"}, 3),
        ({"PBS_JOBID": "1[4].s", "PBS_ENVIRONMENT": "PBS_BATCH", "PBS_ARRAY_INDEX": "4"}, 4),
        ({"PBS_JOBID": "1[5].s", "PBS_ENVIRONMENT": "PBS_BATCH", "PBS_ARRAYID": "5"}, 5),
        ({"PBS_ARRAY_INDEX": "4"}, None),
        ({"LSB_JOBID": "9", "LSB_JOBINDEX": "0"}, None),
        ({"LSB_JOBID": "9", "LSB_JOBINDEX": "6"}, 6),
        ({"JOB_ID": "9", "SGE_TASK_ID": "undefined"}, None),
        ({"JOB_ID": "9", "SGE_TASK_ID": "7"}, 7),
        ({"SGE_TASK_ID": "7"}, None),
    ],
)
def test_the_array_task_of_each_scheduler(environ, task):
    """LSF's index 0 and Grid Engine's "undefined" are not array tasks."""
    assert job.array_task(environ) == task


@pytest.mark.parametrize(
    ("environ", "step"),
    [
        ({"SLURM_JOB_ID": "77"}, None),
        ({"SLURM_STEP_ID": "0"}, 0),
        ({"SLURM_STEPID": "12"}, 12),
        ({"SLURM_STEP_ID": "4294967291"}, None),
        ({"SLURM_STEP_ID": "batch"}, None),
        ({"SLURM_STEP_ID": "x"}, None),
    ],
)
def test_the_batch_script_is_not_a_step(environ, step):
    """Its number is one that no step has."""
    assert job.slurm_step(environ) == step


@pytest.mark.parametrize(
    ("environ", "is_first"),
    [
        ({}, True),
        ({"LOCAL_RANK": "0", "RANK": "8"}, True),
        ({"LOCAL_RANK": "1"}, False),
        ({"OMPI_COMM_WORLD_LOCAL_RANK": "1", "SLURM_LOCALID": "0"}, False),  # mpirun in the batch script
        ({"MPI_LOCALRANKID": "2"}, False),
        ({"PMIX_LOCAL_RANK": "1"}, False),
        ({"SLURM_LOCALID": "1"}, False),
    ],
)
def test_the_first_process_of_a_host(environ, is_first):
    """By the innermost launcher that tells."""
    assert job.is_first_of_host(environ) is is_first


TORCHRUN = {"WORLD_SIZE": "16", "LOCAL_WORLD_SIZE": "4", "RANK": "9", "GROUP_RANK": "2", "GROUP_WORLD_SIZE": "4"}
STEP = {"SLURM_STEP_ID": "0", "SLURM_NNODES": "4", "SLURM_NODEID": "3"}


@pytest.mark.parametrize(
    ("environ", "nodes"),
    [
        ({}, job.Nodes(1, None)),
        (TORCHRUN, job.Nodes(4, 2)),
        ({"GROUP_WORLD_SIZE": "4", "GROUP_RANK": "2"}, job.Nodes(1, None)),
        ({"WORLD_SIZE": "8", "RANK": "3"}, job.Nodes(1, None)),
        ({"WORLD_SIZE": "6", "LOCAL_WORLD_SIZE": "4", "RANK": "5"}, job.Nodes(2, 1)),
        ({"WORLD_SIZE": "16", "LOCAL_SIZE": "8", "RANK": "8"}, job.Nodes(2, 1)),
        (
            {"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_LOCAL_SIZE": "2", "OMPI_COMM_WORLD_RANK": "2"},
            job.Nodes(2, 1),
        ),
        ({"PMI_SIZE": "4", "MPI_LOCALNRANKS": "2", "PMI_RANK": "0"}, job.Nodes(2, 0)),
        (STEP, job.Nodes(4, 3)),
        (STEP | {"SLURM_STEP_NUM_NODES": "2", "SLURM_NODEID": "1"}, job.Nodes(2, 1)),
        # the batch script, and a shell that salloc has opened, are on one node of many
        ({"SLURM_NNODES": "4", "SLURM_NODEID": "0"}, job.Nodes(1, None)),
        (STEP | {"SLURM_STEP_ID": "batch"}, job.Nodes(1, None)),
        (STEP | {"SLURM_STEP_ID": "4294967291"}, job.Nodes(1, None)),
        # two agents on each of two nodes
        (TORCHRUN | STEP | {"SLURM_NNODES": "2", "SLURM_NODEID": "1"}, job.Nodes(2, 1)),
        # torchrun in the batch script, reached by ssh
        (TORCHRUN | {"SLURM_NNODES": "4"}, job.Nodes(4, 2)),
        ({"HF_MPWRITER_NODES": "64"}, job.Nodes(64, None)),
        (TORCHRUN | {"HF_MPWRITER_NODES": "2"}, job.Nodes(2, None)),
        (TORCHRUN | {"HF_MPWRITER_NODES": "8"}, job.Nodes(8, 2)),
        (TORCHRUN | {"HF_MPWRITER_NODES": "many"}, job.Nodes(4, 2)),
        ({"WORLD_SIZE": "0", "LOCAL_WORLD_SIZE": "0"}, job.Nodes(1, None)),
        ({"WORLD_SIZE": "16", "LOCAL_WORLD_SIZE": "²"}, job.Nodes(1, None)),
    ],
)
def test_the_nodes_of_a_job(environ, nodes):
    """Each launcher, two agents on one node, and what only looks like several nodes."""
    assert job.nodes_of(environ) == nodes
