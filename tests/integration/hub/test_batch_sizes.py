"""Commits of many small files: what the Hub takes at once is found by trying, and the main file is in the first one."""

from __future__ import annotations

from itertools import pairwise

import pytest
from runs import check_oracle, hub_view, sync
from support import event_file

from hf_mpwriter.base.settings import Destination
from hf_mpwriter.localhub import LocalHub
from hf_mpwriter.spool.layout import Spool

GROUPS = 250  # directories of `add_scalars`, with one small file each
NAME = "events.out.tfevents.0000000001.host.7.0123abcd"


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A Hub that takes fewer commits than files of hundreds by one."""
    with LocalHub(tmp_path / "hub", commits_per_hour=12) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.endpoint)
        yield server


def test_commits_that_the_hub_refuses_for_their_size_are_halved_and_the_main_file_goes_first(hub, run_dir):
    """A 413 and then a 504: the batches are half as large each time, and all arrives within the commits of the Hub."""
    spool = Spool(str(run_dir))
    spool.create()
    spool.record_destination(Destination(hub.endpoint, "me/run", path_in_repo="tensorboard/exp1"))
    event_file(run_dir / NAME, 3)
    for number in range(GROUPS):
        (run_dir / f"a{number:03d}").mkdir()
        event_file(run_dir / f"a{number:03d}" / NAME, 2)
    hub.fault("POST /commit/ 413 times=2")  # the first commit is tried without a model card, too
    hub.fault("POST /commit/ 504")
    done = sync(run_dir)
    assert done.exit_code == 0, done.stderr
    view = hub_view(hub)
    trees = [set(view.tree(commit)) for commit in reversed(view.commits())]
    carried = [newer - older for older, newer in pairwise([set(), *trees]) if newer - older]
    assert len(carried[0]) == 25, "half of half of a hundred"
    assert NAME in carried[0]
    assert len(trees[-1]) == GROUPS + 1
    check_oracle(run_dir, hub)
