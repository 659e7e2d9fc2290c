#!/usr/bin/env python3
"""Measure the cost and the reactions of the uploader, with real processes and the real client on a local Hub.

    --takeover     kill the uploader while two workers log: seconds until another one holds the lock
    --latency      kill a worker: seconds until all its events are on the Hub; beside another worker, and alone
    --hang         the Hub accepts connections and never answers: p99.9 of add_scalar, beside a run without a Hub
    --rest         64 living workers that log nothing: memory and CPU of the uploader
    --many-files   10,000 finished files and one worker that logs: CPU of the uploader, seconds of a snapshot
    --children     thousands of children log one event and end while the Hub hangs: CPU of the uploader, files left
    --push         memory of a push of 64 MiB that may still grow, by Xet and by LFS

    scripts/bench/uploader.py                    all of it: about 25 minutes
    scripts/bench/uploader.py --quick            shorter: about 5 minutes, less reliable
    scripts/bench/uploader.py --takeover --rounds 5

Kills come at random moments. The kernel counts CPU time, so those figures hold on a busy machine; figures by the clock
need a quiet one. --rest and --many-files run side by side. Targets are printed as met or missed; no figure makes the
script fail.
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
import os
import random
import shutil
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from lib.arguments import add_directory, add_seed, make_parser
from lib.figures import MIB
from lib.isolation import isolate
from processes import Scale
from uploader_costs import FIVE_MINUTES, Costs
from uploader_reactions import Reactions

from hf_mpwriter.localhub import LocalHub

FULL = Scale(kills=20, pairs=5, timed=60.0, watched=FIVE_MINUTES, workers=64, files=10_000, children=2000)
QUICK = Scale(kills=5, pairs=2, timed=10.0, watched=30.0, workers=64, files=10_000, children=500)
TINY = Scale(kills=1, pairs=1, timed=0.5, watched=1.0, workers=3, files=30, children=5, pushed=MIB)
PARTS = {
    "takeover": Reactions,
    "latency": Reactions,
    "hang": Reactions,
    "rest": Costs,
    "many_files": Costs,
    "children": Costs,
    "push": Costs,
}


def parse() -> argparse.Namespace:
    """Parse the command line."""
    parser = make_parser(__doc__)
    parts = parser.add_argument_group("parts", "default: all")
    for name in PARTS:
        parts.add_argument(f"--{name.replace('_', '-')}", action="store_true")
    parser.add_argument("--rounds", type=int, help="kills of each kind, and pairs of runs, instead of 20 and 5")
    parser.add_argument("--quick", action="store_true", help="fewer and shorter rounds; 5 minutes are extrapolated")
    parser.add_argument("--tiny", action="store_true", help="only check that everything works")
    add_seed(parser)
    add_directory(parser)
    return parser.parse_args()


def main() -> int:
    """Run the parts."""
    options = parse()
    scale = TINY if options.tiny else QUICK if options.quick else FULL
    if options.rounds:
        scale = dataclasses.replace(scale, kills=options.rounds, pairs=options.rounds)
    directory = Path(tempfile.mkdtemp(prefix="bench_uploader_", dir=options.dir))
    print(f"seed {options.seed}", flush=True)
    if scale.watched != FIVE_MINUTES:
        print(f"figures of 5 min are extrapolated from {scale.watched:g} s")
    isolate(directory)
    logging.getLogger("hf_mpwriter").setLevel(logging.ERROR)
    rng, wanted = random.Random(options.seed), [name for name in PARTS if getattr(options, name)] or [*PARTS]
    if side_by_side := {"rest", "many_files"} <= set(wanted):
        wanted.remove("many_files")
    try:
        with LocalHub(directory / "hub") as hub:
            os.environ["HF_ENDPOINT"] = hub.endpoint
            for name in wanted:
                bench = PARTS[name](directory, hub, scale, rng)
                measure = getattr(bench, "rest_and_many_files" if name == "rest" and side_by_side else name)
                measure()
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
