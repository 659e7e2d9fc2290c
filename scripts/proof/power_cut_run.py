"""One run of `power_cut.py`: ranks, uploader and pushes on a disk whose power is cut."""

from __future__ import annotations

import contextlib
import itertools
import multiprocessing
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from lib.waiting import DEADLINE, wait_for
from power_cut_disk import LoopDisk, forget_lost, has_power

from hf_mpwriter import HFSummaryWriter
from hf_mpwriter.base.errors import HfMpWriterError
from hf_mpwriter.base.settings import Destination
from hf_mpwriter.events import series
from hf_mpwriter.localhub import LocalHub
from hf_mpwriter.localhub.errors import Refusal
from hf_mpwriter.snapshot import event_files
from hf_mpwriter.spool import layout, starts
from hf_mpwriter.spool.ledger import load, set_aside
from hf_mpwriter.spool.outbox import InFlightRecord, Outbox, interrupted
from hf_mpwriter.system import process as process_module
from hf_mpwriter.testing import Journal, check, processes, read_journals

if TYPE_CHECKING:
    from hf_mpwriter.push.client import Hub

RANKS = 3
CUTS = 5  # of one run directory, at most
PAUSE = 0.002  # seconds between two events
STOP = "stop"  # a file in the directory of the journals; the ranks end when it appears
FLUSHES, REQUESTS = 0.01, 0.01  # shares of the events that are followed by a flush or by a request
SEGMENT = 16 << 10  # bytes of a segment: ranks open new ones all the time
WORST = InFlightRecord(0, fenced=False)  # how a record that cannot be read is interpreted
MOMENTS = {  # event to wait for -> seconds until the power is cut, at most
    "logging": 1.5,
    "rotation": 0.01,
    "put": 0.05,
    "in_flight": 0.1,
    "push": 1.5,
    "commit": 0.2,
    "ledger": 0.05,
    "leave": 1.0,
}


def work(rank: int, repo: str, run_dir: str, journals: str, seed: str) -> None:
    """Be a rank until the file STOP appears."""
    series.SEGMENT_MIN = series.SEGMENT_MAX = SEGMENT
    starts.LONGEST_PAUSE = 0.5
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(RANKS), "HF_MPWRITER_TIMING": "housekeeping_every=0.2"}
    try:
        log(f"rank{rank}", repo, run_dir, journals, random.Random(seed))
    except HfMpWriterError:  # the run directory is gone, or cannot be read
        if has_power(os.path.dirname(run_dir)):
            raise


def log(tag: str, repo: str, run_dir: str, journals: str, rng: random.Random) -> None:
    """Log, from the step after the last one in the journals."""
    first = sum(1 for note in read_journals(journals) if note.tag == tag)
    journal = Journal(journals)
    with HFSummaryWriter(repo, logdir=run_dir, commit_every=0.01) as writer:
        for step in itertools.count(first):
            writer.add_scalar(tag, rng.random(), step)
            journal.note(writer, tag, step)
            dice = rng.random()
            if dice < FLUSHES:
                writer.flush()
                if has_power(run_dir):  # otherwise the flush may have come too late
                    journal.flushed()
            elif dice < FLUSHES + REQUESTS:
                writer.push()
            if os.path.exists(os.path.join(journals, STOP)):
                return
            time.sleep(PAUSE)


