"""Runs with real processes: programs that log, and where their records are."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import psutil
from click.testing import CliRunner
from programs import wait_for

from hf_mpwriter import testing
from hf_mpwriter.cli.main import main
from hf_mpwriter.delivery.sinks import HubSink
from hf_mpwriter.localhub import View
from hf_mpwriter.spool.layout import Spool
from hf_mpwriter.system import launch

UPLOADER = launch.KINDS["uploader"].encode()  # stands in its command line
LOG_AND_EXIT = """
import sys
from hf_mpwriter import HFSummaryWriter
with HFSummaryWriter("me/run", logdir=sys.argv[1]) as writer:
    for step in range(int(sys.argv[2])):
        writer.add_scalar("loss", 1 / (step + 1), step)
"""

LOG_AT_ONCE = """
import sys
from hf_mpwriter import HFSummaryWriter
from hf_mpwriter.system import locks
with HFSummaryWriter("me/run", logdir=sys.argv[1]) as writer:
    held = locks.try_exclusive(writer._worker.spool.uploader_lock)  # no uploader meets a part of it
    for step in range(int(sys.argv[2])):
        writer.add_scalar("loss", 1 / (step + 1), step)
    locks.release(held)
"""

LOG_FOR_EVER = """
import sys, time
from hf_mpwriter import HFSummaryWriter
from hf_mpwriter.testing import Journal
writer, journal, step = HFSummaryWriter("me/run", logdir=sys.argv[1], commit_every=0.01), Journal(sys.argv[2]), 0
while True:
    writer.add_scalar("loss", 1 / (step + 1), step)
    journal.note(writer, "loss", step)
    step += 1
    time.sleep(0.002)
"""


def hub_view(hub, repo="me/run", folder="tensorboard/exp1", branch="main", kind="model"):
    """The oracle's view of the local Hub."""
    return View(hub.store, repo, folder, kind, branch)


def check_oracle(run_dir, hub, journals=None, **where):
    """Run the oracle and return its report; its problems are the failure message."""
    returned = testing.read_journals(str(journals)) if journals else ()
    report = testing.check(str(run_dir), hub_view(hub, **where), returned)
    assert report.problems == []
    return report


def uploader_pid(run_dir) -> int:
    """Pid of the living uploader, 0 if there is none."""
    view = HubSink(Spool(str(run_dir)))
    report = view.status()
    return report.pid if report.pid and report.phase != "left" and psutil.pid_exists(report.pid) else 0


def living_uploader(run_dir) -> int:
    """Pid of the uploader, once there is one. A 0 for `os.kill` would be the process group of the tests."""
    return wait_for(lambda: uploader_pid(run_dir), "an uploader lives")


def kill_uploaders(run_dir) -> None:
    """Kill the uploaders of a run directory; one that leaves meanwhile needs no kill."""
    for pid in uploaders(run_dir):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def no_uploader(run_dir) -> bool:
    """Whether the uploader lock is free."""
    return not HubSink(Spool(str(run_dir))).is_alive()


def all_acknowledged(run_dir) -> bool:
    """Whether the ledger covers every event file."""
    files = {str(p.relative_to(run_dir)): p.stat().st_size for p in Path(run_dir).rglob("*tfevents*")}
    return not HubSink(Spool(str(run_dir))).missing(files)


def event_paths(run_dir):
    """Paths in the repository of the event files of a run directory."""
    return sorted(f"tensorboard/exp1/{path.relative_to(run_dir)}" for path in Path(run_dir).rglob("*tfevents*"))


def sync(run_dir, *options):
    """Run `hf-mpwriter sync` in this process."""
    return run("sync", run_dir, *options)


def finished(run_dir) -> bool:
    """Whether everything is sent and the uploader has left."""
    return no_uploader(run_dir) and not os.listdir(Spool(str(run_dir)).members)


def acknowledged(run_dir) -> int:
    """The bytes that the ledger has acknowledged."""
    ledger = HubSink(Spool(str(run_dir))).ledger()
    return sum(held.length for held in ledger.files.values()) if ledger else 0


def bucket_of(run_dir) -> str:
    """The live bucket that the writers of a run have asked for."""
    ledger = HubSink(Spool(str(run_dir))).ledger()
    return ledger.settings.live if ledger and ledger.settings else ""


def in_bucket(hub, bucket="me/run-live"):
    """Bytes of the files in a bucket, {} if there is none."""
    from huggingface_hub import HfApi  # here: not every program of a test needs the client
    from huggingface_hub.errors import BucketNotFoundError

    try:
        found = list(HfApi(endpoint=hub.endpoint).list_bucket_tree(bucket, recursive=True))
    except BucketNotFoundError:
        return {}
    return {one.path: one.size for one in found if hasattr(one, "size")}


OTHER_BOOT = "00000000-0000-4000-8000-000000000000"


def uploaders(run_dir) -> set[int]:
    """The uploaders of a run directory, found by their command lines."""
    found = set()
    for pid in filter(str.isdecimal, os.listdir("/proc")):
        try:
            words = Path("/proc", pid, "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if os.fsencode(run_dir) in words and any(UPLOADER in word for word in words):
            found.add(int(pid))
    return found


def silent_hub(port: int = 0) -> socket.socket:
    """A Hub that accepts connections and never answers."""
    return socket.create_server(("127.0.0.1", port))


WORKER = """
import os, sys, time
from hf_mpwriter import HFSummaryWriter
from hf_mpwriter.spool import status as starts
from hf_mpwriter.testing import Journal
os.environ["HF_MPWRITER_TIMING"] += " housekeeping_every=0.1"
starts.LONGEST_PAUSE = 0.5
writer, journal, step = HFSummaryWriter("me/run", logdir=sys.argv[1], commit_every=0.01), Journal(sys.argv[2]), 0
while not os.path.exists(sys.argv[3]):
    writer.add_scalar("loss", 1 / (step + 1), step)
    journal.note(writer, "loss", step)
    step += 1
    time.sleep(0.002)
writer.close(wait=True)
"""


def status_of(run_dir) -> str:
    """The output of `hf-mpwriter status`, in both forms."""
    command = [sys.executable, "-m", "hf_mpwriter", "status", str(run_dir)]
    shown = [
        subprocess.run([*command, *more], capture_output=True, text=True, check=False) for more in ([], ["--json"])
    ]
    assert {done.returncode for done in shown} <= {0, 3, 4}, shown
    return "".join(done.stdout for done in shown)


def run(*arguments):
    """Run a command in this process."""
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def others_may_read(run_dir, folder: str) -> bool:
    """Whether those who may read a run directory may read a folder of it, where only their owner writes."""
    top = os.stat(run_dir).st_mode & 0o755
    modes = [
        (path.is_dir(), path.stat().st_mode & 0o777)
        for path in (Path(run_dir, folder), *Path(run_dir, folder).rglob("*"))
    ]
    return len(modes) > 1 and all(mode == (top if is_dir else top & 0o666) for is_dir, mode in modes)
