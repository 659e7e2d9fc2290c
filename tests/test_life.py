"""The life of the uploader: whatever dies, freezes, forks or is deleted around it, all that was logged arrives."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import time
from pathlib import Path

import psutil
import pytest
from conftest import wait_for
from test_cli import run
from test_end_to_end import LOG_AND_EXIT, LOG_FOR_EVER, judge, no_uploader, uploader_pid
from test_uploader import acknowledged, finished

from hf_mpwriter.localhub import LocalHub
from hf_mpwriter.spool.layout import Spool
from hf_mpwriter.spool.members import Members
from hf_mpwriter.spool.progress import Progress
from hf_mpwriter.system import locks
from hf_mpwriter.system import process as process_module
from hf_mpwriter.uploader import priority

HURRY = "import hf_mpwriter.worker.worker\nhf_mpwriter.worker.worker.LOOK_EVERY = 0.05\n"  # seconds between two looks
HURRIED = HURRY + LOG_FOR_EVER
SLOWER = HURRIED.replace("LOOK_EVERY = 0.05", "LOOK_EVERY = 0.5")  # loses every race against one in a hurry
OTHER_BOOT = "00000000-0000-4000-8000-000000000000"


def lives(run_dir) -> int:
    """How many uploaders have been on the uploader lock."""
    log = next(Path(run_dir).glob(".hf_mpwriter/hosts/*/uploader.log")).read_text()
    return len(re.findall(r"took the uploader lock", log))


def uploaders(run_dir) -> set[int]:
    """The processes that are uploaders of a run directory, by their command lines."""
    found = set()
    for pid in filter(str.isdecimal, os.listdir("/proc")):
        try:
            words = Path("/proc", pid, "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if os.fsencode(run_dir) in words and any(b"uploader.main" in word for word in words):
            found.add(int(pid))
    return found


def grown(run_dir, before: int):
    """A condition: the Hub has more than it had."""
    return lambda: acknowledged(run_dir) > before


def end(worker, run_dir) -> None:
    """Kill the worker and wait until the rest of its data has arrived."""
    os.kill(worker.pid, signal.SIGKILL)
    wait_for(lambda: finished(run_dir), "the rest arrives")


def zombies(pid: int) -> list[psutil.Process]:
    """Children that have ended and that nobody has collected."""
    return [child for child in psutil.Process(pid).children() if child.status() == psutil.STATUS_ZOMBIE]


def silent_hub(port: int = 0) -> socket.socket:
    """A Hub that takes connections and never says a word."""
    return socket.create_server(("127.0.0.1", port))


SIXTY_FOUR = (
    HURRY
    + """
import os, sys
from hf_mpwriter import HFSummaryWriter
import hf_mpwriter.worker.registry, tensorboardX
ready, go = os.pipe()
pids = []
for rank in range(64):
    pids.append(os.fork())
    if not pids[-1]:
        os.environ |= {"RANK": str(rank), "WORLD_SIZE": "64"}
        os.close(go)
        os.read(ready, 1)  # all at once, when the parent closes its end
        writer = HFSummaryWriter("me/run", logdir=sys.argv[1], exit_timeout=0)
        for step in range(20):
            writer.add_scalar("loss", 1.0, step)
        writer.close()
        os._exit(0)
