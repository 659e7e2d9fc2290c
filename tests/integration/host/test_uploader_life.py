"""The life of the uploader: whatever dies, freezes, forks or is deleted around it, all records arrive."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import psutil
from lives import HURRIED, TAKES_THE_LOCK, end, grown, log_without_uploader, push_of
from programs import wait_for
from runs import (
    LOG_AND_EXIT,
    acknowledged,
    check_oracle,
    finished,
    kill_uploaders,
    living_uploader,
    no_uploader,
    run,
    silent_hub,
    uploader_pid,
    uploaders,
)

from hf_mpwriter.daemon import background
from hf_mpwriter.spool.layout import Spool
from hf_mpwriter.system import process as process_module


def test_an_uploader_that_is_stopped_is_named_and_not_replaced(hub, run_dir, tmp_path, start):
    """SIGSTOP: training goes on, its end and `status` name what helps; after SIGCONT everything arrives."""
    worker = start(HURRIED, run_dir, tmp_path / "journals")
    pid = wait_for(lambda: uploader_pid(run_dir), "an uploader")
    wait_for(lambda: acknowledged(run_dir), "a commit")
    os.kill(pid, signal.SIGSTOP)
    try:
        code, _, errors = start(LOG_AND_EXIT, run_dir, 50, env={"HF_MPWRITER_EXIT_TIMEOUT": "0.5"}).finish()
        assert code == 0
        assert errors.count(f"the uploader does not work: process {pid} is stopped") == 1, errors
        assert errors.count(f"kill -CONT {pid}") == errors.count("hf-mpwriter sync") == 1, errors
        assert f"process {pid} is stopped" in run("status", run_dir).output
        assert worker.process.poll() is None
        assert uploaders(run_dir) - {push_of(run_dir)} == {pid}
    finally:
        os.kill(pid, signal.SIGCONT)
    wait_for(grown(run_dir, acknowledged(run_dir)), "it goes on")
    assert uploader_pid(run_dir) == pid
    assert "is stopped" not in run("status", run_dir).output
    end(worker, run_dir)
    check_oracle(run_dir, hub, tmp_path / "journals")


def test_the_kernel_takes_uploader_and_push_before_training_and_a_push_inherits_no_lock(tmp_path, start, monkeypatch):
    """Both rank below training, an even higher OOM score stays; a push has its streams, the spool and what it opens."""
    with silent_hub() as listener:
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{listener.getsockname()[1]}")
        higher = "open('/proc/self/oom_score_adj', 'w').write('800')\n"
        for attempt, (before, score) in enumerate([("", background.OOM_SCORE_ADJ), (higher, 800)]):
            place = tmp_path / str(attempt) / "run"  # side by side, the second would finish the first
            start(before + LOG_AND_EXIT, place, 5, env={"HF_MPWRITER_EXIT_TIMEOUT": "0"}).succeed()
            push = wait_for(lambda place=place: push_of(place), "a push")
            pid = living_uploader(place)
            for process in map(psutil.Process, (pid, push)):
                assert Path("/proc", str(process.pid), "oom_score_adj").read_text().strip() == str(score)
                assert process.nice() >= background.NICENESS
                assert process.ionice().ioclass == psutil.IOPRIO_CLASS_IDLE
                assert os.sched_getscheduler(process.pid) == os.SCHED_BATCH
            wait_for(
                lambda push=push: sum("socket" in link for link in descriptors(push)) > 1,
                "it is connected to the Hub, and to its uploader",
            )
            spool = Spool(str(place))
            ours = {link for link in descriptors(push) if link.startswith(spool.root)}
            assert ours == {spool.root, str(spool.host(process_module.host_id()).daemon("uploader").log)}
            assert sum("pipe" in link for link in descriptors(push)) == 1, "one pipe, for the verdict"
            os.kill(pid, signal.SIGKILL)
            wait_for(lambda push=push: not psutil.pid_exists(push), "the push dies with its uploader")


def descriptors(pid: int) -> list[str]:
    """The targets of the open descriptors of a process, each pipe once."""
    found = {}
    for name in os.listdir(f"/proc/{pid}/fd"):
        try:
            link = os.readlink(f"/proc/{pid}/fd/{name}")
        except OSError:
            continue
        found.setdefault(link, name)
    return list(found)


def test_a_spool_that_another_version_has_taken_over_is_left_alone(hub, run_dir, tmp_path, start):
    """One warning, training logs on, no uploader starts; when the format is ours again, everything arrives."""
    worker = start(HURRIED, run_dir, tmp_path / "journals")
    wait_for(lambda: acknowledged(run_dir), "a commit")
    spool = Spool(str(run_dir))
    mark = Path(spool.root, "FORMAT")
    before = mark.read_text()
    mark.write_text("hf-mpwriter 99\n")
    kill_uploaders(run_dir)
    wait_for(lambda: no_uploader(run_dir), "it is gone")
    state = {path: path.read_bytes() for path in Path(spool.hosts).rglob("*.json")}
    logged = sum(path.stat().st_size for path in run_dir.glob("*tfevents*"))
    wait_for(lambda: sum(p.stat().st_size for p in run_dir.glob("*tfevents*")) > logged + 1000, "training logs on")
    assert uploaders(run_dir) == set()
    assert {path: path.read_bytes() for path in Path(spool.hosts).rglob("*.json")} == state
    code, _, errors = start(LOG_AND_EXIT, run_dir, 1).finish()
    assert (code, "the format 'hf-mpwriter 99'" in errors) == (1, True), "a start is refused, before training"
    mark.write_text(before)
    os.kill(worker.pid, signal.SIGKILL)
    _, _, errors = worker.finish()
    assert errors.count("cannot start an uploader") == errors.count("has the format 'hf-mpwriter 99'") == 1, errors
    start(LOG_AND_EXIT, run_dir, 1).succeed()
    wait_for(lambda: finished(run_dir), "everything arrives")
    check_oracle(run_dir, hub, tmp_path / "journals")


KILLED_AT_THE_START = """
import os, signal, sys
os.setsid()
from hf_mpwriter import HFSummaryWriter
from hf_mpwriter.system import launch
real = launch.start
def spawn(*arguments, **descriptors):
    real(*arguments, **descriptors)
    os.killpg(0, signal.SIGKILL)
