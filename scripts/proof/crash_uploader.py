#!/usr/bin/env python3
"""Strike an uploader at every failpoint and at every system call that changes something; let the oracle judge.

A trial is a run directory with two workers and the files of a killed predecessor, four commits by real pushes to a
local Hub, and an uploader that leaves at the end; see tests/helpers/crashing.py. It is struck once; some trials strike
its second life as well. Then it, or a successor, must bring everything to the Hub and leave nothing behind. With
`--runs`, one uploader serves so many of them: it is started for one, and ushers hand the others over.

    scripts/proof/crash_uploader.py                           everything: about 2,000 faults
    scripts/proof/crash_uploader.py --failpoints              kill, EIO, ENOSPC at each failpoint: 1st, 2nd, last pass
    scripts/proof/crash_uploader.py --failpoints --kills --runs 64    kills alone, of an uploader of 64 runs
    scripts/proof/crash_uploader.py --syscalls --every 10     every tenth of the system calls (needs strace)
    scripts/proof/crash_uploader.py --sabotage early-ack      a build that is broken on purpose: it must be found

Exit code 0 if all promises held (with --sabotage: if the sabotage was found), 3 if one was broken, 1 if the script
itself failed.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import sabotage
from lib.arguments import add_seed, make_parser
from lib.paths import HELPERS

sys.path.insert(0, str(HELPERS))
from crashing import ASKED, UPLOADER, Harm
from crashpoints import Call, Trials, UnharmedError

ERRORS = ("eio", "enospc")
READS_EVERY = 4  # of the calls that read: many are alike


@dataclass
class Tally:
    """What was done and found."""

    struck: Counter[tuple[str, str]] = field(default_factory=Counter)  # how often, by row of the table and action
    ended: Counter[tuple[str, str]] = field(default_factory=Counter)  # lives that an error ended, by row and action
    missed: int = 0  # harms whose point was not reached
    made: int = 0  # trials
    findings: list[str] = field(default_factory=list)  # broken promises


def at_failpoints(passed: dict[str, int]) -> Iterator[tuple[Harm, ...]]:
    """Yield kills and errors at the first, second and last passage of each failpoint."""
    for name, times in passed.items():
        for passage in sorted({1, min(times, 2), times}):
            for action in ("kill", *ERRORS) if name != ASKED else ("kill",):
                yield (Harm(name, action, passage),)


def at_calls(calls: list[Call], rng: random.Random) -> Iterator[tuple[Harm, ...]]:
    """Yield kills at all calls that change something, in one life and in two; errors at the uploader's calls."""
    changing = [call for call in calls if call.changes]
    ours = [call for call in changing if call.push == UPLOADER]
    for call in changing:
        yield (call.harm("kill"),)
    for call in ours:
        yield call.harm("kill"), rng.choice(ours).harm("kill")
    for call in ours:
        if not call.name.startswith(("exit", "clone", "fork")):
            yield from ((call.harm(action),) for action in ERRORS)
    reading = [call for call in calls if call.reads and call.push == UPLOADER]
    yield from ((call.harm("eio"),) for call in rng.sample(reading, len(reading) // READS_EVERY))


def row_of(harm: Harm) -> str:
    """Return the row of the table that a harm belongs to."""
    whose = "failpoint" if harm.is_failpoint else "uploader" if harm.push == UPLOADER else "push"
    return f"{whose} {harm.point}"


def make(trials: Trials, harms: Iterator[tuple[Harm, ...]], tally: Tally, lock: threading.Lock) -> None:
    """Make trials until none is left."""
    while True:
        with lock:
            one = next(harms, None)
        if one is None or (tally.findings and sabotage.is_sabotaged()):
            return
        outcome = trials.make(*one)
        with lock:
            tally.made += 1
            for harm, struck in zip(one, outcome.struck, strict=False):
                tally.struck[row_of(harm), harm.action] += struck
            tally.missed += len(one) - sum(outcome.struck)
            tally.ended[row_of(one[0]), one[0].action] += outcome.ended.count(1)
            for problem in outcome.problems:
                tally.findings.append(f"{one}: {problem}; kept in {trials.last}")
                print(tally.findings[-1], flush=True)


def show(tally: Tally) -> None:
    """Print the table."""
    print(f"{'':36}{'kills':>8}{'errors':>8}{'ended by an error':>20}")
    for row in sorted({row for row, _ in tally.struck}):
        errors = sum(tally.struck[row, action] for action in ERRORS)
        ended = sum(tally.ended[row, action] for action in ERRORS)
        print(f"{row:36}{tally.struck[row, 'kill']:8}{errors:8}{ended or '':>20}")
    kills = sum(times for (_, action), times in tally.struck.items() if action == "kill")
    print(f"{kills} kills, {sum(tally.struck.values()) - kills} errors, {tally.missed} not reached")


def parse() -> argparse.Namespace:
    """Parse the command line."""
    parser = make_parser(__doc__)
    parser.add_argument("--failpoints", action="store_true", help="strike at failpoints only")
    parser.add_argument("--syscalls", action="store_true", help="strike at system calls only")
    parser.add_argument("--kills", action="store_true", help="only kill; the disk refuses nothing")
    parser.add_argument("--runs", type=int, default=1, help="in one uploader (default: %(default)s)")
    parser.add_argument("--every", type=int, default=1, metavar="N", help="make every Nth trial (default: all)")
    add_seed(parser)
    parser.add_argument("--parallel", type=int, default=os.cpu_count() or 1, help="trials at once (default: cores)")
    sabotage.add_option(parser, "early-ack")
    return parser.parse_args()


def chosen(options: argparse.Namespace, trials: Trials) -> list[tuple[Harm, ...]]:
    """Return the harms to try, in random order."""
    everything = not (options.failpoints or options.syscalls)
    rng, harms = random.Random(options.seed), list[tuple[Harm, ...]]()
    if options.failpoints or everything:
        harms += at_failpoints(trials.unharmed().passed)
    if options.syscalls or everything:
        harms += at_calls(trials.record(), rng)
    if options.kills:
        harms = [one for one in harms if all(harm.action == "kill" for harm in one)]
    rng.shuffle(harms)
    if sabotage.is_sabotaged():  # what is claimed too early is lost by a kill soonest
        harms.sort(key=lambda one: (one[0].action != "kill", not one[0].point.startswith("ledger.save")))
    return harms[:: options.every]


def main() -> int:
    """Make the trials; print the table and what was found."""
    options = parse()
    if options.sabotage:
        return sabotage.run(options.sabotage)
    if not options.failpoints and not shutil.which("strace"):
        print("System calls are struck by strace, which is not installed.")
        return sabotage.TROUBLE
    from hf_mpwriter.localhub import LocalHub

    root = Path(tempfile.mkdtemp(prefix="crash_uploader_"))
    tally, lock, started_at = Tally(), threading.Lock(), time.monotonic()
    print(f"seed {options.seed}", flush=True)
    with LocalHub(root / "hub") as hub:
        places = [str(root / str(number)) for number in range(options.parallel)]
        makers = [Trials(hub.endpoint, str(root / "hub"), place, options.runs) for place in places]
        harms = list[tuple[Harm, ...]]()
        try:
            harms = chosen(options, makers[0])
        except UnharmedError as error:
            tally.findings.append(f"without any harm: {error}")
            print(tally.findings[-1], flush=True)
        print(f"{len(harms)} trials", flush=True)
        rest = iter(harms)
        threads = [threading.Thread(target=make, args=(one, rest, tally, lock)) for one in makers]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for one in makers:
            one.end()
    show(tally)
    print(f"in {time.monotonic() - started_at:.0f} s")
    troubles = list[str]()
    if not tally.findings and (tally.made < len(harms) or tally.missed > sum(tally.struck.values())):
        troubles.append(f"too few harms struck to prove anything: {tally.made} of {len(harms)} trials were made")
    success = "everything is on the Hub, nothing is left behind"
    return sabotage.conclude(tally.findings, root, options.seed, success, troubles=troubles)


if __name__ == "__main__":
    sys.exit(main())
