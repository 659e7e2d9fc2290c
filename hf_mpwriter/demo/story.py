"""What happens in the demo, in order.

the Hub starts, four ranks train, one of them starts the uploader
half-way one rank gets SIGKILL; its death makes the uploader push at once, and in the middle of that it is killed too
the rank starts again from its checkpoint; another rank finds the uploader lock empty and starts a new uploader
every rank ends when its events are on the Hub, the uploader leaves, the oracle counts
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import random
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
from hf_mpwriter.demo.place import RANKS, Place
from hf_mpwriter.demo.stage import Rank, Stage
from hf_mpwriter.demo.training import CHECKPOINT_EVERY

PACE = 0.05  # seconds between two steps
SHORTEST = 8.0  # seconds that training takes at least: there must be something to kill
POLL = 0.05  # seconds between two looks at what goes on
START_LIMIT = 40.0  # seconds until the first rank trains and an uploader is there
PUSH_LIMIT = 10.0  # seconds to wait for a push to kill
LATEST_KILL = 1.0  # seconds into that push
TAKEOVER_LIMIT = 30.0  # seconds until a new uploader has the uploader lock
END_LIMIT = 45.0  # seconds from the last step until everything is over
VERDICT_LIMIT = 60.0  # seconds

for _name in ("sklearn", "PIL", "tensorboard"):  # the ranks and the user need them later: better told now
    if importlib.util.find_spec(_name) is None:
        raise ModuleNotFoundError(f"No module named {_name!r}", name=_name)


class DemoError(Exception):
    """The demo has shown that something does not hold."""


def run(directory: Path | None, seed: int, steps: int) -> int:
    """Run the demo.

    Args:
        directory: where to put everything, None for a new directory.
        seed: chooses the victim and the moment.
        steps: training steps of each rank.

    Returns:
        The exit code: 0 if nothing is missing.
    """
    if steps < 2:
        print("The demo needs at least 2 steps: it kills half-way.", file=sys.stderr)
        return 1
    place = Place(os.path.abspath(directory or tempfile.mkdtemp(prefix="hf-mpwriter-demo-")))
    try:
        place.make()
        with _terminable(), Stage(place, steps, max(PACE, SHORTEST / steps)) as stage:
            _perform(stage, random.Random(seed))  # noqa: S311 - seeded, so that a run can be repeated
            return _judge(stage)
    except (DemoError, OSError, psutil.Error, subprocess.TimeoutExpired) as error:
        print(f"The demo failed: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"Interrupted; everything has ended. What was logged is in {place.root}.", file=sys.stderr)
        return 130


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM ends the demo as Ctrl-C does, instead of leaving its processes behind."""

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
        display.say(f"everything is in {stage.place.root}")
        display.say(f"a local Hub is at {stage.hub.endpoint}; four ranks begin to train")
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
    """Waiting with a display, and the acts."""

    def __init__(self, stage: Stage, display: Display) -> None:
        self._stage, self._display = stage, display
        self.training_limit = START_LIMIT + 4 * stage.steps * max(PACE, SHORTEST / stage.steps)

    def until(self, condition: Callable[[], object], limit: float, what: str) -> None:
        """Wait until something is true.

        Raises:
            DemoError: a rank failed, or it took too long.
        """
        end = time.monotonic() + limit
        while not condition():
            self._display.update()
            for rank in self._stage.ranks:
                if rank.has_failed:
                    code = rank.process.returncode
                    raise DemoError(f"rank {rank.rank} ended with exit code {code}; it said:\n{rank.last_words()}")
            if time.monotonic() > end:
                raise DemoError(f"waited {limit:.0f} s in vain for {what}")
            time.sleep(POLL)

    def kill_both(self, victim: Rank, delay: float) -> int:
        """Kill a rank at its work, then the uploader at its; returns the pid of that uploader."""
        self.until(self._stage.uploader, START_LIMIT, "an uploader")
        before = victim.progress()[0]
        self.until(lambda: victim.progress()[0] > before, START_LIMIT, f"another step of rank {victim.rank}")
        pid = victim.kill()
        self._display.say(f"killed rank {victim.rank} (pid {pid}) after step {victim.progress()[0]}")
        pushing = self._wait_for_push(victim)
        time.sleep(delay if pushing else 0)
        uploader = self._stage.uploader()
        if not uploader:
            raise DemoError("the uploader ended by itself although ranks live")
        psutil.Process(uploader).kill()
        at_work = f", {delay:.1f} s into a push" if pushing else ""
        self._display.say(f"killed the uploader (pid {uploader}){at_work}")
        return uploader

    def _wait_for_push(self, victim: Rank) -> bool:
        """The death of a rank is a reason to push at once; whether a push was seen."""
        end = time.monotonic() + PUSH_LIMIT
        while time.monotonic() < end:
            self._display.update()
            if self._stage.view.uploader().phase == "pushing":
                return True
            if any(rank.is_over for rank in self._stage.ranks if rank is not victim):
                return False  # the others end: no time to be choosy
            time.sleep(POLL)
        return False

    def resume(self, victim: Rank, dead: int) -> None:
        """Start the rank again, and see a new uploader on the uploader lock."""
        lives = len(victim.begins())
        victim.start()
        self.until(lambda: len(victim.begins()) > lives, START_LIMIT, f"rank {victim.rank} to resume")
        self._display.say(f"rank {victim.rank} resumed at step {victim.begins()[-1]} (pid {victim.process.pid})")
        self.until(lambda: self._stage.uploader() not in (0, dead), TAKEOVER_LIMIT, "a new uploader")
        self._display.say(f"uploader {self._stage.uploader()} has taken the uploader lock")

    def finish(self) -> None:
        """Wait until every rank has ended, which is when its events are on the Hub, and the uploader has left."""
        ranks = self._stage.ranks
        trained = lambda: all(rank.progress()[0] >= self._stage.steps for rank in ranks)  # noqa: E731
        self.until(trained, self.training_limit, "the end of training")
        self._display.say("all ranks have trained; each ends when its events are on the Hub")
        self.until(lambda: all(rank.is_over for rank in ranks), END_LIMIT, "the end of all ranks")
        self.until(lambda: not self._stage.view.uploader_is_alive(), END_LIMIT, "the uploader to leave")
        self._display.say("all ranks have ended, the uploader has left")


def _judge(stage: Stage) -> int:
    """The oracle in a process of its own: it knows nothing but the folder and the Hub."""
    command = [sys.executable, "-m", "hf_mpwriter.demo.verdict", stage.place.root]
    return subprocess.run(command, env=stage.env, check=False, timeout=VERDICT_LIMIT).returncode
