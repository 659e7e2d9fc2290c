"""The story of the demo: what happens, in order, what is shown of it, and what counts as a failure.

    start     the local Hub starts, four ranks train, one of them starts the uploader
    kill      half-way one rank gets SIGKILL; the uploader pushes at once, and is killed in the middle of that push
    resume    the rank starts again from its checkpoint; a rank finds the uploader lock free and starts a new uploader
    finish    each rank ends when its events are on the Hub, and the uploader leaves
    verdict   the oracle compares the run with the Hub, in a process of its own
    open      if the user wants it, the Hub and its pages stay until Ctrl-C

The demo fails if a rank fails by itself, a limit below is exceeded, or anything is missing on the Hub. Events are shown
on stdout, progress on stderr:

    [   7 s] killed rank 2 (pid 4711) after step 31              an event
    rank 0  rate 0.02  loss 0.61 accuracy 0.88  48/80 |####  |   on a terminal: a bar per rank, one for the Hub
    [  10 s]   steps 48, 50, 31, 49 of 80; ... on the Hub        elsewhere: a line every LINE_EVERY seconds
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import random
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

import psutil
from tqdm import tqdm

from hf_mpwriter.demo.stage import RANKS, REPO, Folder, Rank, Stage
from hf_mpwriter.demo.training import CHECKPOINT_EVERY, LEARNING_RATES
from hf_mpwriter.spool.progress import size_text

PACE = 0.05  # seconds between two steps
SHORTEST = 8.0  # seconds that training takes at least, so that there is something to kill
POLL = 0.05  # seconds between two checks of a condition
LINE_EVERY = 5.0  # seconds between two lines where there is no terminal
REFRESH_EVERY = 0.2  # seconds between two updates of the bars, which walk the run directory
START_LIMIT = 40.0  # seconds until the first rank trains, and until an uploader lives
PUSH_LIMIT = 10.0  # seconds to wait for a push to interrupt
LATEST_KILL = 1.0  # seconds from the start of that push to the kill, at most
TAKEOVER_LIMIT = 30.0  # seconds until a new uploader holds the uploader lock
END_LIMIT = 45.0  # seconds from the last step until everything is over
VERDICT_LIMIT = 60.0  # seconds until the verdict is printed


for _name in ("PIL", "tensorboard", "uvicorn"):  # other processes need them later: fail before anything starts
    if importlib.util.find_spec(_name) is None:
        raise ModuleNotFoundError(f"No module named {_name!r}", name=_name)


class DemoError(Exception):
    """The demo has shown that something does not hold."""


def run(directory: Path | None, seed: int, steps: int, *, stay: bool = False) -> int:
    """Run the demo; the exit code: 0 if nothing is missing, 130 after Ctrl-C or SIGTERM, else 1."""
    if steps < 2:
        print("The demo needs at least 2 steps: it kills half-way.", file=sys.stderr)
        return 1
    place = Folder(os.path.abspath(directory or tempfile.mkdtemp(prefix="hf-mpwriter-demo-")))
    try:
        place.make()
        with _terminable(), Stage(place, steps, max(PACE, SHORTEST / steps)) as stage:
            with contextlib.closing(Display(stage)) as display:
                _Story(stage, display).tell(random.Random(seed))  # noqa: S311 - seeded, so that a run can be repeated
            # A process of its own, which knows the folder and the Hub only.
            command = [sys.executable, "-m", "hf_mpwriter.demo.verdict", place.root]
            code = subprocess.run(command, env=stage.env, check=False, timeout=VERDICT_LIMIT).returncode
            if stay:
                _keep_open(stage)
            return code
    except (DemoError, OSError, psutil.Error, subprocess.TimeoutExpired) as error:
        print(f"The demo failed: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"Interrupted; everything has ended. What was logged is in {place.root}.", file=sys.stderr)
        return 130


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """Let SIGTERM end the demo as Ctrl-C does, so that no process is left behind."""

    def interrupt(*_: object) -> NoReturn:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _keep_open(stage: Stage) -> None:
    """Print links, and wait for Ctrl-C or SIGTERM, or for the end of the Hub."""
    page = f"{stage.hub.endpoint}/{REPO}"
    print("\nOpen in a browser on this machine; Ctrl-C ends the Hub:")
    print(f"  {page}/tensorboard      training metrics")
    print(f"  {page}/tree/main        files and commits", flush=True)
    with contextlib.suppress(KeyboardInterrupt):
        while stage.hub.pid is not None:
            time.sleep(POLL)
    kept = shlex.quote(stage.place.root)
    print(f"\nThe Hub ends. All of it stays in {kept}; to be rid of it: rm -r {kept}", flush=True)


class Display:
    """Shows events and progress."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._next = 0.0
        self._started_at = time.monotonic()
        totals = [*(stage.steps for _ in LEARNING_RATES), 0] if sys.stderr.isatty() else []
        bar = "{desc} |{bar}| {percentage:3.0f}%"
        self._bars: list[tqdm[NoReturn]] = [tqdm(total=n, bar_format=bar, dynamic_ncols=True) for n in totals]

    def show(self, text: str) -> None:
        """Show an event."""
        stamped = f"[{time.monotonic() - self._started_at:4.0f} s] {text}"
        if self._bars:
            tqdm.write(stamped)
        else:
            print(stamped, flush=True)

    def update(self) -> None:
        """Show the progress if it is time to; call it often."""
        now = time.monotonic()
        if now >= self._next:
            self._next = now + (REFRESH_EVERY if self._bars else LINE_EVERY)
            (self._draw if self._bars else self._line)()

    def _line(self) -> None:
        steps = ", ".join(str(rank.progress()[0]) for rank in self._stage.ranks)
        there, size = self._stage.bytes()
        line = f"steps {steps} of {self._stage.steps}; {size_text(there)} of {size_text(size)} on the Hub"
        print(f"[{time.monotonic() - self._started_at:4.0f} s]   {line}", file=sys.stderr, flush=True)

    def _draw(self) -> None:
        *bars, hub = self._bars
        for bar, rank, rate in zip(bars, self._stage.ranks, LEARNING_RATES, strict=True):
            bar.n, training = rank.progress()
            state = f"{bar.n}/{bar.total}" if rank.code is None else "killed" if rank.code else "ended"
            bar.set_description_str(f"rank {rank.rank}  rate {rate:<4}  {training:<23} {state:>9}")
        hub.n, hub.total = self._stage.bytes()
        hub.set_description_str(f"on the Hub {f'{size_text(hub.n)} of {size_text(hub.total)}':>41}")

    def close(self) -> None:
        """Draw the bars for the last time and leave them on the terminal."""
        if self._bars:
            self._draw()
        for bar in self._bars:
            bar.close()


