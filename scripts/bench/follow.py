#!/usr/bin/env python3
"""How old what a follower has is: from `log` returned to the bytes in the directory of `pull --follow`.

    scripts/bench/follow.py                          4 ranks, 10 steps a second of 20 metrics, five minutes
    scripts/bench/follow.py --seconds 60
    scripts/bench/follow.py --ranks 64 --rate 1

Real processes, the real client, a local Hub. The steps of the first WARM seconds do not count: the lane begins with the
repository. The directory, and answers of a TensorBoard (`--reload_interval 1`) on rank 0.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from lib.arguments import add_directory, make_parser
from lib.isolation import isolate
from lib.waiting import becomes_true, wait_for

from hf_mpwriter.events import framing
from hf_mpwriter.localhub import LocalHub

WARM = 15.0  # seconds
POLL = 0.05  # seconds between two looks at the directory
ASK_EVERY = 0.5  # seconds between two questions to TensorBoard
TARGETS = (3.0, 5.0)  # seconds: half, and 95 %, of the steps in the directory
PATIENCE = 90.0  # seconds for what is on its way at the end
RANK = """
import sys, time
from hf_mpwriter import HFSummaryWriter
writer, rate = HFSummaryWriter("me/run", logdir=sys.argv[1], live=True), float(sys.argv[2])
began, until, step = time.monotonic(), time.monotonic() + float(sys.argv[3]), 1
with open(sys.argv[4], "w", buffering=1) as notes:
    while time.monotonic() < until:
        writer.log({f"metric_{number}": step / (number + 1) for number in range(20)}, step)
        notes.write(f"{step} {time.time()}\\n")
        time.sleep(max(0.0, began + step / rate - time.monotonic()))
        step += 1
writer.close()
"""
_URL = re.compile(rb"http://127\.0\.0\.1:\d+")


class Directory:
    """The event files of a follower: when each step of each rank was seen first."""

    def __init__(self, path: Path) -> None:
        self._path, self._read = path, dict[Path, int]()
        self.seen = dict[tuple[int, int], float]()  # unix time, by rank and step

    def look(self) -> None:
        """Read what is new."""
        for path in self._path.rglob("*tfevents*"):
            rank = int(path.parent.name.removeprefix("rank_")) if path.parent.name.startswith("rank_") else 0
            with contextlib.suppress(OSError), open(path, "rb") as file:
                end = os.fstat(file.fileno()).st_size
                position = -1
                while position != self._read.get(path, 0) < end:
                    position = self._read.get(path, 0)
                    found, self._read[path] = framing.records(file.fileno(), position, end)
                    for _, payload in found:
                        if step := framing.step_of(payload):
                            self.seen.setdefault((rank, step), time.time())


class Board:
    """A TensorBoard of the directory: when each step of rank 0 was first in its answer."""

    def __init__(self, path: Path, log: Path) -> None:
        options = [
            "--reload_interval",
            "1",
            "--load_fast=false",
            "--samples_per_plugin",
            "scalars=100000",
            "--port",
            "0",
        ]
        command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(path), "--host", "127.0.0.1", *options]
        self._log, self._url, self._asked = log, b"", 0.0
        with open(log, "wb") as said:
            self.process = subprocess.Popen(command, stdout=said, stderr=said)
        self.seen = dict[tuple[int, int], float]()

    def look(self) -> None:
        """Ask, now and then."""
        if time.monotonic() < self._asked + ASK_EVERY:
            return
        self._asked = time.monotonic()
        if not self._url:
            found = _URL.search(self._log.read_bytes())
            self._url = found[0] if found else b""
            return
        url = f"{self._url.decode()}/data/plugin/scalars/scalars?tag=metric_0&run=."
        with contextlib.suppress(urllib.error.URLError, ConnectionError, TimeoutError, ValueError):
            with urllib.request.urlopen(url, timeout=10) as answer:  # noqa: S310 - http of this machine
                points = json.load(answer)
            for _, step, _ in reversed(points):
                if (0, step) in self.seen:
                    break
                self.seen[0, step] = time.time()


def returned(notes: Path, ranks: int) -> dict[tuple[int, int], float]:
    """When `log` returned, by rank and step, without those of the first seconds."""
    found = dict[tuple[int, int], float]()
    for rank in range(ranks):
        lines = [line.split() for line in (notes / str(rank)).read_text().splitlines()]
        first = float(lines[0][1])
        found |= {(rank, int(step)): float(at) for step, at in lines if float(at) > first + WARM}
    return found


def show(what: str, logged: dict[tuple[int, int], float], seen: dict[tuple[int, int], float]) -> tuple[float, float]:
    """Print a row: half and 95 % of the steps are there after so many seconds."""
    ages = sorted(seen[key] - at for key, at in logged.items() if key in seen)
    if not ages:
        raise RuntimeError(f"{what}: nothing was seen")
    p50, p95 = ages[len(ages) // 2], ages[int(len(ages) * 0.95)]
    print(f"{what}: p50 {p50:.2f} s, p95 {p95:.2f} s, most {ages[-1]:.2f} s; {len(ages)} of {len(logged)} steps")
    return p50, p95


def measure(options: argparse.Namespace, directory: Path) -> None:
    """Train, follow, and print what was seen."""
    run, there, notes = directory / "runs" / "exp1", directory / "live" / "exp1", directory / "notes"
    notes.mkdir()
    there.mkdir(parents=True)
    processes = []
    try:
        for rank in range(options.ranks):
            env = os.environ | {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(options.ranks)}
            numbers = [str(options.rate), str(options.seconds + WARM), str(notes / str(rank))]
            processes.append(subprocess.Popen([sys.executable, "-c", RANK, str(run), *numbers], env=env))
        command = [sys.executable, "-m", "hf_mpwriter", "pull", str(there), "--repo-id", "me/run", "--follow"]
        wait_for((directory / "hub" / "repos" / "buckets").exists, "a bucket")
        follower = subprocess.Popen(command)
        files, board = Directory(there), Board(there, directory / "board.log")
        processes += [follower, board.process]
        ranks = processes[: options.ranks]

        def is_over() -> bool:
            files.look()
            board.look()
            return all(process.poll() is not None for process in ranks)

        becomes_true(is_over, options.seconds + 10 * WARM, every=POLL)
        logged = returned(notes, options.ranks)

        def is_here() -> bool:
            is_over()
            return logged.keys() <= files.seen.keys() and {key for key in logged if key[0] == 0} <= board.seen.keys()

        becomes_true(is_here, PATIENCE, every=POLL)
        p50, p95 = show("directory", logged, files.seen)
        show("TensorBoard, rank 0", {key: at for key, at in logged.items() if key[0] == 0}, board.seen)
        is_met = p50 <= TARGETS[0] and p95 <= TARGETS[1]
        print(f"targets {TARGETS[0]:g} and {TARGETS[1]:g} s: {'met' if is_met else 'MISSED'}")
        follower.send_signal(signal.SIGINT)
        follower.wait(30)
    finally:
        for process in processes:
            process.kill()
            process.wait()


def main() -> int:
    """Measure."""
    parser = make_parser(__doc__)
    parser.add_argument("--ranks", type=int, default=4)
    parser.add_argument("--rate", type=float, default=10.0, help="steps a second of each rank")
    parser.add_argument("--seconds", type=float, default=300.0)
    add_directory(parser)
    options = parser.parse_args()
    directory = Path(tempfile.mkdtemp(prefix="bench_follow_", dir=options.dir))
    isolate(directory)
    try:
        with LocalHub(directory / "hub") as hub:
            os.environ["HF_ENDPOINT"] = hub.endpoint
            measure(options, directory)
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
