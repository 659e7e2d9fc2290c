"""`logs`: the last lines of a log, and those that come."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from runs import run

from hf_mpwriter.base.settings import Destination
from hf_mpwriter.cli.logs import LINES, last_lines
from hf_mpwriter.spool.layout import Spool
from hf_mpwriter.system.directory import at
from hf_mpwriter.system.process import host_id


def test_the_last_lines_are_whole_and_may_be_of_the_older_half(tmp_path):
    """A line that is being written is left out."""
    (tmp_path / "uploader.log.1").write_text("".join(f"{number}\n" for number in range(LINES)))
    (tmp_path / "uploader.log").write_text("3\n4\nfi")
    found = last_lines(at(tmp_path / "uploader.log"))
    assert (len(found), found[0], found[-3:]) == (LINES, "2", [str(LINES - 1), "3", "4"])


def test_who_follows_a_log_sees_what_is_written_after_a_rotation(own_spool):
    """What a terminal would obey is escaped; Ctrl-C ends it without a traceback."""
    log = os.fspath(own_spool.host(host_id()).daemon("uploader").log)
    os.makedirs(os.path.dirname(log))
    Path(log).write_text("2\n")
    command = [sys.executable, "-m", "hf_mpwriter", "logs", "-f", own_spool.run_dir]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as following:
        try:
            assert following.stdout.readline() == "2\n"
            os.rename(log, f"{log}.1")
            Path(log).write_text("\x1b]0;mine\x07\n")
            shown = next(line for line in following.stdout if "mine" in line)
            assert shown == "\\x1b]0;mine\\x07\n"
        finally:
            following.send_signal(signal.SIGINT)
        assert "Traceback" not in following.stdout.read()
    assert following.returncode == 0


def test_the_log_of_each_host_is_named_where_there_are_several(own_spool):
    """One alone needs no name; escape sequences in it are not obeyed."""
    for number, host in enumerate((host_id(), "there-01234567")):
        log = own_spool.host(host).daemon("uploader").log
        os.makedirs(os.path.dirname(os.fspath(log)))
        with open(log, "w") as file:
            file.write(f"line {number}\x1b]0;mine\x07\n")
        shown = run("logs", own_spool.run_dir).output
        assert ("==> there uploader <==" in shown) == bool(number)
        assert (f"line {number}" in shown, "\x1b" in shown) == (True, False)


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
