"""`hf-mpwriter stop` ends the upload of one run; its uploader goes on for others."""

from __future__ import annotations

import os
import signal

import psutil
import pytest
from programs import wait_for
from runs import LOG_FOR_EVER, all_acknowledged, living_uploader, no_uploader, run

from hf_mpwriter.cli import daemons
from hf_mpwriter.spool.layout import Spool
from hf_mpwriter.spool.status import UploaderStatus
from hf_mpwriter.system.process import host_id


def status(run_dir) -> UploaderStatus:
    """What the uploader says in a run."""
    return UploaderStatus.read(Spool(str(run_dir)).host(host_id()))


class Two:
    """Two runs with one uploader, of which the first is not logged any more."""

    def __init__(self, start, tmp_path) -> None:
        self.first, self.second = tmp_path / "sweep" / "lr0.1", tmp_path / "sweep" / "lr0.2"
        self.ended = start(LOG_FOR_EVER, self.first, tmp_path / "first.journals")
        self.uploader = living_uploader(self.first)
        self.going_on = start(LOG_FOR_EVER, self.second, tmp_path / "second.journals")
        wait_for(lambda: status(self.second).pid == self.uploader, "the second run has the same uploader")
        wait_for(
            lambda: status(self.first).serves == 2 and status(self.first).repo_id, "the status of the first says so"
        )


@pytest.fixture
def two(hub, start, tmp_path) -> Two:
    """Two runs with one uploader."""
    return Two(start, tmp_path)


def test_stop_ends_the_upload_of_one_run_and_leaves_the_uploader_to_the_others(two):
    """With a last push; the second `stop` ends the process, as it serves no other run."""
    shown, full = run("status", two.first).output, f"process {two.uploader} (serves 2 runs of me/run), last seen "
    assert full in shown
    assert f"uploader {two.uploader} (serves 2 runs of me/run)" in run("logs", two.first).output
    assert full in run("doctor", two.first).output
    two.ended.process.kill()
    two.ended.process.communicate()
    text = run("stop", two.first).output
    assert text.splitlines()[0] == f"uploader {two.uploader} has let go of {two.first}; it goes on for 1 other run"
    assert no_uploader(two.first)
    assert all_acknowledged(two.first)
    assert not [name for name in os.listdir(Spool(str(two.first)).members) if name.startswith("~stop")]
    assert living_uploader(two.second) == two.uploader
    two.going_on.process.kill()
    two.going_on.process.communicate()
    assert run("stop", two.second).output.splitlines()[0] == f"uploader {two.uploader} is ended"
    assert no_uploader(two.second)
    assert all_acknowledged(two.second)


def test_a_run_that_is_logged_is_handed_over_again(two):
    """`stop` says what it did, although the same process may have the run by now."""
    lines = run("stop", two.first).output.splitlines()
    assert lines[0].startswith(f"uploader {two.uploader} has let go of {two.first}")
    assert "1 worker still alive: what is logged next starts another uploader" in lines
    wait_for(lambda: living_uploader(two.first) == two.uploader, "who was started for it has handed it over")
    assert living_uploader(two.second) == two.uploader


def test_an_uploader_that_is_stopped_goes_on_and_one_that_does_not_answer_is_killed_only_if_it_has_no_other_run(
    two, monkeypatch
):
    """What to do about one that has is said."""
    os.kill(two.uploader, signal.SIGSTOP)
    two.ended.process.kill()
    two.ended.process.communicate()
    assert "has let go of" in run("stop", two.first).output
    monkeypatch.setattr(daemons, "PATIENCE", 0.0)
    wait_for(lambda: status(two.second).serves == 1, "the status of the second run says that it is alone")
    os.kill(two.uploader, signal.SIGSTOP)  # else it may be done, and gone, before it is asked
    two.going_on.process.kill()
    two.going_on.process.communicate()
    assert f"uploader {two.uploader} is killed" in run("stop", two.second).output


def test_an_uploader_that_does_not_answer_and_has_other_runs_is_not_killed(two, monkeypatch):
    """It is said what a person may do."""
    monkeypatch.setattr(daemons, "PATIENCE", 0.0)
    os.kill(two.uploader, signal.SIGSTOP)  # it has no time to answer before it is looked at
    done = run("stop", two.first)
    assert done.exit_code == 1
    assert f"does not let go of {two.first}. It serves 1 other run, so it is not killed." in done.output
    assert done.output.rstrip().endswith(f"kill -9 {two.uploader}")
    assert psutil.pid_exists(two.uploader)
