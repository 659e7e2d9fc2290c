#!/usr/bin/env python3
"""Measure `add_scalar` on a mount whose every call takes 20 ms, beside the local disk: ours, and tensorboardX's.

    scripts/bench/mounts.py                       as root: the mount is a FUSE model
    scripts/bench/mounts.py --rounds 5

All run in one process, in interleaved batches in random order, so they share the moments of the machine: compare the
ratios. A run on the model of gcsfuse is staged: its event files grow on a local disk, and another process copies them.
Batches are longer than the queue of tensorboardX, and end with nothing flushed. The constructor is not part of it.

The target is printed as met or missed; no timing makes the script fail.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from lib.arguments import add_directory, add_seed, make_parser
from lib.figures import interleaved, median_ratio, quantile, show
from lib.isolation import isolate, own_mounts
from lib.paths import HELPERS
from lib.writers import OURS, TBX, make_writer

sys.path.insert(0, str(HELPERS))

DELAY = 0.02  # seconds
TARGET = 1.1  # of the mean on the local disk
WARM_UP = 8.0  # seconds


def batch(writer: Any, first: int, calls: int) -> list[float]:
    """Microseconds of so many calls, one after another."""
    took, clock = [], time.perf_counter
    for step in range(first, first + calls):
        before = clock()
        writer.add_scalar("loss", 0.5, step)
        took.append((clock() - before) * 1e6)
    return took


def measure(places: dict[str, Path], options: argparse.Namespace) -> None:
    """Print the mean of a call per writer and place, and what the mount costs."""
    rng = random.Random(options.seed)
    writers = {
        f"{kind}, {name}": make_writer(kind, path / kind) for kind in (OURS, TBX) for name, path in places.items()
    }
    took: dict[str, list[list[float]]] = {name: [] for name in writers}
    step, warm = 0, time.monotonic() + WARM_UP
    while time.monotonic() < warm:  # files are opened, and a mirror is started
        for writer in writers.values():
            batch(writer, step, options.calls)
        step += options.calls
    for _ in range(options.rounds):
        for name in interleaved(writers, rng):
            took[name].append(batch(writers[name], step, options.calls))
        step += options.calls
    means = {name: [statistics.fmean(calls) for calls in batches] for name, batches in took.items()}
    for name, batches in sorted(took.items()):
        show(f"{name}: mean of a call, median of the rounds", statistics.median(means[name]), "us")
        show(f"{name}: median of all calls", statistics.median(call for calls in batches for call in calls), "us")
        show(f"{name}: p99.9", quantile([call for calls in batches for call in calls], 0.999), "us")
    for kind, target in ((OURS, TARGET), (TBX, None)):
        ratio = median_ratio(means[f"{kind}, mount"], means[f"{kind}, disk"])
        show(f"{kind}: mean on the mount to that on the local disk", ratio, "", target)
    show("tensorboardX to ours, on the mount", median_ratio(means[f"{TBX}, mount"], means[f"{OURS}, mount"]), "")
    for writer in writers.values():
        writer.close()


def main() -> int:
    """Measure."""
    parser = make_parser(__doc__)
    parser.add_argument("--rounds", type=int, default=15, help="(default: %(default)s)")
    parser.add_argument("--calls", type=int, default=5000, help="of a batch (default: %(default)s)")
    add_seed(parser)
    add_directory(parser)
    options = parser.parse_args()
    own_mounts()
    import fuse_models

    if reason := fuse_models.why_not():
        print(f"there is no mount to measure: {reason}")
        return 2
    with tempfile.TemporaryDirectory(prefix="mounts-", dir=options.dir) as folder:
        top = Path(folder)
        isolate(top)
        local = top / "local"
        local.mkdir()
        os.environ["TMPDIR"] = str(local)
        with fuse_models.mounted(fuse_models.GCSFUSE.slow(DELAY), top / "mount") as mount:
            measure({"disk": top / "disk", "mount": mount.place}, options)
    return 0


if __name__ == "__main__":
    sys.exit(main())
