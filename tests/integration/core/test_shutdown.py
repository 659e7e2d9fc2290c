"""The end of a process: which processes wait, how long in all, which one logs, and what ends the wait."""

from __future__ import annotations

import signal

import pytest
from programs import wait_for
from runs import check_oracle, finished, kill_uploaders, silent_hub

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
from hf_mpwriter.worker import shutdown
def block(timeout):
    with HFSummaryWriter("me/run", logdir=sys.argv[1], exit_timeout=timeout) as writer:
        for step in range(10):
            writer.add_scalar("loss", 1.0, step)
    return writer
shutdown.QUIET_WAIT = -1000.0  # announced at once, however late
block(2.5)
writer = block(2.5)
shutdown.QUIET_WAIT = 1000.0
print("down", flush=True)
while not writer.push(wait=1):
    time.sleep(0.01)
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
        assert (errors.count(f"{WAIT_LINE} 2 s"), ends_told(errors)) == (1, 2), errors
        wait_for(lambda: finished(run_dir), "the uploader leaves")
        check_oracle(run_dir, hub)


REFUSED = """
import os, sys
from huggingface_hub import HfApi
from hf_mpwriter import HFSummaryWriter
from hf_mpwriter.worker import shutdown
shutdown.QUIET_WAIT = 1000.0  # seconds
from hf_mpwriter.events import framing
def block():
    with HFSummaryWriter("me/run", logdir=sys.argv[1], exit_timeout=150) as writer:
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
    assert (code, ends_told(errors)) == (0, 2), errors


def test_several_run_directories_share_the_time_at_the_end(unreachable, tmp_path, start):
    """The end of the interpreter is bounded for the process, not for each of its writers; each is logged."""
    source = """
import sys
from hf_mpwriter import HFSummaryWriter
from hf_mpwriter.worker import shutdown
shutdown.QUIET_WAIT = -1000.0  # announced at once, however late
writers = [HFSummaryWriter("me/run", logdir=f"{sys.argv[1]}/{n}", exit_timeout=0.7) for n in range(3)]
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
    assert (code, ends_told(errors)) == (0, 1), errors


def test_children_of_a_member_never_wait(unreachable, run_dir, start):
    """Forked, daemonic, spawned or ended by `sys.exit`, or by a with block: they end at once."""
    source = """
import multiprocessing, os, sys
from hf_mpwriter import HFSummaryWriter
def child():
    with HFSummaryWriter("me/run", logdir=sys.argv[1], exit_timeout=1000) as writer:
        writer.add_scalar("loss", 1.0, 1)
    HFSummaryWriter("me/run", logdir=sys.argv[1], exit_timeout=1000).add_scalar("loss", 1.0, 1)
writer = HFSummaryWriter("me/run", logdir=sys.argv[1], exit_timeout=1000)
writer.add_scalar("loss", 1.0, 1)
for daemon in (False, True):
    process = multiprocessing.get_context("fork").Process(target=child, daemon=daemon)
    process.start(); process.join()
    assert process.exitcode == 0
if not (pid := os.fork()):
    child()
    sys.exit(7)
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
print("ended", flush=True)
os._exit(0)
"""
    code, out, errors = start(source, run_dir).finish()
    assert (code, out) == (0, "ended\n"), errors
    assert WAIT_LINE not in errors
    assert COMMAND not in errors


UNTIL_TOLD = """
import os, sys, time
from hf_mpwriter import HFSummaryWriter
from hf_mpwriter.worker import shutdown
shutdown.QUIET_WAIT = -1000.0  # announced at once, however late
with HFSummaryWriter("me/run", logdir=sys.argv[1], exit_timeout=0.7) as writer:
    writer.add_scalar("loss", 1.0, 1)
    print("logs", flush=True)
    while not os.path.exists(sys.argv[2]):
        time.sleep(0.02)
"""


def rank_that_logs(start, run_dir, rank):
    """A rank of a job on two nodes, which ends when it is told to."""
    go_on = run_dir.parent / f"go_on_{rank}"
    program = start(UNTIL_TOLD, run_dir, go_on, env={"RANK": str(rank), "LOCAL_RANK": str(rank % 2), "WORLD_SIZE": "4"})
    assert program.process.stdout.readline() == "logs\n"
    return program, go_on


def told_by(program, go_on) -> tuple[int, int]:
    """Let a program end; how often it announced a wait, and how often it named the command."""
    go_on.touch()
    code, _, errors = program.finish()
    assert code == 0, errors
    return errors.count(WAIT_LINE), ends_told(errors)


def test_the_first_rank_of_a_directory_logs_for_all(unreachable, run_dir, start):
    """Also on a node without rank 0. The others are silent while it lives, even if they end before it."""
    first, other = (rank_that_logs(start, run_dir, rank) for rank in (2, 3))
    assert told_by(*other) == (0, 0)
    assert told_by(*first) == (1, 1)