os.close(go)
assert all(os.waitpid(pid, 0)[1] == 0 for pid in pids)
"""
)


def test_sixty_four_workers_that_start_at_once_have_one_uploader(hub, run_dir, start):
    """Ranks that log in the same moment: all of it arrives, and nobody starts a second uploader beside the first."""
    start(SIXTY_FOUR, run_dir).succeed()
    wait_for(lambda: finished(run_dir), "all of it arrives")
    report = judge(run_dir, hub)
    assert [file.hub_events for file in report.files.values()] == [20] * 64
    assert lives(run_dir) <= 3, "on a slow machine one may leave before the last rank has begun"


def test_an_uploader_that_is_stopped_is_told_and_not_replaced(hub, run_dir, tmp_path, start):
    """SIGSTOP: training goes on and its end says what helps, so does `status`; after SIGCONT everything arrives."""
    worker = start(HURRIED, run_dir, tmp_path / "journals")
    pid = wait_for(lambda: uploader_pid(run_dir), "an uploader")
    wait_for(lambda: acknowledged(run_dir), "a commit")
    os.kill(pid, signal.SIGSTOP)
    try:
        code, _, said = start(LOG_AND_EXIT, run_dir, 50, env={"HF_MPWRITER_EXIT_TIMEOUT": "0.5"}).finish()
        assert code == 0
        assert said.count(f"the uploader does not work: process {pid} is stopped") == 1, said
        assert said.count(f"kill -CONT {pid}") == said.count("hf-mpwriter sync") == 1, said
        assert f"process {pid} is stopped" in run("status", run_dir).output
        assert worker.process.poll() is None
        assert uploaders(run_dir) - {push_of(run_dir)} == {pid}
    finally:
        os.kill(pid, signal.SIGCONT)
    wait_for(grown(run_dir, acknowledged(run_dir)), "it goes on")
    assert uploader_pid(run_dir) == pid
    assert "is stopped" not in run("status", run_dir).output
    end(worker, run_dir)
    judge(run_dir, hub, tmp_path / "journals")


def push_of(run_dir) -> int:
    """Process id of the push, 0 if none runs."""
    return Progress(Spool(str(run_dir))).uploader().push


def test_the_kernel_takes_uploader_and_push_before_training(tmp_path, start, monkeypatch):
    """Out of memory, processors or disk: both come after training; an even higher score is left as it is."""
    with silent_hub() as listener:
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{listener.getsockname()[1]}")
        higher = "open('/proc/self/oom_score_adj', 'w').write('800')\n"
        for attempt, (before, score) in enumerate([("", priority.OOM_SCORE_ADJ), (higher, 800)]):
            place = tmp_path / str(attempt) / "run"  # side by side, the second would go on with the first
            start(before + LOG_AND_EXIT, place, 5, env={"HF_MPWRITER_EXIT_TIMEOUT": "0"}).succeed()
            push = wait_for(lambda place=place: push_of(place), "a push")
            pid = uploader_pid(place)
            for process in map(psutil.Process, (pid, push)):
                assert Path("/proc", str(process.pid), "oom_score_adj").read_text().strip() == str(score)
                assert process.nice() >= priority.NICENESS
                assert process.ionice().ioclass == psutil.IOPRIO_CLASS_IDLE
                assert os.sched_getscheduler(process.pid) == os.SCHED_BATCH
            os.kill(pid, signal.SIGKILL)


def test_a_push_inherits_neither_seat_nor_anything_else(run_dir, start, monkeypatch):
    """While a push hangs, it has standard streams and what it has opened for itself, nothing of the spool's locks."""
    with silent_hub() as listener:
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{listener.getsockname()[1]}")
        start(LOG_AND_EXIT, run_dir, 5, env={"HF_MPWRITER_EXIT_TIMEOUT": "0"}).succeed()
        push = wait_for(lambda: push_of(run_dir), "a push")
        wait_for(lambda: any("socket" in link for link in descriptors(push)), "it speaks to the Hub")
        spool = Spool(str(run_dir))
        ours = {link for link in descriptors(push) if link.startswith(spool.root)}
        assert ours == {spool.host(process_module.host_id()).log}
        assert sum("pipe" in link for link in descriptors(push)) == 1, "one pipe: the way of the verdict"
        os.kill(uploader_pid(run_dir), signal.SIGKILL)
        wait_for(lambda: not psutil.pid_exists(push), "the push dies with its uploader")


def descriptors(pid: int) -> list[str]:
    """What the open descriptors of a process lead to; pipes once per pipe."""
    found = {}
    for name in os.listdir(f"/proc/{pid}/fd"):
        try:
            link = os.readlink(f"/proc/{pid}/fd/{name}")
        except OSError:
            continue
        found.setdefault(link, name)
    return list(found)