launch.start = spawn
writer = HFSummaryWriter("me/run", logdir=sys.argv[1])
writer.add_scalar("loss", 1.0, 1)
"""


def test_the_uploader_outlives_a_worker_that_is_killed_right_after_the_start(hub, run_dir, start):
    """As with launchers, the signal goes to the whole process group, before the uploader has done anything."""
    code, _, _ = start(KILLED_AT_THE_START, run_dir).finish()
    assert code == -signal.SIGKILL
    wait_for(lambda: finished(run_dir), "the uploader sends what it finds and leaves")
    assert [file.hub_events for file in check_oracle(run_dir, hub).files.values()] == [1]


def test_a_worker_is_not_the_parent_of_its_uploader(run_dir, start, monkeypatch):
    """A kill of the worker's process tree must spare the uploader: its first half ends before it loads anything."""
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    source = """
import os, sys, time
from hf_mpwriter import HFSummaryWriter
writer = HFSummaryWriter("me/run", logdir=sys.argv[1], exit_timeout=0)
writer.add_scalar("loss", 1.0, 1)
(pid,) = writer._worker._election.children
loaded = "no"
while os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
    with open(f"/proc/{pid}/maps") as file:
        if "psutil" in file.read():
            loaded = "psutil"
print(loaded)
"""
    assert start(source, run_dir).succeed() == "no\n"
    os.kill(wait_for(lambda: uploader_pid(run_dir), "the uploader"), signal.SIGKILL)


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


def test_a_worker_that_lives_between_the_decision_to_leave_and_the_leaving_is_not_missed(hub, run_dir, tmp_path, start):
    """It finds the lock taken when it keeps house once: the uploader scans again after it released the lock."""
    Spool(str(run_dir)).create()
    log_without_uploader(start, run_dir, 5)
    uploader = start(HESITATES, run_dir, tmp_path / "go on")
    assert uploader.process.stdout.readline() == "leaving\n"
    log_without_uploader(start, run_dir, 7)
    (tmp_path / "go on").touch()
    assert uploader.finish()[0] == 0
    assert finished(run_dir)
    assert sorted(file.hub_events for file in check_oracle(run_dir, hub).files.values()) == [5, 7]
