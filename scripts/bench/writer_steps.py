"""How `writer.py --steps` measures a training step of 20 scalars: one call of ours, beside what others take for it.

After 20 ms of work that fills the caches, as training does, and one step after another. All in one process, in turn and
in random order, so they share the good and bad moments of the machine: on a busy machine compare the ratios. No thread
of another works meanwhile. Before the work, the files of ours and of the bare writes are synced.

trackio and wandb take part where they are installed, best into an environment of their own beside this package:

    pip install trackio wandb torch tensorboard
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import importlib.metadata
import importlib.util
import os
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lib.figures import interleaved, median_ratio, quantile, verdict
from lib.writers import OURS, TBX, TORCH, has_torch, make_writer
from writer_calls import settle

NAMES = [f"train/metric_{number:02}" for number in range(20)]
LOG, SCALARS, BARE = f"{OURS}: log", f"{OURS}: add_scalar", "os.write, 20 times"
TRACKIO, WANDB = "trackio", "wandb, offline"
WORK = 0.02  # seconds between two steps
SORTED = 200_000  # numbers that the work sorts: 1.6 MB, twice
TIGHT = 20  # steps of a round without work between them
Step = Callable[[dict[str, float], int], object]


@dataclass
class Peer:
    """One that logs steps."""

    step: Step  # logs one
    # called before the work that precedes a step: what is due every few seconds is no cost of a step
    prepare: Callable[[], object] = gc.collect
    # nanoseconds of each step, per pace
    took: dict[str, list[int]] = field(default_factory=lambda: {"cold": [], "tight": []})
    # nanoseconds of the calling thread's processor time, of each step in the tight pace
    processor: list[int] = field(default_factory=list)


def one_by_one(writer: Any) -> Step:
    """Return how a writer without `log` logs a step."""

    def step(metrics: dict[str, float], number: int) -> None:
        for name, value in metrics.items():
            writer.add_scalar(name, value, number)

    return step


def bare(fd: int, size: int) -> Step:
    """Return twenty bare writes of as many bytes as a scalar takes."""
    record = b"x" * size

    def step(metrics: dict[str, float], _: int) -> None:
        for _name in metrics:
            os.write(fd, record)

    return step


@contextmanager
def peers(directory: Path) -> Iterator[dict[str, Peer]]:
    """Yield all that are installed, each with a directory of its own; close them in the end."""
    with contextlib.ExitStack() as stack:
        names = {"log": OURS, "scalars": OURS, TBX: TBX} | ({TORCH: TORCH} if has_torch() else {})
        writers = {name: make_writer(kind, directory / name) for name, kind in names.items()}
        for writer in writers.values():
            stack.callback(writer.close)
        found: dict[str, Step] = {LOG: writers["log"].log, SCALARS: one_by_one(writers["scalars"])}
        found |= {name: one_by_one(writer) for name, writer in writers.items() if name in (TBX, TORCH)}
        if importlib.util.find_spec("trackio"):
            os.environ["TRACKIO_DIR"] = str(directory / "trackio")
            import trackio

            trackio.init(project="bench", embed=False)
            stack.callback(trackio.finish)
            found[TRACKIO] = lambda metrics, number: trackio.log(metrics, step=number)
        if importlib.util.find_spec("wandb"):
            import wandb

            run = wandb.init(mode="offline", dir=directory, project="bench", settings=wandb.Settings(silent=True))
            stack.callback(run.finish)
            found[WANDB] = lambda metrics, number: run.log(metrics, step=number)
        fd = os.open(directory / "bare", os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        stack.callback(os.close, fd)
        found[BARE] = bare(fd, 53)
        flush = {LOG: writers["log"].flush, SCALARS: writers["scalars"].flush, BARE: lambda: os.fsync(fd)}
        yield {name: Peer(step, flush.get(name, gc.collect)) for name, step in found.items()}


def make_work() -> Callable[[], None]:
    """Return what is done between two steps: it leaves nothing else in the caches."""
    import numpy as np

    source = np.random.default_rng(0).random(SORTED)
    target = source.copy()

    def work() -> None:
        end = time.perf_counter() + WORK
        while time.perf_counter() < end:
            target[:] = source
            target.sort()

    return work


def measure_steps(directory: Path, options: argparse.Namespace) -> None:
    """Print microseconds and bytes of a step, and the targets."""
    rng, work, clock = random.Random(options.seed), make_work(), time.perf_counter_ns
    with peers(directory) as found:
        for number in range(options.rounds or (15 if options.quick else 200)):
            metrics = {name: rng.random() for name in NAMES}
            for name in interleaved(found, rng):
                peer = found[name]
                peer.prepare()
                settle()
                work()
                before = clock()
                peer.step(metrics, number * (TIGHT + 1))
                peer.took["cold"].append(clock() - before)
                before, processor = clock(), time.thread_time_ns()
                for later in range(TIGHT):
                    peer.step(metrics, number * (TIGHT + 1) + later + 1)
                peer.processor.append((time.thread_time_ns() - processor) // TIGHT)
                peer.took["tight"].append((clock() - before) // TIGHT)
            if number % 50 == 49:
                print(f"{number + 1} steps", file=sys.stderr, flush=True)
        show(found, directory)


def show(found: dict[str, Peer], directory: Path) -> None:
    """Print the table and the targets."""
    print(*map(version, (TBX, TORCH, TRACKIO, "wandb")), sep=", ")
    heads = "".join(f"{head:>10}" for head in ("p99", "tight", "p99", "processor"))
    print(f"{'microseconds per step':24}{'after work':>12}{heads}  log / this: after work, tight")
    for name, peer in found.items():
        times = [figure(peer.took[pace]) for pace in ("cold", "tight")]
        cells = "".join(
            f"{middle:{width}.1f}{most:10.1f}" for (middle, most), width in zip(times, (12, 10), strict=True)
        )
        processor, ratios = statistics.median(peer.processor) / 1e3, [ratio(found, name, pace) for pace in peer.took]
        print(f"{name:24}{cells}{processor:10.1f}{ratios[0]:10.3f}{ratios[1]:10.3f}")
    together, apart = (
        sum(path.stat().st_size for path in directory.glob(f"{name}/*tfevents*")) for name in ("log", "scalars")
    )
    for what, value, target in (
        (f"log / {TRACKIO}", ratio(found, TRACKIO), 0.5),
        (f"log / {TBX}", ratio(found, TBX), 1 / 12),
        (f"log / {BARE}", ratio(found, BARE), 1.4),
        ("bytes of log / bytes of add_scalar", together / apart, 0.5),
    ):
        judged = verdict(value, target) if value else "-"
        print(f"{judged:8}{what}: {f'{value:.3f}' if value else 'not installed'}, target {target:.3f}")


def figure(took: list[int]) -> tuple[float, float]:
    """Return median and p99, in microseconds."""
    return statistics.median(took) / 1e3, quantile(took, 0.99) / 1e3


def ratio(found: dict[str, Peer], name: str, pace: str = "cold") -> float:
    """Return the median ratio of `log` to another; 0.0 if that is not installed."""
    return median_ratio(found[LOG].took[pace], found[name].took[pace]) if name in found else 0.0


def version(distribution: str) -> str:
    """Return name and version of what is compared."""
    try:
        return f"{distribution} {importlib.metadata.version(distribution)}"
    except importlib.metadata.PackageNotFoundError:
        return f"{distribution}: not installed"
