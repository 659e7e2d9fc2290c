#!/usr/bin/env python3
"""What multiprocessing, pools, torch and others start is as torchrun's: directories, messages, waits, and kills.

    scripts/proof/multiprocess.py                              each program, with the Hub up and down: some ten minutes
    scripts/proof/multiprocess.py --only joblib --show         one of them, with all lines; can be repeated
    scripts/proof/multiprocess.py --kills 300 --seed 1         kill processes of programs that are drawn

The programs are in `tests/helpers/multiprocess_programs.py`. Each runs twice without uploads, then twice in the same
directories, the second time in the other order. A row shows, for both starts: how many run directories told a start,
an end, and that something is not on the Hub; seconds more than without uploads, which vary by some on busy machines;
whether each child, rank or trial has kept its directory; and the directories below the run directories.

A kill strikes a child, the parent or the uploader, at a random moment, with the Hub up or failing; the others go on to
their end or are ended; then comes `hf-mpwriter sync` or the next start. Every record whose call had returned has to
be on the Hub once, as the oracle judges.

Exit code 0 if all held, 3 if something was found, 1 if the script itself failed. Folders of what was found are kept.
"""

from __future__ import annotations

import argparse
import math
import os
import queue
import shutil
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from lib.arguments import add_directory, add_seed, make_parser
from lib.isolation import isolate
from lib.paths import HELPERS

sys.path.insert(0, str(HELPERS))
from multiprocess_programs import PROGRAMS, names
from multiprocess_trials import DOWN, END, START, UNSENT, Place, Tally, Trial, weights

from hf_mpwriter.localhub import LocalHub

UP_LIMIT, DOWN_LIMIT = 3.0, 15.0  # seconds more: per end with the Hub up, per program with the Hub down
AT_ONCE = 2  # trials of a sweep
ALWAYS = {  # the network stays on loopback, and no library computes in many threads
    "OMP_NUM_THREADS": "1",
    "GLOO_SOCKET_IFNAME": "lo",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DEDUP_LOGS": "0",
    "PYTHONWARNINGS": "ignore",
}
ROW = "{:18} {:4} {:>5} {:>7} {:>7} {:>7} {:>11}  {:10} {}"
HEAD = ROW.format("program", "Hub", "runs", "start", "end", "unsent", "more s", "names", "directories")
KILL_ROW = "{:18} {:>6} {:>6} {:>7} {:>9} {:>9} {:>5} {:>8} {:>5} {:>6} {:>6}"
KILL_HEAD = KILL_ROW.format(
    "program", "kills", "child", "parent", "uploader", "returned", "lost", "doubled", "once", "never", "twice"
)


class Table:
    """The rows of the programs."""

    def __init__(self, folder: Path, *, show: bool) -> None:
        self._folder, self._show = folder, show
        self.findings: list[str] = []

    def run(self, name: str, hubs: dict[str, str]) -> None:
        """Run a program with the Hub up, down, or both, and print its rows."""
        if missing := PROGRAMS[name].missing:
            print(f"{name:18} skipped: {missing}", flush=True)
            return
        places = [Place(self._folder / f"{name}-{number}", name, {}, "me/run") for number in range(2)]
        plain = min(self._seconds(place, HF_MPWRITER_DISABLED="1") for place in places)
        for state, endpoint in hubs.items():
            place = Place(self._folder / f"{name}-{state}", name, {"HF_ENDPOINT": endpoint}, f"me/{name}")
            try:
                self._row(place, state, plain)
            finally:
                place.close()

    def _seconds(self, place: Place, **environ: str) -> float:
        began = time.monotonic()
        place.start(**environ)
        codes = place.finish()
        if any(codes):
            raise RuntimeError(f"{place.name} ended with {codes}:\n{place.output.read_text()[-4000:]}")
        return time.monotonic() - began

    def _row(self, place: Place, state: str, plain: float) -> None:
        name, program, seconds, counts, found = place.name, place.program, [], [], []
        for backwards in ({}, {"BACKWARDS": "1"}):
            seconds.append(self._seconds(place, **backwards) - plain)
            counts.append(place.told(*place.run_dirs))
            found.append(names(place.run_dirs))
            if self._show:
                print(*place.lines(), sep="\n", flush=True)
        same = "by chance" if program.by_chance else "the same" if found[0] == found[1] else "DIFFER"
        runs = len(place.run_dirs)
        told = {kind: [count[kind] for count in counts] for kind in (START, END, UNSENT)}
        below = {str(path.parent.relative_to(run)) for run in place.runs for path in run.rglob("*tfevents*")}
        more = "+".join(f"{one:.1f}" for one in seconds)
        cells = [",".join(map(str, told[kind])) for kind in told]
        print(ROW.format(name, state, runs, *cells, more, same, " ".join(sorted(below))), flush=True)
        wanted = {START: runs, END: runs if state == "up" else 0, UNSENT: 0 if state == "up" else runs}
        # between two tasks of a pool with one logdir there may be no member: the end is told for each such moment
        self.findings += [
            f"{name}, Hub {state}: {kind} {told[kind]} times, not {count}"
            for kind, count in wanted.items()
            if told[kind] != [count, count] and not (kind == END and program.by_chance and min(told[kind]) >= count)
        ]
        expected = {"."} if program.runs == 1 else {f"t{trial}" for trial in range(program.runs)}
        expected = set(program.directories) if program.runs == 1 else expected
        if below != expected:
            self.findings.append(f"{name}, Hub {state}: {sorted(below)}, not {sorted(expected)}")
        if same == "DIFFER":
            self.findings.append(f"{name}, Hub {state}: names differ: {found}")
        limit = UP_LIMIT * math.ceil(program.runs / AT_ONCE) if state == "up" else DOWN_LIMIT
        if max(seconds) > limit:
            self.findings.append(f"{name}, Hub {state}: {max(seconds):.1f} s more, not {limit:.0f}")


