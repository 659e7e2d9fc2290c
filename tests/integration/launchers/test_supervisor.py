"""`hf-mpwriter run` with real processes: who gets a signal, what is on the Hub at the end, what is left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest
from launching import first
from launching.first import BETWEEN
from programs import DEADLINE, wait_for
from runs import no_uploader
from supervised import RUN, event_bytes, has_ended, why_no_namespace

from hf_mpwriter.spool.layout import Spool
from hf_mpwriter.spool.workers.members import Members

REASON = why_no_namespace()
FIRST = (pytest.mark.root, pytest.mark.skipif(bool(REASON), reason=REASON or "-"))


@pytest.mark.parametrize(
    ("case", "grace", "more"),
    [
        pytest.param(first.signalled, 120, {"between": BETWEEN}, marks=FIRST, id="a signal, below a shell"),
        pytest.param(first.signalled, 120, {"between": BETWEEN, "is_first": False}, id="the same, not as process 1"),
        pytest.param(first.ignored, 30, {}, marks=FIRST, id="a program that ignores the signal"),
        pytest.param(first.without_hub, 5, {}, marks=FIRST, id="a Hub that is down"),
        pytest.param(first.exits_at_once, 120, {}, marks=FIRST, id="os._exit"),
    ],
)
def test_what_was_logged_is_on_the_hub_when_a_program_ends(stage, case, grace, more):
    """Half a minute of data with images, within the grace; the exit code is kept, and no zombie stays.

    A program that ignores the signal is killed before. Without a Hub, one line says what is missing.
    """
    case(stage, grace, **more)


COUNTS = """
import multiprocessing, os, signal, sys, time
def reader():
    signal.signal(signal.SIGTERM, lambda *_: os.write(1, b"reader\\n"))
    os.write(1, b"ready\\n")
    time.sleep(1000)
def count(*_):
    os.write(1, b"program\\n")
    raise KeyboardInterrupt
if __name__ == "__main__":
    signal.signal(signal.SIGTERM, count)
    child = multiprocessing.get_context("fork").Process(target=reader, daemon=True)
    child.start()
    try:
        os.write(1, b"ready\\n")
        time.sleep(1000)
    except KeyboardInterrupt:
        time.sleep(1)
    child.kill()
"""


def test_a_signal_to_the_process_group_reaches_the_program_once_and_not_its_children(run_below):
    """As torchrun sends it to each rank; a DataLoader whose workers die of it would fail."""
    one = run_below(sys.executable, "-c", COUNTS, options=("--grace", "120"))
    assert [one.line(), one.line()] == ["ready\n"] * 2
    os.killpg(one.group, signal.SIGTERM)
    assert one.line() == "program\n"
    os.killpg(one.group, signal.SIGTERM)
    code, out, errors = one.finish()
    assert (code, out) == (0, ""), errors


@pytest.mark.parametrize(("ends", "code"), [("kill -9 $$", 137), ("cat; exit 0", 0)])
def test_an_exit_code_is_kept(run_below, ends, code):
    """Of a program that logs nothing; then nothing is printed."""
    assert run_below("sh", "-c", ends).finish() == (code, "", "")


def test_what_loses_its_parent_is_collected_when_it_ends(run_below):
    """While the program works: its grandchildren, whose parents have ended, leave no zombies."""
    source = "for n in 1 2 3; do (sleep 0.$n & echo $n); done; echo made; exec sleep 1000"
    one = run_below("sh", "-c", source)
    assert [one.line() for _ in range(4)] == ["1\n", "2\n", "3\n", "made\n"]
    wait_for(lambda: one.names() == ["sleep"], "only the program is left")
    one.supervisor.send_signal(signal.SIGTERM)
    assert one.finish() == (143, "", "")


def test_the_program_dies_with_its_supervisor_and_what_it_leaves_is_ended_on_request(hub, run_dir, run_below):
    """By SIGKILL. What a shell between leaves is an orphan: the next start ends it and takes its name, no other's."""
    theirs = run_below(*first.logging(run_dir, "waits"), options=("--logdir", str(run_dir)), RANK="1")
    assert theirs.line() == "logged\n"
    one = run_below(*BETWEEN, *first.logging(run_dir, "ignores"))
    assert one.line() == "logged\n"
    (shell,) = (process for process in one.supervisor.children() if process.name() == "sh")
    (orphan,) = shell.children()
    one.supervisor.kill()
    wait_for(lambda: has_ended(shell), "the shell dies with the supervisor")
    assert not has_ended(orphan)
    again = run_below(*first.logging(run_dir, "exits"), options=("--kill-orphans", "--logdir", str(run_dir)))
    code, _, errors = again.finish()
    assert code == 3, errors
    assert has_ended(orphan)
    assert f"ended main of {run_dir}, process {orphan.pid}" in errors, errors
    assert {member.name.worker for member in Members(Spool(str(run_dir))).all()} <= {"main", "rank_00001", "~run"}
    assert theirs.supervisor.children()


ANNOUNCED = """
import os, signal, sys, time
from hf_mpwriter import HFSummaryWriter
writer = HFSummaryWriter("me/run", logdir=sys.argv[1])
signal.signal(signal.SIGUSR1, lambda *_: writer.push())
writer.add_scalar("loss", 1.0, 0)
assert writer.push(wait=150)
writer.add_scalar("loss", 1.0, 1)
os.write(1, b"logged\\n")
time.sleep(1000)
"""


def test_a_handler_of_a_signal_that_announces_a_deadline_can_ask_for_a_push(hub, run_dir, start):
    """And the program goes on."""
    one = start(ANNOUNCED, run_dir)
    assert one.process.stdout.readline() == "logged\n"
    one.process.send_signal(signal.SIGUSR1)

    def on_hub() -> int:
        tree = hub.store.tree("model", "me/run", "main")
        return sum(entry.size for path, entry in tree.items() if "tfevents" in path)

    wait_for(lambda: on_hub() == event_bytes(run_dir), "all is on the Hub, while the program sleeps")
    assert one.process.poll() is None
    one.process.kill()
    wait_for(lambda: no_uploader(run_dir), "the uploader leaves")


@pytest.mark.parametrize(
    ("before", "program", "expected"),
    [
        pytest.param("trap '' HUP", "kill -HUP $PPID; sleep 1; exit 7", 7, id="nohup"),
        pytest.param("trap '' CHLD", "exit 7", 7, id="children are ignored"),
        pytest.param("exec 2>/dev/full", "exit 7", 7, id="no room for its lines"),
    ],
)
def test_what_the_supervisor_inherits_does_not_change_the_end_of_a_program(run_dir, before, program, expected):
    """Ignored signals stay ignored, as below nohup; exit codes are kept."""
    tell = f"{sys.executable} -c 'from hf_mpwriter.system import contact; contact.tell({str(run_dir)!r})'"
    words = [*RUN, "--grace", "3", "--", "sh", "-c", f'"$@"; {program}', "sh", "sh", "-c", tell]
    ended = subprocess.run(["sh", "-c", f'{before}; exec "$@"', "sh", *words], timeout=DEADLINE, check=False)
    assert ended.returncode == expected
