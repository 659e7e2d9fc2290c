"""The uploader's end of a push: however it ends, there is a verdict."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from jobs import job
from programs import wait_for

from hf_mpwriter.base import state
from hf_mpwriter.base.verdicts import Retry, Sent, Unknown
from hf_mpwriter.push import handle
from hf_mpwriter.system import launch


@pytest.fixture
def run_dir(spool):
    """A run directory with a spool."""
    return Path(spool.run_dir)


def test_a_push_that_is_killed_has_an_unknown_outcome(run_dir):
    """SIGKILL: no verdict, so unknown, with the signal in the reason."""
    process = handle.PushHandle(job(run_dir), 300.0)
    os.kill(process.pid, signal.SIGKILL)
    verdict = wait_for(lambda: process.listen()[1], "the end")
    assert verdict == Unknown("the push ended by signal 9")


@pytest.mark.parametrize("text", ["a line\n", "no end of line", "5\n", "Done by me\n", 'Notice {"text": 1}\n'])
def test_what_the_start_of_python_prints_is_no_message_of_the_push(run_dir, tmp_path, monkeypatch, text):
    """A `sitecustomize` that greets on standard output ends no uploader, and no verdict is lost in its line."""
    (tmp_path / "sitecustomize.py").write_text(f"print({text!r}, end='', flush=True)")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    process = handle.PushHandle(job(run_dir), 300.0)
    assert isinstance(wait_for(lambda: process.listen()[1], "the end"), Retry)


def test_a_push_without_a_server_says_so(run_dir):
    """Connection refused: nothing was changed, try again."""
    process = handle.PushHandle(job(run_dir), 300.0)
    verdict = wait_for(lambda: process.listen()[1], "the end")
    assert isinstance(verdict, Retry)
    assert "cannot be reached" in verdict.reason


def test_a_push_dies_with_its_uploader(run_dir):
    """The parent is killed while its push hangs: the push is gone too."""
    import socket

    with socket.create_server(("127.0.0.1", 0)) as silent:  # accepts, never answers
        endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}"
        source = "import sys,time\nfrom hf_mpwriter.base import state\nfrom hf_mpwriter.push import handle,job\n"
        source += "p = handle.PushHandle(state.load(job.Job, sys.argv[1].encode()), 300.0)\n"
        source += "print(p.pid, flush=True)\ntime.sleep(1000)"
        command = [sys.executable, "-c", source, state.dump(job(run_dir, endpoint=endpoint))]
        parent = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
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
        endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}"
        bounds = "from hf_mpwriter.push import job;job.DEADLINE_BASE=1.0;main()"
        monkeypatch.setitem(launch.BOOTS, "push", launch.BOOTS["push"].replace("main()", bounds))
        process = handle.PushHandle(job(run_dir, endpoint=endpoint), 300.0)
        verdict = wait_for(lambda: process.listen()[1], "the end")
    assert verdict == Unknown("the push hung and was ended after 300 s", xet="failing", too_slow=True)


def test_a_push_that_is_stopped_is_ended_by_the_uploader(run_dir, monkeypatch):
    """SIGSTOP: its own timer cannot end it, so the uploader does when its time and some grace are over."""
    monkeypatch.setattr(handle, "GRACE", 0.1)
    process = handle.PushHandle(job(run_dir), 0.1)
    os.kill(process.pid, signal.SIGSTOP)
    verdict = wait_for(lambda: process.listen()[1], "the end")
    assert verdict == Unknown("the push hung and was ended after 0 s", xet="failing", too_slow=True)


def test_a_job_of_any_size_does_not_block_the_uploader(run_dir):
    """A push that is stopped reads nothing: its job waits in a file, not in a pipe that would be full."""
    large = dataclasses.replace(job(run_dir), known={f"{n}.tfevents": Sent(n, "0" * 64) for n in range(20_000)})
    process = handle.PushHandle(large, 300.0)
    os.kill(process.pid, signal.SIGSTOP)
    assert process.listen() == ([], None)
    process.kill()
    assert isinstance(wait_for(lambda: process.listen()[1], "the end"), Unknown)


def no_memory_files(_: str) -> int:
    """As where system calls are filtered."""
    raise OSError(38, "not implemented")


@pytest.mark.parametrize("refusal", [None, no_memory_files])
def test_without_memory_files_the_job_goes_by_a_file_without_a_name(run_dir, tmp_path, monkeypatch, refusal):
    """A system or a sandbox without memfd_create; nothing is left in the folder of temporary files."""
    places = tmp_path / "temporary"
    places.mkdir()
    monkeypatch.setattr(launch.tempfile, "tempdir", str(places))
    if refusal is None:
        monkeypatch.delattr(os, "memfd_create")
    else:
        monkeypatch.setattr(os, "memfd_create", refusal)
    process = handle.PushHandle(job(run_dir), 300.0)
    assert isinstance(wait_for(lambda: process.listen()[1], "the end"), Retry)
    assert os.listdir(places) == []


def test_a_push_is_found_by_its_run_directory(run_dir):
    """By the command line, as `testing.processes` and the demo look for it."""
    command = ["python", "-c", launch.BOOTS["push"], str(run_dir), "0.0"]
    assert launch.is_command_of("push", command, str(run_dir))
    assert not launch.is_command_of("push", command, str(run_dir.parent))
    assert not launch.is_command_of("uploader", command, str(run_dir))
