#!/usr/bin/env python3
"""Soak test: every kind of fault strikes at once, for as long as you like, and the oracle judges.

Two lanes run at once, each with its own disk and Hub. In a lane, run follows run: eight ranks log scalars, histograms,
texts and curves, fork children and seal small segments; for a while every fault in the table below strikes at seeded
moments; then the faults are undone, the ranks end, the uploader uploads the rest, and the oracle compares the run
directory with the Hub. Half of the runs are continued in the same run directory.

    scripts/proof/soak.py --minutes 30 --seed 1
    scripts/proof/soak.py --sabotage early-ack           a build that is broken on purpose: the oracle must find it

As root on Linux the run directories are on disks that can be full, read-only or without power, each third one on a FUSE
mount of files that dies and returns, or whose open files become stale, each third one staged for a mount of objects,
with another TMPDIR after each end of all; elsewhere these faults are skipped. Half of the runs are gentle: nothing of a
rank is killed or damaged, but it has little memory for what the disk refuses. There each lost record has to be told,
and none that is not lost. Half of the runs are live: at the end their bucket has each event file, byte for byte.

What other users do to our files on the Hub is taken out of the history before the oracle judges it; what they delete
has to be there again at the end. Some ranks have few descriptors or small files, and the clock of every process jumps.
When a push says that all is on the Hub, the rank that asked compares at that moment; where the oracle finds something,
`verify` must not end with 0.

Exit code 0 if all promises held (with --sabotage: if the sabotage was found), 3 if one was broken: the seed is
printed, and the run directory with its logs is kept. 1 if the script itself failed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from multiprocessing.synchronize import Event
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import sabotage
from lib.arguments import add_seed, make_parser
from lib.isolation import isolate, own_mounts
from lib.paths import HELPERS
from lib.prctl import die_with_parent
from power_cut_disk import LoopDisk, why_not
from soaking.faults import Chaos
from soaking.run import Place, Run

sys.path.insert(0, str(HELPERS))

import fuse_models

STORM = (10.0, 40.0)  # seconds of faults before each check
DISKS = ("ext4", "xfs")  # of the lanes


@dataclasses.dataclass
class Outcome:
    """What a lane did and found."""

    tally: Counter[str] = dataclasses.field(default_factory=Counter)  # how often each kind of fault struck
    findings: list[str] = dataclasses.field(default_factory=list)  # broken promises
    troubles: list[str] = dataclasses.field(default_factory=list)  # what kept the lane from its work
    kinds: list[str] = dataclasses.field(default_factory=list)  # all kinds of faults
    runs: int = 0  # that were checked
    records: int = 0  # returned records that were checked
    lost: int = 0  # that were lost, and told

    def add(self, other: Outcome) -> None:
        """Add the outcome of a lane."""
        self.tally += other.tally
        self.findings += other.findings
        self.troubles += other.troubles
        self.kinds += [kind for kind in other.kinds if kind not in self.kinds]
        self.runs, self.records = self.runs + other.runs, self.records + other.records
        self.lost += other.lost


class Lane:
    """Runs, one after another, on one disk."""

    def __init__(self, root: Path, number: int, seed: int, ends: float, found: Event) -> None:
        self._root, self._number, self._ends, self._found = root / f"lane{number}", number, ends, found
        self._rng = random.Random(f"{seed} {number}")
        self._kind = DISKS[number % len(DISKS)]
        self._decks: dict[tuple[str, bool], list[str]] = {}
        self.outcome = Outcome()
        os.makedirs(self._root)

    def go(self) -> None:
        """Run until the time is over or a promise was broken; write the outcome to a file in any case."""
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell ignores it for background jobs
        die_with_parent(by=signal.SIGINT)
        try:
            with contextlib.ExitStack() as stack:
                disk = None if why_not(self._kind) else stack.enter_context(LoopDisk(str(self._root), self._kind))
                number = 0
                while time.monotonic() < self._ends and not self._is_decided():
                    self._run(disk, number)
                    number += 1
        except KeyboardInterrupt:
            self.outcome.troubles.append("interrupted")
        except Exception:  # noqa: BLE001 - reported as a trouble
            self.outcome.troubles.append(f"lane {self._number}: {traceback.format_exc()}")
        (self._root / "outcome.json").write_text(json.dumps(vars(self.outcome)))

    def _is_decided(self) -> bool:
        """Whether there is something to look at here or, in a sabotaged build, in any lane."""
        return bool(self.outcome.findings) or (sabotage.is_sabotaged() and self._found.is_set())

    def _run(self, disk: LoopDisk | None, number: int) -> None:
        ground = Place(disk.path if disk else str(self._root / "plain"), disk)
        turn = (number + self._number) % 3
        model = (None, fuse_models.FILES, fuse_models.GCSFUSE)[turn]
        if model is None or fuse_models.why_not():
            self._run_on(ground, number)
            return
        with fuse_models.mounted(model, self._root / f"mount{number}") as mount:
            if model is fuse_models.FILES:
                ground = Place(str(mount.place))
            self._run_on(dataclasses.replace(ground, mount=mount), number)

    def _run_on(self, place: Place, number: int) -> None:
        run = Run(place, self._root, number, self._rng)
        deck = self._decks.setdefault((place.kind, run.is_gentle), [])
        chaos = Chaos(run, place, self._rng, deck, self.outcome.tally)
        self.outcome.kinds = sorted({*self.outcome.kinds, *chaos.kinds()})
        try:
            run.start()
            again = True
            while again and not run.findings:
                chaos.storm(min(self._rng.uniform(*STORM), max(5.0, self._ends - time.monotonic())))
                run.drain()
                summary = run.check()
                on = self._kind if place.disk else "a plain directory"
                kind = f"{place.kind} {on}{', gentle' * run.is_gentle}{', live' * run.is_live}"
                self._log(f"{run.name}, {kind}: {summary}")
                self.outcome.runs += 1
                again = self._rng.random() < 0.5 and time.monotonic() < self._ends and not self._is_decided()
        finally:
            try:
                chaos.calm()
            finally:
                run.end_all()
                run.hub.stop()
            self.outcome.records, self.outcome.lost = self.outcome.records + run.records, self.outcome.lost + run.lost
            self.outcome.findings += [f"lane {self._number}, {run.name}: {finding}" for finding in run.findings]
            if run.findings:
                self._found.set()
            self._clear_up(run)

    def _clear_up(self, run: Run) -> None:
        """Remove a run, or keep all of it if there is something to look at."""
        if sys.exc_info()[0] is None and not run.findings:
            for path in (run.control, run.hub.root):
                shutil.rmtree(path)
        else:
            kept = str(self._root / f"kept-{run.name}")
            with contextlib.suppress(FileNotFoundError, shutil.Error):  # nothing was written; a disk without power
                shutil.copytree(run.run_dir, kept, symlinks=True)
            self._log(f"{run.name} is kept in {kept}, its journals in {run.control}, its Hub in {run.hub.root}")
        shutil.rmtree(run.run_dir, ignore_errors=True)

    def _log(self, text: str) -> None:
        print(f"lane {self._number}: {text}", flush=True)


def soak(root: Path, lanes: int, seed: int, minutes: float) -> Outcome:
    """Run the lanes, each in its own process; Ctrl-C lets them clean up."""
    ends, total = time.monotonic() + 60 * minutes, Outcome()
    context = multiprocessing.get_context("fork")
    found = context.Event()
    work = [Lane(root, number, seed, ends, found) for number in range(lanes)]
    processes = [context.Process(target=lane.go) for lane in work]
    for process in processes:
        process.start()
    for process in processes:
        while process.is_alive():
            with contextlib.suppress(KeyboardInterrupt):
                process.join()
    for number in range(lanes):
        try:
            outcome = json.loads((root / f"lane{number}" / "outcome.json").read_text())
            total.add(Outcome(**outcome | {"tally": Counter(outcome["tally"])}))
        except (OSError, ValueError) as error:
            total.troubles.append(f"there is no outcome of lane {number}: {error}")
    return total


def table(total: Outcome) -> list[str]:
    """Return the rows of the table: how often each kind of fault struck, 0 included."""
    names = sorted({*total.kinds, *total.tally})
    kills = sum(count for name, count in total.tally.items() if name.startswith("SIGKILL"))
    kills += total.tally["failpoints kill"]
    wire = sum(count for name, count in total.tally.items() if name.startswith("wire "))
    wire -= total.tally["wire late commit"] + total.tally["wire late batch"]  # each is a `wire hang` as well
    disk = sum(count for name, count in total.tally.items() if name.startswith(("failpoints e", "disk ", "power cut")))
    rows = [f"{total.tally[name]:8}  {name}" for name in names]
    slow, never = total.tally["wire slow"], [name for name in names if not total.tally[name]]
    rows += [f"{kills} process kills, {wire} faults on the wire ({slow} slow answers), {disk} of the disk"]
    return [*rows, f"never: {', '.join(never)}" if never else "every kind at least once"]


def main() -> int:
    """Run the soak; print what was done and what was found."""
    parser = make_parser(__doc__)
    parser.add_argument("--minutes", type=float, default=30.0, help="default: %(default)s")
    add_seed(parser)
    parser.add_argument("--lanes", type=int, default=2, help="runs at the same time (default: %(default)s)")
    sabotage.add_option(parser, *sabotage.SABOTAGES)
    options = parser.parse_args()
    if options.sabotage:
        return sabotage.run(options.sabotage)
    root = Path(tempfile.mkdtemp(prefix="soak_"))
    isolate(root)
    own_mounts()
    import hf_mpwriter.writer.hf_summary_writer  # noqa: F401 - before the first fork, for the ranks

    logging.getLogger("hf_mpwriter").setLevel(logging.WARNING)
    started_at = time.monotonic()
    print(f"seed {options.seed}, in {root}", flush=True)
    total = soak(root, options.lanes, options.seed, options.minutes)
    print("\n".join(table(total)))
    told = f"{total.runs} runs, {total.records} returned records, {total.lost} lost and told"
    print(f"{told}, {time.monotonic() - started_at:.0f} s")
    for finding in total.findings:
        print(finding)
    success = "0 lost untold, 0 duplicated, 0 shrunk, 0 hung, nothing left behind"
    return sabotage.conclude(total.findings, root, options.seed, success, troubles=total.troubles)


if __name__ == "__main__":
    sys.exit(main())
