"""The view of all ranks with real processes: ranks, uploader, local Hub, TensorBoard's reader."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from derived_runs import bits, recomputed, shown
from programs import wait_for
from runs import check_oracle, no_uploader, others_may_read, run

RANKS = range(4)
RANK = """
import os, sys, time
from hf_mpwriter import HFSummaryWriter
logdir, ready, purge_step, last = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
rank = int(os.environ["RANK"])
writer = HFSummaryWriter(
    "me/run", logdir=logdir, purge_step=purge_step or None, commit_every=0.01, all_ranks_view=True
)
writer.log({f"own/{rank}": rank}, purge_step)  # it has joined, before any rank logs what all of them do
open(f"{ready}/{rank}", "w").close()
while len(os.listdir(ready)) < 4:
    time.sleep(0.02)
for step in range(purge_step, last):
    writer.log({"train": {"loss": (rank + 1) / (step + 1), "step_time": float((rank + step) % 4)}}, step)
    writer.add_scalar("purged", purge_step, step)
if "stay" in sys.argv:
    time.sleep(600)
writer.close()
"""


@pytest.fixture
def launch(run_dir, tmp_path, start):
    """Starts all ranks with one purge_step, each up to a step of its own."""

    def launch(attempt, purge_step, last, *words):
        ready = tmp_path / f"ready_{attempt}"
        ready.mkdir()
        return [
            start(RANK, run_dir, ready, purge_step, last[rank], *words, env={"RANK": str(rank), "WORLD_SIZE": "4"})
            for rank in RANKS
        ]

    return launch


def last_step(directory):
    """The last step of the derived loss, -1 if there is none."""
    return max((step for step, _ in shown(directory).get("train/loss/mean", ())), default=-1)


def test_the_view_after_a_kill_and_a_resume_is_that_of_all_that_the_ranks_have_logged(hub, run_dir, launch):
    """Four ranks, one of them killed, all resumed with purge_step: equal to a computation from scratch."""
    directory = Path(run_dir) / "_all_ranks"
    ranks = launch(1, 0, [40, 40, 25, 40], "stay")
    wait_for(lambda: last_step(directory) == 24, "all steps that rank 2 has logged are derived")
    os.kill(ranks[2].pid, signal.SIGKILL)
    wait_for(lambda: last_step(directory) == 39, "a dead rank holds nothing back")
    for rank in (0, 1, 3):
        os.kill(ranks[rank].pid, signal.SIGKILL)
    for rank in launch(2, 20, [60, 60, 60, 60]):
        rank.succeed()
    wait_for(lambda: no_uploader(run_dir), "the uploader has sent everything")

    derived = shown(directory)
    assert derived == recomputed(Path(run_dir), RANKS)
    assert {step for step, _ in derived["train/step_time/slowest_rank"]} == set(range(60))
    assert as_tensorboard_reads(directory) == derived

    report = check_oracle(run_dir, hub)
    assert any(path.startswith("_all_ranks/") for path in report.files)
    assert run("verify", str(run_dir)).exit_code == 0
    assert others_may_read(run_dir, "_all_ranks")
    assert "_all_ranks" not in " ".join(os.listdir(Path(run_dir) / ".hf_mpwriter" / "claims")), "it is no worker"


def as_tensorboard_reads(directory):
    """Per tag the points that TensorBoard's Python reader shows."""
    accumulators = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    reader = accumulators.EventAccumulator(str(directory), size_guidance={"scalars": 0})
    reader.Reload()
    return {tag: [(point.step, bits(point.value)) for point in reader.Scalars(tag)] for tag in reader.Tags()["scalars"]}


def test_without_the_setting_nothing_is_derived(hub, run_dir, tmp_path, start):
    """It is off by default; HF_MPWRITER_ALL_RANKS=1 asks for it, too."""
    ready = tmp_path / "ready"
    ready.mkdir()
    program = RANK.replace(", all_ranks_view=True", "")
    environments = [{"RANK": str(rank), "WORLD_SIZE": "4"} for rank in RANKS]
    for rank in [start(program, run_dir, ready, 0, 3, env=environment) for environment in environments]:
        rank.succeed()
    assert not (Path(run_dir) / "_all_ranks").exists()
    for name in os.listdir(ready):
        (ready / name).unlink()
    environments = [{**environment, "HF_MPWRITER_ALL_RANKS": "1"} for environment in environments]
    for rank in [start(program, run_dir, ready, 3, 6, env=environment) for environment in environments]:
        rank.succeed()
    wait_for(lambda: no_uploader(run_dir), "the uploader has sent everything")
    assert shown(Path(run_dir) / "_all_ranks") == recomputed(Path(run_dir), RANKS)
