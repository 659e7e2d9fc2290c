#!/usr/bin/env python3
"""Measure what uploads cost: ours and huggingface_hub's HFSummaryWriter, with the real client on a local Hub.

    scripts/bench_upload.py                     48 commits of 1 MB of new events, by Xet and by LFS; then shared logdirs
    scripts/bench_upload.py --day               288 commits, what a commit every five minutes makes of a day
    scripts/bench_upload.py --week              2016 commits: ours by Xet in an hour or two, the rest by formula
    scripts/bench_upload.py --images 0          scalars only
    scripts/bench_upload.py --commits 5 --unit 64000 --ways LFS

A worker is a fresh interpreter that runs the same lines with either library: log, `flush()`, `scheduler.trigger()`,
`result()`. What it logs are scalars, and for `--images` of the bytes images of noise, which nothing can compress. So
many commits need no clock: each follows the one before, and HF_MPWRITER_COMMITS_PER_HOUR leaves ours all it needs.
Every row has a repository, a Hub and caches of its own.

    sent      bodies of all requests that arrived at the Hub
    read      what all processes of the run have read by `read` and its like (rchar), from page caches, pipes and
              modules of Python as well as from the disk; what came through sockets is not in it
    cpu       of all processes of the run, to the last one: the kernel adds it up (RUSAGE_CHILDREN of a subreaper)
    logging   the part of it that the workers needed to get events into their files
    start     the part that the workers needed to start Python and to import the library

Then logdirs that 1, 4 and 16 ranks share, each with a writer of its own. HFSummaryWriter has a scheduler in each rank,
and these fire at moments of their own: while a rank pushes after the other, all go on logging. Ours has one uploader,
which is asked by all ranks at once.

What is counted by the kernel and by the Hub holds on a busy machine too. Targets are printed as met or missed; no
figure makes the script fail.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import json
import logging
import math
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench_processes import wait_for

from hf_mpwriter.events.event_file import SEGMENT_MAX, SEGMENT_MIN, SEGMENT_SHARE
from hf_mpwriter.localhub import LocalHub
from hf_mpwriter.localhub.blobs import file_sha256

OURS, THEIRS = "ours", "HFSummaryWriter"
XET, LFS = "Xet", "LFS"
MB = 1_000_000
DAY, WEEK = 288, 2016  # commits, one every five minutes
RANKS = (1, 4, 16)
TARGETS = {(48, XET): 1.5, (48, LFS): 9.0, (DAY, XET): 1.5, (DAY, LFS): 12.0}  # sent / logged, of ours
SCALAR_BYTES = 49  # of an event of a scalar
NEVER = 1e6  # minutes between two commits: they are made when they are asked for
REPO = "bench/upload"
PR_SET_CHILD_SUBREAPER = 36
HEAD = ("commits", "logged MB", "sent MB", "sent/log", "read/log", "cpu s", "start s", "log s", "upload s", "requests",
        "wall s")  # fmt: skip


@dataclass(frozen=True)
class Case:
    """What is measured in one row.

    Attributes:
        library: whose writer.
        way: how content is uploaded.
        ranks: processes that share a logdir.
        commits: how often every rank asks for a push.
        unit: bytes of events that all ranks together log in between.
        images: share of these that images have.
    """

    library: str
    way: str
    ranks: int
    commits: int
    unit: int
    images: float

    def __str__(self) -> str:
        """The head of the row."""
        return f"{self.library:16}{self.way:4}{self.ranks:6}"


@dataclass(frozen=True)
class Cost:
    """What was counted: bytes, seconds of processor, and what arrived at the Hub.

    Attributes:
        commits: that the Hub has applied.
        logged: bytes of the event files at the end.
        sent: bytes of bodies.
        read: bytes, see above.
        cpu, start, logging: seconds.
        requests: to the Hub.
        wall: seconds by the clock.
    """

    commits: int
    logged: int
    sent: int
    read: int
    cpu: float
    start: float
    logging: float
    requests: int
    wall: float

    def __str__(self) -> str:
        """The row."""
        upload = self.cpu - self.start - self.logging
        return (
            f"{self.commits:9}{self.logged / MB:11.2f}{self.sent / MB:11.2f}{self.sent / self.logged:11.2f}"
            f"{self.read / self.logged:11.2f}{self.cpu:11.2f}{self.start:11.2f}{self.logging:11.2f}{upload:11.2f}"
            f"{self.requests:11}{self.wall:11.1f}"
        )


# the worker


def work(library: str, logdir: str, unit: int, images: float, rank: int) -> None:
    """Do what is asked for line by line, to the end of standard input; then tell the seconds of processor.

    Args:
        library: whose writer.
        logdir: shared by all ranks.
        unit: bytes of events that are logged at once.
        images: share of these that images have.
        rank: of this worker, its seed.
    """
    logging.getLogger("hf_mpwriter").setLevel(logging.ERROR)
    sys.modules["torch"] = None  # type: ignore[assignment]  # tensorboardX would import it, for a second and more
    import numpy as np

    if library == OURS:
        from hf_mpwriter import HFSummaryWriter
    else:
        from huggingface_hub import HFSummaryWriter
    start, logged = time.process_time(), 0.0
    rng, noise, side = random.Random(rank), np.random.default_rng(rank), int(math.sqrt(unit * images / 3))
    scalars, step = int(unit * (1 - images)) // SCALAR_BYTES, 0
    writer: Any
    with HFSummaryWriter(REPO, logdir=logdir, commit_every=NEVER, repo_private=True) as writer:
        _reply()
        for line in sys.stdin:
            began = time.process_time()
            if line == "log\n":
                for _ in range(scalars):
                    writer.add_scalar("train/loss", rng.random(), step)
                    step += 1
                if side:
                    writer.add_image("noise", noise.integers(0, 256, (3, side, side), dtype=np.uint8), step)
                writer.flush()
                logged += time.process_time() - began
            else:
                writer.scheduler.trigger().result()
            _reply()
    _reply({"start": start, "logging": logged})


def _reply(data: dict[str, float] | None = None) -> None:
    print(json.dumps(data or {}), flush=True)


class Worker:
    """A rank of a run, in a process of its own."""

    def __init__(self, case: Case, rank: int, logdir: Path, env: dict[str, str]) -> None:
        unit = case.unit // case.ranks
        options = [case.library, str(logdir), str(unit), str(case.images), str(rank)]
        command = [sys.executable, __file__, "--worker", *options]
        launched = {"RANK": str(rank), "WORLD_SIZE": str(case.ranks)} if case.ranks > 1 else {}
        self._process = subprocess.Popen(
            command, env=env | launched, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def ask(self, what: str) -> None:
        """Let it do something; its reply is to be heard."""
        assert self._process.stdin  # noqa: S101 - for the type checker: PIPE was asked for
        self._process.stdin.write(f"{what}\n")
        self._process.stdin.flush()

    def hear(self) -> dict[str, float]:
        """Wait for its reply."""
        assert self._process.stdout  # noqa: S101 - as above
        if not (line := self._process.stdout.readline()):
            raise RuntimeError(f"a worker ended with code {self._process.wait()}")
        reply: dict[str, float] = json.loads(line)
        return reply

    def end(self) -> dict[str, float]:
        """Let it end; what it tells."""
        assert self._process.stdin  # noqa: S101 - as above
        self._process.stdin.close()
        reply = self.hear()
        if code := self._process.wait():
            raise RuntimeError(f"a worker ended with code {code}")
        return reply


# the row


def measure(case: Case, directory: Path) -> Cost:
    """Let workers log and push beside a new Hub, and count what it costs."""
    logdir = directory / "runs" / "run"
    env = os.environ | {"HF_HOME": str(directory / "home"), "XDG_CACHE_HOME": str(directory / "cache")}
    env["HF_HUB_DISABLE_XET"] = str(int(case.way == LFS))
    with LocalHub(directory / "hub", multipart_over=sys.maxsize, discard=True) as hub:
        began, cpu, read = time.monotonic(), _cpu_of_children(), _bytes_read()
        try:
            told = run(case, logdir, env | {"HF_ENDPOINT": hub.endpoint})
            wait_for(lambda: not _others_than(hub), "everybody has ended")
        except BaseException:
            while left := _others_than(hub):
                os.kill(left[0], signal.SIGKILL)
            raise
        cpu, read, wall = _cpu_of_children() - cpu, _bytes_read() - read, time.monotonic() - began
        check(hub, logdir)
    requests = list(_requests(Path(hub.root)))
    return Cost(
        commits=sum("/commit/" in one["path"] and one["status"] == 200 for one in requests),
        logged=sum(path.stat().st_size for path in _event_files(logdir)),
        sent=sum(one["in"] for one in requests),
        read=read,
        cpu=cpu,
        start=sum(one["start"] for one in told),
        logging=sum(one["logging"] for one in told),
        requests=len(requests),
        wall=wall,
    )


def run(case: Case, logdir: Path, env: dict[str, str]) -> list[dict[str, float]]:
    """Log and push as often as the case says; what the workers tell at their end."""
    workers = []
    for rank in range(case.ranks):  # one after the other: constructors of HFSummaryWriter race for the model card
        workers.append(Worker(case, rank, logdir, env))
        workers[-1].hear()
    for _ in range(case.commits):
        for worker in workers:
            _all_at_once(workers, "log")
            if case.library == THEIRS:
                _all_at_once([worker], "push")
        if case.library == OURS:
            _all_at_once(workers, "push")
    return [worker.end() for worker in workers]


def _all_at_once(workers: Sequence[Worker], what: str) -> None:
    for worker in workers:
        worker.ask(what)
    for worker in workers:
        worker.hear()


def check(hub: LocalHub, logdir: Path) -> None:
    """Whether what is on the Hub is what was logged."""
    tree = hub.store.tree("model", REPO)
    for path in _event_files(logdir):
        there = tree.get(f"tensorboard/{logdir.name}/{path.relative_to(logdir)}")
        if there is None or (there.size, there.sha256) != (path.stat().st_size, file_sha256(str(path))):
            raise RuntimeError(f"{path} is not on the Hub")


def _event_files(logdir: Path) -> list[Path]:
    return [path for path in logdir.rglob("events.out.tfevents.*") if path.is_file()]


def _requests(root: Path) -> Iterator[dict[str, Any]]:
    for path in sorted(root.glob("requests.jsonl*")):
        yield from map(json.loads, path.read_text().splitlines())


def _cpu_of_children() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _bytes_read() -> int:
    """By this process, which reads next to nothing, and by all that it has waited for, and these in turn."""
    rows = (line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return next(int(value) for name, value in rows if name == "rchar")


def _others_than(hub: LocalHub) -> list[int]:
    """The living children of this process beside the Hub; those who have ended are waited for."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    return [pid for pid in map(int, children) if pid != hub.pid]


