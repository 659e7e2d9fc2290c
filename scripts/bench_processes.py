"""What `bench_uploader.py` measures: runs with real workers and uploaders on a local Hub, and what a process costs.

Workers are forked from the script, where everything is imported already: 64 of them share most of their memory.
"""

from __future__ import annotations

import contextlib
import itertools
import multiprocessing
import os
import signal
import time
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Self, TypeVar

import psutil

from hf_mpwriter import HFSummaryWriter, SummaryWriter
from hf_mpwriter.localhub import LocalHub
from hf_mpwriter.localhub.errors import Refusal
from hf_mpwriter.spool.layout import Spool
from hf_mpwriter.spool.members import Member, Members
from hf_mpwriter.spool.progress import Progress
from hf_mpwriter.spool.status import UploaderStatus

DEADLINE = 300.0  # seconds for anything to happen
POLL = 0.005  # seconds between two looks at a condition
PACE = 0.05  # seconds between two events of a worker
BUSY_PACE = 0.001  # seconds between two events that are timed; in between the worker computes
MIB = 1 << 20

_fork = multiprocessing.get_context("fork")
_T = TypeVar("_T")


def wait_for(condition: Callable[[], _T], what: str) -> _T:
    """Wait until a condition is true, and return its value; the script fails if it never is."""
    end = time.monotonic() + DEADLINE
    while not (value := condition()):
        if time.monotonic() > end:
            raise TimeoutError(f"waited {DEADLINE:.0f} s in vain: {what}")
        time.sleep(POLL)
    return value


# what a process costs


@dataclass(frozen=True)
class Memory:
    """Memory of a process in bytes: what it shares is counted by its part (pss), fully (rss), not at all (private)."""

    pss: int = 0
    rss: int = 0
    private: int = 0

    @classmethod
    def of(cls, pid: int) -> Self:
        """Of a living process; nothing of one that is gone."""
        with contextlib.suppress(OSError):
            rows = (line.split() for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:])
            sizes = {name.rstrip(":"): int(size) << 10 for name, size, *_ in rows}
            if sizes:
                return cls(sizes["Pss"], sizes["Rss"], sizes["Private_Clean"] + sizes["Private_Dirty"])
        return cls()


