"""The command `status`: several runs, a watch, runs that cannot be read."""

from __future__ import annotations

import json
import re

import pytest
from runs import run
from support import event_file

from hf_mpwriter.base.settings import Destination
from hf_mpwriter.cli.status import command
from hf_mpwriter.cli.status.command import _lasting, _looks
from hf_mpwriter.spool.layout import Spool
from hf_mpwriter.system import locks


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with two runs, one of which is damaged; it is the current one."""
    monkeypatch.chdir(tmp_path)
    for name in ("exp1", "-odd"):
        Spool(str(tmp_path / "runs" / name)).create()
    Spool(str(tmp_path / "runs" / "exp1")).record_destination(Destination("https://hub", "me/run"))
    return tmp_path / "runs"


def test_without_an_argument_all_runs_below_are_shown(here):
    """A line each, and the highest exit code; JSON is a list then."""
    assert [line.split()[0] for line in run("status").output.splitlines()] == ["runs/-odd", "runs/exp1"]
    assert [one["logdir"] for one in json.loads(run("status", "--json").output)] == [
        str(here / "-odd"),
        str(here / "exp1"),
    ]
    assert run("status").exit_code == 0
    (here / "exp1" / ".hf_mpwriter" / "run.json").write_text('{"destination": 7}')
    assert run("status").exit_code == 4


def test_a_run_whose_name_begins_with_a_dash_can_be_shown(here, monkeypatch):
    """As it is found, and as it is suggested."""
    monkeypatch.chdir(here)
    assert [line.split()[0] for line in run("status").output.splitlines()] == ["./-odd", "exp1"]


def test_a_folder_without_runs_says_so(tmp_path, monkeypatch):
    """Nothing is wrong."""
    monkeypatch.chdir(tmp_path)
    result = run("status")
    assert (result.exit_code, result.output.startswith("No run below this folder.")) == (0, True)
    assert json.loads(run("status", "--json").output) == []


@pytest.mark.parametrize("content", ['{"destination": 7}', '{"destina', ""])
def test_a_damaged_record_of_the_destination_is_said_to_be_damaged(here, content):
    """Not to be that of a local run: nothing of it is uploaded until a person has looked."""
    (here / "exp1" / ".hf_mpwriter" / "run.json").write_text(content)
    result = run("status", "runs/exp1")
    assert (result.exit_code, "run.json is damaged" in result.output) == (4, True), result.output
    found = json.loads(run("status", "runs/exp1", "--json").output)
    assert (found["state"], "is damaged" in found["next"]) == ("needs you", True)


def test_a_spool_of_others_is_said_to_be_one(here):
    """With the command that mends it."""
    (here / "exp1" / ".hf_mpwriter").chmod(0o777)
    result = run("status", "runs/exp1")
    assert result.exit_code == 4
    assert "Run: chmod o-w" in result.output


def test_a_watch_prints_what_changes_and_ends_with_the_last_process(here, monkeypatch):
    """Not what only the clock changes."""
    spool = Spool(str(here / "exp1"))
    held = locks.try_exclusive(spool.uploader_lock)
    seen = []

    def sleep(_: float) -> None:
        seen.append(_lasting(_looks(("runs/exp1",))))
        if len(seen) == 2:
            (here / "exp1" / "events.out.tfevents.1.x").write_bytes(b"")
        if len(seen) == 4:
            locks.release(held)

    monkeypatch.setattr(command.time, "sleep", sleep)
    result = run("status", "runs/exp1", "--watch")
    assert len(seen) == 4
    assert result.output.count("runs/exp1 -> ") == 2, "at the beginning, and when the uploader has gone"


def test_a_run_that_is_not_there_hides_no_other(here):
    """Of several the others are shown; alone it is an error, with the run that may be meant."""
    result = run("status", "runs/exp1", "runs/exp7")
    assert (result.exit_code, result.output.splitlines()[0].split()[:2]) == (4, ["runs/exp1", "complete"])
    assert "next: runs/exp7: runs/exp7 does not exist. Did you mean runs/exp1? " in result.output
    found = json.loads(run("status", "runs/exp1", "runs/exp7", "--json").output)
    assert [one["state"] for one in found] == ["complete", "needs you"]
    alone = run("status", "runs/exp7")
    assert (alone.exit_code, "Did you mean runs/exp1? " in alone.output) == (1, True)


def test_where_only_others_have_logged_status_names_their_folders(tmp_path, monkeypatch):
    """A newcomer's folder of TensorBoard runs is no empty one."""
    monkeypatch.chdir(tmp_path)
    assert "Give the logdir of a run: hf-mpwriter status LOGDIR" in run("status").output
    (tmp_path / "torch").mkdir()
    event_file(tmp_path / "torch" / "events.out.tfevents.1700000000.host", 1)
    assert "Event files of other writers: torch. To upload them: hf-mpwriter sync --all" in run("status").output


def test_a_watch_is_ended_by_the_keyboard(here, monkeypatch):
    """Without a traceback; the exit code is that of the last look."""

    def interrupted(_: float) -> None:
        raise KeyboardInterrupt

    held = locks.try_exclusive(Spool(str(here / "exp1")).uploader_lock)
    monkeypatch.setattr(command.time, "sleep", interrupted)
    result = run("status", "runs/exp1", "--watch")
    locks.release(held)
    assert (result.exit_code, "Abort" in result.output) == (0, False)
    assert re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\nruns/exp1 -> ", result.output), "a log tells when it was so"
