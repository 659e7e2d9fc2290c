"""The end of a process: who waits, how long in all, who speaks, and what ends the wait."""

from __future__ import annotations

import os
import signal

import pytest
from programs import wait_for
from runs import finished, judge

from hf_mpwriter.localhub import LocalHub

NOBODY = "http://127.0.0.1:9"
ANNOUNCED = "waiting up to"
TOLD = "hf-mpwriter sync"


@pytest.fixture
def nobody(monkeypatch):
    """A Hub that is down."""
    monkeypatch.setenv("HF_ENDPOINT", NOBODY)


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
    """Of two blocks while it is down one waits and both tell; then a block waits as before, and nothing is missing."""
    hub = LocalHub(tmp_path / "hub").start()
    hub.stop()
    monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
    program = start(THREE_BLOCKS, run_dir)
    assert program.process.stdout.readline() == "down\n"
    with hub:
        code, _, said = program.finish()
        assert code == 0, said
        assert (said.count(f"{ANNOUNCED} 2 s"), said.count(TOLD)) == (1, 2), said
        wait_for(lambda: finished(run_dir), "the uploader leaves")
        judge(run_dir, hub)


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


def test_a_file_that_the_hub_refuses_keeps_nobody_from_waiting_for_the_others(hub, run_dir, start):
    """It stays missing, and is told; the blocks that come wait for their own data as before."""
    code, _, said = start(REFUSED, run_dir).finish()
    assert (code, said.count(TOLD)) == (0, 2), said


def test_several_run_directories_share_the_time_at_the_end(nobody, tmp_path, start):
    """The end of the interpreter is bounded for the process, not for each of its writers; each is told of."""
    source = """
import sys
from hf_mpwriter import HFSummaryWriter
from hf_mpwriter.worker import shutdown
shutdown.QUIET_WAIT = 0.2
writers = [HFSummaryWriter("me/run", logdir=f"{sys.argv[1]}/{n}", exit_timeout=0.7) for n in range(3)]
for writer in writers:
    writer.add_scalar("loss", 1.0, 1)
"""
    code, _, said = start(source, tmp_path / "runs").finish()
    assert (code, said.count(ANNOUNCED), said.count(TOLD)) == (0, 1, 3), said


def test_nobody_waits_for_what_was_removed(nobody, run_dir, start):
    """A temporary directory that is over before the Hub had it: told in one line, and the end is not held up."""
    source = """
import shutil, sys
from hf_mpwriter import HFSummaryWriter
writer = HFSummaryWriter("me/run", logdir=sys.argv[1])
writer.add_scalar("loss", 1.0, 1)
writer.close()
shutil.rmtree(sys.argv[1], ignore_errors=True)  # the uploader may be about to write there
shutil.rmtree(sys.argv[1], ignore_errors=True)
"""
    code, _, said = start(source, run_dir).finish()
    assert (code, said.count("were removed"), said.count(ANNOUNCED), said.count(TOLD)) == (0, 1, 0, 0), said


@pytest.mark.parametrize("what", ["open(cards, 'w').close()", "os.symlink(cards, cards)"])
def test_a_damaged_spool_does_not_break_the_end(nobody, run_dir, start, what):
    """Garbage in the place of the cards: training ends well, the message is given."""
    source = f"""
import os, shutil, sys
from hf_mpwriter import HFSummaryWriter
with HFSummaryWriter("me/run", logdir=sys.argv[1], exit_timeout=0.5) as writer:
    writer.add_scalar("loss", 1.0, 1)
    cards = sys.argv[1] + "/.hf_mpwriter/members"
    shutil.rmtree(cards)
    {what}
"""
    code, _, said = start(source, run_dir).finish()
    assert (code, said.count(TOLD)) == (0, 1), said


def test_children_never_wait(nobody, run_dir, start):
    """Forked, daemonic, spawned or ended by `sys.exit`, by a with block or by asking for it: they end at once."""
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
    code, out, said = start(source, run_dir).finish()
    assert (code, out) == (0, "ended\n"), said
    assert ANNOUNCED not in said
    assert TOLD not in said


def test_rank_0_speaks_for_all(nobody, run_dir, start):
    """Both wait; one line when it takes longer, one message with the command."""
    source = """
import sys
from hf_mpwriter import HFSummaryWriter
from hf_mpwriter.worker import shutdown
shutdown.QUIET_WAIT = 0.2
with HFSummaryWriter("me/run", logdir=sys.argv[1], exit_timeout=0.7) as writer:
    writer.add_scalar("loss", 1.0, 1)
"""
    ranks = [start(source, run_dir, env={"RANK": str(rank), "WORLD_SIZE": "2"}) for rank in range(2)]
    (code, _, said), (other_code, _, silent) = [rank.finish() for rank in ranks]
    assert (code, other_code) == (0, 0)
    assert (said.count(ANNOUNCED), said.count(TOLD)) == (1, 1), said
    assert ANNOUNCED not in silent
    assert TOLD not in silent


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
def test_an_interrupt_ends_the_wait_and_replaces_nothing(nobody, run_dir, start, body, code, error):
    """Control-C: no second wait, the message is given once, and an end of the user's own stays what it was."""
    ended, _, said = start(INTERRUPTED.format(body), run_dir).finish()
    assert ended == code, said
    assert (said.count(f"{ANNOUNCED} 1000 s"), said.count(TOLD)) == (1, 1), said
    assert error in said
    assert ("Traceback" in said) == bool(error), said
    assert ("KeyboardInterrupt" in said) == (error == "KeyboardInterrupt"), said


@pytest.fixture(autouse=True)
def nobody_stays(run_dir, tmp_path):
    """Uploaders for a Hub that is down would stay for minutes."""
    yield
    from runs import uploaders

    for place in [run_dir, *(tmp_path / "runs").glob("*")]:
        for pid in uploaders(place):
            os.kill(pid, signal.SIGKILL)
