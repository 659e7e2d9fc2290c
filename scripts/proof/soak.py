#!/usr/bin/env python3
"""Soak: everything goes wrong at once, for as long as you like, and the oracle judges.

Two lanes run at once, each with a disk and a Hub of its own. In a lane run follows run: eight ranks log scalars,
histograms, texts and curves, fork children, and seal small segments; for a while everything in the table below strikes,
at seeded moments; then all is undone, the ranks end, the uploader uploads what is left, and the oracle compares the run
directory with the Hub. Half of the runs are gone on with on the same run directory.

    scripts/soak.py --minutes 30 --seed 1
    scripts/soak.py --sabotage early-ack           a build that is broken on purpose: the oracle must find it

As root on Linux the run directories are on disks that can be full, read-only and cut off from their power; elsewhere
these kinds are left out. Not done: what others delete or rewrite on the Hub (the oracle takes it for ours), clocks.

Exit code 0 if all promises held (with --sabotage: if the sabotage was found), 3 if one was broken: the seed is told,
and the run directory with its logs is kept. 1: the harness itself failed.
"""

from __future__ import annotations

import argparse
import contextlib
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
from dataclasses import dataclass, field
from pathlib import Path

import sabotage
from soak_faults import Chaos
from soak_inside import die_with_parent
from soak_run import Run

from hf_mpwriter.testing import LoopDisk
from hf_mpwriter.testing.power_cut import why_not

STORM = (10.0, 40.0)  # seconds during which things go wrong in a run
DISKS = ("ext4", "xfs")  # of the lanes


@dataclass
class Outcome:
    """What a lane has done and found.

    Attributes:
        tally: how often, per kind.
        findings: broken promises.
        troubles: what kept the harness from its work.
        kinds: what it knows to do.
        runs: runs judged.
        records: returned records that were judged.
    """

    tally: Counter[str] = field(default_factory=Counter)
    findings: list[str] = field(default_factory=list)
    troubles: list[str] = field(default_factory=list)
    kinds: list[str] = field(default_factory=list)
    runs: int = 0
    records: int = 0

    def add(self, other: Outcome) -> None:
        """Take over what another lane has done."""
        self.tally += other.tally
        self.findings += other.findings
        self.troubles += other.troubles
        self.kinds += [kind for kind in other.kinds if kind not in self.kinds]
        self.runs, self.records = self.runs + other.runs, self.records + other.records


class Lane:
    """Runs, one after another, on one disk.

    Args:
        root: where everything is.
        number: of the lane.
        seed: of the soak.
        ends: monotonic seconds at which no further run begins.
    """

    def __init__(self, root: Path, number: int, seed: int, ends: float) -> None:
        self._root, self._number, self._ends = root / f"lane{number}", number, ends
        self._rng = random.Random(f"{seed} {number}")
        self._kind = DISKS[number % len(DISKS)]
        self._deck: list[str] = []
        self.outcome = Outcome()
        os.makedirs(self._root)

    def go(self) -> None:
        """Until the time is over or something was found; what was done is told in a file, whatever happens."""
        signal.signal(signal.SIGINT, signal.default_int_handler)  # also in the background
        die_with_parent(by=signal.SIGINT)
        try:
            with contextlib.ExitStack() as stack:
                disk = None if why_not(self._kind) else stack.enter_context(LoopDisk(str(self._root), self._kind))
                number = 0
                while time.monotonic() < self._ends and not self.outcome.findings:
                    self._run(disk, number)
                    number += 1
        except KeyboardInterrupt:
            self.outcome.troubles.append("interrupted")
        except Exception:  # noqa: BLE001 - told, whatever it is
            self.outcome.troubles.append(f"lane {self._number}: {traceback.format_exc()}")
        (self._root / "outcome.json").write_text(json.dumps(vars(self.outcome)))

    def _run(self, disk: LoopDisk | None, number: int) -> None:
        run = Run(disk.path if disk else str(self._root / "plain"), self._root, number, self._rng)
        chaos = Chaos(run, disk, self._rng, self._deck, self.outcome.tally)
        self.outcome.kinds = chaos.kinds()
        try:
            run.start()
            again = True
            while again and not run.findings:
                chaos.storm(min(self._rng.uniform(*STORM), max(5.0, self._ends - time.monotonic())))
                run.drain()
                said = run.judge()
                self._tell(f"{run.name} on {self._kind if disk else 'a plain directory'}: {said}")
                self.outcome.runs += 1
                again = self._rng.random() < 0.5 and time.monotonic() < self._ends
        finally:
            try:
                chaos.calm()
            finally:
                run.end_all()
                run.hub.stop()
            self.outcome.records += run.records
            self.outcome.findings += [f"lane {self._number}, {run.name}: {finding}" for finding in run.findings]
            self._clear_up(run)

    def _clear_up(self, run: Run) -> None:
        """Throw a run away, or keep all of it."""
        if sys.exc_info()[0] is None and not run.findings:
            for path in (run.control, run.hub.root):
                shutil.rmtree(path)
        else:
            kept = str(self._root / f"kept-{run.name}")
            with contextlib.suppress(FileNotFoundError):  # nothing was ever written
                shutil.copytree(run.run_dir, kept, symlinks=True)
            self._tell(f"{run.name} is kept in {kept}, its journals in {run.control}, its Hub in {run.hub.root}")
        shutil.rmtree(run.run_dir, ignore_errors=True)

    def _tell(self, text: str) -> None:
        print(f"lane {self._number}: {text}", flush=True)