def tables(folder: Path, options: argparse.Namespace) -> list[str]:
    """Print the rows of all programs; what was found."""
    table = Table(folder, show=options.show)
    print(HEAD, flush=True)
    with LocalHub(folder / "hub") as hub:
        hubs = {"up": hub.endpoint, "down": DOWN}
        hubs = hubs if options.hub == "both" else {options.hub: hubs[options.hub]}
        for name in options.only or PROGRAMS:
            table.run(name, hubs)
    return table.findings


def kills(folder: Path, options: argparse.Namespace) -> list[str]:
    """Kill so many processes; print what is left, by program; what was found."""
    drawn = weights()
    only = [name for name in options.only or drawn if drawn[name] or options.only]
    tallies: dict[str, Tally] = {}
    hubs: queue.SimpleQueue[LocalHub] = queue.SimpleQueue()

    def run(number: int) -> tuple[str, Tally]:
        hub = hubs.get()
        try:
            trial = Trial(folder, hub, options.seed, number, only)
            tally = trial.run()
            if options.show:
                print(f"{trial}: {tally.returned} returned", flush=True)
            return trial.place.name, tally
        finally:
            hubs.put(hub)

    started = [LocalHub(folder / f"hub{job}").start() for job in range(options.jobs)]
    try:
        for hub in started:
            hubs.put(hub)
        with ThreadPoolExecutor(options.jobs) as pool:
            numbers = range(options.kills) if options.trial is None else [options.trial]
            for name, tally in pool.map(run, numbers):
                tallies.setdefault(name, Tally()).add(tally)
    finally:
        for hub in started:
            hub.stop()
    total = Tally()
    print(KILL_HEAD)
    for name, tally in [*sorted(tallies.items()), ("all", total)]:
        total.add(tally) if tally is not total else None
        struck = [tally.kills[kind] for kind in ("child", "parent", "uploader")]
        cells = (tally.returned, tally.lost, tally.doubled, tally.once, tally.never, tally.twice)
        print(KILL_ROW.format(name, sum(struck), *struck, *cells))
    return total.findings


def parse() -> argparse.Namespace:
    """The options."""
    parser = make_parser(__doc__)
    parser.add_argument("--only", action="append", choices=PROGRAMS, metavar="PROGRAM", help="can be repeated")
    parser.add_argument("--hub", choices=["up", "down", "both"], default="both", help="default: %(default)s")
    parser.add_argument("--kills", type=int, default=0, help="kill so many processes instead")
    parser.add_argument("--trial", type=int, help="of the kills this one alone, again")
    parser.add_argument("--jobs", type=int, default=2, help="kills at once (default: %(default)s)")
    parser.add_argument("--show", action="store_true", help="print all lines, or all trials")
    parser.add_argument("--list", action="store_true", help="print the programs")
    add_seed(parser)
    add_directory(parser)
    return parser.parse_args()


def main() -> int:
    """Run the programs, or kill them; print what was found."""
    options = parse()
    if options.list:
        print(*PROGRAMS, sep="\n")
        return 0
    folder = Path(tempfile.mkdtemp(prefix="mp_", dir=options.dir))  # short: the sockets of Ray are below it
    isolate(folder)
    os.environ |= ALWAYS
    print(f"seed {options.seed}, in {folder}", flush=True)
    began = time.monotonic()
    is_kill = options.kills or options.trial is not None
    findings = kills(folder, options) if is_kill else tables(folder, options)
    print(f"in {time.monotonic() - began:.0f} s, {len(findings)} findings", *findings, sep="\n")
    if not findings:
        shutil.rmtree(folder)
    return 3 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
