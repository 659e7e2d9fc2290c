"""One repetition of `crash_writer.py`: processes that log, their deaths, and what is in their files afterwards."""

from __future__ import annotations

import argparse
import mmap
import multiprocessing
import os
import random
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lib.writers import OURS, make_writer

KINDS = ("scalar", "histogram", "image", "step")
SCALAR, HISTOGRAM, IMAGE, STEP = range(4)
RUN = (200, 6, 2, 60)  # calls of a kind in a row, at most
AHEAD = (150, 8, 3, 40)  # calls of a kind that a victim begins before it is killed, at most
TAGS = tuple(f"step/{number:02}" for number in range(20))  # of a step
PROCESSES = 8  # of one repetition, at most
VALUES = 1000  # of a histogram
SIDE = 590  # pixels; noise of 3 x 590 x 590 is a PNG of 1 MB
DEADLINE = 200.0  # seconds for anything to happen
POLL = 0.0003  # seconds between two checks of a victim's progress
LONGEST_SPIN = 500_000_000  # nanoseconds
HEADER, FOOTER = 12, 4  # bytes around the payload of a record

# the progress of a process in shared memory: 8 bytes each, one per kind
BEGUN, RETURNED, TOOK = 0, len(KINDS), 2 * len(KINDS)  # calls, calls, nanoseconds of the last call
SLOTS = 3 * len(KINDS)


def make_values() -> list[Any]:
    """Return one value per kind; processes that are forked later share them."""
    import numpy as np

    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (3, SIDE, SIDE), dtype=np.uint8)  # incompressible
    return [0.5, rng.normal(size=VALUES), noise, dict.fromkeys(TAGS, 0.5)]


def log_step(writer: Any) -> Callable[[str, dict[str, float], int], None]:
    """Return how a writer logs all scalars of a step: one call of ours, one for each scalar of the others."""
    if hasattr(writer, "log"):
        return lambda _kind, metrics, step: writer.log(metrics, step)

    def one_by_one(_kind: str, metrics: dict[str, float], step: int) -> None:
        for tag, value in metrics.items():
            writer.add_scalar(tag, value, step)

    return one_by_one


def live(run: Repetition, rank: int) -> None:
    """Log until the kill; count each call before and after it in shared memory."""
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(run.count)}
    rng, slots, parent = random.Random(f"{run.seed} {rank}"), run.slots[rank], os.getppid()
    writer = make_writer(run.writer, run.logdir(rank))
    calls = (writer.add_scalar, writer.add_histogram, writer.add_image, log_step(writer))
    while os.getppid() == parent:  # end with a script that is killed
        kind = rng.randrange(len(KINDS))
        for _ in range(rng.randint(1, RUN[kind])):
            step = slots[BEGUN + kind]
            slots[BEGUN + kind] = step + 1
            before = time.perf_counter_ns()
            calls[kind](KINDS[kind], run.values[kind], step)
            slots[RETURNED + kind] = step + 1
            slots[TOOK + kind] = time.perf_counter_ns() - before


@dataclass
class Tally:
    """What the kills of one writer showed."""

    kills: int = 0  # processes killed
    returned: int = 0  # events whose call had returned
    lost: int = 0  # returned events that are in no file
    lossy: int = 0  # kills that lost an event
    torn: int = 0  # files with a torn end
    partly: int = 0  # steps of which a part is in a file
    # kills per kind of call that was interrupted; the rest came between two calls
    inside: Counter[str] = field(default_factory=Counter)
    findings: list[str] = field(default_factory=list)  # broken promises, losses included

    def row(self, writer: str) -> str:
        """Return a row of the table."""
        inside = " ".join(f"{self.inside[kind]:10}" for kind in KINDS)
        counts = f"{self.kills:6}{self.returned:10}{self.lost:8}{self.lossy:7}{self.torn:6}{self.partly:7}"
        return f"{writer:14}{counts} {inside}"


KIND_HEADS = " ".join(f"{kind:>10}" for kind in KINDS)
COUNT_HEADS = f"{'writer':14}{'kills':>6}{'returned':>10}{'lost':>8}{'lossy':>7}{'torn':>6}{'partly':>7}"
TABLE_HEAD = f"{'':{len(COUNT_HEADS)}} {'of the kills, inside a':>{len(KIND_HEADS)}}\n{COUNT_HEADS} {KIND_HEADS}"