def test_a_deleted_seat_makes_way_for_one_new_uploader(hub, run_dir, tmp_path, start):
    """The user deletes uploader.lock: the uploader leaves, another takes the new file, everything arrives."""
    worker = start(HURRIED, run_dir, tmp_path / "journals")
    first = wait_for(lambda: uploader_pid(run_dir), "an uploader")
    wait_for(lambda: acknowledged(run_dir), "a commit")
    wait_for(lambda: not zombies(first), "it collects its pushes")
    os.unlink(Spool(str(run_dir)).uploader_lock)
    wait_for(lambda: not psutil.pid_exists(first), "the one without a uploader lock leaves")
    wait_for(lambda: uploader_pid(run_dir) not in (0, first), "another one comes")
    wait_for(grown(run_dir, acknowledged(run_dir)), "it works")
    assert uploaders(run_dir) - {push_of(run_dir)} == {uploader_pid(run_dir)}
    end(worker, run_dir)
    judge(run_dir, hub, tmp_path / "journals")


def test_a_spool_that_another_version_has_taken_over_is_left_alone(hub, run_dir, tmp_path, start):
    """One warning, training logs on, no uploader is started; when the format is ours again, everything arrives."""
    worker = start(HURRIED, run_dir, tmp_path / "journals")
    first = wait_for(lambda: uploader_pid(run_dir), "an uploader")
    wait_for(lambda: acknowledged(run_dir), "a commit")
    spool = Spool(str(run_dir))
    mark = Path(spool.root, "FORMAT")
    before = mark.read_text()
    mark.write_text("hf-mpwriter 2\n")
    os.kill(first, signal.SIGKILL)
    wait_for(lambda: no_uploader(run_dir), "it is gone")
    state = {path: path.read_bytes() for path in Path(spool.hosts).rglob("*.json")}
    logged = sum(path.stat().st_size for path in run_dir.glob("*tfevents*"))
    wait_for(lambda: sum(p.stat().st_size for p in run_dir.glob("*tfevents*")) > logged + 1000, "training logs on")
    assert uploaders(run_dir) == set()
    assert {path: path.read_bytes() for path in Path(spool.hosts).rglob("*.json")} == state
    code, _, said = start(LOG_AND_EXIT, run_dir, 1).finish()
    assert (code, "the format 'hf-mpwriter 2'" in said) == (1, True), "a start is refused, before training"
    mark.write_text(before)
    os.kill(worker.pid, signal.SIGKILL)
    _, _, said = worker.finish()
    assert said.count("cannot start an uploader") == said.count("has the format 'hf-mpwriter 2'") == 1, said
    start(LOG_AND_EXIT, run_dir, 1).succeed()
    wait_for(lambda: finished(run_dir), "everything arrives")
    judge(run_dir, hub, tmp_path / "journals")


KILLED_AT_THE_START = """
import os, signal, sys
os.setsid()
from hf_mpwriter import HFSummaryWriter
from hf_mpwriter.system import launch
real = launch.start_uploader
def spawn(*arguments):
    real(*arguments)
    os.killpg(0, int(sys.argv[2]))
launch.start_uploader = spawn
writer = HFSummaryWriter("me/run", logdir=sys.argv[1])
writer.add_scalar("loss", 1.0, 1)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_the_uploader_outlives_a_worker_that_is_killed_right_after_the_start(hub, run_dir, start, number):
    """As launchers do it: the signal goes to the whole process group, before the uploader has done anything."""
    code, _, _ = start(KILLED_AT_THE_START, run_dir, int(number)).finish()
    assert code == -number
    wait_for(lambda: finished(run_dir), "the uploader sends what it finds and leaves")
    assert [file.hub_events for file in judge(run_dir, hub).files.values()] == [1]


def test_a_worker_is_no_parent_of_what_takes_time(run_dir, start, monkeypatch):
    """Who kills the tree of a worker must not meet the uploader in it: its first half ends before it loads anything."""
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    source = """
import os, sys, time
from hf_mpwriter import HFSummaryWriter
writer = HFSummaryWriter("me/run", logdir=sys.argv[1], exit_timeout=0)
writer.add_scalar("loss", 1.0, 1)
(pid,) = writer._worker.election._children
loaded = "no"
while os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
    with open(f"/proc/{pid}/maps") as file:
        if "psutil" in file.read():
            loaded = "psutil"
