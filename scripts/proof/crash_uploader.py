#!/usr/bin/env python3
"""Strike an uploader at every failpoint and at every system call that changes something, and let the oracle judge.

A trial is a run directory with two workers, what a killed predecessor has left there, four commits by real pushes to a
local Hub, and an uploader that leaves in the end; see tests/helpers/crashing.py. It is struck once, and once more in its second
life where that is asked for. Then it, or a successor, must bring everything to the Hub and leave nothing behind.

    scripts/crash_uploader.py                           everything: about 2,000 faults
    scripts/crash_uploader.py --failpoints              kill, EIO, ENOSPC at each failpoint, 1st, 2nd, last passage
    scripts/crash_uploader.py --syscalls --every 10     of the system calls every tenth (needs strace)
    scripts/crash_uploader.py --sabotage early-ack      a build that is broken on purpose: it must be found

Exit code 0 if all promises held (with --sabotage: if the sabotage was found), 3 if not. 1: the harness itself failed.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import sabotage

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "helpers"))
from crashing import UPLOADER, Harm
from crashpoints import Call, Trials

ERRORS = ("eio", "enospc")
READS_EVERY = 4  # many calls that read are alike


@dataclass
class Tally:
    """What was done and found."""

    struck: Counter[tuple[str, str]] = field(default_factory=Counter)  # (whose and where, action) -> times
    ended: Counter[tuple[str, str]] = field(default_factory=Counter)  # lives that an error ended
    missed: int = 0
    made: int = 0
    problems: list[str] = field(default_factory=list)


def at_failpoints(passed: dict[str, int]) -> Iterator[tuple[Harm, ...]]:
    """Each at its first, its second and its last passage."""
    for name, times in passed.items():
        for passage in sorted({1, min(times, 2), times}):
            for action in ("kill", *ERRORS):
                yield (Harm(name, action, passage),)


def at_calls(calls: list[Call], rng: random.Random) -> Iterator[tuple[Harm, ...]]:
    """Kills at all that change something, and once more in the second life; errors at the uploader's calls."""
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
    """The row of the table that a harm belongs to."""
    whose = "failpoint" if harm.is_failpoint else "uploader" if harm.push == UPLOADER else "push"
    return f"{whose} {harm.point}"


def make(trials: Trials, harms: Iterator[tuple[Harm, ...]], tally: Tally, lock: threading.Lock) -> None:
    """Make trials until there are no more."""
    while True:
        with lock:
            one = next(harms, None)
        if one is None or (tally.problems and sabotage.is_sabotaged()):
            return
        outcome = trials.make(*one)
        with lock:
            tally.made += 1
            for harm, struck in zip(one, outcome.struck, strict=False):
                tally.struck[row_of(harm), harm.action] += struck
            tally.missed += len(one) - sum(outcome.struck)
            tally.ended[row_of(one[0]), one[0].action] += outcome.ended.count(1)
            for problem in outcome.problems:
                tally.problems.append(f"{one}: {problem}; kept in {trials.last}")
                print(tally.problems[-1], flush=True)


def show(tally: Tally) -> None:
    """The table."""
    print(f"{'':36}{'kills':>8}{'errors':>8}{'ended by an error':>20}")
    for row in sorted({row for row, _ in tally.struck}):
        errors = sum(tally.struck[row, action] for action in ERRORS)
        ended = sum(tally.ended[row, action] for action in ERRORS)
        print(f"{row:36}{tally.struck[row, 'kill']:8}{errors:8}{ended or '':>20}")
    kills = sum(times for (_, action), times in tally.struck.items() if action == "kill")
    print(f"{kills} kills, {sum(tally.struck.values()) - kills} errors, {tally.missed} not reached")


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--failpoints", action="store_true", help="strike at failpoints only")
    parser.add_argument("--syscalls", action="store_true", help="strike at system calls only")
    parser.add_argument("--every", type=int, default=1, help="of the harms, every so many (default: all)")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6), help="default: random")
    parser.add_argument("--parallel", type=int, default=os.cpu_count() or 1, help="trials at once")
    parser.add_argument("--sabotage", choices=("early-ack",))
    return parser.parse_args()


def chosen(options: argparse.Namespace, trials: Trials) -> list[tuple[Harm, ...]]:
    """The harms that were asked for, in seeded order."""
    everything = not (options.failpoints or options.syscalls)
    rng, harms = random.Random(options.seed), list[tuple[Harm, ...]]()
    if options.failpoints or everything:
        harms += at_failpoints(trials.make().passed)
    if options.syscalls or everything:
        harms += at_calls(trials.record(), rng)
    rng.shuffle(harms)
    return harms[:: options.every]


def main() -> int:
    """Strike, print the table, tell what must not be."""
    options = parse()
    if options.sabotage:
        return sabotage.run(options.sabotage)
    from hf_mpwriter.localhub import LocalHub

    root = Path(tempfile.mkdtemp(prefix="crash_uploader_"))
    tally, lock, began = Tally(), threading.Lock(), time.monotonic()
    print(f"seed {options.seed}", flush=True)
    with LocalHub(root / "hub") as hub:
        makers = [Trials(hub.endpoint, str(root / "hub"), str(root / str(n))) for n in range(options.parallel)]
        harms = chosen(options, makers[0])
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
    print(f"in {time.monotonic() - began:.0f} s")
    if not tally.problems and (tally.made < len(harms) or tally.missed > sum(tally.struck.values())):
        print(f"nothing is shown: {tally.made} of {len(harms)} trials were made; see {root}")
        return 1
    return sabotage.conclude(tally.problems, root, options.seed, "everything is on the Hub, nothing is left behind")


if __name__ == "__main__":
    sys.exit(main())
