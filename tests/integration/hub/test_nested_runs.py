"""A run below another one: it goes where it is recorded for, and nowhere else."""

from __future__ import annotations

import pytest
from programs import wait_for
from runs import kill_uploaders, no_uploader, sync

TOLD = "has other runs below it: folders with a .hf_mpwriter of their own are not uploaded as part of it, such as "
INNER = ("deep/a/b", "localonly", "secret")  # below the outer run; the first lies three folders deep

LOG = """
import sys
from hf_mpwriter import HFSummaryWriter, SummaryWriter
def log(folder, repository):
    writer = HFSummaryWriter(repository, logdir=folder) if repository else SummaryWriter(folder)
    with writer:
        writer.add_scalar("loss", 1.0, 1)
"""
ONE_PROCESS = f"""{LOG}
runs = sys.argv[1]
inner = SummaryWriter(f"{{runs}}/deep/a/b")  # still open when the outer run begins
inner.add_scalar("loss", 1.0, 1)
log(f"{{runs}}/secret", "me/private")
log(f"{{runs}}/localonly", None)
with HFSummaryWriter("me/public", logdir=runs) as writer:
    writer.add_scalar("loss", 1.0, 1)
    writer.push(wait=60)
    log(f"{{runs}}/later", None)
"""


def published(hub, repository: str) -> set[str]:
    """The folders of a repository that hold event files."""
    paths = hub.store.tree("model", repository, "main")
    return {path.rpartition("/")[0] for path in paths if "tfevents" in path}


@pytest.fixture
def runs(run_dir):
    """The outer run directory."""
    yield run_dir
    for folder in (run_dir, *(run_dir / inner for inner in INNER)):
        kill_uploaders(folder)


def test_a_run_of_the_same_process_is_not_published_with_the_outer_one(hub, runs, start):
    """Neither the run of a private repository, nor one that has none; it is told once."""
    code, _, errors = start(ONE_PROCESS, runs).finish()
    assert (code, errors.count(TOLD)) == (0, 1), errors
    assert published(hub, "me/public") == {f"tensorboard/{runs.name}"}
    assert published(hub, "me/private") == {"tensorboard/secret"}


def test_runs_of_other_processes_are_not_published_and_sync_leaves_them_out_too(hub, runs, start):
    """Nor by an uploader that is started later."""
    for folder, repository in zip(INNER, ("", "", "me/private"), strict=True):
        start(f"{LOG}\nlog(*sys.argv[1:])", runs / folder, repository).succeed()
    _, _, errors = start(f"{LOG}\nlog(*sys.argv[1:])", runs, "me/public").finish()
    assert errors.count(TOLD) == 1, errors
    wait_for(lambda: no_uploader(runs), "the uploader leaves")
    assert sync(runs).exit_code == 0
    assert published(hub, "me/public") == {f"tensorboard/{runs.name}"}
    assert published(hub, "me/private") == {"tensorboard/secret"}