print(loaded)
"""
    assert start(source, run_dir).succeed() == "no\n"
    os.kill(wait_for(lambda: uploader_pid(run_dir), "the uploader"), signal.SIGKILL)


LEAVE_AND_COME = """
import os, random, sys, time
from hf_mpwriter import HFSummaryWriter
import hf_mpwriter.worker.registry, tensorboardX
from hf_mpwriter.spool.progress import Progress
from hf_mpwriter.spool.layout import Spool
rng, view = random.Random(sys.argv[2]), Progress(Spool(sys.argv[1]))
def come(number):
    pid = os.fork()
    if not pid:
        os.environ |= {"RANK": str(number), "WORLD_SIZE": "100"}
        writer = HFSummaryWriter("me/run", logdir=sys.argv[1], exit_timeout=0)
        writer.add_scalar("loss", 1.0, 1)
        writer.close()
        os._exit(0)
    return pid
pids, seen, end = [come(0)], 0.0, time.monotonic() + float(sys.argv[3])
while time.monotonic() < end or not seen:
    report = view.uploader()
    if report.is_over and report.started_at != seen:
        seen = report.started_at
        for _ in range(rng.choice([1, 2])):
            time.sleep(rng.choice([0, 0, rng.uniform(0, 0.01)]))
            pids.append(come(len(pids)))
assert all(os.waitpid(pid, 0)[1] == 0 for pid in pids)
print(len(pids))
"""


def test_workers_that_come_while_the_uploader_leaves_are_served(hub, run_dir, start):
    """They log and end at the very moment at which it gives up the uploader lock: nothing stays behind, and nobody else comes.

    Each of them looks once, at its end: either the uploader lock is free by then, or the uploader looks once more.
    """
    count = int(start(LEAVE_AND_COME, run_dir, 1, 4).succeed())
    assert count > 1
    wait_for(lambda: finished(run_dir), "all of them are served")
    report = judge(run_dir, hub)
    assert [(file.hub_events, file.commits) for file in report.files.values()] == [(1, 1)] * count


TAKES_THE_LOCK = """
import os, sys, time
import hf_mpwriter.uploader.loop as uploader
from hf_mpwriter.system import locks
from hf_mpwriter.spool.layout import Spool
os.dup2(locks.try_exclusive(Spool(sys.argv[1]).uploader_lock), 3)
os.closerange(4, 100)
{}
uploader.main(sys.argv[1], 0.0)
"""
HESITATES = TAKES_THE_LOCK.format("""
release = locks.release
def hesitate(fd):
    locks.release = release
    print("leaving", flush=True)
    while not os.path.exists(sys.argv[2]):
        time.sleep(0.001)
    release(fd)
locks.release = hesitate
""")


def log_without_uploader(start, run_dir, count: int) -> None:
    """A worker that finds the uploader lock taken, ends and does not wait."""
    seat = locks.try_exclusive(Spool(str(run_dir)).uploader_lock)
    start(LOG_AND_EXIT, run_dir, count, env={"HF_MPWRITER_EXIT_TIMEOUT": "0"}).succeed()
    if seat is not None:
        locks.release(seat)


def test_a_worker_that_lives_between_the_decision_to_leave_and_the_leaving_is_served(hub, run_dir, tmp_path, start):
    """It finds the uploader lock taken at its only look: the uploader looks once more when it has given the uploader lock up."""
    Spool(str(run_dir)).create()
    log_without_uploader(start, run_dir, 5)
    uploader = start(HESITATES, run_dir, tmp_path / "go on")
    assert uploader.process.stdout.readline() == "leaving\n"
    log_without_uploader(start, run_dir, 7)
    (tmp_path / "go on").touch()
    assert uploader.finish()[0] == 0
    assert finished(run_dir)
    assert sorted(file.hub_events for file in judge(run_dir, hub).files.values()) == [5, 7]


def test_a_log_that_cannot_be_written_is_no_reason_to_end(hub, run_dir, start):
    """The disk is full from its first line on: the uploader works all the same."""
    Spool(str(run_dir)).create()
    log_without_uploader(start, run_dir, 5)
    start(TAKES_THE_LOCK.format("os.dup2(os.open('/dev/full', os.O_WRONLY), 2)"), run_dir).finish()
    assert finished(run_dir)
    assert [file.hub_events for file in judge(run_dir, hub).files.values()] == [5]


def test_an_uploader_needs_no_proc(hub, run_dir, start):
    """A container may have none: whatever modesty cannot be had then, it uploads, and it is nice all the same."""
    Spool(str(run_dir)).create()
    log_without_uploader(start, run_dir, 5)
    without = "import psutil; psutil.PROCFS_PATH = '/nowhere'"
    code, _, said = start(TAKES_THE_LOCK.format(without), run_dir).finish()
    assert (code, "not as modest" in said) == (0, True), said
    assert finished(run_dir)


@pytest.mark.parametrize("words", ["print('Welcome to the cluster!')", "print('no line', end='')"])
def test_what_the_start_of_an_interpreter_prints_disturbs_nobody(hub, run_dir, tmp_path, start, monkeypatch, words):
    """A sitecustomize that greets: the uploader does not take it for the words of its push."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(f"import sys\nif '-P' in sys.orig_argv: {words}")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path / 'site'}:{os.environ['PYTHONPATH']}")
    _, _, said = start(LOG_AND_EXIT, run_dir, 5).finish()
    wait_for(lambda: finished(run_dir), "the uploader leaves")
    assert "hf-mpwriter sync" not in said


