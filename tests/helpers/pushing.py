"""Real pushes of one event file to a local Hub: a plugin for tests that make many of them (`pytest_plugins`).

A module shares one Hub and one repository; each run has a folder and a content of its own. Only the client's own
waits between its retries are cut short.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jobs
import pytest
from hub_clients import ask
from programs import wait_for
from support import event_file

from hf_mpwriter.base import state
from hf_mpwriter.base.files import LocalFile
from hf_mpwriter.base.settings import Destination
from hf_mpwriter.base.verdicts import Done, Verdict
from hf_mpwriter.localhub import LocalHub
from hf_mpwriter.push import handle
from hf_mpwriter.push import job as job_module
from hf_mpwriter.spool.layout import Spool

NAME = "events.out.tfevents.1700000000.here.1.0123abcd"
SHORT_SLEEPS = "import time\nsleep = time.sleep\ntime.sleep = lambda seconds: sleep(min(seconds, 0.01))\n"
FORKS = """
import json, os, socket, sys
from hf_mpwriter.base import state
from hf_mpwriter.push import client, process
from hf_mpwriter.push.job import Job
from hf_mpwriter.system import launch
for line in sys.stdin:
    job, output = json.loads(line)
    pid = os.fork()
    if not pid:
        os.dup2(os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 1)
        with open(job, "rb") as file:
            parts = state.load(Job, file.read().split(b"\\n", 1)[1]).parts
        tops = [os.open(part.run_dir, os.O_RDONLY) for part in parts for _ in range(2)]
        write = launch.answer(os.getppid())
        ours, theirs = socket.socketpair()
        socket.send_fds(ours, [b"+"], [os.open(job, os.O_RDONLY), *tops])
        process.serve(lambda message: write(state.to_line(message)), theirs)
        os._exit(0)
    _, status, used = os.wait4(pid, 0)
    print(os.waitstatus_to_exitcode(status), used.ru_maxrss, flush=True)
"""
numbers = itertools.count()


class Pushes:
    """Fork pushes from a process that has loaded the client and never used it: loading takes a second.

    Run directories are their own spools. `peak` is the memory that the last one has taken, in kB.
    """

    peak = 0

    def __init__(self, endpoint: str, prelude: str = "", env: dict[str, str] | None = None) -> None:
        env = (
            os.environ
            | {"HF_ENDPOINT": endpoint, "NO_PROXY": "127.0.0.1", "HF_HUB_DISABLE_TELEMETRY": "1"}
            | (env or {"HF_HUB_DISABLE_XET": "1"})
        )
        command = [sys.executable, "-c", SHORT_SLEEPS + prelude + FORKS]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env, text=True)

    def end(self) -> None:
        """End the process."""
        self.process.stdin.close()
        self.process.wait()

    def verdict(self, job: job_module.Job) -> Verdict:
        """Make one push of one run, and wait for its end."""
        (verdict,) = self.verdicts(job)
        return verdict

    def verdicts(self, job: job_module.Job) -> list[Verdict]:
        """Make one push and wait for its end."""
        path, output = (os.path.join(job.parts[0].run_dir, name) for name in ("job.json", "job.out"))
        with open(path, "wb") as file:
            file.write(b"\n" + state.dump(job))
        self.process.stdin.write(json.dumps([path, output]) + "\n")
        self.process.stdin.flush()
        code, self.peak = map(int, self.process.stdout.readline().split())
        assert code == 0
        with open(output, "rb") as file:
            messages = [message for line in file if (message := job_module.from_line(line)) is not None]
        return messages[-len(job.parts) :]


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    """A Hub with a repository."""
    with LocalHub(tmp_path_factory.mktemp("hub")) as server:
        ask(server, "POST", "/api/repos/create", {"name": "run", "organization": "me"})
        yield server


@pytest.fixture(scope="module")
def pushes(running):
    """The process that pushes are forked from."""
    made = Pushes(running.endpoint)
    yield made
    made.end()


@pytest.fixture
def hub(running):
    """The Hub without faults."""
    running.clear_faults()
    return running


@dataclasses.dataclass
class Run:
    """A run directory with one event file that was not sent yet, and its destination."""

    root: Path
    destination: Destination
    pushes: Pushes
    length: int = 0

    @functools.cached_property
    def spool(self) -> Spool:
        """Its spool, which `create` makes."""
        return Spool(str(self.root))

    def log(self) -> None:
        """Write the event file, with unique content."""
        self.length = event_file(self.root / NAME, 5, tag=f"{self.root}{next(numbers)}")

    def job(self, changes: dict[str, Any]) -> job_module.Job:
        """The job of a push, with these changes."""
        where = changes.get("destination", self.destination)
        fields = {
            "cache": str(self.root / "cache"),
            "files": (LocalFile(NAME, self.length, growing=True),),
            "is_trusted": True,
            "xet": False,
        }
        of_branch = {"destination": dataclasses.replace(where, path_in_repo=""), "folder": where.path_in_repo}
        return jobs.job(self.root, **fields | changes | of_branch)

    def push(self, **changes: Any) -> Verdict:
        """Push the file."""
        return self.pushes.verdict(self.job(changes))

    def push_from_scratch(self, env: dict[str, str], **changes: Any) -> Verdict:
        """Push the file by a client with another environment."""
        with pytest.MonkeyPatch.context() as patch:
            for name, value in env.items():
                patch.setenv(name, value)
            self.spool.create()
            process = handle.PushHandle(self.job(changes), 150.0, [self.spool])
        (verdict,) = wait_for(lambda: process.listen()[1], "the verdict")
        return verdict

    def arrives(self, hub: LocalHub, **changes: Any) -> None:
        """Clear the fault; the same push again ends with the whole file on the Hub."""
        hub.clear_faults()
        assert isinstance(self.push(**changes), Done)
        assert self.on_hub(hub) == (self.root / NAME).read_bytes()

    def is_there(self, hub: LocalHub) -> bool:
        """Whether the Hub has the file."""
        where = self.destination
        return where.path(NAME) in hub.store.tree(where.repo_type, where.repo_id, where.revision)

    def on_hub(self, hub: LocalHub) -> bytes:
        """The bytes of the file on the Hub."""
        where = self.destination
        return hub.store.read_blob(where.repo_type, where.repo_id, where.path(NAME), where.revision)


@pytest.fixture
def run(hub, pushes, tmp_path) -> Run:
    """An event file, to be sent to a folder of its own."""
    folder = f"tensorboard/{next(numbers)}"
    one = Run(tmp_path, Destination(hub.endpoint, "me/run", path_in_repo=folder), pushes)
    one.log()
    return one


@pytest.fixture
def new(run) -> Run:
    """The same run, for a repository that does not exist."""
    where = dataclasses.replace(run.destination, repo_id=f"me/new{next(numbers)}")
    return dataclasses.replace(run, destination=where)


def hits(hub: LocalHub) -> list[int]:
    """How many requests each fault has hit."""
    return [standing.hits for standing in hub.faults()]


def is_as(verdict: Verdict, kind: type, **fields: object) -> bool:
    """Whether a verdict is of a kind and has these fields."""
    return type(verdict) is kind and fields.items() <= dataclasses.asdict(verdict).items()
