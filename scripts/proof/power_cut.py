#!/usr/bin/env python3
"""Cut the power of the disk under a run at its worst moments, many times over; let the oracle judge.

There are two kinds of cuts, each on real file systems (`power_cut_disk.py`):

    --cuts N     the whole system: ranks log, flush, open new segments and request pushes; the real uploader and its
                 pushes upload to the local Hub, which is on another disk. Soon after an event (a batch is put, a push
                 starts, a commit arrives, ...) the power is cut, all processes are killed, the disk is started again
                 and checked, and the run continues. After a few cuts everything drains and is checked again.
    --steps N    one process: it writes files, queue and ledger in seeded order, and the power is cut at a named
                 failpoint, that is between any two steps of a write. What had returned must be there, and nothing may
                 be torn.

    scripts/proof/power_cut.py --cuts 50 --steps 300 --seed 1      (these numbers are the default)
    scripts/proof/power_cut.py --sabotage unsynced       a build that is broken on purpose: it must be found

N counts for each kind of file system (--kind). The script needs root, mkfs.ext4 and mkfs.xfs. Exit code 0 if all
promises held (with --sabotage: if the sabotage was found), 3 if one was broken, 1 if the script itself failed.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import logging
import os
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import sabotage
from lib.arguments import add_seed, make_parser
from lib.isolation import isolate, own_mounts
from power_cut_disk import LoopDisk
from power_cut_run import CUTS, Run
from power_cut_steps import cut_steps

from hf_mpwriter.localhub import LocalHub


def cut_runs(root: Path, kind: str, cuts: int, seed: int, done: Counter[str]) -> Iterator[str]:
    """Cut the power under runs of the whole system; yield findings."""
    with LocalHub(root / "hub") as hub:
        os.environ["HF_ENDPOINT"] = hub.endpoint

        for first in range(0, cuts, CUTS):
            place = root / f"{kind}{first}"
            with LoopDisk(str(place), kind) as drive:
                run = Run(place, drive, hub, f"{seed} {kind} {first}", done)
                try:
                    for finding in run.run(min(CUTS, cuts - first)):
                        shutil.copytree(run.run_dir, place / "run", dirs_exist_ok=True)
                        yield f"{place.name}: {finding}"
                finally:
                    run.end_all()
                    run.spool.release()


def cut_all(root: Path, options: argparse.Namespace, done: Counter[str]) -> Iterator[str]:
    """Make both kinds of cuts on the chosen file systems; yield findings."""
    for kind in ("ext4", "xfs") if options.kind == "both" else (options.kind,):
        yield from cut_steps(root, kind, options.steps, options.seed, done)
        yield from cut_runs(root, kind, options.cuts, options.seed, done)


def main() -> int:
    """Cut the power; print what was done and what was found."""
    parser = make_parser(__doc__)
    parser.add_argument("--cuts", type=int, default=50, help="under a whole run (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=300, help="between two steps of a write (default: %(default)s)")
    parser.add_argument("--kind", choices=("ext4", "xfs", "both"), default="both", help="file system (default: both)")
    add_seed(parser)
    sabotage.add_option(parser, "unsynced")
    options = parser.parse_args()
    if options.sabotage:
        return sabotage.run(options.sabotage)
    root = Path(tempfile.mkdtemp(prefix="power_cut_"))
    isolate(root)
    own_mounts()
    logging.getLogger("hf_mpwriter").setLevel(logging.ERROR)
    print(f"seed {options.seed}", flush=True)
    done: Counter[str] = Counter()
    findings: list[str] = []
    started_at = time.monotonic()
    with contextlib.closing(cut_all(root, options, done)) as found:
        for finding in itertools.islice(found, 1 if sabotage.is_sabotaged() else None):
            print(finding, flush=True)
            findings.append(finding)
    print(f"{time.monotonic() - started_at:.0f} s; cuts: {dict(done)}")
    return sabotage.conclude(findings, root, options.seed, "no promise was broken")


if __name__ == "__main__":
    sys.exit(main())
