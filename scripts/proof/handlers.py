#!/usr/bin/env python3
"""Signal handlers that raise while a training logs: each of their exceptions has to arrive in the program, unchanged.

A training calls `add_scalar`, `log`, `flush`, `push` and `close` over and over, and keeps house at almost every call. A
timer interrupts it at seeded moments inside these calls; the handler raises an exception of the program's own, or a
TimeoutError, in turn. Then the training goes on.

    scripts/proof/handlers.py --moments 1000 --seed 1
    scripts/proof/handlers.py --sabotage swallowed     a build that is broken on purpose: it must be found

What must hold:
- all of them arrive, each the very object that was raised;
- every record whose call returned is in the event files, none is there twice, and nothing but whole records is;
- no lock is held after the last `close`, and another process gets the same name.

Exit code 0 if all held, 3 if something was found, 1 if the script itself failed.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import FrameType

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import sabotage
from lib.arguments import add_directory, add_seed, make_parser
from lib.isolation import variables

from hf_mpwriter import HFSummaryWriter
from hf_mpwriter.events import framing
from hf_mpwriter.system import locks, process

LONGEST = 60.0  # seconds until a handler that was asked for has run, on a busy machine
LEFT_OPEN = 20  # descriptors in a thousand moments that an exception between an open and its note may leave open
NO_HUB = "http://127.0.0.1:9"
SECOND_START = """
import sys
from hf_mpwriter import SummaryWriter
with SummaryWriter(sys.argv[1]) as writer:
    writer.add_scalar("again", 1.0, 0)
    print(writer._worker.membership.name)