class Run:
    """One run directory on a disk of its own: cuts, then a drain."""

    def __init__(self, root: Path, drive: LoopDisk, hub: LocalHub, seed: str, done: Counter[str]) -> None:
        self.drive, self.hub, self.seed, self.done = drive, hub, seed, done
        self.repo = f"cut/{root.name}"
        self.run_dir, self.journals = os.path.join(drive.path, "run"), str(root / "journals")
        os.makedirs(self.journals)
        self.spool = layout.Spool(self.run_dir)
        self.host = self.spool.host(process_module.host_id())
        self.rng = random.Random(seed)
        self.ranks: list[multiprocessing.process.BaseProcess] = []

    def start(self, number: int) -> None:
        """Fork the ranks from this process, which has imported everything."""
        fork = multiprocessing.get_context("fork")
        for rank in range(RANKS):
            arguments = (rank, self.repo, self.run_dir, self.journals, f"{self.seed} {number} {rank}")
            self.ranks.append(fork.Process(target=work, args=arguments))
            self.ranks[-1].start()

    def commits(self) -> int:
        """Return the number of commits on the Hub."""
        try:
            return len(self.hub.store.commits("model", self.repo))
        except Refusal:  # there is no repository yet
            return 0

    def files(self) -> int:
        """Return the number of files in the run directory."""
        return sum(1 for _ in event_files.walk(self.spool.run))

    def await_moment(self, moment: str) -> None:
        """Wait until the event is seen, then for a random part of its time."""
        files = self.files()
        state: Callable[[], int] = {
            "logging": lambda: sum(file.stat().st_size for file in os.scandir(self.journals)),
            "rotation": lambda: self.files() > files + RANKS,
            "put": lambda: _version(self.host.outbox),
            "in_flight": lambda: _version(self.host.in_flight),
            "push": lambda: processes.push(self.run_dir),
            "commit": self.commits,
            "ledger": lambda: _version(self.host.ledger),
            "leave": self.commits,
        }[moment]
        before = state()
        wait_for(lambda: state() not in (before, 0), f"the moment {moment!r}")
        if moment == "leave":
            Path(self.journals, STOP).touch()
        time.sleep(self.rng.uniform(0.0, MOMENTS[moment]))

    def end_all(self) -> None:
        """Kill all processes of the run, as a power cut does."""
        for process in self.ranks:
            process.kill()
        for process in self.ranks:
            process.join(DEADLINE)
        self.ranks.clear()
        while pids := processes.left_behind(self.run_dir):
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    def cut(self, number: int, moment: str) -> list[str]:
        """Run until the moment, cut the power, check what is left."""
        self.start(number)
        self.await_moment(moment)
        self.drive.cut()
        self.end_all()
        self.spool.release()
        self.drive.restart()
        Path(self.journals, STOP).unlink(missing_ok=True)
        self.done[moment] += 1
        self.done["records that were not flushed"] += forget_lost(self.journals, self.run_dir)
        return [f"cut {number} ({moment}): {finding}" for finding in self.check(drained=False)]

    def drain(self) -> list[str]:
        """Let the run end; check what is left."""
        before = self.commits()
        self.start(CUTS)
        wait_for(lambda: self.commits() > before, "a commit after the last cut")
        Path(self.journals, STOP).touch()
        for process in self.ranks:
            process.join(DEADLINE)
            if process.exitcode != 0:
                raise RuntimeError(f"a rank ended with {process.exitcode}")
        wait_for(lambda: not processes.left_behind(self.run_dir), "the uploader has left")
        return [f"after the drain: {finding}" for finding in self.check(drained=True)]

    def check(self, *, drained: bool) -> list[str]:
        """Return what the oracle finds, and records of bytes that do not exist."""
        from hf_mpwriter.push.client import Hub

        destination = self.spool.destination()
        if destination is None:
            return ["there are commits, but no destination is recorded"] if self.commits() else []
        hub = Hub(destination)
        report = check(self.run_dir, hub, read_journals(self.journals), drained=drained)
        if drained:
            print(
                f"{self.repo}: {report.returned} returned, {report.lost} lost, {report.duplicated} duplicated, "
                f"{len(report.files)} files, {report.commits} commits",
                flush=True,
            )
        return [*self.torn(), *report.problems, *self.false_claims(hub, destination), *self.hollow_batches()]

    def torn(self) -> Iterator[str]:
        """Yield state files that are neither whole nor gone."""
        if set_aside(self.spool, process_module.host_id()):
            yield "the ledger is torn"
        if interrupted(self.host) == WORST:
            yield "the record in flight is torn"
        batches = len(list(Path(self.host.outbox).glob("*.json")))
        if len(Outbox(self.host, self.spool.run).batches) != batches:  # it drops what it cannot read
            yield "a batch is torn"

    def false_claims(self, hub: Hub, destination: Destination) -> Iterator[str]:
        """Yield lengths in the ledger that the Hub does not have."""
        commits = hub.commits()
        head = hub.tree(commits[0]) if commits else {}
        for path, held in load(self.spool, destination).files.items():
            if not held.sent.is_gone and (path not in head or head[path].size < held.length):
                yield f"{path}: the ledger claims {held.length} bytes, the Hub has less"

    def hollow_batches(self) -> Iterator[str]:
        """Yield batches that refer to bytes that do not exist."""
        local = {
            file.path: file.length for file in event_files.EventFileScan(self.spool.run).files(lambda _: True, tuple)
        }
        for batch in Outbox(self.host, self.spool.run).batches:
            for file in batch.files:
                if local.get(file.path, 0) < file.length:
                    yield f"{file.path}: a batch refers to {file.length} bytes, there are {local.get(file.path, 0)}"

    def run(self, cuts: int) -> Iterator[str]:
        """Cut the power so often, then drain; yield findings."""
        for number in range(cuts):
            yield from self.cut(number, self.rng.choice(sorted(MOMENTS)))
        yield from self.drain()


def _version(path: str) -> int:
    """Return a number that changes with the file or directory, 0 if there is none."""
    try:
        return os.stat(path).st_mtime_ns
    except OSError:
        return 0
