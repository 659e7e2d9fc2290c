"""`logs`: the lines of a log, also while it is rotated."""

from __future__ import annotations

import os

from runs import run

from hf_mpwriter.base.settings import Destination
from hf_mpwriter.cli.processes.logs import FollowedLog
from hf_mpwriter.spool.layout import Spool
from hf_mpwriter.system.directory import at
from hf_mpwriter.system.process import host_id


def test_each_line_is_shown_once_whatever_is_rotated(tmp_path):
    """What was written before and after a rotation, and a line that comes in two halves."""
    path, older = tmp_path / "uploader.log", tmp_path / "uploader.log.1"
    older.write_text("1\n2\n")
    path.write_text("3\n4\nfi")
    log = FollowedLog("here uploader", at(path))
    assert log.last(3) == ["2", "3", "4"]
    assert log.news() == []
    with path.open("a") as file:
        file.write("ve\n6\n")
    assert log.news() == ["five", "6"]
    with path.open("a") as file:
        file.write("7\n")
    os.rename(path, older)
    path.write_text("8\n")
    assert log.news() == ["7", "8"]
    assert log.news() == []


def test_the_log_of_each_host_is_named_where_there_are_several(own_spool):
    """One alone needs no name; escape sequences in it are not obeyed."""
    for number, host in enumerate((host_id(), "there-01234567")):
        log = own_spool.host(host).log
        os.makedirs(os.path.dirname(os.fspath(log)))
        with open(log, "w") as file:
            file.write(f"line {number}\x1b]0;mine\x07\n")
        shown = run("logs", own_spool.run_dir).output
        assert ("==> there uploader <==" in shown) == bool(number)
        assert (f"line {number}" in shown, "\x1b" in shown) == (True, False)
    assert run("logs", "-n", "0", own_spool.run_dir).output == ""


def test_a_run_without_an_uploader_has_no_log(tmp_path):
    """It says so, with what makes one, and follows nothing that no process will write. `stop` says the same."""
    spool = Spool(str(tmp_path))
    spool.create()
    for options in ((), ("-f",)):
        shown = run("logs", *options, tmp_path)
        assert (shown.exit_code, shown.output.partition(" is local only, so no uploader has run here. ")[2]) == (
            0,
            f"To upload it: hf-mpwriter sync {tmp_path} --repo-id NAME\n",
        )
    assert (
        f"nothing is uploaded. To upload it: hf-mpwriter sync {tmp_path} --repo-id NAME" in run("stop", tmp_path).output
    )
    spool.record_destination(Destination("https://hub", "me/run"))
    text = f"No uploader has run here yet. To start one: hf-mpwriter sync {tmp_path}\n"
    assert run("logs", tmp_path).output == run("logs", "-f", tmp_path).output == text
