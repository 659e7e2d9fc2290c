"""DDP by `torch.multiprocessing.spawn`: names, resume and curves are those of the same ranks below torchrun."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from hazards import needs_torch
from programs import wait_for
from tensorboard_server import tensorboard

RESUMED_AT, LAST = 10, 15  # steps; the first attempt is killed behind the first
PROGRAM = """
import os, sys, time
import torch.distributed as dist
from hf_mpwriter import SummaryWriter

def train(rank, world, logdir, port, purge_step):
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    dist.init_process_group("gloo", rank=rank, world_size=world)
    writer = SummaryWriter(logdir, purge_step=purge_step)
    attempt, step = "first" if purge_step is None else "second", purge_step or 0
    while step < LAST if purge_step else True:
        writer.add_scalar("loss", rank + (0.5 if purge_step else 0.0), step)
        step += 1
        if step == LAST:
            open(f"{logdir}/../{attempt}_{rank}", "w").close()
        time.sleep(0.0 if purge_step else 0.01)
    writer.close()
    dist.barrier()  # the first rank serves the others' meeting place

if __name__ == "__main__":
    logdir, port, world, purge_step = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]) or None
    if "RANK" in os.environ:
        train(int(os.environ["RANK"]), world, logdir, port, purge_step)
    else:
        import torch.multiprocessing
        torch.multiprocessing.spawn(train, args=(world, logdir, port, purge_step), nprocs=world)
""".replace("LAST", str(LAST))


def free_port() -> int:
    """A port at which the ranks may meet."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def attempt(program: Path, run_dir: Path, world: int, purge_step: int, *, spawns: bool) -> list[subprocess.Popen]:
    """Start the ranks in a group of their own: by a process that spawns them, or each as torchrun does."""
    command = [sys.executable, program, run_dir, str(free_port()), str(world), str(purge_step)]
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}  # torch is hidden there
    ranks = [{}] if spawns else [{"RANK": str(rank), "WORLD_SIZE": str(world)} for rank in range(world)]
    return [subprocess.Popen(command, env=env | rank, start_new_session=True) for rank in ranks]


def train(program: Path, run_dir: Path, *, spawns: bool) -> None:
    """Two ranks, killed while they log; then three, from a checkpoint on."""
    run_dir.mkdir(parents=True)
    killed = attempt(program, run_dir, 2, 0, spawns=spawns)
    for rank in range(2):
        wait_for(lambda rank=rank: (run_dir.parent / f"first_{rank}").exists(), "a rank has logged")
    for process in killed:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    for process in attempt(program, run_dir, 3, RESUMED_AT, spawns=spawns):
        assert process.wait() == 0


@pytest.mark.torch
@needs_torch
def test_ranks_that_are_spawned_are_resumed_as_those_of_torchrun(tmp_path):
    """Killed with two ranks, resumed with three: the same directories, runs and points, and none of before is left."""
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    shown = {}
    for spawns in (False, True):
        run_dir = tmp_path / f"spawns_{spawns}" / "exp1"
        train(program, run_dir, spawns=spawns)
        directories = {str(path.parent.relative_to(run_dir)) for path in run_dir.rglob("*tfevents*")}
        assert directories == {".", "rank_00001", "rank_00002"}
        with tensorboard(run_dir) as ask:
            wait_for(lambda ask=ask: len(ask("runs") or []) == 3, "three runs")
            for run in ask("runs"):
                points = lambda run=run, ask=ask: [  # noqa: E731 - of these names
                    (step, value) for _, step, value in ask("plugin/scalars/scalars", run=run, tag="loss") or []
                ]
                wait_for(lambda points=points: points()[-1:] and points()[-1][0] == LAST - 1, f"all points of {run}")
                shown[spawns, run] = points()
    assert {run: shown[False, run] for _, run in shown} == {run: shown[True, run] for _, run in shown}
    assert [step for step, _ in shown[True, "rank_00001"]] == [*range(LAST)]
    assert [value for _, value in shown[True, "rank_00001"]] == [1.0] * RESUMED_AT + [1.5] * (LAST - RESUMED_AT)
