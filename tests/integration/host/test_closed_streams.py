"""Standard streams that a daemon or a launcher has closed: no descriptor of ours takes their place, in no process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from programs import DEADLINE, wait_for
from runs import check_oracle, living_uploader, no_uploader
from support import keys

LOG = """
import ctypes, os, sys, threading
closed = [int(n) for n in sys.argv[2]]
for fd in closed:
    try: os.close(fd)
    except OSError: pass  # the shell has closed it
from hf_mpwriter import HFSummaryWriter
import numpy as np
libc, stop = ctypes.CDLL(None), threading.Event()

def chatter():
    while not stop.is_set():
        print("x" * 50, flush=True)
        libc.write(1, b"native", 6)
        libc.write(2, b"native", 6)

def ours_below():
    found = []
    for fd in closed:
        try: found.append(os.readlink(f"/proc/self/fd/{fd}"))
        except OSError: pass
    return [path for path in found if path != "/"]  # a placeholder

def log(first):
    for step in range(first, first + 200):
        writer.add_scalar("loss", 0.5, step)
        writer.add_scalars("more", {"a": 1.0, "b": 2.0}, step)
        if step % 50 == 0:
            writer.add_embedding(np.eye(2), global_step=step)
            writer.flush()
            assert not ours_below(), ours_below()

os.environ["HF_MPWRITER_EXIT_TIMEOUT"] = "120"
threads = [threading.Thread(target=chatter) for _ in range(2)]
for thread in threads: thread.start()
writer = HFSummaryWriter("me/run", logdir=sys.argv[1], commit_every=0.01)
assert not ours_below(), ours_below()
log(0)
stop.set()
if not (pid := os.fork()):
    log(1000)
    writer.close()
    os._exit(bool(ours_below()))
assert os.waitpid(pid, 0)[1] == 0
writer.close()
assert not ours_below(), ours_below()
"""


def steps(run_dir: Path) -> set[int]:
    """The steps of all event files, which consist of whole records."""
    return {step for path in run_dir.rglob("*tfevents*") for tag, step in keys(path) if tag == "loss"}


def test_streams_that_the_shell_has_closed_are_no_files_of_ours(hub, run_dir):
    """`>&-` and the like: Python starts without them, and so do the uploader and its pushes."""
    script = '"$@" <&- >&- 2>&-'
    shell = ["sh", "-c", script, "sh", sys.executable, "-c", LOG, str(run_dir), "012"]
    assert subprocess.run(shell, check=False, timeout=DEADLINE).returncode == 0
    assert steps(run_dir) == {*range(200), *range(1000, 1200)}
    wait_for(lambda: no_uploader(run_dir), "the uploader leaves")
    check_oracle(run_dir, hub)


LIVE = """
import os, sys, time
for fd in (0, 1, 2):
    os.close(fd)
from hf_mpwriter import HFSummaryWriter
writer = HFSummaryWriter("me/run", logdir=sys.argv[1], commit_every=0.01, exit_timeout=0)
while True:
    writer.add_scalar("loss", 0.5, 1)
    time.sleep(0.01)
"""


def low(pid: int) -> dict[int, str]:
    """What a process has on the numbers below 3."""
    found = {}
    for fd in range(3):
        try:
            found[fd] = os.readlink(f"/proc/{pid}/fd/{fd}")
        except FileNotFoundError:
            continue
    return found


def test_worker_uploader_and_push_have_nothing_of_ours_below_three(hub, run_dir, start):
    """The null device, the log, the job and its pipe are what belongs there; in training nothing does."""
    from runs import HubSink, Spool

    hub.fault("POST /commit/ hang")
    worker = start(LIVE, run_dir)
    view = HubSink(Spool(str(run_dir)))
    wait_for(lambda: view.is_alive() and view.status().pid, "an uploader works")
    uploader = living_uploader(run_dir)
    push = wait_for(lambda: view.status().push, "a push runs")
    seen = [low(pid) for pid in (worker.pid, uploader, push)]
    assert set(seen[0].values()) <= {"/"}, "placeholders at most"
    assert seen[1][0] == os.devnull
    assert {seen[1][1], seen[1][2]} == {
        str(view._spool.host(next(iter(view._spool.host_ids()))).daemon("uploader").log)
    }
    assert all(not path.startswith(str(run_dir)) or path.endswith(".log") for path in seen[2].values()), seen[2]


def test_commands_fill_the_streams_that_are_closed(hub, run_dir, start):
    """A file that they open takes no number below 3; they work, silently."""
    from runs import LOG_AND_EXIT

    start(LOG_AND_EXIT, run_dir, 5).succeed()
    wait_for(lambda: no_uploader(run_dir), "the uploader leaves")
    shell = ["sh", "-c", '"$@" <&- >&- 2>&-', "sh", sys.executable, "-m", "hf_mpwriter", "sync", str(run_dir)]
    assert subprocess.run(shell, check=False, timeout=DEADLINE).returncode == 0
