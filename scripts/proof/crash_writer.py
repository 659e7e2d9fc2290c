#!/usr/bin/env python3
"""Kill processes with SIGKILL while they log, and count what had returned and is not in the files.

One repetition: one to eight processes log scalars, histograms and images of 1 MB. Each is killed at a seeded point of
its progress, inside a call of a seeded kind; half of those inside an image are killed while the event file grows. What
has returned stands in memory that parent and child share, so it survives the kill. At once after each kill the parent
reads the files of the victim: every returned event must be there, once, and only the end of the last file may be torn.

    scripts/crash_writer.py --kills 300 --seed 1
    scripts/crash_writer.py --writer ours

tensorboardX and torch are measured beside ours, in one directory per process, so the comparison is only about loss.

Exit code 0 if ours lost nothing, 1 if it did, 2 if the harness got stuck.
"""

from __future__ import annotations

import argparse
import importlib.util
import math
import mmap
import multiprocessing
import os
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# before numpy is imported: its idle threads would be forked halfway
os.environ |= {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
os.environ.setdefault("CRC32C_SW_MODE", "auto")

OURS, PEERS = "ours", ("tensorboardX", "torch")
KINDS = ("scalar", "histogram", "image")
SCALAR, HISTOGRAM, IMAGE = range(3)
RUN = (200, 6, 2)  # calls of a kind in a row, at most
AHEAD = (150, 8, 3)  # calls of a kind that a victim still begins before it is killed, at most
PROCESSES = 8  # of one repetition, at most
VALUES = 1000  # of a histogram
SIDE = 590  # pixels; noise of 3 x 590 x 590 is a PNG of 1 MB
PEER_SHARE = 6  # the peers get one sixth of the kills: that they lose shows early
DEADLINE = 60.0  # seconds for anything to happen
POLL = 0.0003  # seconds between two looks at a victim's progress
LONGEST_SPIN = 500_000_000  # nanoseconds
KEPT = 3  # directories of failed repetitions that are kept
HELD_BACK = 10  # calls, by the sabotaged writer: tensorboardX's queue has ten places
HEADER, FOOTER = 12, 4  # bytes around the payload of a record

# what a process tells, 8 bytes each, one place per kind
BEGUN, RETURNED, TOOK = 0, 3, 6  # calls, calls, nanoseconds of the last call
SLOTS = 9


class Hoard:
    """A writer that is broken on purpose: calls return before anything is written, as with a queue or a buffer."""

    def __init__(self, writer: Any) -> None:
        self._writer = writer
        self._waiting: list[tuple[Callable[..., None], tuple[Any, ...]]] = []

    def __getattr__(self, name: str) -> Callable[..., None]:
        """Hold the call back until enough others wait."""

        def hold(*arguments: Any) -> None:
            self._waiting.append((getattr(self._writer, name), arguments))
            if len(self._waiting) >= HELD_BACK:
                for call, held in self._waiting:
                    call(*held)
                self._waiting.clear()

        return hold


def make_writer(name: str, directory: str) -> Any:
    """A writer on a directory."""
    if name == "torch":
        from torch.utils.tensorboard import SummaryWriter as TorchWriter

        return TorchWriter(directory)
    if name == "tensorboardX":
        import tensorboardX

        return tensorboardX.SummaryWriter(directory)
    from hf_mpwriter import SummaryWriter

    return SummaryWriter(directory)


def make_values() -> list[Any]:
    """What is logged, one value per kind; made before the fork, shared by all processes."""
    import numpy as np

    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (3, SIDE, SIDE), dtype=np.uint8)  # incompressible
    return [0.5, rng.normal(size=VALUES), noise]


def live(run: Repetition, rank: int) -> None:
    """The life of a process: log until it is killed, and tell before and after each call."""
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(run.count)}
    rng, slots, parent = random.Random(f"{run.seed} {rank}"), run.slots[rank], os.getppid()
    writer = make_writer(run.writer, run.logdir(rank))
    if run.sabotaged:
        writer = Hoard(writer)
    calls = (writer.add_scalar, writer.add_histogram, writer.add_image)
    while os.getppid() == parent:  # nobody is left behind by a harness that was killed itself
        kind = rng.randrange(len(KINDS))
        for _ in range(rng.randint(1, RUN[kind])):
            step = slots[BEGUN + kind]
            slots[BEGUN + kind] = step + 1
            began = time.perf_counter_ns()
            calls[kind](KINDS[kind], run.values[kind], step)
            slots[RETURNED + kind] = step + 1
            slots[TOOK + kind] = time.perf_counter_ns() - began


@dataclass
class Tally:
    """What the kills of one writer have shown.

    Attributes:
        kills: processes killed.
        returned: events whose call had returned.
        lost: of these, events that are in no file.
        lossy: kills that lost something.
        torn: files with a torn end.
        inside: kills per kind of call that was interrupted; the rest came between two calls.
        problems: everything that must not be, losses too.
    """

    kills: int = 0
    returned: int = 0
    lost: int = 0
    lossy: int = 0
    torn: int = 0
    inside: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)

    def row(self, writer: str) -> str:
        """One line of the table."""
        inside = " ".join(f"{self.inside[kind]:10}" for kind in KINDS)
        return f"{writer:14}{self.kills:6}{self.returned:10}{self.lost:8}{self.lossy:7}{self.torn:6} {inside}"


