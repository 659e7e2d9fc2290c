"""The end of a process: which processes wait, how long in all, which one logs, and what ends the wait."""

from __future__ import annotations

import os
import signal

import pytest
from programs import wait_for
from runs import check_oracle, finished

from hf_mpwriter.localhub import LocalHub

UNREACHABLE = "http://127.0.0.1:9"
WAIT_LINE = "waiting up to"
COMMAND = "hf-mpwriter sync"


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
block(2.5)
writer = block(2.5)
print("down", flush=True)
while not writer.push(wait=1):
    time.sleep(0.01)
writer = block(60)
assert writer.status().waiting == 0, writer.status()
"""


def test_a_wait_in_vain_is_not_repeated_until_the_hub_is_back(tmp_path, run_dir, start, monkeypatch):
    """While it is down, one of two blocks waits and both log; then a block waits as before, and nothing is missing."""
    hub = LocalHub(tmp_path / "hub").start()
    hub.stop()
    monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
    program = start(THREE_BLOCKS, run_dir)
    assert program.process.stdout.readline() == "down\n"
    with hub:
        code, _, errors = program.finish()
        assert code == 0, errors
        assert (errors.count(f"{WAIT_LINE} 2 s"), errors.count(COMMAND)) == (1, 2), errors
        wait_for(lambda: finished(run_dir), "the uploader leaves")
        check_oracle(run_dir, hub)


REFUSED = """
import os, sys
from huggingface_hub import HfApi
from hf_mpwriter import HFSummaryWriter
from hf_mpwriter.events import framing
def block():
    with HFSummaryWriter("me/run", logdir=sys.argv[1], exit_timeout=60) as writer:
        for step in range(10):
            writer.add_scalar("loss", 1.0, step)
    assert writer.status().waiting == 0, writer.status()
name = "events.out.tfevents.1000000000.there.1.0123abcd"  # of another writer, in a directory of its own
def others():
    with open(f"{sys.argv[1]}/sub/{name}", "ab") as file:
        file.write(framing.frame(framing.version_event(1.0)))
os.makedirs(f"{sys.argv[1]}/sub")
others()
block()
HfApi().upload_file(path_or_fileobj=b"mine", path_in_repo=f"tensorboard/exp1/sub/{name}", repo_id="me/run")
others()
block()
block()
"""


def test_a_file_that_the_hub_refuses_does_not_end_the_wait_for_the_others(hub, run_dir, start):
    """It stays missing and is logged; later blocks wait for their own data as before."""
    code, _, errors = start(REFUSED, run_dir).finish()
    assert (code, errors.count(COMMAND)) == (0, 2), errors


def test_several_run_directories_share_the_time_at_the_end(unreachable, tmp_path, start):
    """The end of the interpreter is bounded for the process, not for each of its writers; each is logged."""
    source = """
import sys
from hf_mpwriter import HFSummaryWriter
from hf_mpwriter.worker import shutdown
shutdown.QUIET_WAIT = 0.2
writers = [HFSummaryWriter("me/run", logdir=f"{sys.argv[1]}/{n}", exit_timeout=0.7) for n in range(3)]
for writer in writers:
    writer.add_scalar("loss", 1.0, 1)
"""
    code, _, errors = start(source, tmp_path / "runs").finish()
    assert (code, errors.count(WAIT_LINE), errors.count(COMMAND)) == (0, 1, 3), errors


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
    assert (code, errors.count("were removed"), errors.count(WAIT_LINE), errors.count(COMMAND)) == (0, 1, 0, 0), errors


@pytest.mark.parametrize("what", ["open(members, 'w').close()", "os.symlink(members, members)"])
def test_a_damaged_spool_does_not_break_the_end(unreachable, run_dir, start, what):
    """With garbage in place of the member files training ends well, and the message is logged."""
    source = f"""
import os, shutil, sys
from hf_mpwriter import HFSummaryWriter
with HFSummaryWriter("me/run", logdir=sys.argv[1], exit_timeout=0.5) as writer:
    writer.add_scalar("loss", 1.0, 1)
    members = sys.argv[1] + "/.hf_mpwriter/members"
    shutil.rmtree(members)
    {what}
"""
    code, _, errors = start(source, run_dir).finish()
    assert (code, errors.count(COMMAND)) == (0, 1), errors


def test_children_never_wait(unreachable, run_dir, start):
    """Forked, daemonic, spawned or ended by `sys.exit`, by a with block or by `wait=True`: they end at once."""
    source = """
