"""The runs of `sweep.py`: a run directory each, with workers that log, note each returned call, die and come back.

<root>/runs/trial00/       the run directory of run 0; that of the run with a full disk is on a disk of its own
<root>/control/            see `soaking/inside`; the same for all runs, so that one uploader may serve them
<root>/journals/trial00/   what has returned
<root>/said/trial00        what its workers have said: time, process, text
<root>/stop/trial00        its workers end when it appears
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import multiprocessing
import os
import random
import re
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lib.prctl import die_with_parent
from soaking import inside
from soaking import rank as rank_of_soak
from soaking.run import doubled, remnants, send
from sweep_hosts import Host

from hf_mpwriter.localhub import LocalHub, View
from hf_mpwriter.spool.layout import Spool
from hf_mpwriter.testing import Report, check, read_journals

PAUSE = 0.15  # seconds between two events of a worker
CHILD_EVERY = 60  # events of a worker with children
COMMIT_EVERY = 0.05  # minutes
GONE = (0.0, 3.0)  # seconds until a worker that has died is started again
SAID = re.compile(r"(\d+\.\d+) (\d+) (.*)")

_fork = multiprocessing.get_context("fork")


@dataclass(frozen=True)
class Line:
    """What a worker has said."""

    at: float  # unix time
    pid: int
    text: str


class SweepRun:
    """One run of the sweep, seen by the script."""

    def __init__(self, root: Path, number: int, rng: random.Random, hosts: Sequence[Host], place: str = "") -> None:
        self.number, self.name, self._rng, self._hosts = number, f"trial{number:02d}", rng, (None, *hosts)
        twin = number if hosts else number // 2  # runs of one name are told apart on one host
        twins = root / "runs" / f"sweep{'AB'[number % 2]}" / f"lr{twin:02d}"
        self.run_dir = os.path.join(place, self.name) if place else str(twins)
        self.journals, self.said = str(root / "journals" / self.name), root / "said" / self.name
        self._stop, self._ends_at = root / "stop" / self.name, 0.0
        for folder in (Path(self.journals), self.said.parent, self._stop.parent):
            folder.mkdir(parents=True, exist_ok=True)
        self._workers: dict[int, multiprocessing.process.BaseProcess] = {}
        self._returns_at = [0.0] * rng.choice((1, 1, 2))  # monotonic seconds, per rank
        self.fault = ""  # what happens to this run alone, "" for nothing
        self.struck: set[int] = set()  # pids that were killed
        self.findings: list[str] = []  # broken promises

    # workers

    def revive(self) -> None:
        """Start the workers that have been gone long enough; see how they ended."""
        now = time.monotonic()
        for rank in list(self._workers):
            if not self._workers[rank].is_alive():
                self._check_end(self._workers.pop(rank))
                self._returns_at[rank] = now + self._rng.uniform(*GONE)
        if self._stop.exists() and not self._workers:
            self._stop.unlink()
        if not self._stop.exists():
            for rank, at in enumerate(self._returns_at):
                if rank not in self._workers and now >= at:
                    self._start(rank)

    def _start(self, rank: int) -> None:
        host = self._rng.choice(self._hosts)
        arguments = (self, rank, len(self._returns_at), host, self._rng.random() < 0.25)
        self._workers[rank] = _fork.Process(target=live, args=arguments)
        self._workers[rank].start()

    def _check_end(self, worker: multiprocessing.process.BaseProcess) -> None:
        """Report an end that the script did not cause; a run with a fault of its own may refuse to work."""
        if worker.pid not in self.struck and not self.fault and (worker.exitcode or not self._stop.exists()):
            self.findings.append(f"worker {worker.pid} ended by itself with {worker.exitcode}")

    @property
    def is_logging(self) -> bool:
        """Whether a worker lives that has logged, and is not to end."""
        pids = {str(worker.pid) for worker in self._workers.values() if worker.is_alive()}
        logged = (name.split(".")[1] for name in os.listdir(self.journals))
        return not self._stop.exists() and any(pid in pids for pid in logged)

    def kill(self) -> bool:
        """Send SIGKILL to a worker; return whether there was one."""
        living = [worker.pid or 0 for worker in self._workers.values() if worker.is_alive()]
        pid = self._rng.choice(living) if living else 0
        if hit := send(pid, signal.SIGKILL):
            self.struck.add(pid)
        return hit

    def let_end(self) -> None:
        """Let its workers end; `revive` starts new ones when all have."""
        self._stop.touch()

    def join(self, until: float) -> None:
        """Wait for the end of its workers, until then (monotonic seconds)."""
        for worker in self._workers.values():
            worker.join(max(0.0, until - time.monotonic()))
            if worker.is_alive():
                self.findings.append(f"worker {worker.pid} did not end")
                worker.kill()
                worker.join()
            self._check_end(worker)
        self._workers.clear()

    def end(self) -> None:
        """Kill its workers."""
        for worker in self._workers.values():
            worker.kill()
            worker.join()
            self.struck.add(worker.pid or 0)

    # the judgement

    @property
    def folder(self) -> str:
        """Its folder in the repository."""
        destination = Spool(self.run_dir).destination()
        return destination.path_in_repo if destination else ""

    def judge(self, hub: LocalHub) -> tuple[Report, list[str]]:
        """Let the oracle judge; its report, and all broken promises."""
        view = View(hub.store, inside.REPO, self.folder)
        report = check(self.run_dir, view, read_journals(self.journals))
        found = [*report.problems, *(f"in two files: {key}" for key in doubled(self.run_dir))]
        return report, found + [f"left in the spool: {path}" for path in remnants(self.run_dir)]

    def lines(self) -> list[Line]:
        """What its workers have said."""
        with contextlib.suppress(FileNotFoundError):
            found = map(SAID.fullmatch, self.said.read_text(errors="replace").splitlines())
            return [Line(float(line[1]), int(line[2]), line[3]) for line in found if line]
        return []

    def tells(self, text: str) -> int:
        """How often its workers have told something."""
        return sum(text in line.text for line in self.lines())

    def strange(self) -> list[str]:
        """What its workers have printed beside: tracebacks."""
        with contextlib.suppress(FileNotFoundError):
            return [line for line in self.said.read_text(errors="replace").splitlines() if not SAID.fullmatch(line)]
        return []


# in the worker


def live(run: SweepRun, rank: int, ranks: int, host: Host | None, has_children: bool) -> None:
    """Be a worker, from the fork until the run is to end."""
    die_with_parent()
    said = os.open(run.said, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(said, 1)
    os.dup2(said, 2)
    logging.basicConfig(format="%(created).3f %(process)d %(message)s")
    logging.getLogger("hf_mpwriter").setLevel(logging.INFO)
    ending = str(rank_of_soak.ENDING)
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(ranks), "HF_MPWRITER_EXIT_TIMEOUT": ending}
    if host is not None:
        host.enter()
    hurry()
    tag = f"{run.name}-rank{rank}-{os.getpid()}-{os.urandom(3).hex()}"
    with _begin(run.run_dir) as writer:
        me = rank_of_soak.Rank(writer, run.run_dir, run.journals, tag)
        children = list[int]()
        for step in itertools.count():
            if run._stop.exists():  # noqa: SLF001 - its own file
                break
            me.log(step)
            if has_children and step % CHILD_EVERY == CHILD_EVERY // 2:
                children.append(me.fork())
            time.sleep(PAUSE)
    for pid in children:
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, 0)


def hurry() -> None:
    """Shorten the waits of this process, and of those that it starts."""
    inside.install("rank")
    os.environ["HF_MPWRITER_TIMING"] += " refused_retry_first=2 refused_retry=4"


def _begin(run_dir: str) -> Any:
    from hf_mpwriter import HFSummaryWriter
    from hf_mpwriter.base.errors import HfMpWriterError

    while True:
        try:
            return HFSummaryWriter(inside.REPO, logdir=run_dir, commit_every=COMMIT_EVERY)
        except (HfMpWriterError, OSError) as error:
            logging.getLogger("sweep").warning("the directory cannot be used: %s", error)
            time.sleep(rank_of_soak.BEGINNING)
