#!/usr/bin/env python3
"""Measure what logging costs: ours, tensorboardX's and torch's writer, and a bare `os.write` of the same bytes.

All run in one process, in interleaved batches in random order, so that they share the machine's good and bad moments:
on a busy machine look at the ratios. A batch is long enough to fill the queues of the others, so that their
back-pressure counts; between two batches the queues are drained. `cpu` is that of the whole process, threads included,
until the queue is empty. Paced calls come one millisecond after another; in between the thread sleeps, or it works, as
training does (`busy`), and then the threads of the others compete with it. Every figure is the median of the rounds;
where a round has less than 1000 calls, its p999 is the slowest one.

The writers are local. What HFSummaryWriter adds is a look every few seconds, part of an `add_*` call, and one start of
an uploader: that call takes some milliseconds.

    scripts/bench_writer.py                       all calls, then the constructor
    scripts/bench_writer.py --quick --calls       short, the calls only
    scripts/bench_writer.py --profile             where the time of our scalar goes
    scripts/bench_writer.py --memory 5000000      memory while so many scalars are logged

Targets are printed as pass or miss; no timing makes the script fail.
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import os
import random
import shutil
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

OURS, TBX, TORCH, BARE, FSYNC = "ours", "tensorboardX", "torch", "os.write", "a file, fsync"
TAGS = [f"{split}/{name}" for split in ("train", "val") for name in ("loss", "accuracy", "lr", "grad_norm")]
STEPS = 300_000  # a batch begins at a step below this one
PACE = 0.001  # seconds between two paced calls
PACES = ("tight", "paced", "busy")
QUIET = 0.002  # seconds without work in any thread, before a batch begins
QUIET_TRIES = 200  # then it begins anyway
MIB = 1 << 20
PAGE = os.sysconf("SC_PAGE_SIZE")
HEADER, FOOTER = 12, 4  # bytes around the payload of a record


# what is logged


@dataclass(frozen=True)
class Case:
    """One kind of call.

    Attributes:
        name: in the table.
        method: of a SummaryWriter.
        values: what is logged, in turn.
        tight: batches per round, calls per batch.
        paced: the same for paced calls.
    """

    name: str
    method: str
    values: list[Any]
    tight: tuple[int, int]
    paced: tuple[int, int]

    def arguments(self, first_step: int, count: int) -> list[tuple[Any, ...]]:
        """Arguments of `count` calls."""
        tags, values = len(TAGS), len(self.values)
        return [(TAGS[i % tags], self.values[i % values], first_step + i) for i in range(count)]


def make_cases(has_torch: bool) -> list[Case]:
    """Everything that is measured."""
    import numpy as np

    rng = np.random.default_rng(0)
    floats = rng.random(1000).tolist()
    words = "".join(chr(97 + n) if n < 26 else " " for n in rng.integers(0, 30, 240))
    cases = [
        Case("scalar", "add_scalar", floats, (5, 2000), (2, 300)),
        Case("scalar of numpy", "add_scalar", [np.float32(x) for x in floats], (3, 1000), (1, 200)),
        Case("histogram 10k", "add_histogram", [rng.normal(size=10_000)], (3, 150), (2, 100)),
        Case("image 3x224x224", "add_image", [rng.random((3, 224, 224), dtype=np.float32)], (2, 30), (1, 30)),
        Case("text 240", "add_text", [words], (3, 500), (1, 200)),
    ]
    if has_torch:
        import torch

        cases.insert(2, Case("scalar of torch", "add_scalar", [torch.tensor(x) for x in floats], (3, 1000), (1, 200)))
    return cases


# who logs


class Logger(Protocol):
    """Somebody to be measured."""

    def calls(self, case: Case, first_step: int, count: int) -> tuple[Callable[..., Any], list[tuple[Any, ...]]]:
        """What to call, and the arguments of each call."""

    def drain(self) -> None:
        """Wait until the queue is empty."""

    def sync(self) -> None:
        """Put everything onto the disk, so that nobody else's batch pays for it."""

    def close(self) -> None:
        """The end."""


class Writer:
    """A SummaryWriter without a queue: ours."""

    def __init__(self, writer: Any) -> None:
        self.writer = writer

    def calls(self, case: Case, first_step: int, count: int) -> tuple[Callable[..., Any], list[tuple[Any, ...]]]:
        """The bound method, called without anything in between."""
        return getattr(self.writer, case.method), case.arguments(first_step, count)

    def drain(self) -> None:
        """Nothing waits."""

    def sync(self) -> None:
        """Flush."""
        self.writer.flush()

    def close(self) -> None:
        """Close."""
        self.writer.close()


