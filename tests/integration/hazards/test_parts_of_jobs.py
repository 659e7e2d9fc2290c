"""Parts of a job that share a run directory: array tasks, and steps of `srun` at one time or one after another."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from forks import Staged, fork, in_child, reap
from hazards import runs, shown
from programs import wait_for

from hf_mpwriter import SummaryWriter
from hf_mpwriter.system import locks
from hf_mpwriter.worker.naming import parts as parts_module


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


def test_array_tasks_that_share_a_run_directory_keep_their_names(run_dir):
    """The first that comes has the root for good, whichever order they have after a requeue, alive or not."""
    first = Staged(logs(run_dir, task(3), "t3"))
    run(run_dir, task(1), "t1")
    run(run_dir, task(1, 5), "t1r5")
    run(run_dir, task(3, 5), "t3r5")
    assert first.finish() == 0
    for number in (2, 1, 3):
        run(run_dir, task(number), f"t{number}")
    assert tags(run_dir) == {
        ".": {"t3"},
        "task_00001": {"t1"},
        "task_00001_rank_00005": {"t1r5"},
        "rank_00005": {"t3r5"},
        "task_00002": {"t2"},
    }


def test_an_array_task_rewinds_the_missing_ranks_of_its_own(run_dir):
    """A smaller world of one task hides nothing of another one."""
    for number in (0, 1):
        run(run_dir, task(number, 1, 2), "a")
    run(run_dir, task(1, 0, 1), "a", purge_step=2)
    assert shown(run_dir / "task_00001_rank_00001") == [1]
    assert shown(run_dir / "rank_00001") == [1, 2]
    run(run_dir, task(0, 0, 1), "a", purge_step=2)
    assert shown(run_dir / "rank_00001") == [1]


def test_a_private_run_directory_of_an_array_task_keeps_its_paths(tmp_path):
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


def test_steps_at_the_same_time_are_two_runs_now_and_after_a_requeue(run_dir, capfd):
    """The step that comes while another one lives has names of its own for all its ranks, whatever the order later."""
    first = Staged(logs(run_dir, step(0, 0), "a0"))
    second = [Staged(logs(run_dir, step(1, rank), f"b{rank}")) for rank in (1, 0)]
    assert first.finish() == 0
    run(run_dir, step(1, 2), "b2")  # a rank that is late
    assert [process.finish() for process in second] == [0, 0]
    run(run_dir, step(1, 0), "b0")
    run(run_dir, step(0, 1), "a1")
    run(run_dir, step(0, 0), "a0")
    run(run_dir, step(2, 0), "a0")
    assert tags(run_dir) == {
        ".": {"a0"},
        "rank_00001": {"a1"},
        "step_00001": {"b0"},
        "step_00001_rank_00001": {"b1"},
        "step_00001_rank_00002": {"b2"},
    }
    errors = capfd.readouterr().err
    assert errors.count("another step of this job is at work here (process ") == 1
    assert f"process {first.pid} on " in errors
    assert "step_00001" in errors


def test_steps_within_an_array_task_are_parts_of_it(run_dir):
    """Both parts are in the name, the task first."""
    run(run_dir, task(0), "t0")
    first = Staged(logs(run_dir, task(1, 0) | step(0, 0), "a"))
    run(run_dir, task(1, 1) | step(1, 1), "b")
    assert first.finish() == 0
    assert tags(run_dir) == {".": {"t0"}, "task_00001": {"a"}, "task_00001_step_00001_rank_00001": {"b"}}


@pytest.mark.parametrize("kind", ["task", "step"])
def test_parts_that_start_at_the_same_moment_agree_who_has_the_root(run_dir, kind):
    """Four parts of three ranks each at once: no directory has records of two parts."""
    wait, let_go = os.pipe()
    wait_on, let_end = os.pipe()

    def begin(part: int, rank: int) -> None:
        os.close(let_go)
        os.close(let_end)
        os.read(wait, 1)
        os.environ |= step(part, rank) if kind == "step" else task(part, rank)
        writer = SummaryWriter(str(run_dir))
        writer.add_scalar(f"p{part}r{rank}", 1.0, 1)
        os.read(wait_on, 1)
        writer.close()

    children = [fork(lambda part=part, rank=rank: begin(part, rank)) for part in range(4) for rank in range(3)]
    os.close(let_go)
    wait_for(lambda: len(list(run_dir.rglob("*tfevents*"))) == len(children), "all have logged")
    os.close(let_end)
    assert [reap(pid) for pid in children] == [0] * len(children)
    os.close(wait)
    os.close(wait_on)
    found = tags(run_dir)
    assert len(found) == 12
    owners = {place.rpartition("rank_")[0].rstrip("_").replace(".", "") for place in found}
    assert len(owners) == 4
    for place, (tag,) in found.items():
        rank = int(place[-5:]) if "rank_" in place else 0
        assert tag.endswith(f"r{rank}")
        if place[:4] in ("task", "step"):
            assert tag.startswith(f"p{int(place[5:10])}")


def test_a_step_that_loses_the_race_lets_go_of_the_root(run_dir, monkeypatch):
    """Another step publishes after the look: the loser takes names of its own, and has held none of the winner's."""
    publish = parts_module._Scope.publish

    def late(scope):
        monkeypatch.undo()
        other = parts_module._Scope(scope._spool, "", "step_00009")
        other._look()
        assert other.publish()
        assert not locks.is_held(scope._spool.claim("main"))
        assert locks.is_held(scope.guard("step_00004"))
        return publish(scope)

    monkeypatch.setattr(parts_module._Scope, "publish", late)
    run(run_dir, step(4, 0), "a")
    assert tags(run_dir) == {"step_00004": {"a"}}


def test_a_step_that_is_about_to_take_the_root_lives(run_dir, monkeypatch):
    """It has published and holds no name yet: another step does not take the root from it."""
    claim = parts_module._claim

    def late(spool, role, prefix):
        monkeypatch.undo()
        run(run_dir, step(1, 1), "b")
        return claim(spool, role, prefix)

    monkeypatch.setattr(parts_module, "_claim", late)
    run(run_dir, step(0, 0), "a")
    assert tags(run_dir) == {".": {"a"}, "step_00001_rank_00001": {"b"}}
