#!/usr/bin/env python3
"""Measure the cost of logging: ours, tensorboardX's and torch's writer, and a bare `os.write` of the same bytes.

All run in one process, in interleaved batches in random order, so they share the good and bad moments of the machine:
on a busy machine compare the ratios. A batch is long enough to fill the queues of the others, so their back-pressure
counts; between two batches the queues are drained. `cpu` is the CPU time of the whole process, threads included, until
the queue is empty. Paced calls come one millisecond after another. In between the thread sleeps (`paced`), or computes
as training does (`busy`), and then competes with the threads of the others. Every figure is the median of the rounds;
in a round of less than 1000 calls, p999 is the slowest call.

The writers are local. HFSummaryWriter adds a check every few seconds, within an `add_*` call, and starts an uploader
once: that call takes some milliseconds.

    scripts/bench/writer.py                       all calls, then the constructor
    scripts/bench/writer.py --quick --calls       fewer rounds, the calls only
    scripts/bench/writer.py --steps               a step of 20 scalars as one record, beside trackio and wandb too
    scripts/bench/writer.py --profile             the parts of our scalar
    scripts/bench/writer.py --memory 5000000      memory while so many scalars are logged
    scripts/bench/writer.py --last-step           `last_step()` of 1 GiB of event files

Targets are printed as met or missed; no timing makes the script fail.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from lib.arguments import add_directory, add_seed, make_parser
from lib.figures import MIB, interleaved, verdict
from lib.isolation import isolate
from lib.writers import OURS, TBX, make_writer
from writer_calls import measure_calls, settle
from writer_loggers import TAGS, Case, records_of
from writer_steps import measure_steps

FSYNC = "a file, fsync"
PAGE = os.sysconf("SC_PAGE_SIZE")
CONSTRUCTOR_TARGET = 20.0  # milliseconds more than tensorboardX's
LAST_STEP_TARGET = 0.2  # seconds
NO_HUB = "http://127.0.0.1:9"


def measure_constructor(directory: Path, options: argparse.Namespace) -> None:
    """Print the milliseconds to construct HFSummaryWriter while the Hub is down, beside tensorboardX's writer."""
    from hf_mpwriter import HFSummaryWriter

    constructors: dict[str, Callable[[str], Any]] = {
        OURS: lambda logdir: HFSummaryWriter("me/run", logdir=logdir),
        TBX: lambda logdir: make_writer(TBX, Path(logdir)),
        FSYNC: write_durably,
    }
    rng = random.Random(options.seed)
    took: dict[str, list[float]] = {name: [] for name in constructors}
    os.sync()  # the constructor must not pay for dirty pages of the calls
    for number in range(10 if options.quick else 50):
        for name in interleaved(constructors, rng):
            logdir = str(directory / f"{name}{number}")
            settle()
            before = time.perf_counter()
            writer = constructors[name](logdir)
            took[name].append((time.perf_counter() - before) * 1e3)
            if name == OURS:
                writer.scheduler.stop()  # no uploader, which would outlive this script
            writer.close()
    for name, times in took.items():
        middle = statistics.median(times)
        print(f"constructor of {name:14} p50 {middle:6.1f} ms, max {max(times):6.1f}, first {times[0]:6.1f}")
    more = statistics.median(took[OURS]) - statistics.median(took[TBX])
    judged = verdict(more, CONSTRUCTOR_TARGET)
    print(f"{judged:8}constructor, Hub down: {more:+.1f} ms to tensorboardX's, target {CONSTRUCTOR_TARGET:.0f}")


def write_durably(path: str) -> Any:
    """Write a small new file and sync it: the price of durability on this disk at this moment."""
    file = Path(path).open("xb")  # noqa: SIM115 - the caller closes it, as it closes a writer
    file.write(b"x")
    file.flush()
    os.fsync(file.fileno())
    return file


def profile(directory: Path, options: argparse.Namespace) -> None:
    """Print the parts of our scalar, each measured alone in a loop; the cost of the loop is subtracted."""
    from crc32c import crc32c

    from hf_mpwriter.events.framing import FOOTER_SIZE, HEADER_SIZE, ScalarEncoder

    writer, step, value, lock = make_writer(OURS, directory / "profile"), 123_456, 0.5, threading.RLock()
    record = records_of(directory / "scratch", Case("", "add_scalar", [value], (1, 1), (1, 1)), step, 1)[0]
    payload = record[HEADER_SIZE:-FOOTER_SIZE]
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
    costs["the rest: Python between the parts"] = whole - sum(rest)
    for name, nanoseconds in costs.items():
        print(f"{name:40}{nanoseconds / 1e3:8.3f} us{100 * nanoseconds / whole:6.0f} %")
    os.close(fd)
    writer.close()


def cost(call: Callable[..., Any], arguments: tuple[Any, ...], rounds: int) -> float:
    """Return the nanoseconds of one call, the median of the rounds, less the cost of the loop."""
    clock, turns, took = time.perf_counter_ns, range(5000), []
    for _ in range(rounds):
        before = clock()
        for _ in turns:
            call(*arguments)
        middle = clock()
        for _ in turns:
            pass
        took.append((2 * middle - before - clock()) / len(turns))
    return statistics.median(took)


