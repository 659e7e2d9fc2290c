"""How `writer.py` measures calls: interleaved batches, the table and the targets."""

from __future__ import annotations

import argparse
import gc
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lib.figures import interleaved, median_ratio, verdict
from lib.writers import OURS, TBX, TORCH
from writer_loggers import BARE, Case, Logger, make_cases, make_loggers

STEPS = 300_000  # a batch begins at a step below this one
PACE = 0.001  # seconds between two paced calls
PACES = ("tight", "paced", "busy")
QUIET = 0.002  # seconds without work in any thread, before a batch begins
QUIET_TRIES = 200  # then it begins anyway


@dataclass(frozen=True)
class Figures:
    """One logger, case and pace in one round, in microseconds per call."""

    mean: float
    p50: float
    p99: float
    p999: float
    cpu: float

    @classmethod
    def of(cls, took: list[int], cpu: float) -> Figures:
        """Reduce the nanoseconds of each call, and the CPU seconds of all."""
        ordered = sorted(took)
        p50, p99, p999 = (ordered[int(len(ordered) * share)] / 1e3 for share in (0.5, 0.99, 0.999))
        return cls(statistics.fmean(took) / 1e3, p50, p99, p999, cpu * 1e6 / len(took))


FIGURES = ("mean", "p50", "p99", "p999", "cpu")
Round = dict[str, Figures]  # by logger


def work(seconds: float) -> None:
    """Compute for so long."""
    clock = time.perf_counter
    end = clock() + seconds
    while clock() < end:
        pass


BETWEEN: dict[str, Callable[[float], None]] = {"paced": time.sleep, "busy": work}


def time_calls(call: Callable[..., Any], arguments: list[tuple[Any, ...]], pace: str) -> list[int]:
    """Return the nanoseconds of each call."""
    clock, took, between = time.perf_counter_ns, [], BETWEEN.get(pace)
    if between is None:
        for one in arguments:
            before = clock()
            call(*one)
            took.append(clock() - before)
        return took
    for one in arguments:
        between(PACE)
        before = clock()
        call(*one)
        took.append(clock() - before)
    return took


def settle() -> None:
    """Wait until no thread works, not even on the last item of its queue."""
    gc.collect()
    for _ in range(QUIET_TRIES):
        before = time.process_time()
        time.sleep(QUIET)
        if time.process_time() - before < QUIET / 8:
            return


def run_batch(logger: Logger, case: Case, first_step: int, count: int, pace: str) -> tuple[list[int], float]:
    """Return the nanoseconds of each call, and the CPU seconds of the process until the queue is empty."""
    call, arguments = logger.calls(case, first_step, count)
    settle()
    cpu = time.process_time()
    took = time_calls(call, arguments, pace)
    logger.drain()
    cpu = time.process_time() - cpu
    logger.sync()
    return took, cpu


def run_round(loggers: dict[str, Logger], case: Case, pace: str, rng: random.Random, *, short: bool) -> Round:
    """Run batches of all loggers in turn, in random order."""
    batches, count = case.tight if pace == "tight" else case.paced
    took: dict[str, list[int]] = {name: [] for name in loggers}
    cpu = dict.fromkeys(loggers, 0.0)
    for _ in range(1 if short else batches):
        first_step = rng.randrange(STEPS)
        for name in interleaved(loggers, rng):
            more, seconds = run_batch(loggers[name], case, first_step, count, pace)
            took[name] += more
            cpu[name] += seconds
    return {name: Figures.of(took[name], cpu[name]) for name in loggers}


def warm_up(loggers: dict[str, Logger], cases: list[Case]) -> None:
    """Open the files, do late imports, fill the caches."""
    for case in cases:
        for logger in loggers.values():
            run_batch(logger, case, 1, 12, "tight")


class Results:
    """Rounds by case and pace."""

    def __init__(self) -> None:
        self.rounds: dict[tuple[str, str], list[Round]] = {}

    def add(self, case: str, pace: str, one: Round) -> None:
        """Add a round."""
        self.rounds.setdefault((case, pace), []).append(one)

    def figure(self, case: str, pace: str, logger: str, figure: str) -> float:
        """Return the median of the rounds."""
        values: list[float] = [getattr(one[logger], figure) for one in self.rounds[case, pace]]
        return statistics.median(values)

    def ratio(self, case: str, pace: str, figure: str, others: tuple[str, ...]) -> float:
        """Return the median ratio of ours to the best of the others."""
        rounds = self.rounds[case, pace]
        best: list[float] = [min(getattr(one[name], figure) for name in others if name in one) for one in rounds]
        ours: list[float] = [getattr(one[OURS], figure) for one in rounds]
        return median_ratio(ours, best)

    def table(self) -> Iterator[str]:
        """Yield the rows: every figure, and the ratios of ours to the others."""
        heads = "".join(f"{figure:>10}" for figure in FIGURES)
        yield f"{'microseconds per call':24}{'':14}{heads}   ours / this: {'mean':>9}{'p50':>9}{'p99':>9}"
        for case, pace in self.rounds:
            first = self.rounds[case, pace][0]
            for name in (one for one in (OURS, TBX, TORCH, BARE) if one in first):
                figures = "".join(f"{self.figure(case, pace, name, figure):10.1f}" for figure in FIGURES)
                ratios = "".join(f"{self.ratio(case, pace, figure, (name,)):9.3f}" for figure in ("mean", "p50", "p99"))
                yield f"{case:17}{pace:7}{name:14}{figures}{'':16}{'' if name == OURS else ratios}".rstrip()
            yield ""


@dataclass(frozen=True)
class Target:
    """A limit for the ratio of one of our figures to the best of the others."""

    case: str
    pace: str
    figure: str
    others: tuple[str, ...]
    limit: float

    def row(self, results: Results) -> str:
        """Return whether the target is met, with the figures."""
        what = f"{self.case}, {self.pace}, {self.figure}"
        there = results.rounds[self.case, self.pace][0]
        others = tuple(name for name in self.others if name in there)
        if not others:
            return f"{'-':8}{what}: {' and '.join(self.others)} not installed"
        ratio = results.ratio(self.case, self.pace, self.figure, others)
        ours, *theirs = (results.figure(self.case, self.pace, name, self.figure) for name in (OURS, *others))
        compared = f"{ours:.1f} us against {min(theirs):.1f} of {' or '.join(others)}"
        return f"{verdict(ratio, self.limit):8}{what}: {compared} = {shown(ratio)}, target {shown(self.limit)}"


def shown(ratio: float) -> str:
    """Format a ratio: 1/15 rather than 0.067."""
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


def measure_calls(directory: Path, options: argparse.Namespace) -> None:
    """Print the table of the calls, and the targets."""
    rng, results = random.Random(options.seed), Results()
    cases, loggers = make_cases(), make_loggers(directory)
    warm_up(loggers, cases)
    rounds = options.rounds or (3 if options.quick else 7)
    for number in range(rounds):
        for case, pace in rng.sample([(case, pace) for case in cases for pace in PACES], len(PACES) * len(cases)):
            results.add(case.name, pace, run_round(loggers, case, pace, rng, short=options.quick))
        print(f"round {number + 1} of {rounds}", file=sys.stderr, flush=True)
    for logger in loggers.values():
        logger.close()
    order = [(case.name, pace) for case in cases for pace in PACES]
    results.rounds = {key: results.rounds[key] for key in order}
    print(*results.table(), sep="\n")
    print(*(target.row(results) for target in TARGETS), sep="\n")
