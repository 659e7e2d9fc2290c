"""The story of the demo: what happens, in order, and what counts as a failure.

    start     the local Hub starts, four ranks train, one of them starts the uploader
    kill      half-way one rank gets SIGKILL; the uploader pushes at once, and is killed in the middle of that push
    resume    the rank starts again from its checkpoint; a rank finds the uploader lock free and starts a new uploader
    finish    each rank ends when its events are on the Hub, and the uploader leaves
    verdict   the oracle compares the run with the Hub, in a process of its own
    open      if the user wants it, the Hub and its pages stay until Ctrl-C

The demo fails if a rank fails by itself, a limit below is exceeded, or anything is missing on the Hub.
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

from hf_mpwriter.demo.display import Display
from hf_mpwriter.demo.place import RANKS, REPO, Folder
from hf_mpwriter.demo.stage import Rank, Stage
from hf_mpwriter.demo.training import CHECKPOINT_EVERY

PACE = 0.05  # seconds between two steps
SHORTEST = 8.0  # seconds that training takes at least, so that there is something to kill
POLL = 0.05  # seconds between two checks of a condition
START_LIMIT = 40.0  # seconds until the first rank trains, and until an uploader lives
PUSH_LIMIT = 10.0  # seconds to wait for a push to interrupt
LATEST_KILL = 1.0  # seconds from the start of that push to the kill, at most
TAKEOVER_LIMIT = 30.0  # seconds until a new uploader holds the uploader lock
END_LIMIT = 45.0  # seconds from the last step until everything is over
VERDICT_LIMIT = 60.0  # seconds until the verdict is printed

for _name in ("sklearn", "PIL", "tensorboard"):  # the ranks and the user need them later: fail before anything starts
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
            _perform(stage, random.Random(seed))  # noqa: S311 - seeded, so that a run can be repeated
            code = _verdict(stage)
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


def _perform(stage: Stage, rng: random.Random) -> None:
    display = Display(stage)
    try:
        display.show(f"everything is in {stage.place.root}")
        display.show(f"a local Hub is at {stage.hub.endpoint}; four ranks begin to train")
        scene = _Scene(stage, display)
        victim = stage.ranks[rng.randrange(RANKS)]
        moment = stage.steps // 2 + rng.randrange(min(CHECKPOINT_EVERY, 1 + stage.steps // 8))
        scene.until(lambda: victim.progress()[0] >= moment, scene.training_limit, "half of the training")
        uploader = scene.kill_both(victim, rng.uniform(0, LATEST_KILL))
        scene.resume(victim, uploader)
        scene.finish()
    finally:
        display.close()


class _Scene:
    """The acts of the story. Each one waits and keeps the display up to date meanwhile."""

    def __init__(self, stage: Stage, display: Display) -> None:
        self._stage, self._display = stage, display
        self.training_limit = START_LIMIT + 4 * stage.steps * max(PACE, SHORTEST / stage.steps)

    def until(self, condition: Callable[[], object], limit: float, what: str) -> None:
        """Wait until a condition is true."""
        end = time.monotonic() + limit
        while not condition():
            self._display.update()
            for rank in self._stage.ranks:
                if rank.has_failed:
                    code = rank.process.returncode
                    raise DemoError(
                        f"rank {rank.rank} ended with exit code {code}; its log ends with:\n{rank.log_tail()}"
                    )
            if time.monotonic() > end:
                raise DemoError(f"waited {limit:.0f} s in vain for {what}")
            time.sleep(POLL)

    def kill_both(self, victim: Rank, delay: float) -> int:
        """Kill a rank while it trains, then the uploader while it pushes; the pid of that uploader."""
        self.until(self._stage.uploader, START_LIMIT, "an uploader")
        before = victim.progress()[0]
        self.until(lambda: victim.progress()[0] > before, START_LIMIT, f"another step of rank {victim.rank}")
        pid = victim.kill()
        self._display.show(f"killed rank {victim.rank} (pid {pid}) after step {victim.progress()[0]}")
        pushing = self._wait_for_push(victim)
        time.sleep(delay if pushing else 0)
        uploader = self._stage.uploader()
        if not uploader:
            raise DemoError("the uploader ended by itself while ranks lived")
        psutil.Process(uploader).kill()
        at_work = f", {delay:.1f} s into a push" if pushing else ""
        self._display.show(f"killed the uploader (pid {uploader}){at_work}")
        return uploader

    def _wait_for_push(self, victim: Rank) -> bool:
        """Wait for the push that the death of a rank causes; whether one was seen."""
        end = time.monotonic() + PUSH_LIMIT
        while time.monotonic() < end:
            self._display.update()
            if self._stage.view.uploader().phase == "pushing":
                return True
            if any(rank.is_over for rank in self._stage.ranks if rank is not victim):
                return False  # the others end: kill the uploader while ranks live
            time.sleep(POLL)
        return False

    def resume(self, victim: Rank, dead: int) -> None:
        """Start the rank again, and wait for a new uploader."""
        lives = len(victim.first_steps())
        victim.start()
        self.until(lambda: len(victim.first_steps()) > lives, START_LIMIT, f"rank {victim.rank} to resume")
        self._display.show(f"rank {victim.rank} resumed at step {victim.first_steps()[-1]} (pid {victim.process.pid})")
        self.until(lambda: self._stage.uploader() not in (0, dead), TAKEOVER_LIMIT, "a new uploader")
        self._display.show(f"uploader {self._stage.uploader()} has taken the uploader lock")

    def finish(self) -> None:
        """Wait until all ranks have ended, each with its events on the Hub, and the uploader has left."""
        ranks = self._stage.ranks
        trained = lambda: all(rank.progress()[0] >= self._stage.steps for rank in ranks)  # noqa: E731
        self.until(trained, self.training_limit, "the end of training")
        self._display.show("all ranks have trained; each ends when its events are on the Hub")
        self.until(lambda: all(rank.is_over for rank in ranks), END_LIMIT, "the end of all ranks")
        self.until(lambda: not self._stage.view.uploader_is_alive(), END_LIMIT, "the uploader to leave")
        self._display.show("all ranks have ended, the uploader has left")


def _verdict(stage: Stage) -> int:
    """Print the verdict from a process of its own, which knows the folder and the Hub only; its exit code."""
    command = [sys.executable, "-m", "hf_mpwriter.demo.verdict", stage.place.root]
    return subprocess.run(command, env=stage.env, check=False, timeout=VERDICT_LIMIT).returncode


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
