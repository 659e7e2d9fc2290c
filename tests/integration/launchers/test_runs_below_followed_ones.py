"""Runs below a folder that `hf-mpwriter run` follows, or whose writers it replaces: they go nowhere else."""

from __future__ import annotations

import sys

import pytest
from runs import hub_view, kill_uploaders

PROGRAM = """
import os, sys, time
runs = sys.argv[1]
from tensorboardX import SummaryWriter as Theirs
from hf_mpwriter import HFSummaryWriter, SummaryWriter
outer = Theirs(runs)
outer.add_scalar("loss", 1.0, 1)
outer.flush()
while not os.path.exists(f"{runs}/.hf_mpwriter/run.json"):  # a folder that has runs below it is not made one
    time.sleep(0.02)
for inner in (SummaryWriter(f"{runs}/deep/a/b"), HFSummaryWriter("me/private", logdir=f"{runs}/secret")):
    with inner:
        inner.add_scalar("loss", 1.0, 1)
outer.add_scalar("loss", 1.0, 2)
outer.close()
"""


@pytest.mark.parametrize("how", ["follow", "patch"])
def test_runs_below_are_not_published_with_the_outer_one(hub, run_dir, run_below, how):
    """Whether the outer one is of another writer, or ours in the place of it."""
    options = ("--patch",) if how == "patch" else ("--follow", str(run_dir))
    one = run_below(
        sys.executable, "-c", PROGRAM, run_dir, options=("--grace", "120", "--repo-id", "me/public", *options)
    )
    try:
        code, _, errors = one.finish()
    finally:
        kill_uploaders(run_dir / "secret")
    assert code == 0, errors
    for repository, folder in (("me/public", run_dir.name), ("me/private", "secret")):
        view = hub_view(hub, repository, folder="tensorboard")
        paths = {path for commit in view.commits() for path in view.tree(commit)}
        assert {path.rpartition("/")[0] for path in paths} == {folder}, errors
