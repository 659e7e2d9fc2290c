"""`logs`: the last lines of the logs of a run, and those that come. `stop`: which process it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

from programs import DEADLINE
from runs import run

from hf_mpwriter.cli.daemons import LINES
from hf_mpwriter.spool.layout import Spool
from hf_mpwriter.spool.status import UploaderStatus
from hf_mpwriter.system import locks
from hf_mpwriter.system.process import Process, host_id


def test_who_follows_a_log_sees_what_is_written_after_a_rotation(own_spool):
    """What a terminal would obey is escaped; Ctrl-C ends it without a traceback."""
    log = os.fspath(own_spool.host(host_id()).daemon("uploader").log)
    os.makedirs(os.path.dirname(log))
    Path(f"{log}.1").write_text("1\n")
    Path(log).write_text("2\n")
    command = [sys.executable, "-m", "hf_mpwriter", "logs", "-f", own_spool.run_dir]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as following:
        try:
            assert following.stdout.readline() == "2\n"
            os.rename(log, f"{log}.1")
            Path(log).write_text("\x1b]0;mine\x07\n")
            shown = next(line for line in following.stdout if not line.startswith("tail: "))
            assert shown == "\\x1b]0;mine\\x07\n", "and no older line again"
        finally:
            following.send_signal(signal.SIGINT)
        assert "Traceback" not in following.stdout.read()
    assert following.returncode == 0


def test_each_of_several_logs_is_named_by_its_path(own_spool):
    """One alone needs no name. Of each the last lines are shown; escape sequences in them are not obeyed."""
    text = "".join(f"line {number}\x1b]0;mine\x07\n" for number in range(2 * LINES))
    for host in (host_id(), "there-01234567"):
        log = Path(own_spool.host(host).daemon("uploader").log)
        log.parent.mkdir(parents=True)
        log.write_text(text)
        shown = run("logs", own_spool.run_dir).output
        assert (f"==> {log} <==" in shown) == (host != host_id())
        assert ("line 99\\x1b" in shown, "line 100\\x1b" in shown, "\x1b" in shown) == (False, True, False)


def test_a_log_that_no_daemon_has_written_shows_its_last_bytes(own_spool):
    """One of 200 GB is not read from its beginning; a pipe, or a link to a device, would never end."""
    log = Path(own_spool.host(host_id()).daemon("uploader").log)
    log.parent.mkdir(parents=True)
    with log.open("wb") as file:
        file.truncate(200 << 30)
        file.seek(0, os.SEEK_END)
        file.write(b"\nthe last line\n")
    os.mkfifo(f"{log}.1")
    mirror = Path(own_spool.host(host_id()).daemon("mirror").log)
    mirror.symlink_to("/dev/zero")
    command = [sys.executable, "-m", "hf_mpwriter", "logs", own_spool.run_dir]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE, check=True).stdout
    assert shown.endswith("\nthe last line\n")
    assert len(shown) < 100_000


def test_a_run_without_an_uploader_has_no_log(tmp_path):
    """It says so, with what makes one, and follows nothing that no process will write."""
    Spool(str(tmp_path)).create()
    text = f"No uploader has run here yet. To start one: hf-mpwriter sync {tmp_path}\n"
    assert run("logs", tmp_path).output == run("logs", "-f", tmp_path).output == text
    assert run("stop", tmp_path).output.splitlines()[0] == "no uploader runs"


def test_an_uploader_that_has_not_said_who_it_is_does_not_count_as_ended(own_spool):
    """It holds the lock, while the status is still that of the one before."""
    host, here = own_spool.host(host_id()), Process.current()
    os.makedirs(host.root)
    with subprocess.Popen(["true"]) as before:
        pass
    UploaderStatus(process=replace(here, pid=before.pid), beat=1.0).save(host)
    lock = locks.try_exclusive(own_spool.uploader_lock)
    try:
        result = run("stop", own_spool.run_dir)
    finally:
        locks.release(lock)
    assert result.exit_code == 1
    assert "has not said yet who it is" in result.output