CHILDREN = (
    HURRY
    + """
import contextlib, os, signal, subprocess, sys, threading, time
import psutil
from hf_mpwriter import HFSummaryWriter
def reap(*_):
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
def wait_for_ever():
    while True:
        try:
            os.wait()
        except ChildProcessError:
            time.sleep(0.001)
how = sys.argv[2]
if how == "ignored":
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
elif how == "handled":
    signal.signal(signal.SIGCHLD, reap)
elif how == "waited for":
    threading.Thread(target=wait_for_ever, daemon=True).start()
with HFSummaryWriter("me/run", logdir=sys.argv[1], commit_every=0.01) as writer:
    step, end = 0, time.monotonic() + 60
    while time.monotonic() < end and not (writer.status().on_hub and not psutil.Process().children()):
        writer.add_scalar("loss", 1.0, step)
        step += 1
        time.sleep(0.01)
print(psutil.Process().children())
"""
)


def test_the_users_own_ways_with_children_are_no_problem(hub, tmp_path, start):
    """A wait for any child, a handler, SIGCHLD ignored or nothing at all: no zombie, no error, all arrives."""
    places = {how: tmp_path / "runs" / how for how in ("ignored", "handled", "waited for", "left to us")}
    programs = [start(CHILDREN, place, how) for how, place in places.items()]
    for code, out, said in [program.finish() for program in programs]:
        assert (code, out) == (0, "[]\n")
        assert "child process" not in said
    for place in places.values():
        wait_for(lambda place=place: finished(place), "the uploader leaves")


FORKS = (
    HURRY
    + """
import contextlib, os, sys, threading, time
from hf_mpwriter import HFSummaryWriter
def fork():
    for number in range(10**6):
        if not os.fork():
            time.sleep(0 if number % 10 else 60)  # longer than its parent lives
            os._exit(0)
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        time.sleep(0.005)
def reopen():
    for number in range(10**6):
        writer = HFSummaryWriter("me/run", logdir=sys.argv[1], commit_every=0.01)
        writer.add_scalar("forks", 1.0, number)
        time.sleep(0.1)
        writer.close()
threading.Thread(target=fork, daemon=True).start()
threading.Thread(target=reopen, daemon=True).start()
reopen()
"""
)


def test_a_thread_that_forks_all_the_time_disturbs_nobody(hub, run_dir, start):
    """Cards, claims and seats are taken and given back meanwhile: no deadlock, one uploader, no child keeps a lock."""
    worker = start(FORKS, run_dir)
    children: list[psutil.Process] = []
    try:
        for _ in range(2):
            pid = wait_for(lambda: uploader_pid(run_dir), "an uploader")
            wait_for(grown(run_dir, acknowledged(run_dir)), "a commit")
            os.kill(pid, signal.SIGKILL)
            wait_for(lambda pid=pid: uploader_pid(run_dir) not in (0, pid), "another one")
        assert len(uploaders(run_dir) - {push_of(run_dir)}) == 1
        os.kill(worker.pid, signal.SIGSTOP)
        children = psutil.Process(worker.pid).children()
        os.kill(worker.pid, signal.SIGKILL)
        worker.process.wait()
        assert any(child.is_running() for child in children), "they outlive it"
        assert not any(member.alive for member in Members(Spool(str(run_dir))).members())
        wait_for(lambda: finished(run_dir), "all of it arrives")
        assert any(child.is_running() for child in children)
    finally:
        for child in children:
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()
    judge(run_dir, hub)


