"""`hf-mpwriter ranks` with real processes: ranks, kills, uploader, local Hub, TensorBoard's reader."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest
from derived_runs import bits, recomputed, shown
from programs import Program, wait_for
from runs import check_oracle, no_uploader, others_may_read, run
from supervised import RUN

from hf_mpwriter.spool.layout import Spool
from hf_mpwriter.system import locks

RANKS = range(4)
RANK = """
import os, sys, time
from hf_mpwriter import HFSummaryWriter
logdir, ready, purge_step, last = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
rank = int(os.environ["RANK"])
writer = HFSummaryWriter("me/run", logdir=logdir, purge_step=purge_step or None, commit_every=0.01)
writer.log({f"own/{rank}": rank}, purge_step)  # it has joined, before any rank logs what all of them do
open(f"{ready}/{rank}", "w").close()
while len(os.listdir(ready)) < int(os.environ["WORLD_SIZE"]):
    time.sleep(0.02)
for step in range(purge_step, last):
    writer.log({"train": {"loss": (rank + 1) / (step + 1), "step_time": float((rank + step) % 4)}}, step)
    writer.add_scalar("purged", purge_step, step)
if "stay" in sys.argv:
    time.sleep(600)
writer.close()
"""
COMMAND = "import sys; from hf_mpwriter.cli.main import main; main(['ranks', *sys.argv[1:]])"
BELOW = """
import os, subprocess, sys
ranks = [subprocess.Popen([sys.executable, "-c", *sys.argv[1:]], env=os.environ | {"RANK": str(rank)})
         for rank in range(int(os.environ["WORLD_SIZE"]))]
sys.exit(max(rank.wait() for rank in ranks))
"""


@pytest.fixture
def launch(run_dir, tmp_path, start):
    """Starts all ranks with one purge_step, each up to a step of its own."""

    def launch(attempt, purge_step, last, *words):
        ready = tmp_path / f"ready_{attempt}"
        ready.mkdir()
        env = [{"RANK": str(rank), "WORLD_SIZE": "4"} for rank in RANKS]
        ranks = [start(RANK, run_dir, ready, purge_step, last[rank], *words, env=env[rank]) for rank in RANKS]
        wait_for(lambda: len(os.listdir(ready)) == len(RANKS), "all ranks have joined")
        return ranks

    return launch


def last_step(directory):
    """The last step of the derived loss, -1 if there is none."""
    return max((step for step, _ in shown(directory).get("train/loss/mean", ())), default=-1)


def as_tensorboard_reads(directory):
    """Per tag the points that TensorBoard's Python reader shows."""
    accumulators = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    reader = accumulators.EventAccumulator(str(directory), size_guidance={"scalars": 0})
    reader.Reload()
    return {tag: [(point.step, bits(point.value)) for point in reader.Scalars(tag)] for tag in reader.Tags()["scalars"]}


def follow(start, run_dir) -> Program:
    """Start `ranks --follow`, and wait until it has the lock."""
    following = start(COMMAND, "--follow", run_dir)
    wait_for(lambda: locks.is_held(Spool(str(run_dir)).directory / "ranks.lock"), "it derives")
    return following


def test_ranks_are_followed_through_kills_and_a_resume(hub, run_dir, launch, start):
    """Of four ranks one is killed, and so is who follows; all are resumed with purge_step: equal to from scratch."""
    directory = Path(run_dir) / "_all_ranks"
    ranks = launch(1, 0, [40, 40, 25, 40], "stay")
    following = follow(start, run_dir)
    wait_for(lambda: last_step(directory) == 24, "all steps that rank 2 has logged are derived")
    os.kill(ranks[2].pid, signal.SIGKILL)
    wait_for(lambda: last_step(directory) == 39, "a dead rank holds nothing back")
    os.kill(following.pid, signal.SIGKILL)
    following.finish()
    following = follow(start, run_dir)
    wait_for(lambda: len(list(directory.iterdir())) == 2, "another process begins anew")
    for rank in (0, 1, 3):
        os.kill(ranks[rank].pid, signal.SIGKILL)
    following.succeed()
    assert last_step(directory) == 39
    ranks = launch(2, 20, [60, 60, 60, 60], "stay")
    following = follow(start, run_dir)
    wait_for(lambda: last_step(directory) == 59, "the steps since the resume are derived")
    os.kill(following.pid, signal.SIGTERM)  # SIGINT is ignored where a shell has started the tests in the background
    following.succeed()
    for rank in ranks:
        os.kill(rank.pid, signal.SIGKILL)
    wait_for(lambda: no_uploader(run_dir), "the uploader has sent everything")

    derived = shown(directory)
    assert derived == recomputed(Path(run_dir), RANKS)
    assert {step for step, _ in derived["train/step_time/slowest_rank"]} == set(range(60))
    assert as_tensorboard_reads(directory) == derived
    assert any(path.startswith("_all_ranks/") for path in check_oracle(run_dir, hub).files)
    assert others_may_read(run_dir, "_all_ranks")
    assert "~ranks" not in run("status", str(run_dir)).output, "it is not a worker"
    result = run("ranks", str(run_dir))
    assert (result.exit_code, "points are in" in result.output) == (0, True), result.output
    assert shown(directory) == as_tensorboard_reads(directory) == derived, "its file supersedes the earlier ones"


def test_a_supervisor_has_the_ranks_of_its_program_derived(hub, run_dir, start, tmp_path):
    """By a child that ends with the run; what it has derived is on the Hub when the supervisor ends."""
    ready = tmp_path / "ready"
    ready.mkdir()
    below = [sys.executable, "-c", BELOW, RANK, str(run_dir), str(ready), "0", "12"]
    program = "import os, sys; os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
    start(program, *RUN[1:], "--ranks", "--", *below, env={"WORLD_SIZE": "2"}).succeed()
    derived = [path for path in check_oracle(run_dir, hub).files if path.startswith("_all_ranks/")]
    assert len(derived) == 1
    assert shown(Path(run_dir) / "_all_ranks") == recomputed(Path(run_dir), range(2))
    assert not locks.is_held(Spool(str(run_dir)).directory / "ranks.lock")