class Repetition:
    """Some processes that log until they are killed."""

    def __init__(self, root: Path, writer: str, number: int, options: argparse.Namespace, values: list[Any]) -> None:
        self.seed = f"{options.seed} {writer} {number}"
        self.rng = random.Random(self.seed)
        self.writer, self.values = writer, values
        self.count = self.rng.randint(1, PROCESSES)
        self.directory = root / f"{writer}_{number:04}"
        self.name = f"{self.directory.name} ({self.count} processes)"
        self.memory = memoryview(mmap.mmap(-1, PROCESSES * SLOTS * 8)).cast("Q")  # shared with the children
        self.slots = [self.memory[rank * SLOTS : (rank + 1) * SLOTS] for rank in range(self.count)]
        self.processes: list[Any] = []
        self.sizes: dict[str, int] = {}  # of the files of killed processes

    def logdir(self, rank: int) -> str:
        """Return the directory for the writer of a process: ours share one run directory."""
        return str(self.directory if self.writer == OURS else self.directory / f"rank_{rank:05}")

    def files(self, rank: int) -> list[str]:
        """Return the event files of a process; those of our rank 0 are in the run directory itself."""
        directory = self.directory if self.writer == OURS and rank == 0 else self.directory / f"rank_{rank:05}"
        return sorted(map(str, directory.glob("*tfevents*")))

    def run(self, kills: int, tally: Tally) -> None:
        """Start all processes, then kill at most `kills` of them, one after another in random order."""
        context = multiprocessing.get_context("fork")
        victims = self.rng.sample(range(self.count), self.count)[:kills]
        try:
            for rank in range(self.count):
                self.processes.append(context.Process(target=live, args=(self, rank), daemon=True))
                self.processes[-1].start()
            for rank in victims:
                self.kill(rank)
                self.check(rank, tally)
        finally:
            for process in self.processes:
                process.kill()
            for process in self.processes:
                process.join()
        self.check_directory(victims, tally)

    # kill

    def kill(self, rank: int) -> None:
        """Kill one process inside a call of a random kind."""
        slots, kind = self.slots[rank], self.rng.randrange(len(KINDS))
        target = slots[BEGUN + kind] + self.rng.randint(1, AHEAD[kind])
        share, while_growing = self.rng.uniform(0.0, 1.1), kind == IMAGE and self.rng.random() < 0.5
        pause = 0.0 if kind == SCALAR else POLL  # a run of scalars may be over within one pause
        self.wait_for(rank, lambda: slots[BEGUN + kind] >= target, pause)
        if while_growing:
            self.wait_for_growth(rank, target)
        else:
            end = time.perf_counter_ns() + min(int(share * slots[TOOK + kind]), LONGEST_SPIN)
            while time.perf_counter_ns() < end:
                pass
        self.processes[rank].kill()
        self.processes[rank].join()

    def wait_for(self, rank: int, condition: Callable[[], bool], pause: float) -> None:
        """Wait for a condition."""
        end = time.monotonic() + DEADLINE
        while not condition():
            if time.monotonic() > end:
                raise TimeoutError(f"{self.name}: rank {rank} made no progress for {DEADLINE:.0f} s")
            if not self.processes[rank].is_alive():
                raise RuntimeError(f"{self.name}: rank {rank} ended with {self.processes[rank].exitcode}")
            time.sleep(pause)

    def wait_for_growth(self, rank: int, target: int) -> None:
        """Wait until the image reaches the file, or its call has returned: only a kill just then tears a record."""
        slots, files = self.slots[rank], self.files(rank)
        if not files:  # ours opens its file at the first event
            return
        newest = max(files, key=os.path.getmtime)
        before = os.stat(newest).st_size
        grown = lambda: os.stat(newest).st_size != before or slots[RETURNED + IMAGE] >= target  # noqa: E731
        self.wait_for(rank, grown, 0.0)

    # check

    def check(self, rank: int, tally: Tally) -> None:
        """Compare the files of a killed process with its progress."""
        slots, found, torn = self.slots[rank], self.read(rank, tally), 0
        for path in self.files(rank):
            torn += self.sizes[path] != whole_bytes(path)
        lost = 0
        for kind, name in enumerate(KINDS):
            begun, returned, steps = slots[BEGUN + kind], slots[RETURNED + kind], found[name]
            tally.returned += returned
            tally.inside[name] += begun - returned
            missing = set(range(returned)) - steps.keys()
            lost += len(missing)
            if missing:
                self.report(tally, rank, f"{len(missing)} of {returned} returned {name} events lost: {few(missing)}")
            if twice := [step for step, times in steps.items() if times > 1]:
                self.report(tally, rank, f"{name} events more than once: {few(twice)}")
            if unknown := steps.keys() - set(range(begun)):
                self.report(tally, rank, f"{name} events that were never logged: {few(unknown)}")
        if torn > 1:
            self.report(tally, rank, f"{torn} torn files; only the last one may be")
        tally.kills += 1
        tally.lost += lost
        tally.lossy += lost > 0
        tally.torn += torn

    def read(self, rank: int, tally: Tally) -> dict[str, Counter[int]]:
        """Return how often each step of each kind is in the files of a process."""
        from tensorboardX.proto import event_pb2

        from hf_mpwriter.events import framing

        found: dict[str, Counter[int]] = {kind: Counter() for kind in KINDS}
        parts: Counter[tuple[str, int]] = Counter()  # values of a step, per tag
        for path in self.files(rank):
            self.sizes[path] = os.stat(path).st_size
            events = [event_pb2.Event.FromString(payload) for payload in framing.payloads(path)]
            if events and events[0].file_version != "brain.Event:2":
                self.report(tally, rank, f"{path} does not begin with the version")
            for event in events[1:]:
                for value in event.summary.value:
                    if value.tag in TAGS:
                        parts[value.tag, event.step] += 1
                    else:
                        found.setdefault(value.tag, Counter())[event.step] += 1
            if damage := damaged(path):
                self.report(tally, rank, f"{path}: {damage}")
        self.take_steps(parts, found[KINDS[STEP]], rank, tally)
        if strange := found.keys() - set(KINDS):
            self.report(tally, rank, f"unknown tags: {strange}")
        return found

    def take_steps(self, parts: Counter[tuple[str, int]], found: Counter[int], rank: int, tally: Tally) -> None:
        """Count the steps that are there, and those that are there in part."""
        partly = set()
        for step in sorted({step for _, step in parts}):
            times = [parts[tag, step] for tag in TAGS]
            if min(times):
                found[step] = max(times)
            if min(times) != max(times):
                partly.add(step)
        tally.partly += len(partly)
        if partly and self.writer == OURS:
            self.report(tally, rank, f"{len(partly)} steps are there in part: {few(partly)}")

    def check_directory(self, victims: list[int], tally: Tally) -> None:
        """Report files of killed processes that changed afterwards, and files that no process made."""
        for path, size in self.sizes.items():
            if os.stat(path).st_size != size:
                tally.findings.append(f"{self.name}: {path} changed after its process was killed")
        if len(victims) == self.count:
            there = {str(path) for path in self.directory.rglob("*tfevents*")}
            if there != set(self.sizes):
                tally.findings.append(f"{self.name}: no process made these: {there ^ set(self.sizes)}")

    def report(self, tally: Tally, rank: int, what: str) -> None:
        """Record a broken promise."""
        tally.findings.append(f"{self.name}: rank {rank}: {what}")


def few(steps: Any) -> str:
    """Format the first steps."""
    first = sorted(steps)
    return ", ".join(map(str, first[:5])) + (", ..." if len(first) > 5 else "")


def whole_bytes(path: str) -> int:
    """Return the size of the whole records of a file."""
    from hf_mpwriter.events import framing

    return sum(HEADER + len(payload) + FOOTER for payload in framing.payloads(path))


def damaged(path: str) -> str:
    """Describe damage at the end of a file, other than a record that was cut off; the crc is tensorboardX's."""
    from tensorboardX.record_writer import masked_crc32c

    with open(path, "rb") as file:
        file.seek(whole_bytes(path))
        rest = file.read()
    if len(rest) < HEADER:
        return ""
    if masked_crc32c(rest[:8]) != int.from_bytes(rest[8:HEADER], "little"):
        return "garbage after the last whole record"
    if HEADER + int.from_bytes(rest[:8], "little") + FOOTER <= len(rest):
        return "a record in the middle is damaged"
    return ""