KIND_HEADS = " ".join(f"{kind:>10}" for kind in KINDS)
COUNT_HEADS = f"{'writer':14}{'kills':>6}{'returned':>10}{'lost':>8}{'lossy':>7}{'torn':>6}"
TABLE_HEAD = f"{'':{len(COUNT_HEADS)}} {'of the kills, inside a':>32}\n{COUNT_HEADS} {KIND_HEADS}"


class Repetition:
    """Some processes that log, and their deaths."""

    def __init__(self, root: Path, writer: str, number: int, options: argparse.Namespace, values: list[Any]) -> None:
        self.seed = f"{options.seed} {writer} {number}"
        self.rng = random.Random(self.seed)
        self.writer, self.values = writer, values
        self.sabotaged = writer == OURS and options.sabotage is not None
        self.count = self.rng.randint(1, PROCESSES)
        self.directory = root / f"{writer}_{number:04}"
        self.name = f"{self.directory.name} ({self.count} processes)"
        self.memory = memoryview(mmap.mmap(-1, PROCESSES * SLOTS * 8)).cast("Q")  # shared with the children
        self.slots = [self.memory[rank * SLOTS : (rank + 1) * SLOTS] for rank in range(self.count)]
        self.processes: list[Any] = []
        self.sizes: dict[str, int] = {}  # of the files of the dead

    def logdir(self, rank: int) -> str:
        """What a process passes to its writer: ours share one run directory."""
        return str(self.directory if self.writer == OURS else self.directory / f"rank_{rank:05}")

    def files(self, rank: int) -> list[str]:
        """The event files of a process; rank 0 of ours has the run directory itself."""
        directory = self.directory if self.writer == OURS and rank == 0 else self.directory / f"rank_{rank:05}"
        return sorted(map(str, directory.glob("*tfevents*")))

    def run(self, kills: int, tally: Tally) -> None:
        """Start all, kill them one after another in random order; `kills` are wanted at most."""
        context = multiprocessing.get_context("fork")
        victims = self.rng.sample(range(self.count), self.count)[:kills]
        try:
            for rank in range(self.count):
                self.processes.append(context.Process(target=live, args=(self, rank), daemon=True))
                self.processes[-1].start()
            for rank in victims:
                self.kill(rank)
                self.judge(rank, tally)
        finally:
            for process in self.processes:
                process.kill()
            for process in self.processes:
                process.join()
        self.judge_directory(victims, tally)

    # kill

    def kill(self, rank: int) -> None:
        """Kill one process inside a call, or where chance has it."""
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
        """Wait for a condition; the harness is stuck when it does not come true or the process ends by itself."""
        end = time.monotonic() + DEADLINE
        while not condition():
            if time.monotonic() > end:
                raise TimeoutError(f"{self.name}: rank {rank} made no progress for {DEADLINE:.0f} s")
            if not self.processes[rank].is_alive():
                raise RuntimeError(f"{self.name}: rank {rank} ended with {self.processes[rank].exitcode}")
            time.sleep(pause)

    def wait_for_growth(self, rank: int, target: int) -> None:
        """Wait until the image reaches the file, or its call has returned: a torn record needs a kill just then."""
        slots, files = self.slots[rank], self.files(rank)
        if not files:  # a writer that opens its file at the first event
            return
        newest = max(files, key=os.path.getmtime)
        before = os.stat(newest).st_size
        grown = lambda: os.stat(newest).st_size != before or slots[RETURNED + IMAGE] >= target  # noqa: E731
        self.wait_for(rank, grown, 0.0)

    # judge

    def judge(self, rank: int, tally: Tally) -> None:
        """Compare the files of a dead process with what it had told."""
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
                self.blame(tally, rank, f"{len(missing)} of {returned} returned {name} events lost: {few(missing)}")
            if twice := [step for step, times in steps.items() if times > 1]:
                self.blame(tally, rank, f"{name} events there more than once: {few(twice)}")
            if unknown := steps.keys() - set(range(begun)):
                self.blame(tally, rank, f"{name} events that nobody logged: {few(unknown)}")
        if torn > 1:
            self.blame(tally, rank, f"{torn} torn files; only the last one may be")
        tally.kills += 1
        tally.lost += lost
        tally.lossy += lost > 0
        tally.torn += torn

    def read(self, rank: int, tally: Tally) -> dict[str, Counter[int]]:
        """How often each step of each kind is in the files of a process."""
        from tensorboardX.proto import event_pb2

        from hf_mpwriter.events import framing

        found: dict[str, Counter[int]] = {kind: Counter() for kind in KINDS}
        for path in self.files(rank):
            self.sizes[path] = os.stat(path).st_size
            events = [event_pb2.Event.FromString(payload) for payload in framing.payloads(path)]
            if events and events[0].file_version != "brain.Event:2":
                self.blame(tally, rank, f"{path} does not begin with its version")
            for event in events[1:]:
                for value in event.summary.value:
                    found.setdefault(value.tag, Counter())[event.step] += 1
            if damage := damaged(path):
                self.blame(tally, rank, f"{path}: {damage}")
        if strange := found.keys() - set(KINDS):
            self.blame(tally, rank, f"strange tags: {strange}")
        return found

    def judge_directory(self, victims: list[int], tally: Tally) -> None:
        """No file of the dead was touched by the living, and there is no file that belongs to nobody."""
        for path, size in self.sizes.items():
            if os.stat(path).st_size != size:
                tally.problems.append(f"{self.name}: {path} has changed since its process died")
        if len(victims) == self.count:
            there = {str(path) for path in self.directory.rglob("*tfevents*")}
            if there != set(self.sizes):
                tally.problems.append(f"{self.name}: whose are these? {there ^ set(self.sizes)}")

    def blame(self, tally: Tally, rank: int, what: str) -> None:
        """Something that must not be."""
        tally.problems.append(f"{self.name}: rank {rank}: {what}")


