"""The uploader's end of a push: however it ends, there is a verdict."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import pytest
from jobs import job
from programs import wait_for

from hf_mpwriter.push import handle
from hf_mpwriter.system import disk, launch
from hf_mpwriter.base.verdicts import Retry, Unknown


def test_a_push_that_is_killed_has_an_unknown_outcome(run_dir):
    """SIGKILL: no verdict, so unknown, with the signal in the reason."""
    in_flight = str(run_dir / "in_flight.json")
    disk.publish(in_flight, json.dumps({"job": job(run_dir).to_json()}).encode(), "test")
    process = handle.PushHandle(in_flight, 300.0)
    os.kill(process.pid, signal.SIGKILL)
    verdict = wait_for(lambda: process.listen()[1], "the end")
    assert verdict == Unknown("the push ended by signal 9")


@pytest.mark.parametrize("text", ["a line\n", "no end of line", "5\n"])
def test_what_the_start_of_python_prints_is_no_message_of_the_push(run_dir, tmp_path, monkeypatch, text):
    """A `sitecustomize` that greets on standard output ends no uploader, and no verdict is lost in its line."""
    (tmp_path / "sitecustomize.py").write_text(f"print({text!r}, end='', flush=True)")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    in_flight = str(run_dir / "in_flight.json")
    disk.publish(in_flight, json.dumps({"job": job(run_dir).to_json()}).encode(), "test")
    process = handle.PushHandle(in_flight, 300.0)
    assert isinstance(wait_for(lambda: process.listen()[1], "the end"), Retry)


def test_a_push_against_nobody_says_so(run_dir):
    """Connection refused: nothing was changed, try again."""
    in_flight = str(run_dir / "in_flight.json")
    disk.publish(in_flight, json.dumps({"job": job(run_dir).to_json()}).encode(), "test")
    process = handle.PushHandle(in_flight, 300.0)
    verdict = wait_for(lambda: process.listen()[1], "the end")
    assert isinstance(verdict, Retry)
    assert "refused" in verdict.reason


def test_a_push_dies_with_its_uploader(run_dir):
    """The parent is killed while its push hangs: the push is gone too."""
    import socket

    with socket.create_server(("127.0.0.1", 0)) as silent:  # accepts, never answers
        in_flight = str(run_dir / "in_flight.json")
        endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}"
        disk.publish(in_flight, json.dumps({"job": job(run_dir, endpoint=endpoint).to_json()}).encode(), "test")
        source = "import sys,time\nfrom hf_mpwriter.push.handle import PushHandle\np = PushHandle(sys.argv[1], 300.0)\n"
        source += "print(p.pid, flush=True)\ntime.sleep(100)"
        parent = subprocess.Popen([sys.executable, "-c", source, in_flight], stdout=subprocess.PIPE, text=True)
        pid = int(parent.stdout.readline())
        connection, _ = silent.accept()
        parent.kill()
        parent.wait()
        wait_for(lambda: not os.path.exists(f"/proc/{pid}") or zombie(pid), "the push is gone")
        connection.close()


def zombie(pid: int) -> bool:
    """Whether a process has ended and only waits to be collected."""
    import psutil

    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_a_push_that_hangs_ends_by_its_own_timer(run_dir, monkeypatch):
    """A server that accepts and never answers: the timer's signal ends the push whatever its threads do."""
    import socket

    with socket.create_server(("127.0.0.1", 0)) as silent:
        in_flight = str(run_dir / "in_flight.json")
        endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}"
        disk.publish(in_flight, json.dumps({"job": job(run_dir, endpoint=endpoint).to_json()}).encode(), "test")
        monkeypatch.setattr(launch, "PUSH_BOOT", launch.PUSH_BOOT.replace("push.main", "push.DEADLINE_BASE=1.0;process.main"))
        process = handle.PushHandle(in_flight, 300.0)
        verdict = wait_for(lambda: process.listen()[1], "the end")
    assert verdict == Unknown("the push hung and was ended after 300 s", xet="failing")


def test_a_push_that_is_stopped_is_ended_by_the_uploader(run_dir, monkeypatch):
    """SIGSTOP: its own timer cannot end it, so the uploader does when its time and some grace are over."""
    monkeypatch.setattr(handle, "GRACE", 0.1)
    in_flight = str(run_dir / "in_flight.json")
    disk.publish(in_flight, json.dumps({"job": job(run_dir).to_json()}).encode(), "test")
    process = handle.PushHandle(in_flight, 0.1)
    os.kill(process.pid, signal.SIGSTOP)
    verdict = wait_for(lambda: process.listen()[1], "the end")
    assert verdict == Unknown("the push hung and was ended after 0 s", xet="failing")
