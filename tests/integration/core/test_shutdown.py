"""The end of a process: which processes wait, how long in all, which one logs, and what ends the wait."""

from __future__ import annotations

import re

import pytest
from programs import wait_for
from runs import check_oracle, finished, kill_uploaders

from hf_mpwriter.localhub import LocalHub

UNREACHABLE = "http://127.0.0.1:9"
WAIT_LINE = "waiting up to"
COMMAND = "hf-mpwriter sync"


def ends_told(errors: str) -> int:
    """How many ends said what is missing: each names the command, and so does each line of a wait."""
    return errors.count(COMMAND) - errors.count(WAIT_LINE)


@pytest.fixture
def unreachable(monkeypatch):
    """A Hub that is down."""
    monkeypatch.setenv("HF_ENDPOINT", UNREACHABLE)


THREE_BLOCKS = """
import os, sys, time
from hf_mpwriter import HFSummaryWriter
def block(timeout):
    with HFSummaryWriter("me/run", logdir=sys.argv[1], exit_timeout=timeout) as writer:
        for step in range(10):
            writer.add_scalar("loss", 1.0, step)
    return writer
os.environ["HF_MPWRITER_TIMING"] += " quiet_wait=-1000"  # announced at once, however late
block(2.5)
writer = block(2.5)
print("down", flush=True)
writer = HFSummaryWriter("me/run", logdir=sys.argv[1], exit_timeout=150)
writer.close(wait=True)  # it waits although another wait was in vain
writer = block(150)
assert writer.status().waiting == 0, writer.status()
"""


def test_a_wait_in_vain_is_not_repeated_until_the_hub_is_back(tmp_path, run_dir, start, monkeypatch):
    """While it is down, one of two blocks waits, both log the command; then a block waits, and nothing is missing."""
    hub = LocalHub(tmp_path / "hub").start()
    hub.stop()
    monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
    program = start(THREE_BLOCKS, run_dir)
    assert program.process.stdout.readline() == "down\n"
    with hub:
        code, _, errors = program.finish()
        assert code == 0, errors
        assert (len(re.findall(rf"{WAIT_LINE} \d s", errors)), ends_told(errors)) == (1, 2), errors
        wait_for(lambda: finished(run_dir), "the uploader leaves")
        check_oracle(run_dir, hub)


def test_several_run_directories_share_the_time_at_the_end(unreachable, tmp_path, start):
    """The end of the interpreter is bounded for the process, not for each of its writers; each is logged."""
    source = """
import os, sys
from hf_mpwriter import HFSummaryWriter
os.environ["HF_MPWRITER_TIMING"] += " quiet_wait=-1000"  # announced at once, however late
writers = [HFSummaryWriter("me/run", logdir=f"{sys.argv[1]}/{n}", exit_timeout=2.5) for n in range(3)]
for writer in writers:
    writer.add_scalar("loss", 1.0, 1)
"""
    code, _, errors = start(source, tmp_path / "runs").finish()
    assert (code, errors.count(WAIT_LINE), ends_told(errors)) == (0, 1, 3), errors


def test_no_process_waits_for_what_was_removed(unreachable, run_dir, start):
    """A temporary directory that was removed before the upload: one line is logged, and the end does not wait."""
    source = """
import shutil, sys
from hf_mpwriter import HFSummaryWriter
writer = HFSummaryWriter("me/run", logdir=sys.argv[1])
writer.add_scalar("loss", 1.0, 1)
writer.close()
shutil.rmtree(sys.argv[1], ignore_errors=True)  # the uploader may be about to write there
shutil.rmtree(sys.argv[1], ignore_errors=True)
"""
    code, _, errors = start(source, run_dir).finish()
    assert (code, errors.count("were removed"), errors.count(WAIT_LINE), ends_told(errors)) == (0, 1, 0, 0), errors


INTERRUPTED = """
import logging, os, signal, sys
from hf_mpwriter import HFSummaryWriter
os.environ["HF_MPWRITER_TIMING"] += " quiet_wait=-1000"  # announced at once
class Impatient(logging.StreamHandler):
    def emit(self, record):
        super().emit(record)
        if "waiting up to" in record.getMessage():
            os.kill(os.getpid(), signal.SIGINT)
signal.signal(signal.SIGINT, signal.default_int_handler)  # it is ignored in the background of a shell
logging.getLogger().addHandler(Impatient())
logging.getLogger().setLevel(logging.INFO)
writer = HFSummaryWriter("me/run", logdir=sys.argv[1], exit_timeout=1000)
writer.add_scalar("loss", 1.0, 1)
{}
"""


@pytest.mark.parametrize(
    ("body", "code", "error"),
    [
        ("with writer: pass\nsys.exit(3)", 3, ""),
        ("with writer: raise ValueError('mine')", 1, "ValueError: mine"),
    ],
)
def test_an_interrupt_ends_the_wait_and_replaces_nothing(unreachable, run_dir, start, body, code, error):
    """Control-C: no second wait, one message, what follows runs, and the user's own exception or exit code stays."""
    ended, _, errors = start(INTERRUPTED.format(body), run_dir).finish()
    assert ended == code, errors
    assert (errors.count(WAIT_LINE), ends_told(errors)) == (1, 1), errors
    assert "Ctrl-C ends the wait and nothing else" in errors
    assert error in errors
    assert ("Traceback" in errors) == bool(error), errors
    assert "KeyboardInterrupt" not in errors


FAILS = """
import sys
from hf_mpwriter import HFSummaryWriter
with HFSummaryWriter("me/run", logdir=sys.argv[1], exit_timeout=1000) as writer:
    writer.add_scalar("loss", 1.0, 1)
    {}
"""
FAILS_LATER = """
import sys
from hf_mpwriter import HFSummaryWriter
writer = HFSummaryWriter("me/run", logdir=sys.argv[1], exit_timeout=1000)
writer.add_scalar("loss", 1.0, 1)
raise ValueError("mine")
"""


@pytest.mark.parametrize(
    ("source", "code", "error"),
    [
        (FAILS.format("raise ValueError('mine')"), 1, "ValueError: mine\n"),
        (FAILS_LATER, 1, "ValueError: mine\n"),
    ],
)
def test_after_an_exception_no_process_waits_for_a_hub_that_is_down(unreachable, run_dir, start, source, code, error):
    """Far from `exit_timeout`; the traceback comes first, then what is not on the Hub, once."""
    ended, _, errors = start(source, run_dir).finish()
    assert (ended, errors.count(error), ends_told(errors)) == (code, 1, 1), errors
    assert errors.index(error) < errors.index(COMMAND)
    assert "cannot be reached" in errors, "it was known to be down"


def test_a_lone_process_waits_after_an_exception_while_the_hub_works(hub, run_dir, start):
    """Nothing is left behind: in a container, the disk goes with the process."""
    hub.fault("/commit/ slow seconds=3")
    code, _, errors = start(FAILS.format("raise ValueError('mine')"), run_dir).finish()
    assert (code, "ValueError: mine" in errors) == (1, True), errors
    check_oracle(run_dir, hub)
    assert (errors.count(WAIT_LINE), errors.count("all of it is on the Hub now")) in ((1, 1), (0, 0)), errors


@pytest.fixture(autouse=True)
def no_uploader_stays(run_dir, tmp_path):
    """Kill the uploaders of a Hub that is down; they would stay for minutes."""
    yield
    for place in [run_dir, *(tmp_path / "runs").glob("*")]:
        kill_uploaders(place)
