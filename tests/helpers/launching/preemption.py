"""Preemption: a job of two nodes loses both of them, disks included, again and again, and goes on elsewhere.

    attempt 0    rank 0, 1 on node-a    rank 2, 3 on node-b    SIGTERM to each supervisor
    attempt 1    rank 0, 1 on node-b    rank 2, 3 on node-a    SIGTERM to every process
    attempt 2    as attempt 0, and goes on to the end

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
from launching.recipes import on_spot_nodes
from launching.stage import PATIENCE, REPO, Laps, Stage, free_port

ATTEMPTS = 3
RANKS, RANKS_A_NODE = 4, 2
NAMES = ("node-a", "node-b")


def preempted(stage: Stage, grace: float) -> Laps:
    """Preempt a job three times, and let it end."""
    train, laps = stage.program(RANK), {}
    for attempt in range(ATTEMPTS):
        is_last = attempt + 1 == ATTEMPTS
        disks = [stage.folder / "nodes" / f"{name}.{attempt}" for name in NAMES]
        run_dirs = [stage.uses(disk / "runs" / "exp1") for disk in disks]
        nodes = begin(stage, train, attempt, disks, grace)
        if is_last:
            last = stage.let_end()
            stage.wait_for_marks(*(f"ended_{rank}" for rank in range(RANKS)), by=nodes)
        else:
            stage.wait_for_marks(*(f"logged_{attempt}_{rank}" for rank in range(RANKS)), by=nodes)
            wait_for(lambda run_dirs=run_dirs: all(has_unsent(stage, one) for one in run_dirs), "a commit", PATIENCE)
        since = time.monotonic()
        if not is_last:
            terminate(nodes, everything=attempt == 1)
        seconds = stage.watch(since, lambda nodes=nodes: all(node.is_over() for node in nodes), run_dirs)
        took = time.monotonic() - since
        said = [node.finish() for node in nodes]
        assert seconds is not None, f"attempt {attempt}: not all is on the Hub: {said}"
        assert all((code == 0) == is_last for code, _, _ in said), said
        ends = [[line for line in told(errors) if "on the Hub: " in line] for _, _, errors in said]
        assert all(len(lines) == 1 for lines in ends), f"one line for the run directory that ranks share: {said}"
        assert took < grace + 2 or is_last, f"attempt {attempt}: it took {took:.1f} s: {said}"
        laps["the end" if is_last else f"SIGTERM {attempt + 1}"] = seconds
        wait_for(lambda run_dirs=run_dirs: not any(map(stage.uploaders, run_dirs)), "the uploaders leave")
        shutil.rmtree(stage.folder / "nodes")
    judge(stage, last)
    return laps


def begin(stage: Stage, train: Path, attempt: int, disks: list[Path], grace: float) -> list[Supervised]:
    """Start an agent on each node; nodes change places from attempt to attempt."""
    port, nodes, apart = free_port(), [], not why_no_namespace()
    for number in range(len(NAMES)):
        place = (number + attempt) % len(NAMES)
        disk = disks[place]
        recipe = on_spot_nodes(number, len(NAMES), RANKS_A_NODE, "127.0.0.1").with_grace(grace)
        meeting = [f"--node-rank={number}", "--master-addr=127.0.0.1", f"--master-port={port}"]
        several = [f"--nnodes={len(NAMES)}", "--local-addr=127.0.0.1", *meeting]
        own = {"HF_HOME": disk / "hf_home", "XDG_CACHE_HOME": disk / "cache"}
        if "HF_MPWRITER_LOGDIR" not in recipe.environ:
            own["HF_MPWRITER_LOGDIR"] = disk / "runs" / "exp1"
        if attempt and not recipe.pulls:
            pull(stage, disk / "runs" / "exp1")
        disk.mkdir(parents=True, exist_ok=True)
        nodes.append(
            stage.supervise(
                *recipe.with_program(*several, train, stage.shared),
                options=recipe.options,
                is_first=apart,
                host=NAMES[place],
                torch=True,
                cwd=disk,
                **recipe.environ | own,
            )
        )
    return nodes


def has_unsent(stage: Stage, run_dir: Path) -> bool:
    """Whether the Hub has something of each file, and not all of those that ranks write now."""
    lengths = stage.lengths(run_dir)
    growing = [path for path, size in lengths.items() if not stage.has({path: size})]
    return stage.has(dict.fromkeys(lengths, 1)) and len(growing) == RANKS_A_NODE


def pull(stage: Stage, run_dir: Path) -> None:
    """Bring the run to an empty disk."""
    command = [sys.executable, "-m", "hf_mpwriter", "pull", run_dir, "--repo-id", REPO]
    subprocess.run(command, env=stage.environ(), check=True, capture_output=True, timeout=PATIENCE)


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
    assert len(report.files) >= ATTEMPTS * RANKS
    expected = {run: list(range(last)) for run in ("exp1", "exp1/rank_00001", "exp1/rank_00002", "exp1/rank_00003")}
    in_python = {run: [step for step, _ in tags["loss"]] for run, tags in shown(pulled.parent).items()}
    assert in_python == expected
    with tensorboard(pulled.parent, "--samples_per_plugin", "scalars=100000") as ask:

        def steps(run: str) -> list[int]:
            return [step for _, step, _ in ask("plugin/scalars/scalars", run=run, tag="loss") or []]

        wait_for(lambda: {run: steps(run) for run in expected} == expected, "every step in the default reader")