def cpu(pid: int) -> float:
    """Seconds of processor that the threads of a process have used, to the nanosecond where the kernel tells."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9


# what workers do


class Shared:
    """What a worker and the script tell each other.

    Attributes:
        step: the last one whose call has returned.
        asked: set by the script: ask for a push.
    """

    def __init__(self) -> None:
        self.step = _fork.RawValue("q", -1)
        self.asked = _fork.RawValue("b", 0)


def log_for_ever(writer: Any, shared: Shared) -> None:
    """Log every PACE seconds; ask for a push when told to."""
    for step in itertools.count():
        writer.add_scalar("loss", 0.5, step)
        shared.step.value = step
        if shared.asked.value:
            shared.asked.value = 0
            writer.push(wait=DEADLINE)
        time.sleep(PACE)


def log_once(writer: Any, shared: Shared) -> None:
    """Log one event and stay alive."""
    writer.add_scalar("loss", 0.5, 0)
    shared.step.value = 0
    while True:
        signal.pause()


def bear_children(writer: Any, shared: Shared, count: int, together: int = 8) -> None:
    """Have children that log one event and end; log after each, so that somebody looks for an uploader."""
    children = []
    for number in range(count):
        children.append(_fork.Process(target=_log_and_close, args=(writer, number)))
        children[-1].start()
        if len(children) == together:
            children.pop(0).join()
        writer.add_scalar("born", number, number)
    for child in children:
        child.join()
    shared.step.value = count
    log_for_ever(writer, Shared())


def _log_and_close(writer: Any, number: int) -> None:
    writer.add_scalar("loss", 0.5, number)
    writer.close()


def time_calls(writer: Any, shared: Shared, seconds: float, tell: Connection) -> None:
    """Log every BUSY_PACE seconds, compute in between; tell the nanoseconds of each call, then those of processor."""
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
        began, now = processor(), clock()
        writer.add_scalar("loss", 0.5, step)
        took.append(clock() - now)
        used.append(processor() - began)
        shared.step.value = step
    tell.send_bytes((took + used).tobytes())
    while True:
        signal.pause()


class Worker:
    """A rank of a run, in a process of its own.

    Args:
        run: where it logs.
        rank: its rank.
        life: called with the writer, what is shared with the script, and the arguments.
        arguments: for `life`.
    """

    def __init__(self, run: Run, rank: int, life: Callable[..., None], *arguments: Any) -> None:
        self.shared = Shared()
        self._process = _fork.Process(target=self._live, args=(run, rank, life, *arguments))
        self._process.start()

    def _live(self, run: Run, rank: int, life: Callable[..., None], *arguments: Any) -> None:
        os.environ |= {"RANK": str(rank), "WORLD_SIZE": "64"}
        life(run.writer(), self.shared, *arguments)

    @property
    def step(self) -> int:
        """The last step that has returned."""
        return int(self.shared.step.value)

    def kill(self) -> None:
        """SIGKILL; returns when it is gone."""
        self._process.kill()
        self._process.join()


class Run:
    """One run directory on the local Hub.

    Args:
        directory: where the run directory is made.
        name: of run directory and repository.
        hub: where it goes, None for a local run.
    """

    def __init__(self, directory: Path, name: str, hub: LocalHub | None) -> None:
        self.path, self.repo, self._hub = directory / name, f"bench/{name}", hub
        self.spool = Spool(str(self.path))
        self._progress = Progress(self.spool)
        self._roster = Members(self.spool)
        self._workers: list[Worker] = []

    def writer(self) -> Any:
        """A new writer of this process."""
        if self._hub is None:
            return SummaryWriter(self.path)
        return HFSummaryWriter(self.repo, logdir=str(self.path))

    def start(self, rank: int, life: Callable[..., None], *arguments: Any) -> Worker:
        """Start a worker."""
        worker = Worker(self, rank, life, *arguments)
        self._workers.append(worker)
        return worker

    def report(self) -> UploaderStatus:
        """What the uploader says of itself."""
        return self._progress.uploader()

    def uploader(self) -> int:
        """Process id of the uploader that holds the uploader lock, 0 if there is none."""
        pid = self.report().pid
        with contextlib.suppress(psutil.Error):
            if pid and str(self.path) in psutil.Process(pid).cmdline() and self._progress.uploader_is_alive():
                return pid
        return 0

    def members(self) -> list[Member]:
        """Everybody who has a card."""
        return self._roster.members()

    def is_at_rest(self) -> bool:
        """Whether the Hub has something of every worker, and nothing is under way."""
        book, report = self._progress.ledger(), self.report()
        if book is None or report.phase != "idle" or report.waiting:
            return False
        paths = [path for member in self.members() for path in member.files]
        return bool(paths) and all(map(book.length, paths)) and all(member.alive for member in self.members())

    def newest_file(self, worker_dir: str) -> Path:
        """The event file of a worker, absolute."""
        return max((self.path / worker_dir).glob("events*"), key=lambda path: path.name)

    def bytes_on_hub(self, file: Path) -> int:
        """Bytes that the Hub has of an event file, read from its store."""
        with contextlib.suppress(Refusal, KeyError):
            path = f"tensorboard/{self.path.name}/{file.relative_to(self.path)}"
            return int(self._hub.store.tree("model", self.repo)[path].size) if self._hub else 0
        return 0

    def end(self) -> None:
        """Kill the workers, then the uploader that they would replace."""
        for worker in self._workers:
            worker.kill()
        self._workers.clear()
        wait_for(self._is_without_uploader, "the uploader is gone")

    def _is_without_uploader(self) -> bool:
        if pid := self.uploader():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return not self._progress.uploader_is_alive()


@contextlib.contextmanager
def stopped(hub: LocalHub) -> Iterator[None]:
    """A Hub that hangs for a while: its sockets accept, and nobody answers."""
    if hub.pid is None:
        raise RuntimeError("the Hub has ended")
    os.kill(hub.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(hub.pid, signal.SIGCONT)