HUNDREDS = (
    HURRY
    + """
import os, sys
from hf_mpwriter import HFSummaryWriter
with HFSummaryWriter("me/run", logdir=sys.argv[1], commit_every=0.01) as writer:
    for generation in range(25):
        pids = []
        for _ in range(8):
            pids.append(os.fork())
            if not pids[-1]:
                writer.add_scalar("loss", 1.0, generation)
                writer.close()
                os._exit(0)
        writer.add_scalar("loss", 1.0, generation)
        assert all(os.waitpid(pid, 0)[1] == 0 for pid in pids)
"""
)


def test_hundreds_of_short_lived_children_leave_no_more_cards_than_live(hub, run_dir, start):
    """200 children of a process: no card stays, and no more claims than lived at once."""
    start(HUNDREDS, run_dir).succeed()
    wait_for(lambda: finished(run_dir), "all are served")
    spool = Spool(str(run_dir))
    assert len(os.listdir(os.path.join(spool.root, "claims"))) <= 1 + 8
    assert sum(file.hub_events for file in judge(run_dir, hub).files.values()) == 25 * 9


def test_a_worker_with_a_good_token_brings_it_into_use(tmp_path, run_dir, start, monkeypatch):
    """The uploader's token is refused: it leaves to a younger worker, and those with the old token let that one start.

    The same when the uploader dies and a worker with the old token is the first to see it.
    """
    with LocalHub(tmp_path / "hub", token="hf_good") as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        view = Progress(Spool(str(run_dir)))
        old = start(HURRIED, run_dir, tmp_path / "journals", env={"RANK": "0", "HF_TOKEN": "hf_expired"})
        wait_for(lambda: view.uploader().kind == "Refused", "the token is refused")
        first = view.uploader().pid
        new = start(SLOWER, run_dir, tmp_path / "journals", env={"RANK": "1", "HF_TOKEN": "hf_good"})
        wait_for(lambda: acknowledged(run_dir), "a commit")
        second = uploader_pid(run_dir)
        assert second not in (0, first)
        os.kill(new.pid, signal.SIGSTOP)
        os.kill(second, signal.SIGKILL)
        wait_for(lambda: view.uploader().kind == "Refused", "the old token is refused once more")
        wait_for(lambda: no_uploader(run_dir), "it makes way although nobody has come since")
        before = acknowledged(run_dir)
        os.kill(new.pid, signal.SIGCONT)
        wait_for(grown(run_dir, before), "a commit with the good token")
        os.kill(old.pid, signal.SIGKILL)
        end(new, run_dir)
        judge(run_dir, hub, tmp_path / "journals")
        for path in Path(run_dir, ".hf_mpwriter").rglob("*"):
            assert not path.is_file() or b"hf_good" not in path.read_bytes()


def test_a_login_ends_the_wait_after_a_refused_token(tmp_path, run_dir, start, monkeypatch):
    """`hf auth login` while training runs: the same uploader goes on at once, not minutes later."""
    token = tmp_path / "token"
    token.write_text("hf_expired")
    monkeypatch.setenv("HF_TOKEN_PATH", str(token))
    with LocalHub(tmp_path / "hub", token="hf_good") as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        worker = start(LOG_FOR_EVER, run_dir, tmp_path / "journals")
        view = Progress(Spool(str(run_dir)))
        wait_for(lambda: view.uploader().kind == "Refused", "the token is refused")
        token.write_text("hf_good")
        wait_for(lambda: acknowledged(run_dir), "a commit")
        assert lives(run_dir) == 1
        end(worker, run_dir)


