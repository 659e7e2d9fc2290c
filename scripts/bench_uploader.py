#!/usr/bin/env python3
"""Measure what the uploader costs and how fast it reacts, with real processes and the real client on a local Hub.

    --takeover     the uploader is killed while two workers log: seconds until another one holds the uploader lock
    --latency      a worker is killed: seconds until all it had logged is on the Hub; beside another worker, and alone
    --hang         the Hub accepts and never answers: p99.9 of add_scalar, beside a run that has no Hub
    --rest         64 living workers that log nothing: memory and processor of the uploader
    --many-files   10,000 finished files and one worker that logs: processor of the uploader, seconds of a snapshot
    --children     thousands of children that log one event and end while the Hub hangs: what a look costs, what is left
    --push         memory of a push of 64 MiB that may still grow, with Xet and with LFS

    scripts/bench_uploader.py                    all of it: about 25 minutes
    scripts/bench_uploader.py --quick            the same in small: about 5 minutes, less reliable
    scripts/bench_uploader.py --takeover --rounds 5

Kills come at random moments. What takes processor is counted by the kernel, so it holds on a busy machine too; what is
measured by the clock needs a quiet one. --rest and --many-files run side by side. Targets are printed as met or missed;
no figure makes the script fail.
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
import math
import multiprocessing
import os
import random
import shutil
import signal
import statistics
import sys
import tempfile
import time
from array import array
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import bench_processes as processes
from bench_processes import MIB, Memory, Run, cpu, stopped, wait_for

from hf_mpwriter.base.files import LocalFile
from hf_mpwriter.base.settings import Destination, Settings
from hf_mpwriter.events import framing
from hf_mpwriter.localhub import LocalHub
from hf_mpwriter.push.handle import PushHandle
from hf_mpwriter.push.job import Job, deadline
from hf_mpwriter.snapshot import event_files
from hf_mpwriter.snapshot.event_files import EventFileScan
from hf_mpwriter.spool.ledger import Ledger
from hf_mpwriter.spool.members import Members
from hf_mpwriter.spool.outbox import Batch, Outbox
from hf_mpwriter.system.process import host_id
from hf_mpwriter.worker import worker

FIVE_MINUTES = 300.0  # seconds
SAMPLE = 0.02  # seconds between two looks at the memory of a push
CROWD = 20.0  # seconds for which an uploader with cards of the dead is watched
SUITES = ("takeover", "latency", "hang", "rest", "many_files", "children", "push")


@dataclass(frozen=True)
class Scale:
    """How much is done.

    Attributes:
        kills: of uploaders, and of workers of each kind.
        pairs: of runs with a Hub that hangs and without one.
        timed: seconds of each of these runs.
        watched: seconds for which an uploader at rest is watched.
        workers: that live beside it.
        files: that are on the Hub already.
        children: that log one event each.
        pushed: bytes of the file that a push carries.
    """

    kills: int
    pairs: int
    timed: float
    watched: float
    workers: int
    files: int
    children: int
    pushed: int = 64 * MIB


FULL = Scale(kills=20, pairs=5, timed=60.0, watched=FIVE_MINUTES, workers=64, files=10_000, children=2000)
QUICK = Scale(kills=5, pairs=2, timed=10.0, watched=30.0, workers=64, files=10_000, children=500)
TINY = Scale(kills=1, pairs=1, timed=0.5, watched=1.0, workers=3, files=30, children=5, pushed=MIB)


def show(what: str, value: float, unit: str, target: float | None = None) -> None:
    """One line of the table."""
    verdict = "" if target is None else f"target {target:g}  {'met' if value <= target else 'MISSED'}"
    print(f"{what:64}{value:10.3f} {unit:6} {verdict}".rstrip(), flush=True)


def show_times(what: str, took: Sequence[float], target: float) -> None:
    """Median, 95 % and the slowest."""
    show(f"{what}, p50 of {len(took)}", statistics.median(took), "s")
    show(f"{what}, p95", quantile(took, 0.95), "s", target)
    show(f"{what}, max", max(took), "s")


def quantile(values: Sequence[float], part: float) -> float:
    """The smallest value that so large a part of all does not exceed."""
    return sorted(values)[math.ceil(part * len(values)) - 1]


class Bench:
    """All measurements share a directory, a Hub and a scale."""

    def __init__(self, directory: Path, hub: LocalHub, scale: Scale, rng: random.Random) -> None:
        self._directory, self._hub, self._scale, self._rng = directory, hub, scale, rng

    @contextmanager
    def _run(self, name: str, *, local: bool = False) -> Iterator[Run]:
        run = Run(self._directory / "runs", name, None if local else self._hub)
        try:
            yield run
        finally:
            run.end()
            shutil.rmtree(run.path, ignore_errors=True)  # a start looks at the runs beside it

    # how fast

    def takeover(self) -> None:
        """Kill uploaders."""
        took = []
        for number in range(self._scale.kills):
            with self._run(f"takeover{number}") as run:
                for rank in range(2):
                    run.start(rank, processes.log_for_ever)
                old = wait_for(run.uploader, "an uploader")
                time.sleep(self._rng.uniform(0, worker.LOOK_EVERY))
                os.kill(old, signal.SIGKILL)
                began = time.monotonic()
                wait_for(lambda run=run, old=old: run.uploader() not in (0, old), "another uploader")
                took.append(time.monotonic() - began)
        show_times("takeover: another uploader holds the uploader lock", took, 8.0)

    def latency(self) -> None:
        """Kill workers."""
        with self._run("latency") as run:
            run.start(0, processes.log_for_ever)
            took = [self._kill_worker(run, rank=1) for _ in range(self._scale.kills)]
        show_times("latency: a killed worker's last event is on the Hub", took, 5.0)
        took = []
        for number in range(self._scale.kills):
            with self._run(f"alone{number}") as run:
                took.append(self._kill_worker(run, rank=0))
        show_times("latency: the killed worker was the only one", took, 5.0)

    def _kill_worker(self, run: Run, rank: int) -> float:
        victim = run.start(rank, processes.log_for_ever)
        wait_for(lambda: victim.step >= 0 and run.uploader(), "the worker logs, an uploader lives")
        if rank == 0:
            wait_for(run.is_at_rest, "the first commit")
        time.sleep(self._rng.uniform(0.5, 2.0))
        victim.kill()
        began = time.monotonic()
        file = run.newest_file(f"rank_{rank:05d}" if rank else "")
        written = len(framing.payloads(str(file))) - 1
        if written <= victim.step:
            raise RuntimeError(f"{victim.step + 1} events had returned, {written} are in the file")
        wait_for(lambda: run.bytes_on_hub(file) >= file.stat().st_size, "the events on the Hub")
        return time.monotonic() - began

    # what training pays

    def hang(self) -> None:
        """Time calls while the Hub hangs, and without any Hub."""
        hanging, without = [], []
        for number in range(self._scale.pairs):
            for hangs in self._rng.sample((True, False), 2):
                (hanging if hangs else without).append(self._time_calls(f"hang{number}{hangs}", hangs=hangs))
        ratios = [
            [one / other for one, other in zip(*pair, strict=True)] for pair in zip(hanging, without, strict=True)
        ]
        for what, times in (("while the Hub hangs", hanging), ("without a Hub", without)):
            show(f"hang: p99.9 of add_scalar {what}", statistics.median(took for took, _ in times), "us")
        wall, used = zip(*ratios, strict=True)
        show(f"hang: ratio, median of {len(wall)}", statistics.median(wall), "", 1.3)
        show("hang: ratio, smallest", min(wall), "")
        show("hang: ratio, largest", max(wall), "")
        show("hang: ratio of processor time, also on a busy machine", statistics.median(used), "")

    def _time_calls(self, name: str, *, hangs: bool) -> tuple[float, float]:
        """Microseconds that 999 of 1000 calls of two workers do not exceed: by the clock, and of processor."""
        took, used = array("q"), array("q")
        with stopped(self._hub), self._run(name, local=not hangs) as run:
            pipes = []
            for rank in range(2):
                hear, tell = multiprocessing.Pipe(duplex=False)
                run.start(rank, processes.time_calls, self._scale.timed, tell)
                tell.close()
                pipes.append(hear)
            for hear in pipes:
                both = array("q", hear.recv_bytes())
                took += both[: len(both) // 2]
                used += both[len(both) // 2 :]
        return quantile(took, 0.999) / 1e3, quantile(used, 0.999) / 1e3

    # what it costs

    def rest(self) -> None:
        """Watch an uploader with many living workers."""
        with self._resting() as run:
            self._show_rest(run, self._watch([run], self._scale.watched)[0])

    def many_files(self) -> None:
        """Watch an uploader with many finished files."""
        with self._crowded() as run:
            self._show_many_files(run, self._watch([run], self._scale.watched)[0])

    def rest_and_many_files(self) -> None:
        """Both at once: they sleep nearly all the time."""
        with self._resting() as resting, self._crowded() as crowded:
            first, second = self._watch([resting, crowded], self._scale.watched)
            self._show_rest(resting, first)
            self._show_many_files(crowded, second)

    def _watch(self, runs: list[Run], seconds: float) -> list[float]:
        """Seconds of processor that the uploaders would use in five minutes at this rate."""
        pids = [run.uploader() for run in runs]
        before = [cpu(pid) for pid in pids]
        time.sleep(seconds)
        if [run.uploader() for run in runs] != pids:
            raise RuntimeError("an uploader ended while it was watched")
        return [(cpu(pid) - was) * FIVE_MINUTES / seconds for pid, was in zip(pids, before, strict=True)]

    @contextmanager
    def _resting(self) -> Iterator[Run]:
        with self._run("rest") as run:
            for rank in range(self._scale.workers):
                run.start(rank, processes.log_once)
            wait_for(lambda: len(run.members()) == self._scale.workers and run.is_at_rest(), "the first commits")
            yield run

    def _show_rest(self, run: Run, seconds: float) -> None:
        what, memory = f"rest, {self._scale.workers} workers", Memory.of(run.uploader())
        show(f"{what}: processor of the uploader in 5 min", seconds, "s", 0.6)
        show(f"{what}: memory of the uploader (pss)", memory.pss / MIB, "MiB", 25.0)
        show(f"{what}: its private part (rss {memory.rss / MIB:.1f})", memory.private / MIB, "MiB")

    @contextmanager
    def _crowded(self) -> Iterator[Run]:
        with self._run("crowded") as run:
            run.writer().close()  # makes the spool; nothing is logged, so no uploader is started
            self._upload_files(run)
            self.writing = run.start(0, processes.log_for_ever)
            wait_for(run.is_at_rest, "the first commit")
            yield run

    def _upload_files(self, run: Run) -> None:
        """Finished files of 100 directories, and a ledger that says truly that the Hub has them."""
        from hf_mpwriter.push.client import Hub

        payloads = [framing.version_event(1.0), *(framing.summary_event(1.0, step, b"") for step in range(20))]
        content = b"".join(map(framing.frame, payloads))
        for number in range(self._scale.files):
            name = f"events.out.tfevents.{1_700_000_000 + number:010d}.host.1.{number:08x}"
            path = run.path / f"earlier_{number % 100:05d}" / name
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(content)
        destination = run.spool.destination()
        if destination is None:
            raise RuntimeError("no destination is recorded")
        hub, files = Hub(destination), self._snapshots(run, Ledger(destination))[-1][1]
        hub.create(private=None)
        commit, sent = hub.commit([(file, str(run.path / file.path)) for file in files], None, tag_card=False)
        book, host = Ledger(destination), run.spool.host(host_id())
        book.acknowledge(sent, commit, time.time())
        os.makedirs(host.root, exist_ok=True)
        book.save(host.ledger)
        for what, (took, _) in zip(
            ("the first of an uploader", "a later one"), self._snapshots(run, book), strict=True
        ):
            show(f"many files, {len(files)}: a snapshot, {what}", took, "s", 1.0)

    def _snapshots(self, run: Run, book: Ledger) -> list[tuple[float, list[LocalFile]]]:
        """Look at all files twice, as an uploader does: seconds, and what is there."""
        survey, roster, looks = EventFileScan(str(run.path)), Members(run.spool), []
        for _ in range(2):
            began = time.perf_counter()
            files = survey.files(Settings().allows, roster.growing)
            event_files.bounded(event_files.pending(files, book.covers, ()))
            looks.append((time.perf_counter() - began, files))
        return looks

    def _show_many_files(self, run: Run, seconds: float) -> None:
        """What is watched may lie between two commits: one more is asked for, and counts."""
        pid, commits = run.uploader(), run.report().commits
        before = cpu(pid)
        self.writing.shared.asked.value = 1
        wait_for(lambda: run.report().commits > commits and run.is_at_rest(), "a commit")
        commit = cpu(pid) - before
        what = f"many files, {self._scale.files}"
        show(f"{what}: processor of the uploader for a commit", commit, "s")
        show(f"{what}: processor in 5 min, that commit included", seconds + commit, "s", 3.0)
        show(f"{what}: memory of the uploader (pss)", Memory.of(pid).pss / MIB, "MiB")

    def children(self) -> None:
        """Children come and go while the Hub hangs; then it answers again."""
        count = self._scale.children
        what = f"children, {count}"
        with self._run("children") as run:
            with stopped(self._hub):
                parent = run.start(0, processes.bear_children, count)
                wait_for(lambda: parent.step == count, "all children have ended")
                wait_for(run.uploader, "an uploader")
                show(f"{what}: cards of the dead while the Hub hangs", sum(not one.alive for one in run.members()), "")
                seconds = self._watch([run], min(CROWD, self._scale.watched))[0]
                show(f"{what}: processor of the uploader in 5 min of that", seconds, "s")
            began = time.monotonic()
            wait_for(lambda: len(run.members()) == 1 and run.is_at_rest(), "everything on the Hub")
            show(f"{what}: until all is on the Hub", time.monotonic() - began, "s")
            show(f"{what}: commits for it", run.report().commits, "")
            files = [place for place, _, names in os.walk(run.spool.root) for _ in names]
            claims = sum(Path(place).name == "claims" for place in files)
            show(f"{what}: claims left, one per worker directory", claims, "")
            show(f"{what}: other files left in the spool", len(files) - claims, "")
            show(f"{what}: memory of the uploader (pss)", Memory.of(run.uploader()).pss / MIB, "MiB")

    def push(self) -> None:
        """Push a file that may still grow, as the uploader does."""
        for way, environment in (("Xet", {}), ("LFS", {"HF_HUB_DISABLE_XET": "1"})):
            os.environ |= environment
            peak = self._push_once(way)
            for name in environment:
                del os.environ[name]
            size = self._scale.pushed / MIB
            show(f"push of {size:.0f} MiB that may grow, {way}: memory (pss)", peak.pss / MIB, "MiB", 300.0)

    def _push_once(self, way: str) -> Memory:
        """The most memory that the push of one entry is seen to have."""
        run_dir = self._directory / "runs" / f"push{way}"
        run_dir.mkdir(parents=True)
        file = LocalFile("events.out.tfevents.1700000000.host.1.0123abcd", self._scale.pushed, growing=True)
        (run_dir / file.path).write_bytes(self._rng.randbytes(file.length))
        destination = Destination(self._hub.endpoint, f"bench/push{way}", path_in_repo="tensorboard/push")
        job = Job(str(run_dir), "", destination, None, False, (file,), {}, {}, None, fenced=True, xet=True)
        queue = Outbox(Run(run_dir, "", None).spool.host("bench"), str(run_dir))
        push = PushHandle(queue.mark_in_flight(Batch(1, (file,)), job.to_json(), fenced=True), deadline(job))
        peak, verdict = Memory(), None
        while verdict is None:
            peak = max(peak, Memory.of(push.pid), key=lambda memory: memory.pss)
            push.wait(SAMPLE)
            _, verdict = push.listen()
        if type(verdict).__name__ != "Done":
            raise RuntimeError(f"the push ended with {verdict}")
        shutil.rmtree(run_dir)
        return peak


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = parser.add_argument_group("parts", "default: all")
    for name in SUITES:
        parts.add_argument(f"--{name.replace('_', '-')}", action="store_true")
    parser.add_argument("--rounds", type=int, help="kills of each kind, and pairs of runs, instead of 20 and 5")
    parser.add_argument("--quick", action="store_true", help="fewer and shorter rounds; 5 minutes are extrapolated")
    parser.add_argument("--tiny", action="store_true", help="only to see that everything works")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6), help="default: random")
    parser.add_argument("--dir", help="where to log (default: the directory for temporary files)")
    return parser.parse_args()


def main() -> int:
    """Measure what was asked for."""
    options = parse()
    scale = TINY if options.tiny else QUICK if options.quick else FULL
    if options.rounds:
        scale = dataclasses.replace(scale, kills=options.rounds, pairs=options.rounds)
    wanted = [name for name in SUITES if getattr(options, name)] or list(SUITES)
    if {"rest", "many_files"} <= set(wanted):
        wanted = ["rest_and_many_files" if name == "rest" else name for name in wanted if name != "many_files"]
    directory = Path(tempfile.mkdtemp(prefix="bench_uploader_", dir=options.dir))
    print(f"seed {options.seed}", flush=True)
    if scale.watched != FIVE_MINUTES:
        print(f"what is said of 5 min is extrapolated from {scale.watched:g} s")
    os.environ |= {"HF_HOME": str(directory / "home"), "HF_HUB_DISABLE_TELEMETRY": "1"}
    os.environ |= {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "NO_PROXY": "127.0.0.1"}
    os.environ |= {"XDG_CACHE_HOME": str(directory / "cache"), "HF_MPWRITER_COMMITS_PER_HOUR": "100000"}
    logging.getLogger("hf_mpwriter").setLevel(logging.ERROR)
    try:
        with LocalHub(directory / "hub") as hub:
            os.environ["HF_ENDPOINT"] = hub.endpoint
            bench = Bench(directory, hub, scale, random.Random(options.seed))
            for name in wanted:
                getattr(bench, name)()
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
