"""The uploader's end of a push: however it ends, there is a verdict."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
from jobs import job
from programs import wait_for

from hf_mpwriter.base import state
from hf_mpwriter.base.verdicts import Retry, Sent, Unknown
from hf_mpwriter.push import handle
from hf_mpwriter.push.job import Contact
from hf_mpwriter.system import launch


@pytest.fixture
def run_dir(spool):
    """A run directory with a spool."""
    return Path(spool.run_dir)


@pytest.mark.parametrize("text", ["no end of line", "Done by me\n"])
def test_what_the_start_of_python_prints_is_no_message_of_the_push(run_dir, spool, tmp_path, monkeypatch, text):
    """A `sitecustomize` that greets on standard output ends no uploader, and no verdict is lost in its line."""
    (tmp_path / "sitecustomize.py").write_text(f"print({text!r}, end='', flush=True)")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    process = handle.PushHandle(job(run_dir), 300.0, [spool])
    (verdict,) = wait_for(lambda: process.listen()[1], "the end")
    assert isinstance(verdict, Retry)


def test_a_push_that_is_stopped_is_ended_by_the_uploader(run_dir, spool):
    """SIGSTOP: its own timer cannot end it, so the uploader does when its time and some grace are over."""
    process = handle.PushHandle(job(run_dir), 300.0, [spool])
    os.kill(process.pid, signal.SIGSTOP)
    assert process.listen() == ([], [])
    process._end -= 300.0 + launch.GRACE
    (verdict,) = wait_for(lambda: process.listen()[1], "the end")
    assert verdict == Unknown("the push hung and was ended after 300 s", xet="failing", too_slow=True)


def test_the_time_of_a_push_begins_anew_while_its_content_goes(run_dir, spool):
    """It says so; the uploader counts from there, too."""
    process = handle.PushHandle(job(run_dir), 600.0, [spool])
    process._end = time.monotonic() + 300.0
    process._received = state.to_line(Contact(answered=True)) + b"\n"
    process.listen()
    assert process._end > time.monotonic() + 500.0
    process.kill()


def test_a_job_of_any_size_does_not_block_the_uploader(run_dir, spool):
    """A push that is stopped reads nothing: its job waits in a file, not in a pipe that would be full."""
    large = job(run_dir, known={f"{n}.tfevents": Sent(n, "0" * 64) for n in range(20_000)})
    process = handle.PushHandle(large, 300.0, [spool])
    os.kill(process.pid, signal.SIGSTOP)
    assert process.listen() == ([], [])
    process.kill()
    (verdict,) = wait_for(lambda: process.listen()[1], "the end")
    assert isinstance(verdict, Unknown)


def no_memory_files(_: str) -> int:
    """As where system calls are filtered."""
    raise OSError(38, "not implemented")


@pytest.mark.parametrize("refusal", [None, no_memory_files])
def test_without_memory_files_the_job_goes_by_a_file_without_a_name(run_dir, spool, tmp_path, monkeypatch, refusal):
    """A system or a sandbox without memfd_create; nothing is left in the folder of temporary files."""
    places = tmp_path / "temporary"
    places.mkdir()
    monkeypatch.setattr(launch.tempfile, "tempdir", str(places))
    if refusal is None:
        monkeypatch.delattr(os, "memfd_create")
    else:
        monkeypatch.setattr(os, "memfd_create", refusal)
    process = handle.PushHandle(job(run_dir), 300.0, [spool])
    (verdict,) = wait_for(lambda: process.listen()[1], "the end")
    assert isinstance(verdict, Retry)
    assert os.listdir(places) == []
