"""Two run directories of one name: real trainings, two folders of one repository, whatever becomes of them."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path

import pytest
from programs import Program, wait_for
from runs import check_oracle, no_uploader, run
from supervised import Supervised
from support import event_file

LOG = """
import logging, sys
logging.basicConfig(level=logging.INFO, format="%(message)s")
from hf_mpwriter import HFSummaryWriter
with HFSummaryWriter("me/run", logdir=sys.argv[1]) as writer:
    first = (writer.last_step("loss") or 0) + 1
    for step in range(first, first + 5):
        writer.add_scalar("loss", step, step)
print(writer.url, writer.scheduler.path_in_repo, writer.last_step("loss"))
"""
FIRST, SECOND = "tensorboard/lr0.1", "tensorboard/sweepB_lr0.1"


def train(run_dir: Path, **environ: str) -> tuple[str, int, str]:
    """Train five steps; the folder in the repository, the last step, and what was told."""
    code, out, err = Program(LOG, run_dir, env=environ).finish()
    assert code == 0, err
    url, folder, last = out.split()
    assert url.endswith(f"/tree/main/{folder}"), "the page is that of the folder"
    wait_for(lambda: no_uploader(run_dir), "the uploader leaves")
    return folder, int(last), err


def folders_on_the_hub(hub) -> set[str]:
    """The folders in which the repository has event files."""
    tree = hub.store.commits("model", "me/run", "main")[0].tree
    return {os.path.dirname(path) for path in tree if "tfevents" in path}


@pytest.fixture
def sweeps(hub, tmp_path) -> tuple[Path, Path]:
    """Two run directories of one name, both trained."""
    first, second = tmp_path / "sweepA" / "lr0.1", tmp_path / "sweepB" / "lr0.1"
    assert train(first)[:2] == (FIRST, 5)
    folder, last, told = train(second)
    assert (folder, last) == (SECOND, 5)
    notice = f"{FIRST} belongs to {first}: this run goes to {SECOND}"
    assert told.count(notice) == 1
    assert told.index(notice) < told.index("done: "), "before anything else is said"
    return first, second


def test_two_sweeps_with_a_trial_of_the_same_name_have_two_folders_for_ever(hub, sweeps, tmp_path):
    """Resumed, moved, pulled to another place, made anew, synced, verified: each goes on in its own, and is whole."""
    first, second = sweeps
    assert folders_on_the_hub(hub) == {FIRST, SECOND}
    for run_dir, folder in ((first, FIRST), (second, SECOND)):
        assert train(run_dir)[:2] == (folder, 10)
        check_oracle(run_dir, hub, folder=folder)
        assert run("verify", run_dir).exit_code == 0
        assert run("sync", run_dir, "--repo-id", "me/run").exit_code == 0
        assert json.loads(run("status", run_dir, "--json").output)["destination"]["path_in_repo"] == folder
    moved = tmp_path / "kept" / "lr0.1"
    os.renames(second, moved)
    folder, last, told = train(moved)
    assert (folder, last, "belongs to" in told) == (SECOND, 15, False)
    shutil.rmtree(moved)
    elsewhere = tmp_path / "elsewhere" / "sweepB" / "lr0.1"
    result = run("pull", elsewhere, "--repo-id", "me/run")
    assert (result.exit_code, SECOND in result.output) == (0, True), result.output
    assert train(elsewhere)[:2] == (SECOND, 20)
    check_oracle(elsewhere, hub, folder=SECOND)
    shutil.rmtree(first)
    assert train(first)[:2] == (FIRST, 5), "made anew"
    assert folders_on_the_hub(hub) == {FIRST, SECOND}


def test_the_ranks_of_a_run_have_one_folder(hub, sweeps, start):
    """A rank that begins later asks for the folder of its name, as all do, and is sent to that of the run."""
    _, second = sweeps
    ranks = [start(LOG, second, env={"RANK": str(rank), "WORLD_SIZE": "2"}) for rank in range(2)]
    assert [rank.succeed().split()[1] for rank in ranks] == [SECOND] * 2
    wait_for(lambda: no_uploader(second), "the uploader leaves")
    check_oracle(second, hub, folder=SECOND)
    assert folders_on_the_hub(hub) == {FIRST, SECOND, f"{SECOND}/rank_00001"}


def test_runs_that_begin_at_the_same_moment_have_two_folders(hub, tmp_path, start):
    """Whichever is the first: one has the folder of its name, and what each has logged is in its own."""
    runs = [tmp_path / name / "lr0.1" for name in ("sweepA", "sweepB", "sweepC")]
    found = [program.succeed().split()[1] for program in [start(LOG, run_dir) for run_dir in runs]]
    assert FIRST in found
    assert folders_on_the_hub(hub) == set(found)
    assert len(set(found)) == 3
    for run_dir, folder in zip(runs, found, strict=True):
        wait_for(lambda run_dir=run_dir: no_uploader(run_dir), "the uploader leaves")
        check_oracle(run_dir, hub, folder=folder)


def test_a_program_that_pulls_first_gets_nothing_of_another_run_of_this_host(hub, sweeps, tmp_path):
    """It is told whose folder that is and how to have it; `pull` takes it, and then it is the same run."""
    first, _ = sweeps
    third = tmp_path / "sweepC" / "lr0.1"
    options = ("--pull", "--repo-id", "me/run", "--logdir", str(third))
    for more, expected in (((), (4, [])), (("--or-new",), (0, ["tensorboard/sweepC_lr0.1", "5"]))):
        code, out, err = Supervised(sys.executable, "-c", LOG, third, options=options + more).finish()
        assert (code, out.split()[1:]) == expected, err
        assert f"{FIRST} belongs to {first}: nothing was pulled" in err
    fourth = tmp_path / "sweepD" / "lr0.1"
    assert run("pull", fourth, "--repo-id", "me/run").exit_code == 0
    assert train(fourth)[:2] == (FIRST, 10)
    assert run("verify", fourth).exit_code == 0


def test_an_attempt_on_an_empty_disk_of_this_host_pulls_its_run(hub, tmp_path):
    """The directory of the earlier attempt is gone, so it can be no other run."""
    earlier, later = tmp_path / "job1" / "lr0.1", tmp_path / "job2" / "lr0.1"
    train(earlier)
    shutil.rmtree(earlier)
    command = Supervised(
        sys.executable, "-c", LOG, later, options=("--pull", "--repo-id", "me/run", "--logdir", str(later))
    )
    code, out, err = command.finish()
    assert (code, out.split()[1:]) == (0, [FIRST, "10"]), err


def test_event_files_of_others_in_folders_of_one_name_become_runs_of_their_own(hub, sweeps, tmp_path):
    """`sync` of folders of another writer, in one call: each gets a folder of its own, too."""
    others = [tmp_path / name / "lr0.1" for name in ("sweepE", "sweepF")]
    for other in others:
        event_file(other / "events.out.tfevents.1000000000.there.1.0123abcd", 3, tag=str(other))
    result = run("sync", *others, "--repo-id", "me/run")
    assert result.exit_code == 0, result.output
    for other in others:
        folder = f"tensorboard/{other.parent.name}_lr0.1"
        assert folder in result.output
        check_oracle(other, hub, folder=folder)
