"""What is known when a run ends is told by then: also in a run that is shorter than the first housekeeping."""

from __future__ import annotations

import pytest
from programs import wait_for
from runs import no_uploader, run

SHORT = """
import sys
from hf_mpwriter import HFSummaryWriter
from hf_mpwriter.worker import worker
worker.HOUSEKEEPING_EVERY = 1000.0  # seconds: the run is over before
{}
"""
WITH = """
with HFSummaryWriter("me/run", logdir=sys.argv[1]) as writer:
    writer.add_scalar("loss", 1.0, 1)
"""
NEVER_CLOSED = """
HFSummaryWriter("me/run", logdir=sys.argv[1]).add_scalar("loss", 1.0, 1)
"""
CLOSED = """
writer = HFSummaryWriter("me/run", logdir=sys.argv[1])
writer.add_scalar("loss", 1.0, 1)
writer.close()
"""


@pytest.mark.parametrize("body", [WITH, NEVER_CLOSED, CLOSED])
def test_a_short_run_is_told_that_it_is_public(hub, run_dir, start, body):
    """Created and PUBLIC, once each, also if the Hub takes its time between the two."""
    hub.fault("GET /api/models/me/run slow seconds=1")
    code, _, errors = start(SHORT.format(body), run_dir).finish()
    assert code == 0, errors
    assert (errors.count("created http"), errors.count("is PUBLIC")) == (1, 1), errors
    wait_for(lambda: no_uploader(run_dir), "the uploader leaves")
    assert "PUBLIC" not in start(SHORT.format(body), run_dir, env={"RANK": "1"}).finish()[2]
    wait_for(lambda: no_uploader(run_dir), "the uploader leaves")
    assert f"{hub.endpoint}/me/run/tree/main/tensorboard/exp1" in run("status", run_dir).output


ONLY_CHILDREN = """
import multiprocessing, sys, time
from hf_mpwriter import HFSummaryWriter
from hf_mpwriter.worker.messages.reporter import ToldRecord
from hf_mpwriter.spool.layout import Spool

def train(folder):
    with HFSummaryWriter("me/run", logdir=folder) as writer:
        step = 0
        while not ToldRecord.read(Spool(folder).told).start and step < 1200:
            writer.add_scalar("loss", 1.0, step)
            step += 1
            time.sleep(0.1)

if __name__ == "__main__":
    context = multiprocessing.get_context("fork")
    children = [context.Process(target=train, args=(sys.argv[1],)) for _ in range(2)]
    for child in children:
        child.start()
    for child in children:
        child.join()
"""


def test_where_only_children_log_one_of_them_speaks(hub, run_dir, start):
    """As with torch.multiprocessing.spawn: where it goes, and that everybody can read it, once each."""
    code, _, errors = start(ONLY_CHILDREN, run_dir).finish()
    assert code == 0, errors
    assert (errors.count("uploading "), errors.count("is PUBLIC")) == (1, 1), errors
    assert f"to {hub.endpoint}/me/run/tree/main/tensorboard/{run_dir.name} (public)" in errors