# the table


def show(case: Case, cost: Cost) -> None:
    """One row, with the target that is set for it."""
    target = TARGETS.get((case.commits, case.way)) if case.library == OURS and case.ranks == 1 else None
    ratio = cost.sent / cost.logged
    verdict = "" if target is None else f"  target {target:g}: {'met' if ratio <= target else 'MISSED'}"
    print(f"{case}{cost}{verdict}", flush=True)


def show_formula(case: Case) -> None:
    """A row for what would take hours: whole files are sent each time, all of it or the open segment."""
    limit = math.inf if case.library == THEIRS else SEGMENT_MIN
    opened = sealed = sent = 0
    for _ in range(case.commits):
        opened += case.unit
        sent += opened
        if opened >= limit:
            sealed, opened = sealed + opened, 0
            limit = min(SEGMENT_MAX, max(SEGMENT_MIN, sealed // SEGMENT_SHARE))
    print(f"{case}{case.commits:9}{sent / (case.commits * case.unit):33.2f}  by formula", flush=True)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--commits", type=int, default=48, help="of each row with one worker (default: %(default)s)")
    size.add_argument("--day", dest="commits", action="store_const", const=DAY)
    size.add_argument("--week", dest="commits", action="store_const", const=WEEK)
    parser.add_argument("--unit", type=int, default=MB, help="bytes of new events for a commit (default: %(default)s)")
    parser.add_argument("--images", type=float, default=0.5, help="share of these bytes (default: %(default)s)")
    parser.add_argument("--ways", nargs="+", choices=(XET, LFS), default=(XET, LFS))
    parser.add_argument("--libraries", nargs="+", choices=(OURS, THEIRS), default=(OURS, THEIRS))
    parser.add_argument("--ranks", nargs="*", type=int, default=RANKS, help="that share a logdir (default: 1 4 16)")
    parser.add_argument("--rounds", type=int, default=4, help="commits of those who share (default: %(default)s)")
    parser.add_argument("--dir", help="where to log (default: the directory for temporary files)")
    parser.add_argument("--worker", nargs=5, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> int:
    """Measure what was asked for."""
    options = parse()
    if options.worker:
        library, logdir, unit, images, rank = options.worker
        work(library, logdir, int(unit), float(images), int(rank))
        return 0
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("told to end"))
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)  # uploaders become children of this process
    os.environ |= {"HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "NO_PROXY": "127.0.0.1"}
    os.environ |= {"HF_HUB_VERBOSITY": "error", "HF_HUB_DISABLE_EXPERIMENTAL_WARNING": "1"}
    os.environ["HF_MPWRITER_COMMITS_PER_HOUR"] = "100000"
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # a push would compile all modules again, as after no installation
    alone = [
        Case(library, way, 1, options.commits, options.unit, options.images)
        for way in options.ways
        for library in options.libraries
    ]
    shared = [
        Case(library, LFS, ranks, options.rounds, options.unit, options.images)
        for ranks in options.ranks
        for library in options.libraries
    ]
    directory = Path(tempfile.mkdtemp(prefix="bench_upload_", dir=options.dir))
    os.environ["PYTHONPYCACHEPREFIX"] = str(directory / "modules")
    print(f"{'':16}{'by':4}{'ranks':>6}{HEAD[0]:>9}" + "".join(f"{name:>11}" for name in HEAD[1:]), flush=True)
    try:
        for case in [*alone, *shared]:
            if case.commits == WEEK and (case.library, case.way) != (OURS, XET):
                show_formula(case)
            else:
                show(case, measure(case, directory / "row"))
                shutil.rmtree(directory / "row")
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
