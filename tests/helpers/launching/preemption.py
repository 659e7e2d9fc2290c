"""Preemption: a job of two nodes loses both of them, disks included, again and again, and goes on elsewhere.

    attempt 0    rank 0, 1 on node-a    rank 2, 3 on node-b    SIGTERM to each supervisor
    attempt 1    rank 0, 1 on node-b    rank 2, 3 on node-a    SIGTERM to every process
    attempt 2    as attempt 0
    attempt 3    goes on to the end

A node is a pid and a host name of its own, where they can be made: all its processes end with the supervisor. Each
attempt begins with empty disks; only checkpoints are in a place that both share.
"""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
from frameworks import shown
from programs import wait_for
from supervised import Supervised, why_no_namespace
from tensorboard_server import tensorboard

from launching.first import told
from launching.ranks import RANK
from launching.recipes import Recipe
from launching.stage import PATIENCE, REPO, Laps, Stage, free_port

ATTEMPTS = 4
RANKS_A_NODE = 2
NAMES = ("node-a", "node-b")


def preempted(stage: Stage, recipe: Recipe, grace: float) -> Laps:
    """Preempt a job three times, and let it end.

    Args:
        stage: of the case.
        recipe: of torchrun below a supervisor.
        grace: seconds.
    """
    recipe = recipe.with_grace(grace)
    train, laps = stage.program(RANK), {}
    for attempt in range(ATTEMPTS):
        disks = [stage.folder / "nodes" / f"{name}.{attempt}" for name in NAMES]
        run_dirs = [stage.uses(disk / "exp1") for disk in disks]
        if attempt and not recipe.pulls:
            pull(stage, *run_dirs)
        nodes = begin(stage, recipe, train, attempt, run_dirs)
        if attempt + 1 < ATTEMPTS:
            stage.wait_for_marks(*(f"logged_{attempt}_{rank}" for rank in range(4)), by=nodes)
        else:
            last = stage.let_end()
            stage.wait_for_marks(*(f"ended_{rank}" for rank in range(4)), by=nodes)
        since = time.monotonic()
        if attempt + 1 < ATTEMPTS:
            terminate(nodes, everything=attempt == 1)
        seconds = stage.watch(since, lambda nodes=nodes: all(node.is_over() for node in nodes), run_dirs)
        took = time.monotonic() - since
        said = [node.finish() for node in nodes]
        assert seconds is not None, f"attempt {attempt}: not all is on the Hub: {said}"
        assert all((code == 0) == (attempt + 1 == ATTEMPTS) for code, _, _ in said), said
        assert all(len(told(errors)) == 1 for _, _, errors in said), "one line for the run directory that ranks share"
        assert took < grace + 2 or attempt + 1 == ATTEMPTS, f"attempt {attempt}: it took {took:.1f} s: {said}"
        laps["the end" if attempt + 1 == ATTEMPTS else f"SIGTERM {attempt + 1}"] = seconds
        wait_for(lambda run_dirs=run_dirs: not any(map(stage.uploaders, run_dirs)), "the uploaders leave")
        shutil.rmtree(stage.folder / "nodes")
    judge(stage, last)
    return laps


def begin(stage: Stage, recipe: Recipe, train: Path, attempt: int, run_dirs: list[Path]) -> list[Supervised]:
    """Start an agent on each node; nodes change places from attempt to attempt."""
    port, nodes, apart = free_port(), [], not why_no_namespace()
    for number in range(len(NAMES)):
        place = (number + attempt) % len(NAMES)
        meeting = [f"--node-rank={number}", "--master-addr=127.0.0.1", f"--master-port={port}"]
        several = ["--nnodes=2", "--local-addr=127.0.0.1", *meeting]
        command = recipe.torchrun(RANKS_A_NODE, *several, train, stage.shared, run_dirs[place])
        disk = run_dirs[place].parent
        disk.mkdir(parents=True, exist_ok=True)
        nodes.append(
            stage.supervise(
                *command,
                options=recipe.options,
                is_first=apart,
                host=NAMES[place],
                torch=True,
                cwd=disk,
                HF_HOME=disk / "hf_home",
                XDG_CACHE_HOME=disk / "cache",
            )
        )
    return nodes


def pull(stage: Stage, *run_dirs: Path) -> None:
    """Bring the run to empty disks."""
    command = [sys.executable, "-m", "hf_mpwriter", "pull"]
    pulls = [
        subprocess.Popen([*command, run_dir, "--repo-id", REPO], env=stage.environ(), stdout=-1, stderr=-2, text=True)
        for run_dir in run_dirs
    ]
    for process in pulls:
        output, _ = process.communicate(timeout=PATIENCE)
        assert process.returncode == 0, output


def terminate(nodes: list[Supervised], *, everything: bool) -> None:
    """SIGTERM to the supervisors, or to every process of their nodes."""
    victims = [process for node in nodes for process in (node.supervisor, *(node.below() if everything else ()))]
    for victim in victims:
        try:
            victim.send_signal(signal.SIGTERM)
        except psutil.NoSuchProcess:
            continue


def judge(stage: Stage, last: int) -> None:
    """All that returned is on the Hub, and every reader shows each step of each rank once."""
    pulled = stage.folder / "judge" / "exp1"
    pull(stage, pulled)
    report = stage.judge(pulled)
    assert len(report.files) >= ATTEMPTS * len(NAMES) * RANKS_A_NODE
    expected = {run: list(range(last)) for run in ("exp1", "exp1/rank_00001", "exp1/rank_00002", "exp1/rank_00003")}
    in_python = {run: [step for step, _ in tags["loss"]] for run, tags in shown(pulled.parent).items()}
    assert in_python == expected
    with tensorboard(pulled.parent, "--samples_per_plugin", "scalars=0") as ask:

        def steps(run: str) -> list[int]:
            return [step for _, step, _ in ask("plugin/scalars/scalars", run=run, tag="loss") or []]

        wait_for(lambda: {run: steps(run) for run in expected} == expected, "every step in the default reader")