class TbxWriter(Writer):
    """The one of tensorboardX: `flush` does not wait for its queue."""

    def drain(self) -> None:
        """Wait until the thread has taken everything."""
        while self.writer.file_writer.event_writer._event_queue.qsize():  # noqa: SLF001 - nothing public tells
            time.sleep(QUIET / 4)


class TorchWriter(Writer):
    """The one of torch: `flush` waits for its queue."""

    def drain(self) -> None:
        """Wait until the thread has written everything."""
        self.writer.flush()


class BareWrite:
    """The floor: the bytes that our writer would write, by os.write to a file opened for appending."""

    def __init__(self, directory: Path) -> None:
        self.scratch = directory / "scratch"
        self.fd = os.open(directory / "bare", os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self.records: dict[tuple[str, int], list[bytes]] = {}

    def calls(self, case: Case, first_step: int, count: int) -> tuple[Callable[..., Any], list[tuple[Any, ...]]]:
        """os.write and the records, which our writer has made outside of the timed part."""
        records = records_of(self.scratch, case, first_step, min(count, 64))
        return os.write, [(self.fd, records[i % len(records)]) for i in range(count)]

    def drain(self) -> None:
        """Nothing waits."""

    def sync(self) -> None:
        """Flush."""
        os.fsync(self.fd)

    def close(self) -> None:
        """Close."""
        os.close(self.fd)


def records_of(directory: Path, case: Case, first_step: int, count: int) -> list[bytes]:
    """The framed records that our writer makes of some calls."""
    from hf_mpwriter import SummaryWriter
    from hf_mpwriter.events import framing

    with SummaryWriter(directory) as writer:
        for arguments in case.arguments(first_step, count):
            getattr(writer, case.method)(*arguments)
    (path,) = directory.glob("*tfevents*")
    data, found, position = path.read_bytes(), [], 0
    for payload in framing.payloads(str(path)):
        end = position + HEADER + len(payload) + FOOTER
        found.append(data[position:end])
        position = end
    shutil.rmtree(directory)
    return found[1:]  # without the version


def make_loggers(directory: Path, has_torch: bool) -> dict[str, Logger]:
    """Everybody who is measured, each in a directory of its own."""
    import tensorboardX

    from hf_mpwriter import SummaryWriter

    loggers: dict[str, Logger] = {
        OURS: Writer(SummaryWriter(directory / "ours")),
        TBX: TbxWriter(tensorboardX.SummaryWriter(str(directory / "tensorboardX"))),
        BARE: BareWrite(directory),
    }
    if has_torch:
        from torch.utils.tensorboard import SummaryWriter as TorchSummaryWriter

        loggers[TORCH] = TorchWriter(TorchSummaryWriter(str(directory / "torch")))
    return loggers


# how it is measured


@dataclass(frozen=True)
class Figures:
    """Of one logger, case and pace in one round, in microseconds per call."""

    mean: float
    p50: float
    p99: float
    p999: float
    cpu: float

    @classmethod
    def of(cls, took: list[int], cpu: float) -> Figures:
        """From nanoseconds per call and seconds of processor time for all of them."""
        ordered = sorted(took)
        p50, p99, p999 = (ordered[int(len(ordered) * share)] / 1e3 for share in (0.5, 0.99, 0.999))
        return cls(statistics.fmean(took) / 1e3, p50, p99, p999, cpu * 1e6 / len(took))


FIGURES = ("mean", "p50", "p99", "p999", "cpu")
Round = dict[str, Figures]  # by logger


def work(seconds: float) -> None:
    """Keep the thread busy."""
    clock = time.perf_counter
    end = clock() + seconds
    while clock() < end:
        pass


BETWEEN: dict[str, Callable[[float], None]] = {"paced": time.sleep, "busy": work}


def time_calls(call: Callable[..., Any], arguments: list[tuple[Any, ...]], pace: str) -> list[int]:
    """Nanoseconds of each call."""
    clock, took, between = time.perf_counter_ns, [], BETWEEN.get(pace)
    if between is None:
        for one in arguments:
            began = clock()
            call(*one)
            took.append(clock() - began)
        return took
    for one in arguments:
        between(PACE)
        began = clock()
        call(*one)
        took.append(clock() - began)
    return took


def settle() -> None:
    """Wait until no thread of anybody works any more, not even on the last thing it took from its queue."""
    gc.collect()
    for _ in range(QUIET_TRIES):
        before = time.process_time()
        time.sleep(QUIET)
        if time.process_time() - before < QUIET / 8:
            return


def run_batch(logger: Logger, case: Case, first_step: int, count: int, pace: str) -> tuple[list[int], float]:
    """Nanoseconds of each call, and processor seconds of the process until the queue is empty."""
    call, arguments = logger.calls(case, first_step, count)
    settle()
    cpu = time.process_time()
    took = time_calls(call, arguments, pace)
    logger.drain()
    cpu = time.process_time() - cpu
    logger.sync()
    return took, cpu


def run_round(loggers: dict[str, Logger], case: Case, pace: str, rng: random.Random, *, short: bool) -> Round:
    """Interleaved batches of all loggers, in random order."""
    batches, count = case.tight if pace == "tight" else case.paced
    took: dict[str, list[int]] = {name: [] for name in loggers}
    cpu = dict.fromkeys(loggers, 0.0)
    for _ in range(1 if short else batches):
        first_step = rng.randrange(STEPS)
        for name in rng.sample(sorted(loggers), len(loggers)):
            more, seconds = run_batch(loggers[name], case, first_step, count, pace)
            took[name] += more
            cpu[name] += seconds
    return {name: Figures.of(took[name], cpu[name]) for name in loggers}


def warm_up(loggers: dict[str, Logger], cases: list[Case]) -> None:
    """Open the files, import what is imported late, fill the caches."""
    for case in cases:
        for logger in loggers.values():
            run_batch(logger, case, 1, 12, "tight")


class Results:
    """Rounds by case and pace."""

    def __init__(self) -> None:
        self.rounds: dict[tuple[str, str], list[Round]] = {}

    def add(self, case: str, pace: str, one: Round) -> None:
        """One more round."""
        self.rounds.setdefault((case, pace), []).append(one)

    def figure(self, case: str, pace: str, logger: str, figure: str) -> float:
        """Median of the rounds."""
        values: list[float] = [getattr(one[logger], figure) for one in self.rounds[case, pace]]
        return statistics.median(values)

    def ratio(self, case: str, pace: str, figure: str, others: tuple[str, ...]) -> float:
        """Ours to the best of the others, compared within each round; the median of that."""
        rounds = self.rounds[case, pace]
        best: list[float] = [min(getattr(one[name], figure) for name in others if name in one) for one in rounds]
        ours: list[float] = [getattr(one[OURS], figure) for one in rounds]
        return statistics.median(mine / other for mine, other in zip(ours, best, strict=True))

    def table(self) -> Iterator[str]:
        """Every figure, and the ratios of ours to the others."""
        heads = "".join(f"{figure:>10}" for figure in FIGURES)
        yield f"{'microseconds per call':24}{'':14}{heads}   ours / this: {'mean':>9}{'p50':>9}{'p99':>9}"
        for case, pace in self.rounds:
            first = self.rounds[case, pace][0]
            for name in (one for one in (OURS, TBX, TORCH, BARE) if one in first):
                figures = "".join(f"{self.figure(case, pace, name, figure):10.1f}" for figure in FIGURES)
                ratios = "".join(f"{self.ratio(case, pace, figure, (name,)):9.3f}" for figure in ("mean", "p50", "p99"))
                yield f"{case:17}{pace:7}{name:14}{figures}{'':16}{'' if name == OURS else ratios}".rstrip()
            yield ""


# targets


@dataclass(frozen=True)
class Target:
    """A figure of ours, at most so many times the best one of the others."""

    case: str
    pace: str
    figure: str
    others: tuple[str, ...]
    limit: float

    def judge(self, results: Results) -> str:
        """Pass or miss, with the figures."""
        what = f"{self.case}, {self.pace}, {self.figure}"
        there = results.rounds[self.case, self.pace][0]
        others = tuple(name for name in self.others if name in there)
        if not others:
            return f"  -   {what}: {' and '.join(self.others)} not installed"
        ratio = results.ratio(self.case, self.pace, self.figure, others)
        ours, *theirs = (results.figure(self.case, self.pace, name, self.figure) for name in (OURS, *others))
        versus = f"{min(theirs):.1f} of {' or '.join(others)}"
        verdict = "pass" if ratio <= self.limit else "MISS"
        return f"{verdict}  {what}: {ours:.1f} us against {versus} = {shown(ratio)}, target {shown(self.limit)}"


def shown(ratio: float) -> str:
    """A ratio as one reads it: 1/15 rather than 0.067."""
    return f"1/{1 / ratio:.1f}" if ratio < 0.5 else f"{ratio:.2f}x"


TARGETS = [
    Target("scalar", "tight", "mean", (TBX,), 1 / 15),
    Target("scalar", "tight", "mean", (TORCH,), 1 / 10),
    Target("scalar", "tight", "mean", (BARE,), 4.0),
    Target("scalar", "tight", "p99", (TBX,), 1 / 15),
    *(Target("scalar", pace, "mean", (TBX,), 1 / 6) for pace in PACES[1:]),
    *(Target("scalar", pace, "mean", (TORCH,), 1 / 4) for pace in PACES[1:]),
    *(
        Target(case, pace, "p50", (TBX, TORCH), 1.05)
        for case in ("histogram 10k", "image 3x224x224", "text 240")
        for pace in PACES
    ),
]
CONSTRUCTOR_TARGET = 20.0  # milliseconds more than tensorboardX's


# sections


def measure_calls(directory: Path, options: argparse.Namespace) -> None:
    """The table of the calls, and the targets."""
    has_torch = bool(importlib.util.find_spec("torch") and importlib.util.find_spec("tensorboard"))
    rng, results = random.Random(options.seed), Results()
    cases, loggers = make_cases(has_torch), make_loggers(directory, has_torch)
    warm_up(loggers, cases)
    for number in range(options.rounds):
        for case, pace in rng.sample([(case, pace) for case in cases for pace in PACES], len(PACES) * len(cases)):
            results.add(case.name, pace, run_round(loggers, case, pace, rng, short=options.quick))
        print(f"round {number + 1} of {options.rounds}", file=sys.stderr, flush=True)
    for logger in loggers.values():
        logger.close()
    order = [(case.name, pace) for case in cases for pace in PACES]
    results.rounds = {key: results.rounds[key] for key in order}
    print(*results.table(), sep="\n")
    print(*(target.judge(results) for target in TARGETS), sep="\n")


def measure_constructor(directory: Path, options: argparse.Namespace) -> None:
    """Milliseconds to construct HFSummaryWriter while the Hub is down, beside tensorboardX's SummaryWriter."""
    import tensorboardX

    from hf_mpwriter import HFSummaryWriter

    constructors: dict[str, Callable[[str], Any]] = {
        OURS: lambda logdir: HFSummaryWriter("me/run", logdir=logdir),
        TBX: tensorboardX.SummaryWriter,
        FSYNC: write_durably,
    }
    rng = random.Random(options.seed)
    took: dict[str, list[float]] = {name: [] for name in constructors}
    os.sync()  # what the calls have left behind is not for the constructor to pay
    for number in range(10 if options.quick else 50):
        for name in rng.sample(sorted(constructors), len(constructors)):
            logdir = str(directory / f"{name}{number}")
            settle()
            began = time.perf_counter()
            writer = constructors[name](logdir)
            took[name].append((time.perf_counter() - began) * 1e3)
            if name == OURS:
                writer.scheduler.stop()  # no uploader: it would outlive this script
            writer.close()
    for name, times in took.items():
        middle = statistics.median(times)
        print(f"constructor of {name:14} p50 {middle:6.1f} ms, max {max(times):6.1f}, first {times[0]:6.1f}")
    more = statistics.median(took[OURS]) - statistics.median(took[TBX])
    verdict = "pass" if more < CONSTRUCTOR_TARGET else "MISS"
    print(f"{verdict}  constructor, Hub down: {more:+.1f} ms to tensorboardX's, target < {CONSTRUCTOR_TARGET:.0f}")


def write_durably(path: str) -> Any:
    """A small new file and one fsync: what the disk asks for, at this moment, for a step that must survive."""
    file = Path(path).open("xb")  # noqa: SIM115 - closed by the caller, as a writer is
    file.write(b"x")
    file.flush()
    os.fsync(file.fileno())
    return file


def profile(directory: Path, options: argparse.Namespace) -> None:
    """Where the time of our scalar goes: each part alone in a loop, without the loop itself."""
    from crc32c import crc32c

    from hf_mpwriter import SummaryWriter
    from hf_mpwriter.events.framing import ScalarEncoder

    writer, step, value, lock = SummaryWriter(directory / "profile"), 123_456, 0.5, threading.RLock()
    record = records_of(directory / "scratch", Case("", "add_scalar", [value], (1, 1), (1, 1)), step, 1)[0]
    payload = record[HEADER:-FOOTER]
    fd = os.open(directory / "bare", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def locked() -> None:
        with lock:
            pass

    parts: dict[str, tuple[Callable[..., Any], tuple[Any, ...]]] = {
        "add_scalar, the whole call": (writer.add_scalar, (TAGS[0], value, step)),
        "time.time": (time.time, ()),
        "ScalarEncoder.record: encode, frame, crc": (ScalarEncoder(TAGS[0]).record, (1.7e9, step, value)),
        "os.write to an O_APPEND file": (os.write, (fd, record)),
        "time.monotonic": (time.monotonic, ()),
        "  crc32c of the payload (in record)": (crc32c, (payload,)),
        "  a lock and its call (for scale)": (locked, ()),
        "  an empty call (for scale)": (lambda _tag, _value, _step: None, (TAGS[0], value, step)),
    }
    rounds = 5 if options.quick else 21
    costs = {name: cost(call, arguments, rounds) for name, (call, arguments) in parts.items()}
    whole, *rest = (costs[name] for name in costs if not name.startswith(" "))
    costs["what is left: Python between the parts"] = whole - sum(rest)
    for name, nanoseconds in costs.items():
        print(f"{name:40}{nanoseconds / 1e3:8.3f} us{100 * nanoseconds / whole:6.0f} %")
    for name in parts.keys() - costs.keys():
        print(f"{name}: not in this build")
    os.close(fd)
    writer.close()


def cost(call: Callable[..., Any], arguments: tuple[Any, ...], rounds: int) -> float:
    """Nanoseconds of one call, the median of the rounds; what the loop costs is taken off."""
    clock, turns, took = time.perf_counter_ns, range(5000), []
    for _ in range(rounds):
        began = clock()
        for _ in turns:
            call(*arguments)
        middle = clock()
        for _ in turns:
            pass
        took.append((2 * middle - began - clock()) / len(turns))
    return statistics.median(took)


def measure_memory(directory: Path, options: argparse.Namespace) -> None:
    """Resident memory while scalars are logged; then the same with add_scalars, in fewer calls."""
    from hf_mpwriter import SummaryWriter

    with SummaryWriter(directory / "memory") as writer:

        def one(step: int) -> None:
            writer.add_scalar(TAGS[step % len(TAGS)], step * 0.5, step)

        def several(step: int) -> None:
            writer.add_scalars("all", {"train": step * 0.5, "val": step * 0.25, "test": step * 0.125}, step)

        for name, log, count in (("add_scalar", one, options.memory), ("add_scalars", several, options.memory // 50)):
            watch_memory(name, log, max(count, 10))


def watch_memory(name: str, log: Callable[[int], None], count: int) -> None:
    """Log, and print the resident memory every 10 %."""
    print(f"{name}, {count} calls; resident at the start {resident() / MIB:.1f} MiB")
    began, seen = time.monotonic(), []
    for tenth in range(10):
        for step in range(count * tenth // 10, count * (tenth + 1) // 10):
            log(step)
        seen.append(resident())
        print(f"{(tenth + 1) * 10:4} % {seen[-1] / MIB:8.1f} MiB {time.monotonic() - began:8.1f} s", flush=True)
    print(f"growth of {name} between 10 % and 100 %: {(seen[-1] - seen[0]) / MIB:+.2f} MiB")


def resident() -> int:
    """Resident memory of this process in bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sections = parser.add_argument_group("sections", "default: the calls and the constructor")
    sections.add_argument("--calls", action="store_true", help="what each call costs, beside the other writers")
    sections.add_argument("--constructor", action="store_true", help="HFSummaryWriter's, while the Hub is down")
    sections.add_argument("--profile", action="store_true", help="where the time of our scalar goes")
    sections.add_argument("--memory", type=int, metavar="N", help="resident memory while N scalars are logged")
    parser.add_argument("--rounds", type=int, help="median of so many (default: 7, with --quick 3)")
    parser.add_argument("--quick", action="store_true", help="fewer and shorter rounds: half a minute, less reliable")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6), help="default: random")
    parser.add_argument("--dir", help="where to log (default: the directory for temporary files)")
    options = parser.parse_args()
    options.rounds = options.rounds or (3 if options.quick else 7)
    if not (options.calls or options.constructor or options.profile or options.memory):
        options.calls = options.constructor = True
    return options


def main() -> int:
    """Measure what was asked for."""
    options = parse()
    directory = Path(tempfile.mkdtemp(prefix="bench_writer_", dir=options.dir))
    # no Hub, and nothing of the user's; before anything reads the environment
    os.environ |= {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(directory / "hf_home")}
    print(f"seed {options.seed}", flush=True)
    try:
        if options.calls:
            measure_calls(directory, options)
        if options.constructor:
            measure_constructor(directory, options)
        if options.profile:
            profile(directory, options)
        if options.memory:
            measure_memory(directory, options)
    finally:
        shutil.rmtree(directory)
    return 0


if __name__ == "__main__":
    sys.exit(main())
