#!/usr/bin/env python3
"""Measure the cost of uploads: ours and huggingface_hub's HFSummaryWriter, with the real client on a local Hub.

    scripts/bench/upload.py                     48 commits of 1 MB of new events, by Xet and by LFS; then shared logdirs
    scripts/bench/upload.py --day               288 commits, a day with a commit every five minutes
    scripts/bench/upload.py --week              2016 commits: ours by Xet takes an hour or two, the rest is computed
    scripts/bench/upload.py --images 0          scalars only
    scripts/bench/upload.py --commits 5 --unit 64000 --ways LFS
    scripts/bench/upload.py --old ../earlier    with rows of another checkout of this project
    scripts/bench/upload.py --pause 15 --libraries ours --ways Xet --ranks      seconds between two commits

A worker is a fresh interpreter that runs the same lines with either library: log, `flush()`, `scheduler.trigger()`,
`result()`. It logs scalars and images of noise, which does not compress. Each commit follows the one before at once;
HF_MPWRITER_COMMITS_PER_HOUR lifts our rate limit. Every row has its own repository, Hub and caches.

    sent      bytes of the bodies of all requests that arrived at the Hub
    read      bytes that all processes of the run read with `read` and its variants (rchar): from disk, page cache and
              pipes, Python modules included, sockets excluded
    cpu       CPU seconds of all processes of the run, summed by the kernel (RUSAGE_CHILDREN of a subreaper)
    start     the part of cpu that workers needed to start Python and import the library
    logging   the part of cpu that workers needed to write events to their files

Then 1, 4 and 16 ranks share a logdir, each with its own writer. Every rank of HFSummaryWriter has its own scheduler,
and these fire at different moments: the ranks push one after another while all of them log. Ours has one uploader; all
ranks request a push at once.

The kernel and the Hub count, so a busy machine does not distort the result. Targets are printed as met or missed; no
figure makes the script fail.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import upload_worker
from lib import isolation
from lib.arguments import add_directory, make_parser
from lib.figures import verdict
from lib.prctl import adopt_orphans
from lib.waiting import wait_for
from upload_worker import OURS, REPO

from hf_mpwriter.events.series import SEGMENT_MAX, SEGMENT_SHARE
from hf_mpwriter.localhub import LocalHub
from hf_mpwriter.localhub.store import file_sha256
from hf_mpwriter.worker.files import SEGMENT_OF_ONE

THEIRS, OLD = "HFSummaryWriter", "old"
XET, LFS = "Xet", "LFS"
MB = 1_000_000
DAY, WEEK = 288, 2016  # commits, one every five minutes
RANKS = (1, 4, 16)
TARGETS = {(48, XET): 1.5, (48, LFS): 9.0, (DAY, XET): 1.5, (DAY, LFS): 12.0}  # sent / logged, of ours
HEAD = ("commits", "logged MB", "sent MB", "sent/log", "read/log", "cpu s", "start s", "log s", "upload s", "requests",
        "wall s")  # fmt: skip


@dataclass(frozen=True)
class Case:
    """The settings of one row."""

    library: str  # whose writer
    way: str  # protocol of the upload
    ranks: int  # processes that share a logdir
    commits: int  # how often every rank requests a push
    unit: int  # bytes of events that all ranks together log before each push
    images: float  # share of these bytes that are images
    pause: float = 0.0  # seconds between two commits
    old: str = ""  # another checkout, whose hf_mpwriter is measured; "" for this one

    def __str__(self) -> str:
        """The first columns of the row."""
        return f"{self.library:16}{self.way:4}{self.ranks:6}"


@dataclass(frozen=True)
class Cost:
    """The measurements of one row; the head of this script explains them."""

    commits: int  # applied by the Hub
    logged: int  # bytes of the event files at the end
    sent: int  # bytes
    read: int  # bytes
    cpu: float  # CPU seconds
    start: float  # CPU seconds
    logging: float  # CPU seconds
    requests: int  # received by the Hub
    wall: float  # seconds

    def __str__(self) -> str:
        """The other columns of the row."""
        upload = self.cpu - self.start - self.logging
        return (
            f"{self.commits:9}{self.logged / MB:11.2f}{self.sent / MB:11.2f}{self.sent / self.logged:11.2f}"
            f"{self.read / self.logged:11.2f}{self.cpu:11.2f}{self.start:11.2f}{self.logging:11.2f}{upload:11.2f}"
            f"{self.requests:11}{self.wall:11.1f}"
        )


class Worker:
    """A rank of a run, in a process of its own."""

    def __init__(self, case: Case, rank: int, logdir: Path, env: dict[str, str]) -> None:
        unit = case.unit // case.ranks
        library = THEIRS if case.library == THEIRS else OURS
        options = [library, str(logdir), str(unit), str(case.images), str(rank)]
        command = [sys.executable, upload_worker.__file__, *options]
        launcher = {"RANK": str(rank), "WORLD_SIZE": str(case.ranks)} if case.ranks > 1 else {}
        self._process = subprocess.Popen(
            command, env=env | launcher, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def request(self, what: str) -> None:
        """Send a request; read its reply with `reply`."""
        assert self._process.stdin  # noqa: S101 - for the type checker: the argument was PIPE
        self._process.stdin.write(f"{what}\n")
        self._process.stdin.flush()

    def reply(self) -> dict[str, float]:
        """Wait for the reply to a request."""
        assert self._process.stdout  # noqa: S101 - as above
        if not (line := self._process.stdout.readline()):
            raise RuntimeError(f"a worker ended with code {self._process.wait()}")
        reply: dict[str, float] = json.loads(line)
        return reply

    def end(self) -> dict[str, float]:
        """Let it end; return its CPU seconds."""
        assert self._process.stdin  # noqa: S101 - as above
        self._process.stdin.close()
        reply = self.reply()
        if code := self._process.wait():
            raise RuntimeError(f"a worker ended with code {code}")
        return reply


# the row


def measure(case: Case, directory: Path) -> Cost:
    """Let workers log and push to a new Hub, and count the cost."""
    logdir = directory / "runs" / "run"
    env = os.environ | isolation.variables(directory)
    env["HF_HUB_DISABLE_XET"] = str(int(case.way == LFS))
    if case.old:
        env["PYTHONPATH"] = case.old
    with LocalHub(directory / "hub", discard=True) as hub:
        started_at, cpu, read = time.monotonic(), _cpu_of_children(), _bytes_read()
        try:
            replies = run(case, logdir, env | {"HF_ENDPOINT": hub.endpoint})
            wait_for(lambda: not _children_but(hub), "all processes of the run have ended")
        except BaseException:
            while left := _children_but(hub):
                os.kill(left[0], signal.SIGKILL)
            raise
        cpu, read, wall = _cpu_of_children() - cpu, _bytes_read() - read, time.monotonic() - started_at
        check(hub, logdir)
    requests = list(_requests(Path(hub.root)))
    return Cost(
        commits=sum("/commit/" in one["path"] and one["status"] == 200 for one in requests),
        logged=sum(path.stat().st_size for path in _event_files(logdir)),
        sent=sum(one["in"] for one in requests),
        read=read,
        cpu=cpu,
        start=sum(one["start"] for one in replies),
        logging=sum(one["logging"] for one in replies),
        requests=len(requests),
        wall=wall,
    )


def run(case: Case, logdir: Path, env: dict[str, str]) -> list[dict[str, float]]:
    """Log and push as often as the case says; return the CPU seconds of each worker."""
    workers = []
    for rank in range(case.ranks):  # one after another: constructors of HFSummaryWriter race for the model card
        workers.append(Worker(case, rank, logdir, env))
        workers[-1].reply()
    for _ in range(case.commits):
        for worker in workers:
            _all_at_once(workers, "log")
            if case.library == THEIRS:
                _all_at_once([worker], "push")
        if case.library != THEIRS:
            _all_at_once(workers, "push")
        time.sleep(case.pause)
    return [worker.end() for worker in workers]


def _all_at_once(workers: Sequence[Worker], what: str) -> None:
    for worker in workers:
        worker.request(what)
    for worker in workers:
        worker.reply()


def check(hub: LocalHub, logdir: Path) -> None:
    """Raise if the Hub does not have what was logged."""
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
    """Of this process, which reads next to nothing, and of all descendants that were waited for."""
    rows = (line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return next(int(value) for name, value in rows if name == "rchar")


def _children_but(hub: LocalHub) -> list[int]:
    """Reap the children that have ended; return the living ones without the Hub."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    return [pid for pid in map(int, children) if pid != hub.pid]


