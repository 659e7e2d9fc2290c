#!/usr/bin/env python3
"""Kill processes with SIGKILL while they log, and count the returned events that are not in the files.

In one repetition one to eight processes log scalars, histograms, images of 1 MB, and steps of 20 scalars: with `log`,
or with `add_scalar` for each where a writer has no `log`. Each is killed at a seeded point of its progress, inside a
call of a seeded kind; half of the kills inside an image come while the event file grows. Parent
and children share memory that counts the calls that returned, so the counts survive the kill. Directly after each kill
the parent reads the files of the victim: every returned event must be there, once, and only the end of the last file
may be torn. Of a step, all is there or nothing.

    scripts/proof/crash_writer.py --kills 300 --seed 1
    scripts/proof/crash_writer.py --writer ours
    scripts/proof/crash_writer.py --sabotage buffered     a build that is broken on purpose: it must be found
    scripts/proof/crash_writer.py --sabotage split        another one, in which `log` writes two records

tensorboardX and torch are measured beside ours, with one directory per process: the comparison is about loss alone.

Exit code 0 if ours lost nothing (with --sabotage: if the sabotage was found), 3 if it did, 1 if the script itself
failed.
"""

from __future__ import annotations

import argparse
import math
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

# before numpy is imported: its idle threads would not survive the fork
os.environ |= {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
os.environ.setdefault("CRC32C_SW_MODE", "auto")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import sabotage
from crash_writer_kills import TABLE_HEAD, Repetition, Tally, make_values
from lib.arguments import add_directory, add_seed, make_parser
from lib.writers import OURS, TBX, TORCH, has_torch

PEERS = (TBX, TORCH)
PEER_SHARE = 6  # the others get one sixth of the kills: they lose events soon
KEPT = 3  # directories of failed repetitions that are kept


def measure(root: Path, writer: str, kills: int, options: argparse.Namespace, values: list[Any]) -> Tally:
    """Repeat until there were enough kills; keep directories in which ours broke a promise."""
    tally, number, kept = Tally(), 0, 0
    while tally.kills < kills and not (tally.findings and sabotage.is_sabotaged()):
        repetition = Repetition(root, writer, number, options, values)
        before = len(tally.findings)
        repetition.run(kills - tally.kills, tally)
        if len(tally.findings) > before and writer == OURS and kept < KEPT:
            kept += 1
        else:
            shutil.rmtree(repetition.directory)
        number += 1
    return tally


def writers(options: argparse.Namespace) -> dict[str, int]:
    """Return how often to kill each writer."""
    chosen = (OURS, *PEERS) if options.writer == "all" else (options.writer,)
    wanted = {}
    for writer in (OURS,) if sabotage.is_sabotaged() else chosen:
        if writer == TORCH and not has_torch():
            print("torch is skipped: torch or tensorboard, which its writer needs, is not installed")
            continue
        peers = options.peer_kills or math.ceil(options.kills / PEER_SHARE)
        wanted[writer] = options.kills if len(chosen) == 1 or writer == OURS else peers
    return wanted


def parse() -> argparse.Namespace:
    """Parse the command line."""
    parser = make_parser(__doc__)
    parser.add_argument("--kills", type=int, default=300, help="processes to kill (default: 300)")
    parser.add_argument("--peer-kills", type=int, help="kills of each other writer (default: one sixth of --kills)")
    add_seed(parser)
    parser.add_argument("--writer", choices=[OURS, *PEERS, "all"], default="all", help="default: all")
    add_directory(parser)
    sabotage.add_option(parser, "buffered", "split")
    return parser.parse_args()


def main() -> int:
    """Kill; print the table and what was found."""
    options = parse()
    if options.sabotage:
        return sabotage.run(options.sabotage)
    root = Path(tempfile.mkdtemp(prefix="crash_writer_", dir=options.dir))
    print(f"seed {options.seed}", flush=True)
    import hf_mpwriter.writer.summary_writer  # noqa: F401 - before the first fork, like everything that the processes need

    tallies: dict[str, Tally] = {}
    values, started_at, troubles = make_values(), time.monotonic(), list[str]()
    try:
        for writer, kills in writers(options).items():
            if writer == TORCH:
                import torch.utils.tensorboard  # noqa: F401 - before the fork; the others run without it
            tallies[writer] = measure(root, writer, kills, options, values)
    except (TimeoutError, RuntimeError) as error:
        troubles.append(str(error))
    print(TABLE_HEAD, *(tally.row(writer) for writer, tally in tallies.items()), sep="\n")
    print(f"in {time.monotonic() - started_at:.0f} s")
    ours = tallies.get(OURS, Tally())
    for finding in ours.findings:
        print(finding)
    success = f"ours: 0 of {ours.returned} returned events lost" if OURS in tallies else "ours was not measured"
    return sabotage.conclude(ours.findings, root, options.seed, success, troubles=troubles)


if __name__ == "__main__":
    sys.exit(main())