"""


class Preempted(Exception):  # noqa: N818 - as programs name it
    """What a handler raises that is no OSError."""


class Training:
    """A training that logs, and is interrupted."""

    def __init__(self, run_dir: Path, rng: random.Random) -> None:
        self._rng, self._raised, self._step = rng, list[Exception](), 0
        self.returned: set[int] = set()  # steps whose calls have returned
        self.findings: list[str] = []
        self.inside: Counter[str] = Counter()  # exceptions that came out of a call of ours, or were lost in it
        self._writer = HFSummaryWriter("me/run", logdir=str(run_dir), exit_timeout=0)
        self._calls: dict[str, Callable[[], object]] = {
            "add_scalar": self._add_scalar,
            "log": self._log,
            "flush": self._writer.flush,
            "push": self._writer.push,
            "close": self._close,
        }
        self._takes = {name: self._measured(call) for name, call in self._calls.items()}

    def _add_scalar(self) -> None:
        self._step += 1
        step = self._step
        self._writer.add_scalar("a", 0.5, step)
        self.returned.add(step)

    def _log(self) -> None:
        self._step += 1
        step = self._step
        self._writer.log({"a": 0.5, "b": 0.25}, step=step)
        self.returned.add(step)

    def _close(self) -> None:
        self._add_scalar()
        self._writer.close()

    def _measured(self, call: Callable[[], object]) -> float:
        started = time.perf_counter()
        for _ in range(20):
            call()
        return (time.perf_counter() - started) / 20

    def _handle(self, _: int, interrupted: FrameType | None) -> None:
        self._place = "".join(traceback.format_stack(interrupted)[-4:])
        error = TimeoutError("of the program") if len(self._raised) % 2 else Preempted()
        self._raised.append(error)
        raise error

    def run(self, moments: int) -> None:
        """Let a handler raise at so many moments inside calls."""
        signal.signal(signal.SIGALRM, self._handle)
        while self.inside.total() < moments and len(self.findings) < 10:
            name = self._rng.choice(list(self._calls))
            arrived = self._interrupted(self._calls[name], self._rng.uniform(0.0, 3 * self._takes[name]))
            if arrived is not self._raised[-1]:
                self.findings.append(
                    f"{name}: {self._raised[-1]!r} was raised, {arrived!r} arrived; from\n{self._place}"
                )
            if arrived is None or _is_from_package(arrived):
                self.inside[name] += 1
        self._writer.close()
        self._writer.scheduler.stop()

    def _interrupted(self, call: Callable[[], object], seconds: float) -> Exception | None:
        """Call until the handler has raised: what arrives."""
        before, until = len(self._raised), time.monotonic() + LONGEST
        try:
            signal.setitimer(signal.ITIMER_REAL, max(seconds, 1e-6))
            while len(self._raised) == before:
                call()
                if time.monotonic() > until:
                    raise RuntimeError("the handler was not called")
        except (Preempted, TimeoutError) as error:
            return error
        return None


def _is_from_package(error: BaseException) -> bool:
    step = error.__traceback__
    while step is not None:
        if str(step.tb_frame.f_globals.get("__name__")).startswith("hf_mpwriter."):
            return True
        step = step.tb_next
    return False


def found_on_disk(run_dir: Path, returned: set[int]) -> list[str]:
    """What is wrong with the event files."""
    findings, steps = [], Counter[int]()
    for path in sorted(run_dir.rglob("*tfevents*")):
        with path.open("rb") as file:
            if (whole := framing.whole_length(file.fileno())) != path.stat().st_size:
                findings.append(f"{path.name}: {path.stat().st_size - whole} bytes behind the last whole record")
        steps.update(step for payload in framing.payloads(str(path)) if (step := framing.step_of(payload)))
    lost, doubled = returned - steps.keys(), [step for step, count in steps.items() if count > 1]
    findings += [f"{len(lost)} records whose calls returned are lost, such as {min(lost)}"] if lost else []
    return findings + ([f"{len(doubled)} records are there twice, such as {doubled[0]}"] if doubled else [])


def found_held(run_dir: Path, descriptors: int, moments: int) -> list[str]:
    """What is still held, or open, although all is closed."""
    known = locks._table.items()  # noqa: SLF001 - no other place knows all
    held = [os.readlink(f"/proc/self/fd/{fd}") for fd, lock in known if process.is_still(fd, lock.file)]
    findings = [f"{len(held)} locks are held, such as {held[0]}"] if held else []
    more = len(os.listdir("/proc/self/fd")) - descriptors
    findings += [f"{more} descriptors were left open"] if more > 5 + LEFT_OPEN * moments / 1000 else []
    command = [sys.executable, "-c", SECOND_START, str(run_dir)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    name = done.stdout.strip() or done.stderr
    return findings + ([] if name == "main" else [f"the next process is called {name}"])


def main() -> int:
    """Interrupt a training, and judge what it has left."""
    parser = make_parser(__doc__)
    parser.add_argument("--moments", type=int, default=1000, help="exceptions inside our calls (default: 1000)")
    add_seed(parser)
    add_directory(parser)
    sabotage.add_option(parser, "swallowed")
    options: argparse.Namespace = parser.parse_args()
    if options.sabotage:
        return sabotage.run(options.sabotage)
    print(f"seed {options.seed}", flush=True)
    root = Path(tempfile.mkdtemp(prefix="handlers-", dir=options.dir))
    os.environ |= variables(root) | {"HF_ENDPOINT": NO_HUB, "HF_MPWRITER_TIMING": "housekeeping_every=0.0005"}
    os.environ["HF_MPWRITER_PYTHON"] = "true"  # an uploader that ends at once
    run_dir, started_at = root / "run", time.monotonic()
    training = Training(run_dir, random.Random(options.seed))
    descriptors = len(os.listdir("/proc/self/fd"))
    training.run(options.moments)
    print(f"{training.inside.total()} exceptions inside calls: {dict(training.inside)}")
    print(f"in {time.monotonic() - started_at:.0f} s")
    found = found_held(run_dir, descriptors, options.moments) + found_on_disk(run_dir, training.returned)
    findings = training.findings + found
    for finding in findings:
        print(finding)
    success = f"{options.moments} of {options.moments} arrived, whole records only"
    return sabotage.conclude(findings, root, options.seed, success)


if __name__ == "__main__":
    sys.exit(main())
