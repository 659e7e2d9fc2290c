"""What `uploader.py` measures: runs with real workers and uploaders on a local Hub.

Workers are forked from the script, which has imported everything: 64 of them share most of their memory.
"""

from __future__ import annotations

import contextlib
import itertools
import multiprocessing
import os
import random
import shutil
import signal
import time
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import psutil
from lib.figures import MIB
from lib.waiting import DEADLINE, wait_for

from hf_mpwriter import HFSummaryWriter, SummaryWriter
from hf_mpwriter.delivery.sinks import HubSink
from hf_mpwriter.localhub import LocalHub
from hf_mpwriter.localhub.errors import Refusal
from hf_mpwriter.spool.layout import Spool
from hf_mpwriter.spool.status import UploaderStatus
from hf_mpwriter.spool.workers.member_lines import Member
from hf_mpwriter.spool.workers.members import Members

PACE = 0.05  # seconds between two events of a worker
BUSY_PACE = 0.001  # seconds between two timed events; in between the worker computes

_fork = multiprocessing.get_context("fork")


# the lives of workers


class Shared:
    """Memory that a worker shares with the script."""

    def __init__(self) -> None:
        self.step = _fork.RawValue("q", -1)  # the last step whose call has returned
        self.asked = _fork.RawValue("b", 0)  # set by the script to have the worker request a push


def log_for_ever(writer: Any, shared: Shared) -> None:
    """Log every PACE seconds; request a push when the script asks for one."""
    for step in itertools.count():
        writer.add_scalar("loss", 0.5, step)
        shared.step.value = step
        if shared.asked.value:
            shared.asked.value = 0
            writer.push(wait=DEADLINE)
        time.sleep(PACE)


def log_once(writer: Any, shared: Shared) -> None:
    """Log one event, then stay alive."""
    writer.add_scalar("loss", 0.5, 0)
    shared.step.value = 0
    while True:
        signal.pause()


def fork_children(writer: Any, shared: Shared, count: int, together: int = 8) -> None:
    """Fork children that log one event and end; log after each fork, as only a log call starts a missing uploader."""
    children = []
    for number in range(count):
        children.append(_fork.Process(target=_log_and_close, args=(writer, number)))
        children[-1].start()
        if len(children) == together:
            children.pop(0).join()
        writer.add_scalar("forked", number, number)
    for child in children:
        child.join()
    shared.step.value = count
    log_for_ever(writer, Shared())


def _log_and_close(writer: Any, number: int) -> None:
    writer.add_scalar("loss", 0.5, number)
    writer.close()


def time_calls(writer: Any, shared: Shared, seconds: float, results: Connection) -> None:
    """Log every BUSY_PACE seconds and compute in between; send the nanoseconds of each call, then its CPU time."""
    clock, processor, pace = time.perf_counter_ns, time.thread_time_ns, int(BUSY_PACE * 1e9)
    took, used = array("q"), array("q")
    now = clock()
    end = now + int(seconds * 1e9)
    for step in itertools.count():
        until = now + pace
        while (now := clock()) < until:
            pass
        if now > end:
            break
        cpu_before, now = processor(), clock()
        writer.add_scalar("loss", 0.5, step)
        took.append(clock() - now)
        used.append(processor() - cpu_before)
        shared.step.value = step
    results.send_bytes((took + used).tobytes())
    while True:
        signal.pause()


class Worker:
    """A rank of a run, in a process of its own."""

    def __init__(self, run: Run, rank: int, life: Callable[..., None], *arguments: Any) -> None:
        self.shared = Shared()
        self._process = _fork.Process(target=self._live, args=(run, rank, life, *arguments))
        self._process.start()

    def _live(self, run: Run, rank: int, life: Callable[..., None], *arguments: Any) -> None:
        os.environ |= {"RANK": str(rank), "WORLD_SIZE": "64"}
        life(run.writer(), self.shared, *arguments)

    @property
    def step(self) -> int:
        """The last step whose call has returned."""
        return int(self.shared.step.value)

    def kill(self) -> None:
        """Kill it with SIGKILL and wait until it has ended."""
        self._process.kill()
        self._process.join()