import multiprocessing, os, sys
from hf_mpwriter import HFSummaryWriter
def child(wait):
    with HFSummaryWriter("me/run", logdir=sys.argv[1], exit_timeout=1000) as writer:
        writer.add_scalar("loss", 1.0, 1)
    writer.close(wait=wait)
    HFSummaryWriter("me/run", logdir=sys.argv[1], exit_timeout=1000).add_scalar("loss", 1.0, 1)
writer = HFSummaryWriter("me/run", logdir=sys.argv[1], exit_timeout=1000)
writer.add_scalar("loss", 1.0, 1)
for daemon in (False, True):
    process = multiprocessing.get_context("fork").Process(target=child, args=(True,), daemon=daemon)
    process.start(); process.join()
    assert process.exitcode == 0
if not (pid := os.fork()):
    child(True)
    sys.exit(7)
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
print("ended", flush=True)
os._exit(0)
"""
    code, out, errors = start(source, run_dir).finish()
    assert (code, out) == (0, "ended\n"), errors
    assert WAIT_LINE not in errors
    assert COMMAND not in errors


def test_rank_0_logs_for_all(unreachable, run_dir, start):
    """Both ranks wait; only rank 0 logs the line of a longer wait and the message with the command."""
    source = """
import sys
from hf_mpwriter import HFSummaryWriter
from hf_mpwriter.worker import shutdown
shutdown.QUIET_WAIT = 0.2
with HFSummaryWriter("me/run", logdir=sys.argv[1], exit_timeout=0.7) as writer:
    writer.add_scalar("loss", 1.0, 1)
"""
    ranks = [start(source, run_dir, env={"RANK": str(rank), "WORLD_SIZE": "2"}) for rank in range(2)]
    (code, _, errors), (other_code, _, silent) = [rank.finish() for rank in ranks]
    assert (code, other_code) == (0, 0)
    assert (errors.count(WAIT_LINE), errors.count(COMMAND)) == (1, 1), errors
    assert WAIT_LINE not in silent
    assert COMMAND not in silent


INTERRUPTED = """
import logging, os, signal, sys
from hf_mpwriter import HFSummaryWriter
from hf_mpwriter.worker import shutdown
shutdown.QUIET_WAIT = 0.2  # seconds
class Impatient(logging.StreamHandler):
    def emit(self, record):
        super().emit(record)
        if "waiting up to" in record.getMessage():
            os.kill(os.getpid(), signal.SIGINT)
signal.signal(signal.SIGINT, signal.default_int_handler)  # it is ignored in the background of a shell
logging.getLogger().addHandler(Impatient())
writer = HFSummaryWriter("me/run", logdir=sys.argv[1], exit_timeout=1000)
writer.add_scalar("loss", 1.0, 1)
{}
"""


@pytest.mark.parametrize(
    ("body", "code", "error"),
    [
        ("with writer: pass", -signal.SIGINT, "KeyboardInterrupt"),
        ("with writer: raise ValueError('mine')", 1, "ValueError: mine"),
        ("with writer: sys.exit(7)", 7, ""),
        ("writer.close(wait=True)", -signal.SIGINT, "KeyboardInterrupt"),
        ("", 0, ""),
    ],
)
def test_an_interrupt_ends_the_wait_and_replaces_nothing(unreachable, run_dir, start, body, code, error):
    """Control-C: no second wait, one message, and the user's own exception or exit code stays."""
    ended, _, errors = start(INTERRUPTED.format(body), run_dir).finish()
    assert ended == code, errors
    assert (errors.count(f"{WAIT_LINE} 1000 s"), errors.count(COMMAND)) == (1, 1), errors
    assert error in errors
    assert ("Traceback" in errors) == bool(error), errors
    assert ("KeyboardInterrupt" in errors) == (error == "KeyboardInterrupt"), errors


@pytest.fixture(autouse=True)
def no_uploader_stays(run_dir, tmp_path):
    """Kill the uploaders of a Hub that is down; they would stay for minutes."""
    yield
    from runs import uploaders

    for place in [run_dir, *(tmp_path / "runs").glob("*")]:
        for pid in uploaders(place):
            os.kill(pid, signal.SIGKILL)