# the table


def show(case: Case, cost: Cost) -> None:
    """Print one row, with its target if it has one."""
    target = TARGETS.get((case.commits, case.way)) if case.library == OURS and case.ranks == 1 else None
    ratio = cost.sent / cost.logged
    judged = "" if target is None else f"  target {target:g}: {verdict(ratio, target)}"
    print(f"{case}{cost}{judged}", flush=True)


def show_computed(case: Case) -> None:
    """Compute a row that would take hours: each commit sends a whole file, all of the log or the open segment."""
    limit = math.inf if case.library == THEIRS else SEGMENT_OF_ONE
    opened = sealed = sent = 0
    for _ in range(case.commits):
        opened += case.unit
        sent += opened
        if opened >= limit:
            sealed, opened = sealed + opened, 0
            limit = min(SEGMENT_MAX, max(SEGMENT_OF_ONE, sealed // SEGMENT_SHARE))
    print(f"{case}{case.commits:9}{sent / (case.commits * case.unit):33.2f}  computed", flush=True)


def parse() -> argparse.Namespace:
    """Parse the command line."""
    parser = make_parser(__doc__)
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--commits", type=int, default=48, help="per row with one worker (default: %(default)s)")
    size.add_argument("--day", dest="commits", action="store_const", const=DAY, help="288 commits")
    size.add_argument("--week", dest="commits", action="store_const", const=WEEK, help="2016 commits")
    parser.add_argument("--unit", type=int, default=MB, help="bytes of new events per commit (default: %(default)s)")
    parser.add_argument("--images", type=float, default=0.5, help="share of images in them (default: %(default)s)")
    parser.add_argument("--ways", nargs="+", choices=(XET, LFS), default=(XET, LFS), help="default: both")
    parser.add_argument("--libraries", nargs="+", choices=(OURS, THEIRS), default=(OURS, THEIRS), help="default: both")
    parser.add_argument("--ranks", nargs="*", type=int, default=RANKS, help="that share a logdir (default: 1 4 16)")
    parser.add_argument("--old", type=Path, help="another checkout of this project, measured beside this one")
    parser.add_argument("--pause", type=float, default=0.0, help="seconds between two commits (default: none)")
    parser.add_argument("--rounds", type=int, default=4, help="commits of a shared logdir (default: %(default)s)")
    add_directory(parser)
    return parser.parse_args()


def main() -> int:
    """Print the table."""
    options = parse()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))
    adopt_orphans()  # uploaders become children of this process
    os.environ |= {"HF_HUB_VERBOSITY": "error"}
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # each push would compile all modules again
    old = {OLD: str(options.old and options.old.resolve())}
    libraries = [*([OLD] if options.old else []), *options.libraries]
    alone = [
        Case(library, way, 1, options.commits, options.unit, options.images, options.pause, old.get(library, ""))
        for way in options.ways
        for library in libraries
    ]
    shared = [
        Case(library, LFS, ranks, options.rounds, options.unit, options.images, old=old.get(library, ""))
        for ranks in options.ranks
        for library in libraries
    ]
    directory = Path(tempfile.mkdtemp(prefix="bench_upload_", dir=options.dir))
    isolation.isolate(directory)
    os.environ["PYTHONPYCACHEPREFIX"] = str(directory / "modules")
    try:
        for case in {case.library: case for case in alone}.values():  # the first of a library compiles its modules
            measure(replace(case, commits=1, unit=64_000, pause=0.0), directory / "first")
            shutil.rmtree(directory / "first")
        print(f"{'':16}{'by':4}{'ranks':>6}{HEAD[0]:>9}" + "".join(f"{name:>11}" for name in HEAD[1:]), flush=True)
        for case in [*alone, *shared]:
            if case.commits == WEEK and (case.library, case.way) != (OURS, XET):
                show_computed(case)
            else:
                show(case, measure(case, directory / "row"))
                shutil.rmtree(directory / "row")
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
