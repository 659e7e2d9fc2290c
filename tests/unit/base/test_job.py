"""The job that an environment names: every system, and what only looks like it."""

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
    assert {name.partition("_")[0] for _, name in POSITIVE} >= {row.system for row in job.ROWS if row.system}


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
    ("environ", "parts"),
    [
        ({}, []),
        ({"SLURM_JOB_ID": "77"}, []),
        ({"SLURM_ARRAY_TASK_ID": "3"}, []),
        ({"SLURM_ARRAY_JOB_ID": "70", "SLURM_ARRAY_TASK_ID": "3"}, ["task_00003"]),
        ({"SLURM_ARRAY_JOB_ID": "70", "SLURM_ARRAY_TASK_ID": "1000000"}, ["task_1000000"]),
        (
            {"SLURM_ARRAY_JOB_ID": "70", "SLURM_ARRAY_TASK_ID": "3", "SLURM_STEP_ID": "1"},
            ["task_00003", "step_00001"],
        ),
        ({"SLURM_STEP_ID": "0"}, ["step_00000"]),
        ({"SLURM_STEPID": "12"}, ["step_00012"]),
        ({"SLURM_STEP_ID": "4294967291"}, []),
        ({"SLURM_STEP_ID": "batch"}, []),
        ({"SLURM_STEP_ID": "x"}, []),
        ({"PBS_JOBID": "1[4].s", "PBS_ENVIRONMENT": "PBS_BATCH", "PBS_ARRAY_INDEX": "4"}, ["task_00004"]),
        ({"PBS_JOBID": "1[5].s", "PBS_ENVIRONMENT": "PBS_BATCH", "PBS_ARRAYID": "5"}, ["task_00005"]),
        ({"PBS_ARRAY_INDEX": "4"}, []),
        ({"LSB_JOBID": "9", "LSB_JOBINDEX": "0"}, []),
        ({"LSB_JOBID": "9", "LSB_JOBINDEX": "6"}, ["task_00006"]),
        ({"JOB_ID": "9", "SGE_TASK_ID": "undefined"}, []),
        ({"JOB_ID": "9", "SGE_TASK_ID": "7"}, ["task_00007"]),
        ({"SGE_TASK_ID": "7"}, []),
    ],
)
def test_the_parts_of_a_job_are_its_array_task_and_its_step(environ, parts):
    """SLURM's batch script is no step, LSF's index 0 and Grid Engine's "undefined" are no array tasks."""
    assert job.parts(environ) == parts
