"""Two hosts that share a run directory and take over from each other, and SLURM jobs that are requeued.

A host is a namespace with process ids and a name of its own; it is lost with all its processes, its uploader included.
"""

from __future__ import annotations

import os
import signal
import sys
import time

import psutil
from frameworks import shown
from programs import wait_for
from supervised import Supervised

from launching import recipes
from launching.ranks import RANK
from launching.stage import PATIENCE, Laps, Stage

JOB = "4711"
TASKS = 2

# What SLURM does for a step: its tasks, SIGTERM to each of them, and at the end SIGKILL to all that is left.
SRUN = """#!{python}
import ctypes, os, signal, subprocess, sys
ctypes.CDLL(None).prctl(36, 1)  # what loses its parent becomes a child of this process
def start(number):
    own = {{"SLURM_STEP_ID": "0", "SLURM_PROCID": str(number), "SLURM_LOCALID": str(number)}}
    return subprocess.Popen(sys.argv[1:], env=os.environ | own)
tasks = [start(number) for number in range(int(os.environ["SLURM_NTASKS"]))]
signal.signal(signal.SIGTERM, lambda *_: [task.send_signal(signal.SIGTERM) for task in tasks])
codes = [task.wait() for task in tasks]
import psutil
for left in psutil.Process().children(recursive=True):
    left.kill()
sys.exit(max(codes))
"""


def take_over(stage: Stage) -> Laps:
    """The host with the uploader is lost, the other one sends what it has logged; then the other way round."""
    train = stage.program(RANK)
    hosts = [_on_host(stage, train, number) for number in range(2)]
    laps, attempts = {}, [0, 0]
    for turn in range(2):
        stage.wait_for_marks(*(f"logged_{attempts[number]}_{number}" for number in range(2)), by=hosts)
        lost = _with_uploader(stage, hosts)
        since, lengths = time.monotonic(), stage.lengths()
        hosts[lost].supervisor.kill()
        wait_for(hosts[lost].is_over, "the host is gone")
        laps[f"SIGKILL of the host with the uploader, {turn + 1}"] = stage.seconds_until_on_hub(since, lengths)
        _with_uploader(stage, hosts)
        attempts[lost] += 1
        hosts[lost] = _on_host(stage, train, lost)
    stage.wait_for_marks(*(f"logged_{attempts[number]}_{number}" for number in range(2)), by=hosts)
    last = stage.let_end()
    for host in hosts:
        code, _, errors = host.finish(PATIENCE)
        assert code == 0, errors
    wait_for(lambda: not stage.uploaders(), "the uploader leaves")
    assert len(stage.judge().files) == 4
    steps = {run: [step for step, _ in points["loss"]] for run, points in shown(stage.run_dir).items()}
    assert steps == {".": list(range(last)), "rank_00001": list(range(last))}
    return laps


def _on_host(stage: Stage, train: object, number: int) -> Supervised:
    rank = {"RANK": number, "WORLD_SIZE": 2, "LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": 1}
    command = (sys.executable, train, stage.shared, stage.run_dir)
    cache = stage.folder / f"cache-{number}"
    return stage.supervise(*command, is_first=True, host=f"host-{number}", XDG_CACHE_HOME=cache, **rank)


def _with_uploader(stage: Stage, hosts: list[Supervised]) -> int:
    """The number of the host on which the uploader is; there is one in all."""

    def found() -> list[int]:
        uploaders = set(stage.uploaders())
        living = [host for host in hosts if not host.is_over()]
        below = [hosts.index(host) for host in living if uploaders & {process.pid for process in host.below()}]
        return below if len(uploaders) == 1 else []

    (number,) = wait_for(found, "one uploader")
    return number


def requeued(stage: Stage) -> Laps:
    """The batch script of the documents: SIGTERM, and the job comes back under its number; its run is the same one."""
    place = stage.folder / "job"
    place.mkdir()
    (place / "train.py").write_text(RANK.replace("sys.argv[1]", repr(str(stage.shared))))
    tools = stage.folder / "tools"
    tools.mkdir()
    (tools / "srun").write_text(SRUN.format(python=sys.executable))
    (tools / "srun").chmod(0o755)
    stage.program(recipes.batch_script(), "job.sh")
    run_dir = stage.uses(place / "runs" / f"slurm_{JOB}")
    path = os.pathsep.join([str(tools), stage.environ()["PATH"]])
    laps = {}
    for attempt in range(2):
        slurm = {"SLURM_JOB_ID": JOB, "SLURM_NTASKS": TASKS, "SLURM_NNODES": 1, "SLURM_RESTART_COUNT": attempt}
        job = stage.start("bash", stage.shared / "job.sh", cwd=place, PATH=path, **slurm)
        stage.wait_for_marks(*(f"logged_{attempt}_{rank}" for rank in range(TASKS)))
        if attempt:
            last = stage.let_end()
        since = time.monotonic()
        if not attempt:
            (srun,) = psutil.Process(job.pid).children()
            srun.send_signal(signal.SIGTERM)
        seconds = stage.watch(since, lambda job=job: job.poll() is not None, [run_dir])
        assert seconds is not None, stage.output(job)
        assert (job.returncode == 0) == bool(attempt), stage.output(job)
        laps["the end" if attempt else "SIGTERM"] = seconds
        assert not stage.uploaders(run_dir)
    assert os.listdir(run_dir.parent) == [run_dir.name]
    assert len(stage.judge(run_dir).files) == 2 * TASKS
    steps = {run: [step for step, _ in points["loss"]] for run, points in shown(run_dir).items()}
    assert steps == {".": list(range(last)), "rank_00001": list(range(last))}
    return laps