def soak(root: Path, lanes: int, seed: int, minutes: float) -> Outcome:
    """Run the lanes, each in a process of its own; Ctrl-C ends them in good order."""
    ends, total = time.monotonic() + 60 * minutes, Outcome()
    work = [Lane(root, number, seed, ends) for number in range(lanes)]
    processes = [multiprocessing.get_context("fork").Process(target=lane.go) for lane in work]
    for process in processes:
        process.start()
    for process in processes:
        while process.is_alive():
            with contextlib.suppress(KeyboardInterrupt):
                process.join()
    for number in range(lanes):
        try:
            told = json.loads((root / f"lane{number}" / "outcome.json").read_text())
            total.add(Outcome(**told | {"tally": Counter(told["tally"])}))
        except (OSError, ValueError) as error:
            total.troubles.append(f"lane {number} did not tell what it has done: {error}")
    return total


def table(total: Outcome) -> list[str]:
    """What was done, per kind; kinds that never came, with 0."""
    names = sorted({*total.kinds, *total.tally})
    kills = sum(count for name, count in total.tally.items() if name.startswith("SIGKILL"))
    kills += total.tally["failpoints kill"]
    wire = sum(count for name, count in total.tally.items() if name.startswith("wire "))
    wire -= total.tally["wire late commit"]  # each is a `wire hang` too
    disk = sum(count for name, count in total.tally.items() if name.startswith(("failpoints e", "disk ", "power cut")))
    rows = [f"{total.tally[name]:8}  {name}" for name in names]
    slow, never = total.tally["wire slow"], [name for name in names if not total.tally[name]]
    rows += [f"{kills} process kills, {wire} faults on the wire ({slow} slow answers), {disk} of the disk"]
    return [*rows, f"never: {', '.join(never)}" if never else "every kind at least once"]


def main() -> int:
    """Run the soak; print what was done and what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    parser.add_argument("--lanes", type=int, default=2, help="runs at the same time")
    parser.add_argument("--sabotage", choices=sorted(sabotage.SABOTAGES))
    options = parser.parse_args()
    if options.sabotage:
        return sabotage.run(options.sabotage)
    root = Path(tempfile.mkdtemp(prefix="soak_"))
    os.environ |= {
        "HF_HOME": str(root / "home"),
        "XDG_CACHE_HOME": str(root / "cache"),
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }
    os.environ |= {"HF_MPWRITER_COMMITS_PER_HOUR": "1000000", "NO_PROXY": "127.0.0.1"}
    import hf_mpwriter.writer.hf_summary_writer  # noqa: F401 - before the first fork, for the ranks

    logging.getLogger("hf_mpwriter").setLevel(logging.WARNING)
    began = time.monotonic()
    print(f"seed {options.seed}, in {root}", flush=True)
    total = soak(root, options.lanes, options.seed, options.minutes)
    print("\n".join(table(total)))
    print(f"{total.runs} runs, {total.records} returned records, {time.monotonic() - began:.0f} s")
    for problem in total.findings + total.troubles:
        print(problem)
    if total.findings or total.troubles:
        print(f"{len(total.findings)} findings; seed {options.seed}; everything is kept in {root}")
        if sabotage.is_sabotaged():  # nobody wants to know more
            shutil.rmtree(root)
        return sabotage.FOUND if total.findings else 1
    shutil.rmtree(root)
    print("0 lost, 0 duplicated, 0 shrunk, 0 hung, nothing left behind")
    return 0


if __name__ == "__main__":
    sys.exit(main())