class Run:
    """One run directory on the local Hub."""

    def __init__(self, directory: Path, name: str, hub: LocalHub | None) -> None:
        self.path, self.repo, self._hub = directory / name, f"bench/{name}", hub
        self.spool = Spool(str(self.path))
        self._progress = HubSink(self.spool)
        self._members = Members(self.spool)
        self._workers: list[Worker] = []

    def writer(self) -> Any:
        """Return a new writer in this process."""
        if self._hub is None:
            return SummaryWriter(self.path)
        return HFSummaryWriter(self.repo, logdir=str(self.path))

    def start(self, rank: int, life: Callable[..., None], *arguments: Any) -> Worker:
        """Start a worker."""
        worker = Worker(self, rank, life, *arguments)
        self._workers.append(worker)
        return worker

    def report(self) -> UploaderStatus:
        """Return the status of the uploader."""
        return self._progress.status()

    def uploader(self) -> int:
        """Return the process id of the uploader that holds the lock, 0 if there is none."""
        pid = self.report().pid
        with contextlib.suppress(psutil.Error):
            if pid and str(self.path) in psutil.Process(pid).cmdline() and self._progress.is_alive():
                return pid
        return 0

    def members(self) -> list[Member]:
        """Return the registered workers."""
        return self._members.all()

    def is_at_rest(self) -> bool:
        """Return whether the Hub has events of every worker and no push is pending."""
        ledger, report = self._progress.ledger(), self.report()
        if ledger is None or report.phase != "idle" or report.waiting:
            return False
        paths = [path for member in self.members() for path in member.files]
        return bool(paths) and all(map(ledger.length, paths)) and all(member.alive for member in self.members())

    def newest_file(self, worker_dir: str) -> Path:
        """Return the absolute path of a worker's newest event file."""
        return max((self.path / worker_dir).glob("events*"), key=lambda path: path.name)

    def bytes_on_hub(self, file: Path) -> int:
        """Return how many bytes of an event file are in the store of the Hub."""
        with contextlib.suppress(Refusal, KeyError):
            path = f"tensorboard/{self.path.name}/{file.relative_to(self.path)}"
            return int(self._hub.store.tree("model", self.repo)[path].size) if self._hub else 0
        return 0

    def end(self) -> None:
        """Kill the workers, which would replace the uploader, then the uploader."""
        for worker in self._workers:
            worker.kill()
        self._workers.clear()
        wait_for(self._is_without_uploader, "the uploader has ended")

    def _is_without_uploader(self) -> bool:
        if pid := self.uploader():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return not self._progress.is_alive()


@contextlib.contextmanager
def stopped(hub: LocalHub) -> Iterator[None]:
    """Suspend the Hub: its sockets accept connections, requests get no answer."""
    if hub.pid is None:
        raise RuntimeError("the Hub has ended")
    os.kill(hub.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(hub.pid, signal.SIGCONT)


@dataclass(frozen=True)
class Scale:
    """How much to do."""

    kills: int  # of uploaders, and of workers of each kind
    pairs: int  # of runs, one with a Hub that hangs, one without a Hub
    timed: float  # seconds of each of these runs
    watched: float  # seconds for which an idle uploader is watched
    workers: int  # that live beside the idle uploader
    files: int  # that are on the Hub from the start
    children: int  # that log one event each
    pushed: int = 64 * MIB  # bytes of the file that a push sends


class Bench:
    """What all measurements share: a directory, a Hub, a scale and random numbers."""

    def __init__(self, directory: Path, hub: LocalHub, scale: Scale, rng: random.Random) -> None:
        self.directory, self.hub, self.scale, self.rng = directory, hub, scale, rng

    @contextlib.contextmanager
    def run(self, name: str, *, local: bool = False) -> Iterator[Run]:
        """Make a run; end its processes and remove it."""
        run = Run(self.directory / "runs", name, None if local else self.hub)
        try:
            yield run
        finally:
            run.end()
            shutil.rmtree(run.path, ignore_errors=True)  # a new uploader looks for unfinished runs in the same folder
