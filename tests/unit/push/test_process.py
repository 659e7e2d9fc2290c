"""The process of a push."""

from __future__ import annotations

import os
import signal
import socket

import pytest
from jobs import job, job_of, part
from programs import run_python, wait_for
from support import event_file

from hf_mpwriter.base.files import LocalFile
from hf_mpwriter.base.settings import Destination
from hf_mpwriter.base.verdicts import Done
from hf_mpwriter.push import process
from hf_mpwriter.push.handle import PushHandle
from hf_mpwriter.spool.layout import Spool
from hf_mpwriter.uploader.branch import is_of_a_run

NAME = "events.out.tfevents.1700000000.here.1.0123abcd"


def test_a_push_ends_at_once_and_what_libraries_have_printed_is_in_the_log():
    """Buffered text goes out; what Python would do at the end of an interpreter is not waited for."""
    program = """
import atexit, sys
from hf_mpwriter.push import process
from hf_mpwriter.system import launch
atexit.register(print, "taken apart")
print("out", flush=False)
print("err", end="", file=sys.stderr, flush=False)
process.end()
"""
    ended = run_python(program, env={"PYTHONUNBUFFERED": ""})
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "out\n", "err")


@pytest.mark.parametrize(
    ("lengths", "given", "expected"),
    [([6_000_000] * 3, None, "4"), ([6_000_000], "8", "8"), ([20_000] * 100, None, None), ([], None, None)],
)
def test_few_large_files_are_read_at_once_and_many_small_ones(tmp_path, monkeypatch, lengths, given, expected):
    """What was read waits in memory for the network; of small files each waits for answers. What is set counts."""
    (name,) = process.READERS
    monkeypatch.setattr(os, "environ", {} if given is None else {name: given})
    files = tuple(LocalFile(f"{number}.tfevents", length, growing=False) for number, length in enumerate(lengths))
    process._set_environment(job(tmp_path, files=files), str(tmp_path))
    assert os.environ.get(name) == expected


def test_no_job_is_lost_between_the_last_look_and_the_end_of_the_wait(monkeypatch):
    """The next job may come when the wait is over and the socket still open: it is done. After that none is taken."""
    for sent_in_time in (True, False):
        uploader, push = socket.socketpair()
        record = os.memfd_create("record")

        def wait(*_: object, uploader=uploader, record=record, sent_in_time=sent_in_time):
            if sent_in_time:
                socket.send_fds(uploader, [b"+"], [record])
            return [], [], []

        monkeypatch.setattr(process.select, "select", wait)
        found = process._next_job(push, 0)
        assert len(found) == sent_in_time
        with pytest.raises(OSError, match="Broken pipe"):
            socket.send_fds(uploader, [b"+"], [record])
        monkeypatch.undo()
        for fd in (record, *found):
            os.close(fd)
        uploader.close()
        push.close()


def test_no_timer_runs_while_a_push_waits_for_a_job():
    """Its time is for jobs. The alarm would end it with the socket open, and a job on its way would be lost."""
    uploader, push = socket.socketpair()
    uploader.close()
    signal.setitimer(signal.ITIMER_REAL, 1000.0)
    try:
        assert process._next_job(push, 1000) == []
        assert signal.getitimer(signal.ITIMER_REAL)[0] == 0.0
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        push.close()


@pytest.mark.parametrize("foreign", [0, 1])
def test_a_spool_that_must_not_be_used_keeps_no_other_run_back(hub, tmp_path, foreign):
    """Of two runs in one push, one has a spool into which everybody may write: the other one arrives."""
    spools, parts = [], []
    for number in range(2):
        spools.append(Spool(str(tmp_path / f"run{number}")))
        spools[-1].create()
        length = event_file(tmp_path / f"run{number}" / NAME, 5)
        assert spools[-1].directory.fd  # opened, as by an uploader that was there before
        file = LocalFile(NAME, length, growing=True)
        parts.append(part(tmp_path / f"run{number}", files=(file,), folder=f"run{number}"))
    (tmp_path / f"run{foreign}" / ".hf_mpwriter").chmod(0o777)
    push = PushHandle(job_of(*parts, destination=Destination(hub.endpoint, "me/run"), create=True), 150.0, spools)
    verdicts = wait_for(lambda: push.listen()[1], "the verdicts")
    assert isinstance(verdicts[1 - foreign], Done)
    assert is_of_a_run(verdicts[foreign], alone=False)
    assert "can be written by everybody" in verdicts[foreign].reason
    there = hub.store.tree("model", "me/run")
    assert [path for path in there if NAME in path] == [f"run{1 - foreign}/{NAME}"]
