#!/usr/bin/env python3
"""Measure how costs grow with the number of workers and of event files: a quarter, a half and all of them.

    join      all members are forked from a warm parent and join one run directory at once: processor of a constructor
    scalar    add_scalar of each, while all live
    members   one look at all member files: the first one of an observer, and a later one
    start     an uploader reads what is on disk; its ledger says that the Hub has all files
    scan      one look of it at all event files: the first one, and a later one
    rest      five minutes of its ticks, of which one scans: percent of a core
    memory    what it keeps
    status    `hf-mpwriter status`

    scripts/bench/scale.py                                            1,000 members, 10,000 files of 1 MiB: 10 GB
    scripts/bench/scale.py --members 100 --files 1000 --kib 16        a minute

The files of a directory are names of one file, so the disk needs room for 100 of them. All times are of the processor,
so they hold on a busy machine. The growth is the exponent of the costs between a quarter and all: 1.0 is linear. No
figure makes the script fail.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import multiprocessing
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from lib.arguments import add_directory, make_parser
from lib.figures import MIB, quantile, verdict
from lib.isolation import isolate
from uploader_costs import Memory

from hf_mpwriter import SummaryWriter
from hf_mpwriter.base.settings import Destination
from hf_mpwriter.base.verdicts import Sent
from hf_mpwriter.daemon.starts import StartRecord
from hf_mpwriter.events import framing
from hf_mpwriter.spool.layout import Spool
from hf_mpwriter.spool.ledger import Ledger
from hf_mpwriter.spool.workers.members import Members
from hf_mpwriter.system import launch, locks
from hf_mpwriter.system.process import host_id
from hf_mpwriter.uploader.loop import Uploader
from hf_mpwriter.uploader.upload import HeldRun

SHARES = (0.25, 0.5, 1.0)
SCALARS = 200  # of each member
LOOKS = 3  # uploaders, one after another; the figures are medians
WATCHED = 300.0  # seconds of an uploader at rest
DESTINATION = Destination("http://127.0.0.1:9", "bench/scale", path_in_repo="tensorboard/run")  # nobody is there
TARGETS = {
    "join p99": 1.0,
    "scan, first": 1.0,
    "scan, later": 1.0,
    "rest, % of a core": 1.0,
    "memory": 40.0,
    "status": 2.0,
}

_fork = multiprocessing.get_context("fork")


def be_member(run_dir: str, rank: int, world: int, gate: Any, pipe: Connection) -> None:
    """Join with all others, log, report, and live until the pipe is closed."""
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(world)}
    gate.wait()
    before = time.process_time()
    writer = SummaryWriter(run_dir)
    joined, took = time.process_time() - before, []
    writer.add_scalar("loss", 0.5, 0)
    for step in range(SCALARS):
        before = time.process_time()
        writer.add_scalar("loss", 0.5, step + 1)
        took.append(time.process_time() - before)
    pipe.send((joined, statistics.median(took)))
    pipe.recv()
    os._exit(0)


@contextmanager
def members(run_dir: Path, count: int) -> Iterator[list[tuple[float, float]]]:
    """Let so many processes join at once, and live; yield what each has measured."""
    gate, pipes, processes = _fork.Event(), [], []
    try:
        for rank in range(count):
            mine, theirs = _fork.Pipe()
            processes.append(
                _fork.Process(target=be_member, args=(str(run_dir), rank, count, gate, theirs), daemon=True)
            )
            processes[-1].start()
            theirs.close()
            pipes.append(mine)
        gate.set()
        yield [pipe.recv() for pipe in pipes]
    finally:
        for process in processes:
            process.kill()
        for process in processes:
            process.join()


def make_files(run_dir: Path, count: int, size: int) -> None:
    """Write finished event files of real records, in 100 directories; those of a directory are one file."""
    encoder, step, parts = framing.ScalarEncoder("train/loss"), 0, [framing.frame(framing.version_event(1.0))]
    while step * len(parts[-1]) < size:
        step += 1
        parts.append(encoder.record(1.7e9, step, 0.5))
    content, first = b"".join(parts), dict[Path, Path]()
    for number in range(count):
        directory = run_dir / f"earlier_{number % 100:05d}"
        path = directory / f"events.out.tfevents.{1_700_000_000 + number:010d}.host.1.{number:08x}"
        if directory in first:
            path.hardlink_to(first[directory])
            continue
        directory.mkdir(parents=True)
        path.write_bytes(content)
        first[directory] = path


def arrive(run_dir: Path, destination: Destination = DESTINATION) -> Spool:
    """Write a ledger that says that the Hub has all that is there."""
    spool = Spool(str(run_dir))
    spool.record_destination(destination)
    ledger, host = Ledger(destination, repo_id=destination.repo_id), spool.host(host_id())
    sizes = {str(path.relative_to(run_dir)): path.stat().st_size for path in run_dir.rglob("*.tfevents.*")}
    ledger.acknowledge({path: Sent(size, "0" * 64) for path, size in sizes.items()}, "c" * 40, time.time())
    os.makedirs(host.root, mode=0o700, exist_ok=True)
    ledger.save(host.ledger)
    return spool


def look(run_dir: Path) -> dict[str, float]:
    """Do what an uploader does, in a process of its own; seconds and MiB."""
    mine, theirs = _fork.Pipe()
    process = _fork.Process(target=_look, args=(arrive(run_dir), theirs), daemon=True)
    process.start()
    found: dict[str, float] = mine.recv()
    process.join()
    return found


def _look(spool: Spool, pipe: Connection) -> None:
    gc.collect()
    found, before = dict[str, float](), Memory.of(os.getpid()).private
    lock = locks.try_exclusive(spool.uploader_lock)
    if lock is None:
        raise RuntimeError("an uploader lives")
    now, all_members = [time.monotonic()], Members(spool)

    def sleep(_: object, seconds: float) -> None:
        now[0] += seconds

    launch.wait_for_input = sleep

    def timed(name: str, step: Callable[[], Any]) -> Any:
        started = time.process_time()
        result = step()
        found[name] = time.process_time() - started
        return result

    timed("members, first", all_members.all)
    all_members.all()
    timed("members, later", all_members.all)
    record = StartRecord(**vars(spool.paths), destination=DESTINATION)
    uploader = Uploader(record, lambda: now[0], random.Random(1))
    upload = timed("start", lambda: uploader.add(HeldRun(spool, record, lock)))

    def rest() -> None:
        until = now[0] + WATCHED
        while now[0] < until:
            if not uploader.tick() or uploader.branch.push is not None:
                raise RuntimeError("it is not at rest")

    sending, peers = upload.sending, upload.peers
    peers.look()
    files = timed("scan, first", lambda: sending.events.scan(peers.members, peers.takes))
    timed("scan, later", lambda: sending.events.scan(peers.members, peers.takes))
    sent = {file.path: Sent(file.length, "0" * 64) for file in files}
    sending.ledger.acknowledge(sent, "c" * 40, time.time())  # in memory: what the members have logged, too
    timed("rest, % of a core", rest)
    found["rest, % of a core"] *= 100 / WATCHED
    found["memory"] = (Memory.of(os.getpid()).private - before) / MIB
    pipe.send(found)
    os._exit(0)


def status(run_dir: Path) -> float:
    """Return the processor seconds of `hf-mpwriter status`."""
    before = os.times()
    subprocess.run([sys.executable, "-m", "hf_mpwriter", "status", str(run_dir)], capture_output=True, check=False)
    after = os.times()
    return after.children_user + after.children_system - before.children_user - before.children_system


def measure(run_dir: Path, count: int, files: int, size: int) -> dict[str, float]:
    """Return all figures of one size."""
    make_files(run_dir, files, size)
    with members(run_dir, count) as told:
        joined = [one for one, _ in told]
        found = {"join p50": statistics.median(joined), "join p99": quantile(joined, 0.99)}
        found["scalar p50, us"] = statistics.median(one for _, one in told) * 1e6
        looks = [look(run_dir) for _ in range(LOOKS)]
        found |= {name: statistics.median(one[name] for one in looks) for name in looks[0]}
        found["status"] = status(run_dir)
    return found


def parse() -> argparse.Namespace:
    """Parse the command line."""
    parser = make_parser(__doc__)
    parser.add_argument("--members", type=int, default=1000, help="processes that live at once (default: 1000)")
    parser.add_argument("--files", type=int, default=10_000, help="finished event files (default: 10000)")
    parser.add_argument("--kib", type=int, default=1024, help="size of each of them (default: 1024)")
    add_directory(parser)
    return parser.parse_args()


def main() -> int:
    """Measure the three sizes, and print the table."""
    options = parse()
    directory = Path(tempfile.mkdtemp(prefix="bench_scale_", dir=options.dir))
    isolate(directory)
    os.environ["OMP_NUM_THREADS"] = "1"
    rows: list[dict[str, float]] = []
    try:
        for share in SHARES:
            run_dir, sizes = directory / f"run_{share}", (int(options.members * share), int(options.files * share))
            rows.append(measure(run_dir, *sizes, options.kib << 10))
            print(json.dumps({"processes": sizes[0], "files": sizes[1]} | rows[-1]), flush=True)
            shutil.rmtree(run_dir, ignore_errors=True)
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    print(f"{'processor seconds; memory in MiB':34}" + "".join(f"{share:>10.0%}" for share in SHARES) + "    growth")
    for name in rows[0]:
        cells = [row[name] for row in rows]
        growth = math.log(cells[-1] / cells[0]) / math.log(SHARES[-1] / SHARES[0]) if min(cells) > 0 else 0.0
        judged = f"  {verdict(cells[-1], TARGETS[name])}, target {TARGETS[name]:g}" if name in TARGETS else ""
        print(f"{name:34}" + "".join(f"{cell:10.4f}" for cell in cells) + f"{growth:10.2f}{judged}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
