#!/usr/bin/env python3
"""A sweep under kills: many run directories in one repository; trials, uploaders, pushes and the Hub are killed.

Each run has one or two workers that log, fork children and note which calls returned. SIGKILL strikes trials (they
come back), uploaders, pushes and the Hub (it comes back, at once or after an outage); runs end and go on. Two sweeps
have trials of the same names, on one host. To four runs something happens that concerns no other run:

    refused     an event file that the Hub refuses
    stranger    the spool becomes another user's (as root), or may be written by everybody
    full        its disk is full (as root, else left out)
    removed     the run directory is removed while it is used; what was there is not judged

Then all faults but the last are undone, the trials end, and `hf-mpwriter sync` brings the rest. The oracle judges each
run: nothing lost, nothing twice, every run complete, every failure told once, and by the runs alone that it concerns.

    scripts/proof/sweep.py                                  32 runs, 300 kills: some minutes
    scripts/proof/sweep.py --runs 8 --kills 15 --seed 7     in small
    scripts/proof/sweep.py --hosts 2                        as root: workers on two hosts, which share the folders

A further host is namespaces with a name, a network and a cache of its own, see `sweep_hosts`. The seed repeats the
choices; when they strike is up to real processes.

Exit code 0 if all held, 3 if something was found, 1 if the script itself failed.
"""

from __future__ import annotations

import argparse
import contextlib
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
from pathlib import Path
from typing import Self

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import sabotage
from lib.arguments import add_seed, make_parser
from lib.isolation import isolate, own_mounts
from lib.marked import by_kind, kill
from lib.prctl import die_with_parent
from power_cut_disk import LoopDisk, why_not
from soaking import inside
from soaking.deck import Schedule
from soaking.run import send, wait_for
from soaking.storage import fill
from sweep_hosts import Host
from sweep_runs import SweepRun, hurry

from hf_mpwriter.events import framing
from hf_mpwriter.localhub import LocalHub
from hf_mpwriter.localhub.errors import RepoNotFound
from hf_mpwriter.system.process import command_line

WEIGHTS = {"trial": 45, "uploader": 25, "push": 24, "Hub": 6}  # of kills
BETWEEN = (0.1, 0.6)  # seconds between two kills
SEARCH = 1.5  # seconds to wait for an uploader or a push
PUSH = 0.9  # seconds of a push, in which it is struck
DOWN = ((0.2, 2.0), (0.2, 2.0), (6.0, 10.0))  # seconds of an outage
STUCK = 15.0  # seconds without a commit, after which an uploader or a push is killed all the same
ENDS = 0.15  # chance that a run ends with a kill, and goes on
PATIENCE = 240.0  # seconds for anything to end
TELL = 60.0  # seconds in which each fault is to be told
ALONE = 20.0  # seconds in which runs are to be complete without `sync`
STRANGER = 54321  # user id
TICK = 0.03  # seconds
REFUSED = ".git/events.out.tfevents.1700000000.theirs"  # a path that the Hub takes in no repository
SYNC = 120  # seconds for each run
TOLD = {  # what a run with this fault tells, and no other
    "refused": f"not uploading {REFUSED}",
    "stranger": "so it is not used",
    "full": "the disk refuses event records",
    "removed": "was removed while it was in use",
}
ONCE = ("refused",)  # of these, what is told once, whatever ends meanwhile