def test_when_the_first_rank_dies_the_next_one_logs(unreachable, run_dir, start):
    """A killed process tells nothing."""
    first, other = (rank_that_logs(start, run_dir, rank) for rank in (0, 1))
    first[0].process.kill()
    first[0].process.wait()
    assert told_by(*other) == (1, 1)


INTERRUPTED = """
import logging, os, signal, sys
from hf_mpwriter import HFSummaryWriter
from hf_mpwriter.worker import shutdown
shutdown.QUIET_WAIT = -1000.0  # announced at once
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
        ("with writer: sys.exit(7)", 7, ""),
        ("writer.close(wait=True)\nsys.exit(3)", 3, ""),
        ("", 0, ""),
    ],
)
def test_an_interrupt_ends_the_wait_and_replaces_nothing(unreachable, run_dir, start, body, code, error):
    """Control-C: no second wait, one message, what follows runs, and the user's own exception or exit code stays."""
    ended, _, errors = start(INTERRUPTED.format(body), run_dir).finish()
    assert ended == code, errors
    assert (errors.count(WAIT_LINE), ends_told(errors)) == (1, 1), errors
    assert error in errors
    assert ("Traceback" in errors) == bool(error), errors
    assert ("KeyboardInterrupt" in errors) == (error == "KeyboardInterrupt"), errors


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
        (FAILS.format("raise KeyboardInterrupt"), -signal.SIGINT, "KeyboardInterrupt\n"),
        (FAILS.format("sys.exit('mine')"), 1, "mine\n"),
        (FAILS_LATER, 1, "ValueError: mine\n"),
    ],
)
def test_after_an_exception_no_process_waits_for_a_hub_that_is_down(unreachable, run_dir, start, source, code, error):
    """Far from `exit_timeout`; the traceback comes first, then what is not on the Hub, once."""
    ended, _, errors = start(source, run_dir).finish()
    assert (ended, errors.count(error), ends_told(errors)) == (code, 1, 1), errors
    assert errors.index(error) < errors.index(COMMAND)
    assert "cannot be reached" in errors, "it was known to be down"


def test_a_failed_rank_does_not_wait_for_an_uploader_without_progress(run_dir, start, monkeypatch):
    """Its peers can restart only when it has ended; whether a Hub that does not answer is down is not known yet."""
    with silent_hub() as server:
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
        env = {"RANK": "0", "WORLD_SIZE": "2"}
        code, _, errors = start(FAILS.format("raise ValueError('mine')"), run_dir, env=env).finish()
    assert (code, ends_told(errors)) == (1, 1), errors
    assert errors.index("ValueError: mine") < errors.index(COMMAND)


CAUGHT = """
import os, sys, time
from hf_mpwriter import HFSummaryWriter
for end in (ValueError("mine"), None):
    try:
        with HFSummaryWriter("me/run", logdir=sys.argv[1]) as writer:
            writer.add_scalar("loss", 1.0, 1)
            if end:
                raise end
    except ValueError:
        print(writer.status().waiting > 0, flush=True)
        while not os.path.exists(sys.argv[2]):
            time.sleep(0.02)
print(writer.status().waiting)
"""


def test_a_block_that_fails_waits_for_nothing_and_the_next_one_waits_again(hub, tmp_path, run_dir, start):
    """The exception may be handled, and training go on."""
    hub.fault("/commit/ hang")
    program = start(CAUGHT, run_dir, tmp_path / "go_on")
    assert program.process.stdout.readline() == "True\n"
    hub.clear_faults()
    (tmp_path / "go_on").touch()
    code, out, errors = program.finish()
    assert (code, out) == (0, "0\n"), errors


def test_a_lone_process_waits_after_an_exception_while_the_hub_works(hub, run_dir, start):
    """Nothing is left behind: in a container, the disk goes with the process."""
    hub.fault("/commit/ slow seconds=3")
    code, _, errors = start(FAILS.format("raise ValueError('mine')"), run_dir).finish()
    assert (code, "ValueError: mine" in errors) == (1, True), errors
    check_oracle(run_dir, hub)
    assert (errors.count(WAIT_LINE), errors.count("all of it is on the Hub now")) in ((1, 1), (0, 0)), errors


def test_no_wait_exceeds_a_grace_that_is_known(unreachable, run_dir, start):
    """What comes after it is a SIGKILL; what is not on the Hub is told before."""
    source = f"{THREE_BLOCKS.partition('block(2.5)')[0]}block(1000)"
    code, _, errors = start(source, run_dir, env={"HF_MPWRITER_GRACE": "3.5"}).finish()
    assert (code, errors.count(f"{WAIT_LINE} 2 s"), ends_told(errors)) == (0, 1, 1), errors


@pytest.fixture(autouse=True)
def no_uploader_stays(run_dir, tmp_path):
    """Kill the uploaders of a Hub that is down; they would stay for minutes."""
    yield
    for place in [run_dir, *(tmp_path / "runs").glob("*")]:
        kill_uploaders(place)
