"""The story of the demo: what happens, in order, what is shown of it, and what counts as a failure.

    start     the local Hub starts, four ranks train, one of them starts the uploader
    kill      one rank gets SIGKILL; the uploader pushes at once, and is killed in the middle of that push
    resume    the rank starts again from its checkpoint; a rank finds the uploader lock free and starts a new uploader
    loss      all ranks and the uploader are killed, and their disk is removed: another machine pulls the run from the
              Hub, where the live bucket has all but the last seconds, and the ranks start again from their checkpoints
    finish    each rank ends when its events are on the Hub, the uploader leaves, and the follower has all
    verdict   the oracle compares the run with the Hub, in a process of its own
    open      if the user wants it, the Hub and its pages stay until Ctrl-C

The demo fails if a rank fails by itself, a limit below is exceeded, or anything is missing on the Hub.

    [   7 s] killed rank 2 (pid 4711) after step 41       an event, on stdout
    [  10 s]   steps 48, 50, 41, 49 of 160; 20.1 kB on the Hub, 35.8 kB live   progress, on stderr, every LINE_EVERY
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from hf_mpwriter.base.words import as_path, size_text, typed
from hf_mpwriter.demo.stage import PATIENCE, RANKS, REPO, STEPS, Folder, Stage
from hf_mpwriter.system.launch import Child
from hf_mpwriter.testing.losses import forget_lost

VICTIM = 2  # the rank that is killed
KILLED, LOST = STEPS // 4, STEPS * 3 // 4  # steps after which it is, and those after which the machine is lost
POLL = 0.05  # seconds between two checks of a condition
LINE_EVERY = 5.0  # seconds between two lines of progress
LIMIT = 150.0  # seconds that an act and the verdict take at most: it ends a hang
PUSH_LIMIT = 5.0  # seconds to wait for a push to interrupt, less than training still takes
KILL_AFTER = 0.3  # seconds from the start of that push to the kill


for _name in ("PIL", "tensorboard", "uvicorn"):  # other processes need them later: fail before anything starts
    if importlib.util.find_spec(_name) is None:
        raise ModuleNotFoundError(f"No module named {_name!r}", name=_name)


class DemoError(Exception):
    """The demo has shown that something does not hold."""


def run(directory: Path | None, *, stay: bool = False) -> int:
    """Run the demo; the exit code: 0 if nothing is missing, 130 after Ctrl-C or SIGTERM, else 1."""
    place = Folder(os.path.abspath(directory or tempfile.mkdtemp(prefix="hf-mpwriter-demo-")))
    try:
        place.make()
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # it ends the demo as Ctrl-C does
        with Stage(place) as stage:
            _Story(stage).tell()
            code = _verdict(stage)
            if stay:
                _keep_open(stage)
            return code
    except (DemoError, OSError, psutil.Error) as error:
        print(f"The demo failed: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"Interrupted; everything has ended. What was logged is in {place.root}.", file=sys.stderr)
        return 130


def _verdict(stage: Stage) -> int:
    """The exit code of the verdict: a process of its own, which knows the folder and the Hub only."""
    return _code(Child("verdict", b"", stage.place.root, {2: 2}, limit=LIMIT, env=stage.env), "verdict")


def _code(child: Child, what: str) -> int:
    """The exit code of a process, when it has ended; what it prints is shown."""
    try:
        has_ended = False
        while not has_ended:
            child.wait(LINE_EVERY)
            lines, has_ended = child.hear()
            print(*(line.decode() + "\n" for line in lines), sep="", end="", flush=True)
    finally:
        child.end(PATIENCE)
    if child.has_hung:
        raise DemoError(f"the {what} {child.how_it_ended}")
    return child.code or 0


def _keep_open(stage: Stage) -> None:
    """Print links, and wait for Ctrl-C or SIGTERM, or for the end of the Hub."""
    page = f"{stage.hub.endpoint}/{REPO}"
    print("\nOpen in a browser on this machine; Ctrl-C ends the Hub:")
    print(f"  {page}/tensorboard      training metrics")
    print(f"  {page}/tree/main        files and commits")
    print(f"  {stage.hub.endpoint}/buckets/{REPO}-live      the live bucket", flush=True)
    with contextlib.suppress(KeyboardInterrupt):
        while stage.hub.pid is not None:
            time.sleep(POLL)
    kept = stage.place.root
    print(f"\nThe Hub ends. All of it stays in {kept}; to be rid of it: {typed('rm', '-r', as_path(kept))}", flush=True)


class _Story:
    """The acts. Each one waits, and shows the progress meanwhile."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._started_at = self._shown_at = time.monotonic()

    def tell(self) -> None:
        """Perform all acts."""
        self._show(f"everything is in {self._stage.place.root}")
        self._show(f"a local Hub is at {self._stage.hub.endpoint}; four ranks begin to train")
        victim = self._stage.ranks[VICTIM]
        self._until(lambda: victim.step > KILLED, "a part of the training")
        self._until(self._stage.uploader, "an uploader")
        victim.kill()
        self._show(f"killed rank {VICTIM} (pid {victim.process.pid}) after step {victim.step}")
        dead = self._kill_uploader()
        self._resume(dead)
        self._until(lambda: max(rank.step for rank in self._stage.ranks) > LOST, "most of the training")
        self._lose_machine()
        self._finish()

    def _show(self, text: str) -> None:
        print(f"[{time.monotonic() - self._started_at:4.0f} s] {text}", flush=True)

    def _show_progress(self) -> None:
        now = time.monotonic()
        if now >= self._shown_at + LINE_EVERY:
            self._shown_at = now
            steps = ", ".join(str(rank.step) for rank in self._stage.ranks)
            there, live = size_text(self._stage.there()), size_text(self._stage.live())
            line = f"steps {steps} of {STEPS}; {there} on the Hub, {live} live"
            print(f"[{now - self._started_at:4.0f} s]   {line}", file=sys.stderr, flush=True)

    def _until(self, condition: Callable[[], object], what: str) -> None:
        """Wait until a condition is true."""
        end = time.monotonic() + LIMIT
        while not condition():
            self._show_progress()
            for rank in self._stage.ranks:
                if rank.process.has_ended() and (code := rank.process.code):
                    tail = "\n".join(rank.output().splitlines()[-15:])
                    raise DemoError(f"rank {rank.rank} ended with exit code {code}; its log ends with:\n{tail}")
            if time.monotonic() > end:
                raise DemoError(f"waited {LIMIT:.0f} s in vain for {what}")
            time.sleep(POLL)

    def _kill_uploader(self) -> int:
        """Kill the uploader in the push that the death of a rank causes; its pid."""
        end = time.monotonic() + PUSH_LIMIT
        while not (is_pushing := self._stage.view.status().phase == "pushing") and time.monotonic() < end:
            time.sleep(POLL)
        time.sleep(KILL_AFTER)
        uploader = self._stage.uploader()
        if not uploader:
            raise DemoError("the uploader ended by itself while ranks lived")
        psutil.Process(uploader).kill()
        self._show(f"killed the uploader (pid {uploader}){f', {KILL_AFTER:.1f} s into a push' * is_pushing}")
        return uploader

    def _resume(self, dead: int) -> None:
        """Start the rank again, and wait for a new uploader."""
        victim = self._stage.ranks[VICTIM]
        lives = len(victim.first_steps())
        victim.start()
        self._until(lambda: len(victim.first_steps()) > lives, f"rank {VICTIM} to resume")
        self._show(f"rank {VICTIM} resumed at step {victim.first_steps()[-1]} (pid {victim.process.pid})")
        self._until(lambda: self._stage.uploader() not in (0, dead), "a new uploader")
        self._show(f"uploader {self._stage.uploader()} has taken the uploader lock")
        self._until(self._stage.there, "a run to follow")
        self._stage.follow()
        self._show("another process follows the run")

    def _lose_machine(self) -> None:
        """Lose a machine with its disk, and go on from what the Hub has, on another one."""
        stage = self._stage
        before = stage.lose_machine()
        self._show("lost the machine: the ranks and the uploader are killed, their disk is removed")
        if _code(stage.pull(), "pull"):
            raise DemoError(f"the pull failed; its log is {stage.place.log(RANKS)}")
        forget_lost(stage.place.journals, stage.place.run_dir)
        after = stage.records()
        lost = [when for path, times in before.items() for when in times[len(after.get(path, ())) :]]
        died_at = max(when for times in before.values() for when in times)
        seconds = died_at - min(lost, default=died_at)
        self._show(f"pulled the run on another machine: {len(lost)} records are lost, of the last {seconds:.1f} s")
        for rank in stage.ranks:
            rank.start()

    def _finish(self) -> None:
        """Wait until all ranks have ended, each with its events on the Hub, and the uploader has left."""
        ranks = self._stage.ranks
        self._until(lambda: all(rank.step >= STEPS for rank in ranks), "the end of training")
        self._show("all ranks have trained; each ends when its events are on the Hub")
        self._until(lambda: all(rank.process.has_ended() for rank in ranks), "the end of all ranks")
        self._until(lambda: not self._stage.view.is_alive(), "the uploader to leave")
        self._until(self._stage.is_followed, "the follower to have all")
        self._show("all ranks have ended, the uploader has left; the follower has all of it")
