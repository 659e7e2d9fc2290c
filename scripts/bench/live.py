#!/usr/bin/env python3
"""Measure what the live lane costs, with real ranks and the real client on a local Hub.

    --rates        4 and 64 ranks that log 1 and 100 kB/s each, of what no compression helps: requests, bytes sent
    --steps        4 ranks at 10 steps/s of 20 metrics, then at rest: processor and memory of uploader and pushes
    --linear MIB   a run of so many MiB, and one of twice as many, go to the bucket: processor

    scripts/bench/live.py                          all of it, each for 30 seconds, and 16 MiB: some minutes
    scripts/bench/live.py --linear 1000            1 and 2 GB
    scripts/bench/live.py --rates --seconds 600

The one commit of a run, at its begin, is left out. On a busy machine rounds come later.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from lib.arguments import add_directory, make_parser
from lib.figures import MIB, show
from lib.isolation import isolate
from lib.waiting import wait_for

from hf_mpwriter import HFSummaryWriter
from hf_mpwriter.localhub import LocalHub
from hf_mpwriter.spool.layout import Spool
from hf_mpwriter.spool.status import UploaderStatus
from hf_mpwriter.system.process import host_id, usage

SENT = 20  # bytes for each new one, at most
CORE = 0.05  # of a core, at most
LINEAR = 2.2  # processor of a run of twice the size


def log(run_dir: Path, rate: int, steps: int, size: int) -> None:
    """Log, in a rank: bytes a second of noise, or steps a second of 20 metrics, or so many bytes at once."""
    writer = HFSummaryWriter(repo_id=f"bench/{run_dir.name}", logdir=str(run_dir), commit_every=600, live=True)
    writer.add_scalar("first", 0.0, 0)
    for step in range(1, size // MIB + 1):
        writer.add_text("noise", os.urandom(MIB // 2).hex(), step)
    begun, step = time.monotonic(), 0
    while True:
        step += 1
        if rate:
            writer.add_text("noise", os.urandom(rate // 2).hex(), step)
        for number in range(20 if steps else 0):
            writer.add_scalar(f"metric/{number}", step / (number + 1), step)
        writer.flush()
        time.sleep(max(0.0, begun + step / (steps or 1) - time.monotonic()))


class Run:
    """A run whose ranks log, and what its lane has used."""

    def __init__(self, hub: LocalHub, run_dir: Path) -> None:
        self._hub, self.run_dir, self._used = hub, run_dir, dict[int, float]()
        self.ranks, self.memory = list[int](), 0

    @contextlib.contextmanager
    def logging(self, ranks: int, rate: int = 0, steps: int = 0, size: int = 0) -> Iterator[None]:
        """A block in which so many ranks log; it begins after the first rounds."""
        for rank in range(ranks):
            pid = os.fork()
            if not pid:
                os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(ranks)}
                log(self.run_dir, rate, steps, size)
            self.ranks.append(pid)
        try:
            first = wait_for(lambda: self.status.live.at, "a first round")
            if rate or steps:  # the first one starts a client, which the next one waits for
                wait_for(lambda: self.status.live.at > first, "a second round")
            yield
        finally:
            for pid in self.ranks:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
            wait_for(lambda: self.status.phase == "left", "the uploader leaves")

    @property
    def status(self) -> UploaderStatus:
        """What the uploader publishes."""
        return UploaderStatus.read(Spool(str(self.run_dir)).host(host_id()))

    def watch(self, seconds: float) -> dict[str, float]:
        """What is used in so many seconds."""
        end, before, at = time.monotonic() + seconds, self.used(), self._requests()
        size, self.memory = self._size(), 0
        while time.monotonic() < end:
            time.sleep(0.2)
            self.used()
        asked = [one for one in self._requests()[len(at) :] if "/buckets/" in one["path"] or "/xet/" in one["path"]]
        api = sum(one["path"].startswith("/api/") for one in asked)
        sent = sum(one["in"] for one in asked)
        core = (self.used() - before) / seconds
        return {"api": api * 3600 / seconds, "sent": sent / max(1, self._size() - size), "core": core}

    def used(self) -> float:
        """Seconds of processor of the uploader and of its pushes until now."""
        one = self.status.process.pid if self.status.process else 0
        pushes = Path(f"/proc/{one}/task/{one}/children")
        pids = [one, *map(int, pushes.read_text().split())] if one and pushes.exists() else []
        found = {pid: usage(pid) for pid in pids}
        self._used |= {pid: max(use.seconds, self._used.get(pid, 0.0)) for pid, use in found.items()}
        self.memory = max(self.memory, sum(use.memory for use in found.values()))
        return sum(self._used.values())

    def _requests(self) -> list[dict[str, object]]:
        return [json.loads(line) for line in (Path(self._hub.root) / "requests.jsonl").read_bytes().splitlines()]

    def _size(self) -> int:
        return sum(path.stat().st_size for path in self.run_dir.rglob("*tfevents*"))


def rates(directory: Path, hub: LocalHub, seconds: float) -> None:
    """Requests, and bytes sent for each new one."""
    for ranks in (4, 64):
        for rate in (1000, 100_000):
            run, what = Run(hub, directory / f"rates{ranks}-{rate}"), f"{ranks} ranks at {rate // 1000} kB/s: "
            with run.logging(ranks, rate=rate):
                found = run.watch(seconds)
            show(f"{what}API requests per hour", found["api"], "")
            show(f"{what}bytes sent per new byte", found["sent"], "", SENT)
            show(f"{what}processor", found["core"], "cores")


def steps(directory: Path, hub: LocalHub, seconds: float) -> None:
    """Processor and memory at work and at rest."""
    for what, count in (("10 steps/s of 20 metrics", 10), ("at rest", 0)):
        run = Run(hub, directory / f"steps{count}")
        with run.logging(4, steps=count):
            found = run.watch(seconds)
        show(f"4 ranks, {what}: processor", found["core"], "cores", CORE)
        show(f"4 ranks, {what}: memory", run.memory / MIB, "MiB")


def linear(directory: Path, hub: LocalHub, size: int) -> None:
    """Processor of a run, and of one of twice the size, until the bucket has all."""
    used = []
    for times in (1, 2):
        run = Run(hub, directory / f"linear{times}")
        with run.logging(1, size=times * size * MIB):
            while run.status.live.safe < times * size * MIB:
                used_now = run.used()
                time.sleep(0.1)
            used.append(used_now)
        show(f"a run of {times * size} MiB: processor", used[-1], "s")
    show("twice the run, to one: processor", used[1] / used[0], "", LINEAR)


def main() -> int:
    """Run the parts."""
    parser = make_parser(__doc__)
    parser.add_argument("--rates", action="store_true")
    parser.add_argument("--steps", action="store_true")
    parser.add_argument("--linear", type=int, default=0, metavar="MIB")
    parser.add_argument("--seconds", type=float, default=30.0, help="of each measurement (default: 30)")
    add_directory(parser)
    options: argparse.Namespace = parser.parse_args()
    everything = not (options.rates or options.steps or options.linear)
    directory = Path(tempfile.mkdtemp(prefix="bench_live_", dir=options.dir))
    isolate(directory)
    try:
        with LocalHub(directory / "hub") as hub:
            os.environ |= {"HF_ENDPOINT": hub.endpoint, "HF_TOKEN": "hf_x"}
            if options.steps or everything:
                steps(directory, hub, options.seconds)
            if options.rates or everything:
                rates(directory, hub, options.seconds)
            if options.linear or everything:
                linear(directory, hub, options.linear or 16)
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
