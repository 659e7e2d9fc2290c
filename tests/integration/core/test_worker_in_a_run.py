"""A worker meets failures, unfinished runs beside its own, and a destination that is written late."""

from __future__ import annotations

import os
import socket

import pytest
from lives import log_without_uploader
from programs import wait_for

from hf_mpwriter.base.settings import Destination, Settings
from hf_mpwriter.spool.layout import Spool
from hf_mpwriter.spool.workers.members import MemberFile
from hf_mpwriter.system.process import Process

LOG = """
import sys
from hf_mpwriter import HFSummaryWriter
{before}
writer = HFSummaryWriter("me/run", logdir=sys.argv[1], exit_timeout=0)
writer.add_scalar("loss", 1.0, 1)
{after}
writer.add_scalar("loss", 2.0, 2)
print("trained")
"""


def unfinished(path, endpoint) -> Spool:
    """A run directory with the member file of a dead process."""
    spool = Spool(str(path))
    spool.create()
    spool.record_destination(Destination(endpoint, "me/other"))
    MemberFile(spool, "main", Process.current(), Settings()).leave()
    return spool


def test_no_uploader_for_a_strange_run_beside_ours_is_started(tmp_path, start, monkeypatch):
    """For another Hub, of another user, or open to others: it would carry the token to what they recorded."""
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        strange = f"http://127.0.0.1:{listener.getsockname()[1]}"
        others = [unfinished(tmp_path / "runs" / "b", strange)]
        others += [unfinished(tmp_path / "runs" / name, "http://127.0.0.1:9") for name in "cd"]
        os.chmod(others[1].root, 0o777)  # noqa: S103 - that is what must be noticed
        if os.geteuid():
            others.pop()  # only root can give a directory away
        else:
            os.chown(others[2].root, 65534, 65534)
        start(LOG.format(before="", after=""), tmp_path / "runs" / "a").succeed()
        for other in others:
            assert not os.path.exists(other.uploader_lock)
            assert other.host_ids() == []


def test_an_unfinished_run_of_ours_beside_it_is_finished(hub, tmp_path, start):
    """The next start in the same folder uploads a run that no uploader has served, under another name."""
    other = Spool(str(tmp_path / "runs" / "dead"))
    other.create()
    log_without_uploader(start, other.run_dir, 5)
    assert other.is_unfinished(hub.endpoint)
    start(LOG.format(before="", after=""), tmp_path / "runs" / "next").succeed()
    wait_for(lambda: not os.listdir(other.members), "the data of the dead worker is sent")


@pytest.mark.parametrize(
    "failure",
    [
        "sys.path.append(None)",
        "sys.frozen = True",
        "import shutil; shutil.rmtree(sys.argv[1] + '/.hf_mpwriter')",
        "from hf_mpwriter.system import launch; launch.start = None",
    ],
)
def test_no_failure_of_ours_is_raised_into_training(tmp_path, start, monkeypatch, failure):
    """Whatever fails in interpreter, path, spool or election, training goes on and ends well."""
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    hurry = 'import os; os.environ["HF_MPWRITER_TIMING"] += " housekeeping_every=0"\n'
    assert "trained" in start(LOG.format(before=hurry, after=failure), tmp_path / "run").succeed()


def test_a_destination_that_could_not_be_written_again_is_written_later(hub, run_dir, start):
    """The spool is removed, and the disk refuses the new run.json, without which no uploader would stay."""
    after = """
import os, shutil
from hf_mpwriter.system import failpoints
spool = writer._worker.spool
shutil.rmtree(spool.root)
failpoints.armed["spool.run.write"] = ("enospc", 1)
writer._worker.keep_house()
assert spool.exists() and not spool.has_destination()
writer._worker.keep_house()
assert spool.has_destination()
"""
    start(LOG.format(before="", after=after), run_dir).succeed()
    wait_for(
        lambda: not os.listdir(Spool(str(run_dir)).members), "everything is on the Hub, the member file is removed"
    )