def few(steps: Any) -> str:
    """The first of some steps."""
    first = sorted(steps)
    return ", ".join(map(str, first[:5])) + (", ..." if len(first) > 5 else "")


def whole_bytes(path: str) -> int:
    """Size of the whole records of a file."""
    from hf_mpwriter.events import framing

    return sum(HEADER + len(payload) + FOOTER for payload in framing.payloads(path))


def damaged(path: str) -> str:
    """What is wrong with the end of a file, beyond a record that was cut off; the crc is tensorboardX's."""
    from tensorboardX.record_writer import masked_crc32c

    with open(path, "rb") as file:
        file.seek(whole_bytes(path))
        rest = file.read()
    if len(rest) < HEADER:
        return ""
    if masked_crc32c(rest[:8]) != int.from_bytes(rest[8:HEADER], "little"):
        return "garbage behind the last whole record"
    if HEADER + int.from_bytes(rest[:8], "little") + FOOTER <= len(rest):
        return "a record in the middle is damaged"
    return ""


def measure(root: Path, writer: str, kills: int, options: argparse.Namespace, values: list[Any]) -> Tally:
    """Kill until there were enough kills; directories with a problem of ours are kept."""
    tally, number, kept = Tally(), 0, 0
    while tally.kills < kills:
        repetition = Repetition(root, writer, number, options, values)
        before = len(tally.problems)
        repetition.run(kills - tally.kills, tally)
        if len(tally.problems) > before and writer == OURS and kept < KEPT:
            kept += 1
        else:
            shutil.rmtree(repetition.directory)
        number += 1
    return tally


def writers(options: argparse.Namespace) -> dict[str, int]:
    """Which writers to kill how often."""
    chosen = (OURS, *PEERS) if options.writer == "all" else (options.writer,)
    wanted = {}
    for writer in chosen:
        if writer == "torch" and not (importlib.util.find_spec("torch") and importlib.util.find_spec("tensorboard")):
            print("torch, or the tensorboard that its writer needs, is not installed: left out")
            continue
        peers = options.peer_kills or math.ceil(options.kills / PEER_SHARE)
        wanted[writer] = options.kills if len(chosen) == 1 or writer == OURS else peers
    return wanted


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=300, help="processes to kill (default: 300)")
    parser.add_argument("--peer-kills", type=int, help="of each peer beside ours (default: one sixth of --kills)")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6), help="default: random")
    parser.add_argument("--writer", choices=[OURS, *PEERS, "all"], default="all", help="whose processes (default: all)")
    parser.add_argument("--dir", help="where to log (default: the directory for temporary files)")
    # for the tests of this script: our writer holds records back, which must be found
    parser.add_argument("--sabotage", choices=["buffered"], help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> int:
    """Kill, print the table, tell what must not be."""
    options = parse()
    root = Path(tempfile.mkdtemp(prefix="crash_writer_", dir=options.dir))
    print(f"seed {options.seed}", flush=True)
    import hf_mpwriter.writer.summary_writer  # noqa: F401 - before the first fork, as all that the processes need

    tallies: dict[str, Tally] = {}
    values, began, stuck = make_values(), time.monotonic(), ""
    try:
        for writer, kills in writers(options).items():
            if writer == "torch":
                import torch.utils.tensorboard  # noqa: F401 - before the fork; ours and tensorboardX's run without
            tallies[writer] = measure(root, writer, kills, options, values)
    except (TimeoutError, RuntimeError) as error:
        stuck = str(error)
    print(TABLE_HEAD, *(tally.row(writer) for writer, tally in tallies.items()), sep="\n")
    print(f"in {time.monotonic() - began:.0f} s")
    problems = tallies[OURS].problems if OURS in tallies else []
    for problem in [*problems, *filter(None, [stuck])]:
        print(problem)
    if problems or stuck:
        print(f"seed {options.seed}; kept in {root}")
        return 1 if problems else 2
    shutil.rmtree(root)
    if OURS in tallies:
        print(f"ours: 0 of {tallies[OURS].returned} returned events lost")
    return 0


if __name__ == "__main__":
    sys.exit(main())
