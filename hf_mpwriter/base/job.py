"""The job: what the environment says of the job that this process belongs to, and of its place in that job.

    rank    of this process among those of the job, and how many there are; on this node; see LAUNCHERS
    nodes   how many the job has, and which of them this is
    task    the array task, where a scheduler starts a job many times
    job     the name of the default run directory: the same for all ranks, and for the next attempt of the same job

All variables of launchers and schedulers are named here. Each row of ROWS names a system, the variable of its job id,
and a discriminator: JOB_ID is set by Hugging Face Jobs and by Grid Engine, and JOB_NAME is the project in Jenkins. The
first row that matches decides. Schedulers come first, because their id lasts longest; torchrun with --standalone makes
a new id at every start.

Invariants:
- All of this is a pure function of the environment, but for the id of this host.
- Two ids have two names: one that cannot be a name as it is gets a digest.
- An id that is counted anew in each cluster is not an id of a job: RAY_JOB_ID alone names nothing.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from hf_mpwriter.system.interrupts import ours
from hf_mpwriter.system.process import host_id, safe_name

Environ = Mapping[str, str]

LONGEST_NAME = 64  # characters of the name of a job
LAST_STEP = 4_294_967_279  # greater numbers of SLURM are the batch script, a shell and their like

_NUMBER = r"\d{1,18}"
_RAY_METADATA = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # of the driver that `ray job submit` starts


@dataclass(frozen=True)
class Launcher:
    """The variables in which a launcher tells a process where it is; "" for what it does not tell."""

    rank: str  # number of the process among those of the job
    world: str = ""  # how many there are
    local_rank: str = ""  # its number among those of this node
    local_world: str = ""  # how many there are on this node
    node: str = ""  # number of this node
    nodes: tuple[str, ...] = ()  # how many there are; the first one that is set counts


TORCHRUN = Launcher("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", node="NODE_RANK")
LAUNCHERS = (
    TORCHRUN,  # Accelerate and Ray Train, too
    Launcher("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_SIZE"),  # DeepSpeed
    Launcher(  # Open MPI
        "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE"
    ),
    Launcher("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"),  # MPICH and Intel MPI
    Launcher("MV2_COMM_WORLD_RANK", "MV2_COMM_WORLD_SIZE"),  # MVAPICH
    Launcher("PMIX_RANK", local_rank="PMIX_LOCAL_RANK"),  # PMIx
    Launcher("JSM_NAMESPACE_RANK", "JSM_NAMESPACE_SIZE"),  # LSF's jsrun
    Launcher("PALS_RANKID"),  # Cray's PALS
    Launcher("FLUX_TASK_RANK", "FLUX_JOB_SIZE"),  # Flux
    Launcher("HOROVOD_RANK", "HOROVOD_SIZE"),  # horovodrun
)
# Only in a step: the batch script has SLURM_PROCID=0, too. Not in what Ray's daemon in a step has started.
SLURM = Launcher(
    "SLURM_PROCID",
    "SLURM_NTASKS",
    "SLURM_LOCALID",
    node="SLURM_NODEID",
    nodes=("SLURM_STEP_NUM_NODES", "SLURM_NNODES"),
)
SLURM_STEPS = ("SLURM_STEP_ID", "SLURM_STEPID")  # number of the step, under its newer and its older name
LIGHTNING = Launcher("LOCAL_RANK", "WORLD_SIZE")  # the only ones of its launcher, on the first node


class GivenRank(NamedTuple):
    """A rank, and the size of its world; None where nothing tells."""

    rank: int | None = None
    size: int | None = None


@dataclass(frozen=True)
class Nodes:
    """The nodes of a job."""

    count: int = 1  # how many, at least 1
    rank: int | None = None  # number of this one among them, None if no launcher tells


def launched(environ: Environ) -> GivenRank:
    """The rank that the launcher gave: all of it from one, as the variables of an outer one may be there, too."""
    in_step = slurm_step(environ) is not None
    is_of_daemon = in_step and is_ray_worker(environ)  # all but RANK; it is the same for all workers of the daemon
    of_step = _given(environ, SLURM) if in_step and not is_of_daemon else GivenRank()
    for launcher in [TORCHRUN] if is_of_daemon else LAUNCHERS:
        if (found := _given(environ, launcher)).rank is not None:
            return found._replace(size=of_step.size) if found.size is None and of_step.rank == found.rank else found
    if of_step.rank is None and environ.get(TORCHRUN.node) == "0":
        return _given(environ, LIGHTNING)
    return of_step


def _given(environ: Environ, launcher: Launcher) -> GivenRank:
    rank, size = number(environ, launcher.rank), number(environ, launcher.world)
    return GivenRank() if rank is None else GivenRank(rank, size)


def rank_of(environ: Environ) -> int | None:
    """The global rank that the launcher gave, None outside a launcher."""
    return launched(environ).rank


def world_size_of(environ: Environ) -> int | None:
    """How many ranks the launcher started, None if it does not tell."""
    return launched(environ).size


def is_first_of_host(environ: Environ) -> bool:
    """Whether a process is the first of those that a launcher has started on this host, or the only one."""
    told = (number(environ, one.local_rank) for one in (*LAUNCHERS, SLURM))
    return next((rank for rank in told if rank is not None), 0) == 0


def nodes_of(environ: Environ) -> Nodes:
    """The nodes of the job of a process; one where nothing tells.

    Where SLURM and the launcher differ, the smaller number counts: a node may have several agents of torchrun, each
    with a LOCAL_WORLD_SIZE of its own. GROUP_WORLD_SIZE counts agents, so it is not read.
    """
    found = [nodes for nodes in (_nodes_of_step(environ), _nodes_of_ranks(environ)) if nodes is not None]
    known = min(found, key=lambda nodes: nodes.count, default=Nodes())
    count = number(environ, "HF_MPWRITER_NODES") or known.count
    rank = known.rank if known.rank is not None and known.rank < count else None
    return Nodes(count, rank)


def host_directory(environ: Environ) -> str:
    """What a directory of this host is called: in a job of several nodes by its id, as two may have one host name."""
    return host_id() if nodes_of(environ).count > 1 else host_id().rpartition("-")[0]


def _nodes_of_step(environ: Environ) -> Nodes | None:
    """The nodes of a step of SLURM, None outside of one: the batch script and a shell are on one node of many."""
    count = next((found for name in SLURM.nodes if (found := number(environ, name))), None)
    return Nodes(count, number(environ, SLURM.node)) if count and slurm_step(environ) is not None else None


def _nodes_of_ranks(environ: Environ) -> Nodes | None:
    """The nodes over which a launcher has spread its ranks, None if it does not tell."""
    for launcher in LAUNCHERS:
        world, local = number(environ, launcher.world), number(environ, launcher.local_world)
        if world and local:
            rank = number(environ, launcher.rank)
            return Nodes(-(-world // local), None if rank is None else rank // local)
    return None


def slurm_step(environ: Environ) -> int | None:
    """The number of the step of `srun`, None outside of one."""
    step = next((step for name in SLURM_STEPS if (step := number(environ, name)) is not None), None)
    return step if step is not None and step <= LAST_STEP else None


def number(environ: Environ, name: str) -> int | None:
    """A number in the environment, None without one."""
    text = environ.get(name, "")
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 12 else None


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
    except ours(ValueError, TypeError, KeyError):
        return ""
    return job if isinstance(job, str) else ""


def _torchrun(environ: Environ) -> str:
    job = environ.get("TORCHELASTIC_RUN_ID", "")
    return "" if job == "none" else job  # so torchrun without --rdzv-id calls every job


# what begins the name of a job -> its id in an environment, "" if this is not that system
ROWS: dict[str, Callable[[Environ], str]] = {
    "slurm": _slurm,
    "pbs": _pbs,
    "lsf": _lsf,
    "sge": _sge,
    "sky": _skypilot,
    "sagemaker": _sagemaker,
    "hf": _hf_jobs,
    "torchx": _torchx,
    "ray": _ray,
    "torchrun": _torchrun,
}
BATCH_SYSTEMS = {"SLURM": _slurm, "PBS": _pbs, "LSF": _lsf, "Grid Engine": _sge, "Hugging Face": _hf_jobs}


def job_name(environ: Environ) -> str:
    """The name of the job, "" if the environment names none that lasts over a restart."""
    return next((_name(system, job) for system, id_of in ROWS.items() if (job := id_of(environ))), "")


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
    return next((name for name, id_of in BATCH_SYSTEMS.items() if id_of(environ)), "")


def is_ray_worker(environ: Environ) -> bool:
    """Whether Ray started this process, or an ancestor of it, as a worker."""
    return bool(environ.get("RAY_JOB_ID")) and bool(environ.get("RAY_RAYLET_PID"))


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