class Sweep:
    """The runs, the Hub, and what strikes them."""

    def __init__(self, root: Path, options: argparse.Namespace) -> None:
        self._root, self._rng, self._kills = root, random.Random(options.seed), options.kills
        self._stack, self._schedule, self.tally = contextlib.ExitStack(), Schedule(), Counter[str]()
        self.hub = LocalHub(root / "hub", xet=self._rng.random() < 0.6)
        self._mark = f"HF_HOME={os.environ['HF_HOME']}"
        faults = ["refused", "stranger", "removed"] + ["full"] * (not why_not("ext4"))
        self._hosts = [Host(number, root) for number in range(1, options.hosts)]
        self.runs = []
        for number in range(options.runs):
            fault = faults[number] if number < len(faults) else ""
            place = self._stack.enter_context(LoopDisk(str(root), "ext4")).path if fault == "full" else ""
            self.runs.append(SweepRun(root, number, self._rng, self._hosts, place))
        self._concerned = dict(zip(faults, self.runs, strict=False))
        self._filler, self._head, self._stuck_at = "", "", 0.0
        self.findings: list[str] = []

    def __enter__(self) -> Self:
        self.hub.start()
        for host in self._hosts:
            host.start(self.hub.port)
        control = self._root / "control"
        control.mkdir()
        os.environ |= {"HF_ENDPOINT": self.hub.endpoint, "HF_TOKEN": "hf_x"}
        os.environ |= {inside.CONTROL: str(control), inside.HUB: str(self.hub.root)}
        return self

    def __exit__(self, *_: object) -> None:
        for run in self.runs:
            run.end()
        kill(self._mark)
        for host in self._hosts:
            host.end()
        self.hub.stop()
        self._stack.close()

    # the storm

    def storm(self) -> None:
        """Kill until there were enough kills."""
        struck, next_kill, gives_up = 0, 0.0, time.monotonic() + PATIENCE + 5 * self._kills
        begin = {name: self._rng.randint(self._kills // 10, self._kills // 3) for name in self._concerned}
        while struck < self._kills:
            if time.monotonic() > gives_up:
                raise RuntimeError(f"{struck} kills in all: there is nothing to kill")
            self._tick()
            due = [name for name, at in begin.items() if struck >= at and self._concerned[name].is_logging]
            for name in due:
                del begin[name]
                getattr(self, f"_{name}")(self._concerned[name])
            if time.monotonic() >= next_kill:
                struck += self._strike(self._rng.choices([*WEIGHTS], [*WEIGHTS.values()])[0])
                next_kill = time.monotonic() + self._rng.uniform(*BETWEEN)
            time.sleep(TICK)

    def tell(self) -> None:
        """Let the trials go on until each fault has been told; what it is that was not told is found later."""
        self._schedule.run_all()
        wait_for(self._have_told, TELL)

    def _have_told(self) -> bool:
        self._tick()
        return all(run.tells(TOLD[fault]) for fault, run in self._concerned.items())

    def _tick(self) -> None:
        for run in self.runs:
            run.revive()
        self._schedule.run(time.monotonic())

    def _strike(self, kind: str) -> bool:
        """Kill something; return whether there was anything."""
        trials = [run for run in self.runs if not run.fault or run.tells(TOLD[run.fault])]  # the others are to tell
        if self._rng.random() < ENDS:
            self._rng.choice(trials).let_end()
            self.tally["runs that ended and went on"] += 1
        if kind in ("uploader", "push") and not self._has_committed():
            kind = "trial"
        if kind == "Hub":
            hit = self._kill_hub()
        elif kind == "trial":
            hit = self._rng.choice(trials).kill()
        else:
            hit = send(self._find(kind), signal.SIGKILL)
        self.tally[f"SIGKILL {kind}"] += hit
        return hit

    def _has_committed(self) -> bool:
        """Whether there was a commit since the last kill of an uploader or a push: else nothing would get there."""
        head, now = "", time.monotonic()
        with contextlib.suppress(RepoNotFound):
            head = self.hub.store.resolve("model", inside.REPO)
        if head == self._head and now < self._stuck_at:
            return False
        self._head, self._stuck_at = head, now + STUCK
        return True

    def _find(self, kind: str) -> int:
        wait_for(lambda: by_kind(self._mark)[kind], SEARCH)
        if kind == "push":
            time.sleep(self._rng.uniform(0.0, PUSH))
        found = sorted(by_kind(self._mark)[kind])
        self.tally[f"{kind}: most at once"] = max(self.tally[f"{kind}: most at once"], len(found))
        return self._rng.choice(found) if found else 0

    def _kill_hub(self) -> bool:
        if self.hub.pid is None:
            return False
        self.hub.kill()
        self._schedule.add(self._rng.uniform(*self._rng.choice(DOWN)), self._start_hub)
        return True

    def _start_hub(self) -> None:
        if self.hub.pid is None:
            self.hub.start()

    # faults of one run

    def _refused(self, run: SweepRun) -> None:
        path = Path(run.run_dir, REFUSED)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"".join(map(framing.frame, [framing.version_event(1.0), framing.summary_event(1.0, 0, b"")])))
        run.fault = "refused"

    def _stranger(self, run: SweepRun) -> None:
        run.fault, spool = "stranger", Path(run.run_dir, ".hf_mpwriter")
        if os.geteuid() == 0 and self._rng.random() < 0.5:
            os.chown(spool, STRANGER, STRANGER)
        else:
            spool.chmod(0o777)
        run.end()  # it is looked at by who starts

    def _full(self, run: SweepRun) -> None:
        run.fault, self._filler = "full", os.path.join(os.path.dirname(run.run_dir), "filler")
        fill(self._filler)

    def _removed(self, run: SweepRun) -> None:
        run.fault = "removed"
        shutil.rmtree(run.run_dir, ignore_errors=True)

    def _calm(self) -> None:
        """Undo what can be undone."""
        self._schedule.run_all()
        self._start_hub()
        if (run := self._concerned["refused"]).fault:
            shutil.rmtree(Path(run.run_dir, REFUSED).parent)
        if (run := self._concerned["stranger"]).fault:
            spool = Path(run.run_dir, ".hf_mpwriter")
            os.chown(spool, os.geteuid(), os.getegid())
            spool.chmod(0o700)
        if self._filler:
            os.unlink(self._filler)

    # the end

    def drain(self) -> None:
        """Let all trials end, and see what is complete by itself."""
        self._calm()
        for run in self.runs:
            run.let_end()
        until = time.monotonic() + inside.ENDING + PATIENCE
        for run in self.runs:
            run.join(until)
        ended_at = time.monotonic()
        wait_for(lambda: not by_kind(self._mark)["uploader"], ALONE)
        self.tally["seconds until the uploaders had left"] = int(time.monotonic() - ended_at)
        for pid in by_kind(self._mark)["uploader"]:
            print(f"the uploader of {command_line(pid)[-1:]} has not left")
        for run in self.judged:
            found = run.judge(self.hub)[1]
            self.tally["runs complete without sync"] += not found
            print(
                f"{run.name} ({run.fault or 'no fault'}) needs sync: {found[0]}" if found else "",
                end="\n" * bool(found),
            )

    def sync(self) -> None:
        """Bring the rest, by a `hf-mpwriter sync` of all runs of each sweep."""
        folders = sorted({os.path.dirname(run.run_dir) for run in self.judged})
        for number, folder in enumerate(folders):
            run_dirs = [run.run_dir for run in self.judged if os.path.dirname(run.run_dir) == folder]
            self._sync(run_dirs, self._root / "said" / f"sync{number}")
        if not wait_for(lambda: not any(by_kind(self._mark).values()), PATIENCE):
            self.findings.append(f"left behind: {by_kind(self._mark)}")

    @property
    def judged(self) -> list[SweepRun]:
        """The runs that are there."""
        return [run for run in self.runs if run.fault != "removed"]

    def _sync(self, run_dirs: list[str], said: Path) -> None:
        process = multiprocessing.get_context("fork").Process(target=sync, args=(run_dirs, str(said)))
        process.start()
        process.join(PATIENCE + SYNC * len(run_dirs))
        if process.exitcode not in (0, 3):  # 3: what a full disk has refused is told
            self.findings.append(f"sync ended with {process.exitcode}: {said.read_text()[-2000:]}")
            process.kill()
            process.join()

    # the judgement

    def judge(self) -> None:
        """Let the oracle judge each run, and see what was told."""
        for run in self.judged:
            report, found = run.judge(self.hub)
            run.findings += found
            self.tally["returned calls"] += report.returned
            self.tally["lost"] += report.lost
            self.tally["doubled"] += report.duplicated
            self.tally["event files"] += len(report.files)
            self.tally["runs complete"] += not found
        found_inside = self._root / "control" / inside.FINDINGS
        if found_inside.exists():
            self.findings += found_inside.read_text().splitlines()
        folders = Counter(run.folder for run in self.judged)
        self.findings += [f"{count} runs are in {folder}" for folder, count in folders.items() if count > 1]
        for run in self.runs:
            self._judge_words(run)
            self.findings += [f"{run.name} ({run.fault or 'no fault'}): {finding}" for finding in run.findings]
        self.tally["commits"] = len(self.hub.store.commits("model", inside.REPO)) - 1

    def _judge_words(self, run: SweepRun) -> None:
        """See that each failure was told once, and by the run alone that it concerns."""
        lines = run.lines()
        self.tally["lines told"] += len(lines)
        self.tally["lines that say it is public"] += sum("(public)" in line.text for line in lines)
        for fault, text in TOLD.items():
            times = run.tells(text)
            if times and run.fault != fault:
                run.findings.append(f"tells of another run: {text}")
            elif not times and run.fault == fault:
                run.findings.append(f"does not tell: {text}")
            elif times > 1 and fault in ONCE:
                run.findings.append(f"tells {times} times: {text}")
        traces = [line for line in run.strange() if line.startswith("Traceback")]
        if traces and not run.fault:
            run.findings.append(f"{len(traces)} tracebacks in {run.said}")


def sync(run_dirs: list[str], said: str) -> None:
    """Be `hf-mpwriter sync`."""
    from hf_mpwriter.cli import main as command

    die_with_parent()
    sys.stdout = sys.stderr = open(said, "w")  # noqa: SIM115 - open to the end of the process
    hurry()
    command.main(["sync", *run_dirs, "--timeout", str(SYNC)])


def show(tally: Counter[str]) -> None:
    """Print the counts."""
    for name in sorted(tally):
        print(f"{tally[name]:8}  {name}")


def main() -> int:
    """Run the sweep; print what was done and what was found."""
    parser = make_parser(__doc__)
    parser.add_argument("--runs", type=int, default=32, help="default: %(default)s; at least 4")
    parser.add_argument("--kills", type=int, default=300, help="default: %(default)s")
    parser.add_argument("--hosts", type=int, default=1, choices=(1, 2), help="default: %(default)s")
    add_seed(parser)
    options = parser.parse_args()
    root = Path(tempfile.mkdtemp(prefix="sweep_"))
    isolate(root)
    (root / "tmp").mkdir()
    os.environ["TMPDIR"] = tempfile.tempdir = str(root / "tmp")  # of the spool of a run whose disk takes none
    own_mounts()
    import hf_mpwriter.writer.hf_summary_writer  # noqa: F401 - before the first fork, for the trials

    logging.getLogger("hf_mpwriter").setLevel(logging.WARNING)
    started_at, troubles = time.monotonic(), list[str]()
    print(f"seed {options.seed}, in {root}", flush=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(sabotage.TROUBLE))
    with Sweep(root, options) as sweep:
        try:
            for step in (sweep.storm, sweep.tell, sweep.drain, sweep.sync, sweep.judge):
                began_at = time.monotonic()
                step()
                print(f"{step.__name__}: {time.monotonic() - began_at:.0f} s", flush=True)
        except (Exception, KeyboardInterrupt):  # noqa: BLE001 - reported as a trouble
            troubles.append(traceback.format_exc())
    show(sweep.tally)
    print(f"{options.runs} runs, {time.monotonic() - started_at:.0f} s")
    print(*sweep.findings, sep="\n", end="\n" * bool(sweep.findings))
    success = "0 lost, 0 doubled, every run complete, every failure told once"
    return sabotage.conclude(sweep.findings, root, options.seed, success, troubles=troubles)


if __name__ == "__main__":
    sys.exit(main())
