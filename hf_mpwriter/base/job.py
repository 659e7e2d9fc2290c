"""The job: what the environment says of the job that this process belongs to, and of its part in that job.

    job    the name of the default run directory: the same for all ranks, and for the next attempt of the same job
    part   an array task, or a step of `srun`: parts of one job may share a run directory

Each row of the table names a system, the variable of its job id, and a discriminator: JOB_ID is set by Hugging Face
Jobs and by Grid Engine, and JOB_NAME is the project in Jenkins. The first row that matches decides. Schedulers come
first, because their id lasts longest; torchrun with --standalone makes a new id at every start.

Invariants:
- All of this is a pure function of the environment.
- Two ids have two names: one that cannot be a name as it is gets a digest.
- An id that is counted anew in each cluster is no id of a job: RAY_JOB_ID alone names nothing.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from hf_mpwriter.system.process import safe_name

Environ = Mapping[str, str]

LONGEST_NAME = 64  # characters of the name of a job
# SLURM sets SLURM_PROCID=0 in the batch script too, which is not a task of a step.
SLURM_STEP_VARIABLES = ("SLURM_STEP_ID", "SLURM_STEPID")
NOT_A_STEP = ("", "batch", "4294967291", "extern", "4294967292", "interactive", "4294967290")

_NUMBER = r"\d{1,18}"
_RAY_METADATA = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # of the driver that `ray job submit` starts


@dataclass(frozen=True)
class JobSystem:
    """A system that names jobs."""

    system: str  # begins the name of a job
    job: Callable[[Environ], str]  # its id in an environment, "" if this is not that system


def _match(environ: Environ, variable: str, pattern: str) -> str:
    """The value of a variable if all of it matches, else ""."""
    value = environ.get(variable)
    return value if value and re.fullmatch(pattern, value, re.ASCII) else ""


def _slurm(environ: Environ) -> str:
    array = _match(environ, "SLURM_ARRAY_JOB_ID", _NUMBER)
    if array and (task := _match(environ, "SLURM_ARRAY_TASK_ID", _NUMBER)):
        return f"{array}_{task}"
    return _match(environ, "SLURM_JOB_ID", _NUMBER)


def _pbs(environ: Environ) -> str:
    # of a job array every task has an id of its own, as 123[4].server; no two ids differ in these characters only
    job = _match(environ, "PBS_JOBID", r"\d+.*") if environ.get("PBS_ENVIRONMENT", "").startswith("PBS_") else ""
    return re.sub(r"[.\[\]]+", "_", job)


def _lsf(environ: Environ) -> str:
    if not (job := _match(environ, "LSB_JOBID", _NUMBER)) or not (index := _match(environ, "LSB_JOBINDEX", _NUMBER)):
        return ""
    return job if int(index) == 0 else f"{job}_{index}"


def _sge(environ: Environ) -> str:
    task = _match(environ, "SGE_TASK_ID", rf"{_NUMBER}|undefined")
    if not task or not (job := _match(environ, "JOB_ID", _NUMBER)):
        return ""
    return job if task == "undefined" else f"{job}_{task}"


def _skypilot(environ: Environ) -> str:
    return _match(environ, "SKYPILOT_TASK_ID", r"(\w+-)*sky-.*\d{4}-\d\d-\d\d-.+")


def _sagemaker(environ: Environ) -> str:
    name = environ.get("TRAINING_JOB_NAME", "")
    arn = _match(environ, "TRAINING_JOB_ARN", r"arn:[\w-]+:sagemaker:[^/]+:training-job/[^/]+")
    return name if name and arn.lower().endswith(f"/{name}".lower()) else ""


def _hf_jobs(environ: Environ) -> str:
    job = _match(environ, "JOB_ID", r"[0-9a-f]{24}")
    return job if all(environ.get(name) for name in ("CPU_CORES", "MEMORY")) and "ACCELERATOR" in environ else ""


def _torchx(environ: Environ) -> str:
    return _match(environ, "TORCHX_JOB_ID", r"\w+://[^/]*/.+")


def _ray(environ: Environ) -> str:
    try:
        job = json.loads(environ.get(_RAY_METADATA, "null"))["metadata"]["job_submission_id"]
    except (ValueError, TypeError, KeyError):
        return ""
    return job if isinstance(job, str) else ""


def _torchrun(environ: Environ) -> str:
    job = environ.get("TORCHELASTIC_RUN_ID", "")
    return "" if job == "none" else job  # so torchrun without --rdzv-id calls every job


ROWS = (
    JobSystem("slurm", _slurm),
    JobSystem("pbs", _pbs),
    JobSystem("lsf", _lsf),
    JobSystem("sge", _sge),
    JobSystem("sky", _skypilot),
    JobSystem("sagemaker", _sagemaker),
    JobSystem("hf", _hf_jobs),
    JobSystem("torchx", _torchx),
    JobSystem("ray", _ray),
    JobSystem("torchrun", _torchrun),
)


BATCH_SYSTEMS = (("SLURM", _slurm), ("PBS", _pbs), ("LSF", _lsf), ("Grid Engine", _sge), ("Hugging Face", _hf_jobs))


def job_name(environ: Environ) -> str:
    """The name of the job, "" if the environment names none that lasts over a restart."""
    return next((_name(row.system, job) for row in ROWS if (job := row.job(environ))), "")


def _name(system: str, job: str) -> str:
    whole = f"{system}_{job}"
    name = safe_name(whole)
    if name == whole:
        return name
    digest = hashlib.sha256(whole.encode(errors="surrogateescape")).hexdigest()[:8]
    return f"{name[: LONGEST_NAME - 9] or 'job'}-{digest}"


def run_name(environ: Environ, launched_at: float, host: str) -> str:
    """The name of the default run directory: that of the job, else the start of the launcher."""
    if name := job_name(environ):
        return name
    name = time.strftime("%b%d_%H-%M-%S", time.localtime(launched_at)) + f"_{host}"
    if is_ray_worker(environ):  # the launcher is Ray's daemon, which starts the workers of many jobs
        name += f"_ray_{safe_name(environ['RAY_JOB_ID'])}"
    return name


def batch_system(environ: Environ) -> str:
    """The system that ends all processes of a job with it, "" if there is none."""
    return next((name for name, job in BATCH_SYSTEMS if job(environ)), "")


def is_ray_worker(environ: Environ) -> bool:
    """Whether Ray started this process, or an ancestor of it, as a worker."""
    return bool(environ.get("RAY_JOB_ID")) and bool(environ.get("RAY_RAYLET_PID"))


def slurm_step(environ: Environ) -> int | None:
    """The number of the step of `srun`, None outside of one."""
    step = next((environ[name] for name in SLURM_STEP_VARIABLES if name in environ), "")
    return int(step) if step not in NOT_A_STEP and re.fullmatch(_NUMBER, step) else None


def array_task(environ: Environ) -> int | None:
    """The number of the array task of SLURM, PBS, LSF or Grid Engine; None outside of an array."""
    task = ""
    if _match(environ, "SLURM_ARRAY_JOB_ID", _NUMBER):
        task = _match(environ, "SLURM_ARRAY_TASK_ID", _NUMBER)
    elif _pbs(environ):
        task = _match(environ, "PBS_ARRAY_INDEX", _NUMBER) or _match(environ, "PBS_ARRAYID", _NUMBER)
    elif _lsf(environ):
        task = _match(environ, "LSB_JOBINDEX", r"[1-9]\d{0,17}")
    elif _sge(environ):
        task = _match(environ, "SGE_TASK_ID", _NUMBER)
    return int(task) if task else None


def parts(environ: Environ) -> list[str]:
    """The parts of the job that this process belongs to, the larger one first."""
    task, step = array_task(environ), slurm_step(environ)
    named = (("task", task), ("step", step))
    return [f"{kind}_{number:05d}" for kind, number in named if number is not None]
