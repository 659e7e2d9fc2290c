#!/usr/bin/env python3
"""Cut the power of the disk that a run is on, at its worst moments, many times over, and let the oracle judge.

Two kinds of cuts, each on real file systems (`hf_mpwriter.testing.power_cut`):

    --cuts N     the whole system: ranks log, flush, rotate segments and ask for pushes, the real uploader and its
                 pushes work for the local Hub, which is on another disk. When a state is seen (an entry is put, a push
                 starts, a commit arrives, ...) the power is cut a moment later, all processes are killed, the disk is
                 started again and judged; then the run goes on. After CUTS cuts everything drains and is judged again.
    --steps N    one process: files, queue and ledger in seeded order, the power is cut at a named failpoint, that is
                 between any two steps of a write. What had returned must be there, and nothing may be torn.

    scripts/power_cut.py --cuts 50 --steps 300 --seed 1      (these numbers are the default)
    scripts/power_cut.py --sabotage unsynced       a build that is broken on purpose: it must be found

N is for each kind of file system (--kind). It needs root and mkfs.ext4, mkfs.xfs. Exit code 0 if all promises held
(with --sabotage: if the oracle found the sabotage).
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import logging
import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import sabotage
from bench_processes import DEADLINE, wait_for
from power_cut_steps import cut_steps

from hf_mpwriter import HFSummaryWriter
from hf_mpwriter.base.errors import HfMpWriterError
from hf_mpwriter.base.settings import Destination
from hf_mpwriter.events import series
from hf_mpwriter.localhub import LocalHub
from hf_mpwriter.localhub.errors import Refusal
from hf_mpwriter.snapshot import event_files
from hf_mpwriter.spool import layout
from hf_mpwriter.spool.ledger import load, set_aside
from hf_mpwriter.spool.outbox import InFlightRecord, Outbox, interrupted
from hf_mpwriter.system import process as process_module
from hf_mpwriter.testing import Journal, LoopDisk, check, forget_lost, processes, read_journals
from hf_mpwriter.testing.power_cut import has_power
from hf_mpwriter.worker import election, worker

if TYPE_CHECKING:
    from hf_mpwriter.push.client import Hub

RANKS = 3
CUTS = 5  # of one run directory
PAUSE = 0.002  # seconds between two events
STOP = "stop"  # the file in the directory of the journals that ends the ranks
FLUSHES, REQUESTS = 0.01, 0.01  # share of the events that are followed by a flush, or by a request for a push
SEGMENT = 16 << 10  # bytes of a segment: ranks rotate all the time
WORST = InFlightRecord(0, fenced=False)  # what an unreadable record counts as
MOMENTS = {  # what to wait for -> how many seconds after it the power is cut, at most
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
    """The life of one rank, until the harness says stop."""
    series.SEGMENT_MIN = series.SEGMENT_MAX = SEGMENT
    worker.HOUSEKEEPING_EVERY, election.LONGEST_BACKOFF = 0.2, 0.5
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(RANKS)}
    try:
        log(f"rank{rank}", repo, run_dir, journals, random.Random(seed))
    except HfMpWriterError:  # the run directory is gone, or cannot be read
        if has_power(os.path.dirname(run_dir)):
            raise


def log(tag: str, repo: str, run_dir: str, journals: str, rng: random.Random) -> None:
    """Go on where the journals end."""
    first = sum(1 for note in read_journals(journals) if note.tag == tag)
    journal = Journal(journals)
    with HFSummaryWriter(repo, logdir=run_dir, commit_every=0.01) as writer:
        for step in itertools.count(first):
            writer.add_scalar(tag, rng.random(), step)
            journal.note(writer, tag, step)
            dice = rng.random()
            if dice < FLUSHES:
                writer.flush()
                if has_power(run_dir):  # else the flush may have come too late
                    journal.flushed()
            elif dice < FLUSHES + REQUESTS:
                writer.push()
            if os.path.exists(os.path.join(journals, STOP)):
                return
            time.sleep(PAUSE)


class Run:
    """One run directory on a disk of its own: cuts, then a drain.

    Args:
        root: a directory of its own, on a disk that has no cuts.
        drive: the disk.
        hub: where the run is uploaded to.
        seed: of all that is random here.
        done: counts the cuts per moment, and the records that they took.
    """

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
        """Start the ranks; they are forked from here, where everything is imported already."""
        fork = multiprocessing.get_context("fork")
        for rank in range(RANKS):
            arguments = (rank, self.repo, self.run_dir, self.journals, f"{self.seed} {number} {rank}")
            self.ranks.append(fork.Process(target=work, args=arguments))
            self.ranks[-1].start()

    def commits(self) -> int:
        """How many commits the Hub has."""
        try:
            return len(self.hub.store.commits("model", self.repo))
        except Refusal:  # the repository is not there yet
            return 0

    def files(self) -> int:
        """How many files are in the run directory."""
        return sum(1 for _ in event_files.walk(self.run_dir))

    def await_moment(self, moment: str) -> None:
        """Wait until something is seen to happen, then a part of its time."""
        files = self.files()
        look: Callable[[], int] = {
            "logging": lambda: sum(file.stat().st_size for file in os.scandir(self.journals)),
            "rotation": lambda: self.files() > files + RANKS,
            "put": lambda: _version(self.host.outbox),
            "in_flight": lambda: _version(self.host.in_flight),
            "push": lambda: processes.push(self.run_dir),
            "commit": self.commits,
            "ledger": lambda: _version(self.host.ledger),
            "leave": self.commits,
        }[moment]
        before = look()
        wait_for(lambda: look() not in (before, 0), f"the moment {moment!r}")
        if moment == "leave":
            Path(self.journals, STOP).touch()
        time.sleep(self.rng.uniform(0.0, MOMENTS[moment]))

    def end_all(self) -> None:
        """End all processes of the run, as a power cut does."""
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
        """Let the run go on until the moment, cut, judge what is left."""
        self.start(number)
        self.await_moment(moment)
        self.drive.cut()
        self.end_all()
        self.drive.restart()
        Path(self.journals, STOP).unlink(missing_ok=True)
        self.done[moment] += 1
        self.done["records that were not flushed"] += forget_lost(self.journals, self.run_dir)
        return [f"cut {number} ({moment}): {problem}" for problem in self.judge(drained=False)]

    def drain(self) -> list[str]:
        """Let the run end, judge."""
        before = self.commits()
        self.start(CUTS)
        wait_for(lambda: self.commits() > before, "a commit after the last cut")
        Path(self.journals, STOP).touch()
        for process in self.ranks:
            process.join(DEADLINE)
            if process.exitcode != 0:
                raise RuntimeError(f"a rank ended with {process.exitcode}")
        wait_for(lambda: not processes.left_behind(self.run_dir), "the uploader leaves")
        return [f"after the drain: {problem}" for problem in self.judge(drained=True)]

    def judge(self, *, drained: bool) -> list[str]:
        """What the oracle says, and what is recorded without being there."""
        from hf_mpwriter.push.client import Hub

        destination = self.spool.destination()
        if destination is None:
            return ["nothing has arrived"] if self.commits() else []
        hub = Hub(destination)
        report = check(self.run_dir, hub, read_journals(self.journals), drained=drained)
        if drained:
            print(
                f"{self.repo}: {report.returned} returned, {report.lost} lost, {report.duplicated} duplicated, "
                f"{len(report.files)} files, {report.commits} commits",
                flush=True,
            )
        return [*self.torn(), *report.problems, *self.untrue_claims(hub, destination), *self.hollow_entries()]

    def torn(self) -> Iterator[str]:
        """Records that are neither whole nor gone."""
        if set_aside(self.spool, process_module.host_id()):
            yield "the ledger is torn"
        if interrupted(self.host) == WORST:
            yield "the record in flight is torn"
        entries = len(list(Path(self.host.outbox).glob("*.json")))
        if len(Outbox(self.host, self.run_dir).entries) != entries:  # it drops what it cannot read
            yield "an entry is torn"

    def untrue_claims(self, hub: Hub, destination: Destination) -> Iterator[str]:
        """What the ledger has and the Hub has not."""
        commits = hub.commits()
        head = hub.tree(commits[0]) if commits else {}
        for path, held in load(self.spool, destination).files.items():
            if not held.sent.is_gone and (path not in head or head[path].size < held.length):
                yield f"{path}: the ledger claims {held.length} bytes, the Hub has less"

    def hollow_entries(self) -> Iterator[str]:
        """Entries that refer to bytes that are not there."""
        local = {
            file.path: file.length for file in event_files.EventFileScan(self.run_dir).files(lambda _: True, tuple)
        }
        for entry in Outbox(self.host, self.run_dir).entries:
            for file in entry.files:
                if local.get(file.path, 0) < file.length:
                    yield f"{file.path}: an entry refers to {file.length} bytes, {local.get(file.path, 0)} are there"

    def run(self, cuts: int) -> Iterator[str]:
        """Cuts, then the drain; yields problems."""
        for number in range(cuts):
            yield from self.cut(number, self.rng.choice(sorted(MOMENTS)))
        yield from self.drain()


def _version(path: str) -> int:
    """Changes with the file or directory, 0 if there is none."""
    try:
        return os.stat(path).st_mtime_ns
    except OSError:
        return 0


def cut_runs(root: Path, kind: str, cuts: int, seed: int, done: Counter[str]) -> Iterator[str]:
    """Cut the power of so many runs of the whole system as are needed; yields problems."""
    with LocalHub(root / "hub") as hub:
        os.environ["HF_ENDPOINT"] = hub.endpoint

        for first in range(0, cuts, CUTS):
            place = root / f"{kind}{first}"
            with LoopDisk(str(place), kind) as drive:
                run = Run(place, drive, hub, f"{seed} {kind} {first}", done)
                try:
                    for problem in run.run(min(CUTS, cuts - first)):
                        shutil.copytree(run.run_dir, place / "run", dirs_exist_ok=True)
                        yield f"{place.name}: {problem}"
                finally:
                    run.end_all()


def cut_all(root: Path, options: argparse.Namespace, done: Counter[str]) -> Iterator[str]:
    """Cuts of both kinds, on all kinds of file systems; yields problems."""
    for kind in ("ext4", "xfs") if options.kind == "both" else (options.kind,):
        yield from cut_steps(root, kind, options.steps, options.seed, done)
        yield from cut_runs(root, kind, options.cuts, options.seed, done)


def main() -> int:
    """Cut; print what was done and what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cuts", type=int, default=50)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--kind", choices=("ext4", "xfs", "both"), default="both")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    parser.add_argument("--sabotage", choices=("unsynced",))
    options = parser.parse_args()
    if options.sabotage:
        return sabotage.run(options.sabotage)
    root = Path(tempfile.mkdtemp(prefix="power_cut_"))
    os.environ |= {
        "HF_HOME": str(root / "home"),
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "XDG_CACHE_HOME": str(root / "cache"),
    }
    os.environ |= {"HF_MPWRITER_COMMITS_PER_HOUR": "100000"}
    logging.getLogger("hf_mpwriter").setLevel(logging.ERROR)
    print(f"seed {options.seed}", flush=True)
    done: Counter[str] = Counter()
    problems: list[str] = []
    began = time.monotonic()
    with contextlib.closing(cut_all(root, options, done)) as found:
        for problem in itertools.islice(found, 1 if sabotage.is_sabotaged() else None):
            print(problem, flush=True)
            problems.append(problem)
    print(f"{time.monotonic() - began:.0f} s; cuts: {dict(done)}")
    return sabotage.conclude(problems, root, options.seed, "no promise was broken")


if __name__ == "__main__":
    sys.exit(main())