class _Story:
    """The acts. Each one waits and keeps the display up to date meanwhile."""

    def __init__(self, stage: Stage, display: Display) -> None:
        self._stage, self._display = stage, display
        self._training_limit = START_LIMIT + 4 * stage.steps * max(PACE, SHORTEST / stage.steps)

    def tell(self, rng: random.Random) -> None:
        """Perform all acts."""
        self._display.show(f"everything is in {self._stage.place.root}")
        self._display.show(f"a local Hub is at {self._stage.hub.endpoint}; four ranks begin to train")
        victim = self._stage.ranks[rng.randrange(RANKS)]
        moment = self._stage.steps // 2 + rng.randrange(min(CHECKPOINT_EVERY, 1 + self._stage.steps // 8))
        self._until(lambda: victim.progress()[0] >= moment, self._training_limit, "half of the training")
        self._until(self._stage.uploader, START_LIMIT, "an uploader")
        self._kill_rank(victim)
        dead = self._kill_uploader(victim, rng.uniform(0, LATEST_KILL))
        self._resume(victim, dead)
        self._finish()

    def _until(self, condition: Callable[[], object], limit: float, what: str) -> None:
        """Wait until a condition is true."""
        end = time.monotonic() + limit
        while not condition():
            self._display.update()
            for rank in self._stage.ranks:
                if rank.code:
                    tail = "\n".join(rank.output().splitlines()[-15:])
                    raise DemoError(f"rank {rank.rank} ended with exit code {rank.code}; its log ends with:\n{tail}")
            if time.monotonic() > end:
                raise DemoError(f"waited {limit:.0f} s in vain for {what}")
            time.sleep(POLL)

    def _kill_rank(self, victim: Rank) -> None:
        """Kill a rank while it trains."""
        before = victim.progress()[0]
        self._until(lambda: victim.progress()[0] > before, START_LIMIT, f"another step of rank {victim.rank}")
        victim.kill()
        self._display.show(f"killed rank {victim.rank} (pid {victim.pid}) after step {victim.progress()[0]}")

    def _kill_uploader(self, victim: Rank, delay: float) -> int:
        """Kill the uploader while it pushes; its pid."""
        is_pushing = self._wait_for_push(victim)
        time.sleep(delay if is_pushing else 0)
        uploader = self._stage.uploader()
        if not uploader:
            raise DemoError("the uploader ended by itself while ranks lived")
        psutil.Process(uploader).kill()
        at_work = f", {delay:.1f} s into a push" if is_pushing else ""
        self._display.show(f"killed the uploader (pid {uploader}){at_work}")
        return uploader

    def _wait_for_push(self, victim: Rank) -> bool:
        """Wait for the push that the death of a rank causes; whether one was seen."""
        end = time.monotonic() + PUSH_LIMIT
        while time.monotonic() < end:
            self._display.update()
            if self._stage.view.uploader().phase == "pushing":
                return True
            if any(rank.code is not None for rank in self._stage.ranks if rank is not victim):
                return False  # the others end: kill the uploader while ranks live
            time.sleep(POLL)
        return False

    def _resume(self, victim: Rank, dead: int) -> None:
        """Start the rank again, and wait for a new uploader."""
        lives = len(victim.first_steps())
        victim.start()
        self._until(lambda: len(victim.first_steps()) > lives, START_LIMIT, f"rank {victim.rank} to resume")
        self._display.show(f"rank {victim.rank} resumed at step {victim.first_steps()[-1]} (pid {victim.pid})")
        self._until(lambda: self._stage.uploader() not in (0, dead), TAKEOVER_LIMIT, "a new uploader")
        self._display.show(f"uploader {self._stage.uploader()} has taken the uploader lock")

    def _finish(self) -> None:
        """Wait until all ranks have ended, each with its events on the Hub, and the uploader has left."""
        ranks, steps = self._stage.ranks, self._stage.steps
        is_trained = lambda: all(rank.progress()[0] >= steps for rank in ranks)  # noqa: E731
        self._until(is_trained, self._training_limit, "the end of training")
        self._display.show("all ranks have trained; each ends when its events are on the Hub")
        self._until(lambda: all(rank.code is not None for rank in ranks), END_LIMIT, "the end of all ranks")
        self._until(lambda: not self._stage.view.uploader_is_alive(), END_LIMIT, "the uploader to leave")
        self._display.show("all ranks have ended, the uploader has left")
