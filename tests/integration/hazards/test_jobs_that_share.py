"""Jobs that share a run directory: array tasks, steps of `srun`, two launchers at one time."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from forks import Staged, in_child
from hazards import runs, shown

from hf_mpwriter import SummaryWriter


def step(number: int, rank: int, ranks: int = 2) -> dict[str, str]:
    """The environment of a task of `srun`."""
    return {
        "SLURM_JOB_ID": "77",
        "SLURM_STEP_ID": str(number),
        "SLURM_PROCID": str(rank),
        "SLURM_NTASKS": str(ranks),
    }


def task(number: int, rank: int = 0, ranks: int = 6) -> dict[str, str]:
    """The environment of a rank of an array task."""
    array = {"SLURM_JOB_ID": str(71 + number), "SLURM_ARRAY_JOB_ID": "70", "SLURM_ARRAY_TASK_ID": str(number)}
    return array | {"RANK": str(rank), "WORLD_SIZE": str(ranks)}


def logs(run_dir: Path, env: dict[str, str], tag: str, purge_step: int | None = None) -> Iterator[None]:
    """A process that logs one point, and one more at its end; its warnings go to stderr."""
    logging.getLogger("hf_mpwriter").addHandler(logging.StreamHandler(os.fdopen(2, "w", closefd=False)))
    os.environ |= env
    with SummaryWriter(str(run_dir), purge_step=purge_step) as writer:
        writer.add_scalar(tag, 1.0, 1)
        yield
        writer.add_scalar(tag, 1.0, 2)


def run(run_dir: Path, env: dict[str, str], tag: str, purge_step: int | None = None) -> None:
    """Such a process, from its start to its end."""
    assert in_child(lambda: list(logs(run_dir, env, tag, purge_step))) == 0


def tags(run_dir: Path) -> dict[str, set[str]]:
    """The tags below each directory."""
    return {place: {tag for tag, _ in points} for place, points in runs(run_dir).items()}


def test_an_array_task_beside_another_one_has_the_next_name_and_says_whose_logdir_it_is(run_dir, capfd):
    """One warning, by the first rank of the second task: the other task, and what to do."""
    first = Staged(logs(run_dir, task(3), "t3"))
    second = [Staged(logs(run_dir, task(4, rank), f"t4r{rank}")) for rank in (0, 1)]
    third = Staged(logs(run_dir, task(5, 1), "t5r1"))
    assert [process.finish() for process in (first, *second, third)] == [0] * 4
    assert tags(run_dir) == {
        ".": {"t3"},
        "rank_00000~2": {"t4r0"},
        "rank_00001": {"t4r1"},
        "rank_00001~2": {"t5r1"},
    }
    (line,) = [line for line in capfd.readouterr().err.splitlines() if "array task" in line]
    assert f"the name main is held by process {first.pid} on " in line
    assert "(array task 3), which has been here for " in line
    assert "Give each array task a logdir of its own" in line
    assert "kill" not in line


LOG_AND_STAY = """
import sys, time
from hf_mpwriter import SummaryWriter
writer = SummaryWriter(sys.argv[1], purge_step=0)
writer.add_scalar(sys.argv[2], 1.0, 1)
print("ready", flush=True)
time.sleep(float(sys.argv[3]))
"""


def test_array_tasks_without_ranks_share_as_any_processes_do(run_dir, start):
    """The second is `proc_00001`; it is told once, although it resumes."""
    array = {"SLURM_JOB_ID": "73", "SLURM_ARRAY_JOB_ID": "70"}
    first = start(LOG_AND_STAY, run_dir, "t3", 1000, env=array | {"SLURM_ARRAY_TASK_ID": "3"})
    assert first.process.stdout.readline() == "ready\n"
    second = start(LOG_AND_STAY, run_dir, "t4", 0, env=array | {"SLURM_ARRAY_TASK_ID": "4"})
    code, _, errors = second.finish()
    assert code == 0
    assert tags(run_dir) == {".": {"t3"}, "proc_00001": {"t4"}}
    (line,) = errors.splitlines()
    assert f"is in use by process {first.process.pid} on " in line
    assert "(array task 3)" in line
    assert "This process logs in proc_00001/ there. Give each array task a logdir of its own" in line


def test_an_array_task_that_resumes_hides_nothing_of_a_living_one(run_dir):
    """The other task is not an earlier attempt, so no note is left for its end."""
    first = Staged(logs(run_dir, task(3), "a"))
    run(run_dir, task(4), "a", purge_step=0)
    assert first.finish() == 0
    run(run_dir, task(3), "b")
    assert shown(run_dir) == [1, 2]


def test_a_private_run_directory_of_an_array_task_is_the_run_itself(tmp_path):
    """The default of each task, in which no other one logs."""
    for number in (0, 1):
        run(tmp_path / str(number), task(number), "a")
        assert tags(tmp_path / str(number)) == {".": {"a"}}


def test_steps_one_after_another_go_on_with_one_run(run_dir):
    """`srun ... || srun ...`, a killed step, and a requeue, in which the steps are counted anew."""
    run(run_dir, step(0, 1), "r1")
    killed = Staged(logs(run_dir, step(1, 0), "r0"))
    killed.kill()
    for number in (2, 0, 1):
        for rank in (1, 0):
            run(run_dir, step(number, rank), f"r{rank}")
    assert tags(run_dir) == {".": {"r0"}, "rank_00001": {"r1"}}


TORCHRUN = [{"RANK": str(rank), "WORLD_SIZE": "2"} for rank in range(2)]


@pytest.mark.parametrize("ranks", [TORCHRUN, [step(0, 0), step(0, 1)]], ids=["torchrun", "srun"])
def test_two_jobs_at_one_time_never_share_a_name_and_both_resume(run_dir, capfd, ranks):
    """Each rank of the second has a name of its own and a warning; the attempts after that keep all records."""
    for attempt in range(2):
        first = [Staged(logs(run_dir, env, f"a{attempt}")) for env in ranks]
        second = [Staged(logs(run_dir, env, f"b{attempt}")) for env in ranks]
        assert [process.finish() for process in (*first, *second)] == [0] * 4
        assert capfd.readouterr().err.count("If both are to run, give each a logdir of its own.") == 2
        assert tags(run_dir) == {
            place: {f"{job}{number}" for number in range(attempt + 1)}
            for place, job in ((".", "a"), ("rank_00001", "a"), ("rank_00000~2", "b"), ("rank_00001~2", "b"))
        }
    run(run_dir, ranks[0], "b1", purge_step=2)
    assert tags(run_dir)["."] == {"a0", "a1", "b1"}, "alone, the job goes on below the first name"
    assert shown(run_dir / "rank_00000~2", "b1") == [1], "where it was before is rewound"
