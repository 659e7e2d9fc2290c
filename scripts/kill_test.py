#!/usr/bin/env python3
"""Kill workers, uploaders and pushes while they work, many times over, and let the oracle judge.

One repetition: four ranks log scalars on one run directory, a journal tells what has returned. One worker, one
uploader and one push are killed with SIGKILL, in seeded order and at seeded moments, each after it was seen at its
work; half of the time one more push, when the ranks have finished and the last bytes are on their way. The killed
rank is started again. When everything has come to rest, the oracle compares the run directory with the local Hub.

    scripts/kill_test.py --repetitions 50 --seed 1
    scripts/kill_test.py --sabotage early-ack      a build that is broken on purpose: the oracle must find it

Exit code 0 if all promises held (with --sabotage: if the oracle found the sabotage).
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import logging
import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import sabotage

from hf_mpwriter.testing import processes

RANKS = 4
EVENTS = 1500  # of each rank, at least
STOP = "stop"  # the file in the directory of the journals that ends the ranks
PAUSE = 0.002  # seconds between two events
DEADLINE = 120.0  # seconds for anything to happen


def work(rank: int, run_dir: str, journals: str, seed: int) -> None:
    """The life of one rank: go on where its journals end, until the harness says stop."""
    from hf_mpwriter import HFSummaryWriter
    from hf_mpwriter.testing import Journal, read_journals

    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(RANKS)}
    rng = random.Random(f"{seed} {rank}")
    mine = f"rank{rank}"
    first = sum(1 for note in read_journals(journals) if note.tag == mine)
    journal = Journal(journals)
    stop = os.path.join(journals, STOP)
    with HFSummaryWriter(os.environ["KILL_TEST_REPO"], logdir=run_dir, commit_every=0.02) as writer:
        for step in itertools.count(first):
            if step >= EVENTS and os.path.exists(stop):
                return
            writer.add_scalar(mine, rng.random(), step)
            journal.note(writer, mine, step)
            time.sleep(PAUSE)


def wait_for(condition: Callable[[], object], what: str) -> None:
    """Wait for a condition; the whole script fails when it does not come true."""
    end = time.monotonic() + DEADLINE
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(f"waited {DEADLINE:.0f} s in vain: {what}")
        time.sleep(0.005)


class Repetition:
    """One run directory, four ranks, some kills."""

    def __init__(self, root: Path, number: int, seed: int, kills: Counter[str]) -> None:
        from hf_mpwriter.progress import Progress
        from hf_mpwriter.spool import Spool

        self.run_dir, self.journals = str(root / f"run{number}"), str(root / f"journals{number}")
        os.makedirs(self.journals)
        self.repo = f"kill/run{number}"
        self.seed, self.kills = seed, kills
        self.rng = random.Random(f"{seed} {number}")
        self.spool = Spool(self.run_dir)
        self.progress = Progress(self.spool)
        self.ranks: dict[int, multiprocessing.process.BaseProcess] = {}

    def start(self, rank: int) -> None:
        """Start a rank; it is forked from here, where everything is imported already."""
        os.environ["KILL_TEST_REPO"] = self.repo
        arguments = (rank, self.run_dir, self.journals, self.seed)
        self.ranks[rank] = multiprocessing.get_context("fork").Process(target=work, args=arguments)
        self.ranks[rank].start()

    def kill_worker(self) -> None:
        """Kill a rank that is seen logging, and start it again."""
        rank = self.rng.choice(list(self.ranks))
        journal_size = self._journal_bytes(rank)
        wait_for(lambda: self._journal_bytes(rank) > journal_size, "a rank at its work")
        self.ranks[rank].kill()
        self.kills["worker"] += 1
        self.ranks[rank].join()
        self.start(rank)

    def _journal_bytes(self, rank: int) -> int:
        return sum(path.stat().st_size for path in Path(self.journals).glob(f"journal.{self.ranks[rank].pid}.*"))

    def kill_uploader(self) -> None:
        """Kill the uploader that holds the seat."""
        self._kill(lambda: processes.uploader(self.run_dir), "uploader")

    def kill_push(self) -> None:
        """Kill a push that carries an entry, somewhere within its life."""
        self._kill(lambda: processes.push(self.run_dir), "push", delay=self.rng.uniform(0.0, 0.5))

    def _kill(self, find: Callable[[], int], kind: str, delay: float = 0.0) -> None:
        for _ in range(20):  # a push may end between being seen and being killed
            wait_for(lambda: find() or self._is_over(), f"a {kind} at its work")
            if not (pid := find()):
                continue
            end = time.monotonic() + delay
            while time.monotonic() < end and find() == pid:
                time.sleep(0.002)
            with contextlib.suppress(ProcessLookupError):
                if find() == pid:
                    os.kill(pid, signal.SIGKILL)
                    self.kills[kind] += 1
                    return
            delay /= 2

    def wait_for_commit(self) -> None:
        """Wait until something more is acknowledged."""
        before = self._acknowledged()
        wait_for(lambda: self._acknowledged() > before, "a commit")

    def _acknowledged(self) -> int:
        book = self.progress.ledger()
        return sum(held.length for held in book.files.values()) if book else 0

    def _is_over(self) -> bool:
        """Whether the ranks have ended and nobody holds the seat: nothing is left to be killed."""
        return not any(process.is_alive() for process in self.ranks.values()) and not self.progress.seat_is_taken()

    def run(self) -> None:
        """Start, kill, wait for rest."""
        for rank in range(RANKS):
            self.start(rank)
        wait_for(lambda: processes.uploader(self.run_dir), "the first uploader")
        actions = [self.kill_worker, self.kill_uploader, self.kill_push]
        self.rng.shuffle(actions)
        for action in actions:
            if self.rng.random() < 0.7:
                self.wait_for_commit()
            action()
        Path(self.journals, STOP).touch()
        if self.rng.random() < 0.5:
            self.kill_push()
        for process in self.ranks.values():
            process.join(DEADLINE)
            if process.exitcode != 0:
                raise RuntimeError(f"a rank ended with {process.exitcode}")
        wait_for(lambda: not self.progress.seat_is_taken(), "the uploader leaves")

    def judge(self) -> list[str]:
        """What the oracle says."""
        from hf_mpwriter.hub import Hub
        from hf_mpwriter.testing import check, read_journals

        destination = self.spool.destination()
        if destination is None:
            return ["no destination is recorded"]
        report = check(self.run_dir, Hub(destination), read_journals(self.journals))
        print(
            f"{self.repo}: {report.returned} returned, {report.lost} lost, {report.duplicated} duplicated, "
            f"{len(report.files)} files, {report.commits} commits"
        )
        return report.problems


def main() -> int:
    """Run the repetitions; print what was done and what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=50)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    parser.add_argument("--sabotage", choices=("buffered", "early-ack"))
    options = parser.parse_args()
    if options.sabotage:
        return sabotage.run(options.sabotage)
    root = Path(tempfile.mkdtemp(prefix="kill_test_"))
    from hf_mpwriter.localhub import LocalHub

    problems: list[str] = []  # what the oracle found
    troubles: list[str] = []  # what kept it from judging
    kills: Counter[str] = Counter()
    began = time.monotonic()
    print(f"seed {options.seed}", flush=True)
    with LocalHub(root / "hub") as hub:
        os.environ |= {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(root / "home"), "HF_HUB_DISABLE_TELEMETRY": "1"}
        os.environ |= {"XDG_CACHE_HOME": str(root / "cache"), "HF_MPWRITER_COMMITS_PER_HOUR": "100000"}
        import hf_mpwriter.writer  # noqa: F401 - before the first fork, for the ranks
        from hf_mpwriter.hub import Hub  # noqa: F401 - before the first fork, for judge()

        logging.getLogger("hf_mpwriter").setLevel(logging.ERROR)
        for number in range(options.repetitions):
            repetition = Repetition(root, number, options.seed, kills)
            try:
                repetition.run()
                problems += [f"repetition {number}: {problem}" for problem in repetition.judge()]
            except (TimeoutError, RuntimeError) as error:
                troubles.append(f"repetition {number}: {error}")
            for process in repetition.ranks.values():
                if process.is_alive():
                    process.kill()
            sys.stdout.flush()
            if problems and sabotage.is_sabotaged():
                break
    print(f"{options.repetitions} repetitions in {time.monotonic() - began:.0f} s; kills: {dict(kills)}")
    for problem in problems + troubles:
        print(problem)
    if problems or troubles:
        print(f"{len(problems + troubles)} problems; seed {options.seed}; everything is kept in {root}")
        return sabotage.FOUND if problems else 1
    shutil.rmtree(root)
    print("0 lost, 0 duplicated, every copy a whole-record prefix")
    return 0


if __name__ == "__main__":
    sys.exit(main())