def test_a_short_start_with_a_good_token_ends_with_its_data_on_the_hub(tmp_path, run_dir, start, monkeypatch):
    """It closes before the uploader with the refused token has seen it alive, and waits: the uploader lock is left to it."""
    with LocalHub(tmp_path / "hub", token="hf_good") as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        old = start(LOG_FOR_EVER, run_dir, tmp_path / "journals", env={"RANK": "1", "HF_TOKEN": "hf_expired"})
        wait_for(lambda: Progress(Spool(str(run_dir))).uploader().kind == "Refused", "the token is refused")
        start(LOG_AND_EXIT, run_dir, 5, env={"RANK": "0", "HF_TOKEN": "hf_good"}).succeed()
        assert [path for path in hub.store.tree("model", "me/run") if "rank_00001" not in path and "tfevents" in path]
        os.kill(old.pid, signal.SIGKILL)


def test_after_a_reboot_everybody_is_dead_and_the_spool_goes_on(hub, run_dir, tmp_path, start):
    """Cards, a heartbeat, and a push in flight of another boot: none of them lives, holds up or loses anything."""
    hub.stop()
    with silent_hub(hub.port):
        worker = start(LOG_FOR_EVER, run_dir, tmp_path / "journals")
        wait_for(lambda: push_of(run_dir), "a push")
        pids = uploader_pid(run_dir), worker.pid
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        worker.process.wait()
        wait_for(lambda: no_uploader(run_dir), "they are dead")
    spool = Spool(str(run_dir))
    host = spool.host(process_module.host_id())
    assert os.path.exists(host.in_flight)
    for path in (path for path in Path(spool.root).rglob("*") if path.is_file()):
        path.write_text(path.read_text().replace(process_module.boot_id(), OTHER_BOOT))
    report = json.loads(Path(host.status).read_text())
    assert report["process"]["boot"] == OTHER_BOOT
    report["process"] |= {"pid": os.getpid(), "ticks": process_module.start_ticks(os.getpid())}  # used again since
    Path(host.status).write_text(json.dumps(report | {"blocked_until": time.monotonic() + 1e6, "phase": "waiting"}))
    assert not any(member.alive for member in Members(spool).members())
    assert "no uploader runs" in run("status", run_dir).output
    hub.start()
    code, _, said = start(LOG_AND_EXIT, run_dir, 20).finish()
    assert (code, "hf-mpwriter sync" in said) == (0, False), "what was told before the reboot is not believed"
    wait_for(lambda: finished(run_dir), "everything arrives")
    assert len(judge(run_dir, hub, tmp_path / "journals").files) == 2


def test_a_ledger_that_is_older_or_missing_or_of_another_host_costs_nothing(hub, run_dir, start):
    """What it lacks is read back from the Hub: nothing is sent twice, nothing is lost."""
    start(LOG_AND_EXIT, run_dir, 20).succeed()
    wait_for(lambda: finished(run_dir), "the first run is over")
    host = Path(Spool(str(run_dir)).host(process_module.host_id()).root)
    (host / "ledger.json").rename(run_dir.parent / "older.json")
    start(LOG_AND_EXIT, run_dir, 20).succeed()  # missing
    wait_for(lambda: finished(run_dir), "the second run is over")
    shutil.copy(run_dir.parent / "older.json", host / "ledger.json")
    start(LOG_AND_EXIT, run_dir, 20).succeed()  # older
    wait_for(lambda: finished(run_dir), "the third run is over")
    host.rename(host.parent / "elsewhere-01234567")
    start(LOG_AND_EXIT, run_dir, 20).succeed()  # of another host
    wait_for(lambda: finished(run_dir), "the fourth run is over")
    report = judge(run_dir, hub)
    assert [(file.hub_events, file.commits) for file in report.files.values()] == [(20, 1)] * 4
    assert (host / "ledger.json").exists()


def test_sigterm_ends_an_uploader_although_the_hub_hangs(run_dir, start, monkeypatch):
    """It tries once more, but not for ever: its grace over, it ends, its push too, and the uploader lock is free."""
    with silent_hub() as listener:
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{listener.getsockname()[1]}")
        Spool(str(run_dir)).create()
        log_without_uploader(start, run_dir, 5)
        uploader = start(TAKES_THE_LOCK.format("uploader.GRACE = 0.5"), run_dir)
        push = wait_for(lambda: push_of(run_dir), "a push")
        uploader.process.terminate()
        assert uploader.finish()[0] == -signal.SIGALRM
        wait_for(lambda: not psutil.pid_exists(push), "the push ends too")
        assert no_uploader(run_dir)