def measure_memory(directory: Path, options: argparse.Namespace) -> None:
    """Print resident memory while add_scalar is called; then the same for add_scalars, in fewer calls."""
    with make_writer(OURS, directory / "memory") as writer:

        def one(step: int) -> None:
            writer.add_scalar(TAGS[step % len(TAGS)], step * 0.5, step)

        def several(step: int) -> None:
            writer.add_scalars("all", {"train": step * 0.5, "val": step * 0.25, "test": step * 0.125}, step)

        for name, log, count in (("add_scalar", one, options.memory), ("add_scalars", several, options.memory // 50)):
            watch_memory(name, log, max(count, 10))


def watch_memory(name: str, log: Callable[[int], None], count: int) -> None:
    """Log, and print resident memory every 10 %."""
    print(f"{name}, {count} calls; resident at the start {resident() / MIB:.1f} MiB")
    started_at, seen = time.monotonic(), []
    for tenth in range(10):
        for step in range(count * tenth // 10, count * (tenth + 1) // 10):
            log(step)
        seen.append(resident())
        print(f"{(tenth + 1) * 10:4} % {seen[-1] / MIB:8.1f} MiB {time.monotonic() - started_at:8.1f} s", flush=True)
    print(f"growth of {name} between 10 % and 100 %: {(seen[-1] - seen[0]) / MIB:+.2f} MiB")


def measure_last_step(directory: Path) -> None:
    """Print the seconds of `last_step` on 1 GiB of scalars in eight segments, of which the page cache has all."""
    from hf_mpwriter import SummaryWriter
    from hf_mpwriter.events.framing import ScalarEncoder, frame, version_event

    logdir = directory / "last_step"
    logdir.mkdir()
    encoders, rare = [ScalarEncoder(tag) for tag in TAGS], ScalarEncoder("test/loss")
    step, segments, head = 0, 8, frame(version_event(1.0))
    for number in range(segments):
        with open(logdir / f"events.out.tfevents.{number:010d}.host.1.00000000", "wb") as file:
            file.write(head)
            while file.tell() < (1 << 30) // segments:
                for _ in range(1000):
                    step += 1
                    file.write(b"".join(encoder.record(1.7e9, step, 0.5) for encoder in encoders))
                if step % 10_000 == 0:
                    file.write(rare.record(1.7e9, step, 0.5))
    hidden = 20 * (1 << 20) // (len(TAGS) * len(encoders[0].record(1.7e9, step, 0.5)))
    for name, tag, purge_step, has_target in (
        ("any tag", None, None, True),
        ("a tag of each step", TAGS[0], None, True),
        ("a tag of each 10,000th step", "test/loss", None, True),
        ("any tag, the last 20 MiB hidden by a purge", None, step - hidden, False),
        ("a tag that is nowhere", "nowhere", None, False),
    ):
        writer = SummaryWriter(logdir, purge_step=purge_step)
        before = time.perf_counter()
        found = writer.last_step(tag)
        took = time.perf_counter() - before
        judged = verdict(took, LAST_STEP_TARGET) if has_target else ""
        print(f"{judged:8}last_step of 1 GiB, {name}: {took:.4f} s ({found})", flush=True)
        writer.close()


def resident() -> int:
    """Return the resident memory of this process, in bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE


def parse() -> argparse.Namespace:
    """Parse the command line."""
    parser = make_parser(__doc__)
    sections = parser.add_argument_group("sections", "default: the calls and the constructor")
    sections.add_argument("--calls", action="store_true", help="cost of each call, beside the other writers")
    sections.add_argument("--constructor", action="store_true", help="of HFSummaryWriter, while the Hub is down")
    sections.add_argument("--steps", action="store_true", help="a step of 20 scalars, beside all that are installed")
    sections.add_argument("--profile", action="store_true", help="the parts of our scalar")
    sections.add_argument("--memory", type=int, metavar="N", help="resident memory while N scalars are logged")
    sections.add_argument("--last-step", action="store_true", help="`last_step()` of 1 GiB of event files")
    parser.add_argument("--rounds", type=int, help="of the median (default: 7; --quick: 3; --steps: 200, 15)")
    parser.add_argument("--quick", action="store_true", help="fewer and shorter rounds: half a minute, less reliable")
    add_seed(parser)
    add_directory(parser)
    options = parser.parse_args()
    chosen = (options.calls, options.constructor, options.steps, options.profile, options.memory, options.last_step)
    if not any(chosen):
        options.calls = options.constructor = True
    return options


def main() -> int:
    """Run the sections."""
    options = parse()
    directory = Path(tempfile.mkdtemp(prefix="bench_writer_", dir=options.dir))
    isolate(directory)
    os.environ["HF_ENDPOINT"] = NO_HUB
    print(f"seed {options.seed}", flush=True)
    try:
        if options.calls:
            measure_calls(directory, options)
        if options.constructor:
            measure_constructor(directory, options)
        if options.steps:
            measure_steps(directory, options)
        if options.profile:
            profile(directory, options)
        if options.memory:
            measure_memory(directory, options)
        if options.last_step:
            measure_last_step(directory)
    finally:
        shutil.rmtree(directory)
    return 0


if __name__ == "__main__":
    sys.exit(main())
