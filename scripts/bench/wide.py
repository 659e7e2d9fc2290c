#!/usr/bin/env python3
"""Measure wide runs: thousands of `add_scalars` groups, each of which is an event file of its own in a sub directory.

    stall     the slowest of the `add_scalar` calls that keep house, while all groups are open
    flush     all files are dirty: the first of them, with new files and directories, and a later one
    close     after a flush, and with all files dirty
    hub       with --hub: small files, until all of them are on a local Hub, at the default rate limit

    scripts/bench/wide.py                              5,000 groups: half a minute
    scripts/bench/wide.py --hub 3000                   and 3,000 files to a local Hub

No figure makes the script fail.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from lib.arguments import add_directory, make_parser
from lib.figures import verdict
from lib.isolation import isolate

from hf_mpwriter import HFSummaryWriter, SummaryWriter
from hf_mpwriter.localhub import LocalHub
from hf_mpwriter.spool.layout import Spool
from hf_mpwriter.spool.ledger import load

TARGETS = {"stall, ms": 15.0, "flush, new files, s": 1.0, "flush, s": 1.0, "close, s": 0.8, "hub, s": 60.0}
LOOKS = 20  # at which the slowest stall is looked for
PATIENCE = 600.0  # seconds for the Hub


def timed(step: Callable[[], object]) -> float:
    """Seconds that a step takes."""
    started = time.perf_counter()
    step()
    return time.perf_counter() - started


def log(writer: SummaryWriter, groups: int, step: int) -> None:
    """Log a scalar to each group."""
    writer.add_scalars("main", {f"group_{number:05d}": 0.5 for number in range(groups)}, step)


def stall(writer: SummaryWriter) -> float:
    """Seconds of the slowest `add_scalar` that keeps house."""
    slowest = 0.0
    for step in range(LOOKS):
        writer._worker.next_housekeeping = 0.0  # noqa: SLF001 - as after three seconds
        slowest = max(slowest, timed(lambda step=step: writer.add_scalar("loss", 0.5, step)))
    return slowest


def measure(run_dir: Path, groups: int) -> dict[str, float]:
    """All figures of one process."""
    os.environ["HF_MPWRITER_TIMING"] = "housekeeping_every=1e9"  # only where it is measured
    writer = SummaryWriter(str(run_dir))
    found = {"group, first, us": timed(lambda: log(writer, groups, 0)) / groups * 1e6}
    found["group, later, us"] = timed(lambda: log(writer, groups, 1)) / groups * 1e6
    found["stall, ms"] = stall(writer) * 1e3
    found["flush, new files, s"] = timed(writer.flush)
    log(writer, groups, 2)
    found["flush, s"] = timed(writer.flush)
    found["flush, nothing new, s"] = timed(writer.flush)
    found["close, s"] = timed(writer.close)
    writer = SummaryWriter(str(run_dir))
    log(writer, groups, 3)
    found["close, new files, s"] = timed(writer.close)
    return found


def measure_hub(directory: Path, files: int) -> float:
    """Seconds until so many small files are on a local Hub, from the request for a push on."""
    del os.environ["HF_MPWRITER_COMMITS_PER_HOUR"]  # the default, as others have it
    with LocalHub(directory / "hub") as hub:
        os.environ |= {"HF_ENDPOINT": hub.endpoint, "HF_TOKEN": "hf_x"}
        writer = HFSummaryWriter(repo_id="bench/wide", logdir=str(directory / "hub_run"))
        writer.add_scalar("loss", 0.5, 0)
        log(writer, files, 0)
        spool, started = Spool(str(directory / "hub_run")), time.perf_counter()
        writer.scheduler.trigger()
        steps = dict[int, float]()  # files on the Hub, and when
        while max(steps, default=0) <= files and time.perf_counter() - started < PATIENCE:
            ledger = load(spool, spool.destination())
            steps.setdefault(sum(held.length > 0 for held in ledger.files.values()), time.perf_counter() - started)
            time.sleep(0.2)
        print("files on the Hub after seconds: " + ", ".join(f"{count} {at:.1f}" for count, at in steps.items()))
        writer.scheduler.stop()  # all is there, and what the end of this script would wait for is removed by then
        writer.close()
    return max(steps.values())


def parse() -> argparse.Namespace:
    """Parse the command line."""
    parser = make_parser(__doc__)
    parser.add_argument("--groups", type=int, default=5000, help="of one writer (default: 5000)")
    parser.add_argument("--hub", type=int, default=0, metavar="FILES", help="small files that go to a local Hub")
    add_directory(parser)
    return parser.parse_args()


def main() -> int:
    """Measure, and print the table."""
    options = parse()
    directory = Path(tempfile.mkdtemp(prefix="bench_wide_", dir=options.dir))
    isolate(directory)
    try:
        found = measure(directory / "run", options.groups) if options.groups else {}
        if options.hub:
            found["hub, s"] = measure_hub(directory, options.hub)
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    for name, figure in found.items():
        judged = f"  {verdict(figure, TARGETS[name])}, target {TARGETS[name]:g}" if name in TARGETS else ""
        print(f"{name:28}{figure:10.3f}{judged}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
