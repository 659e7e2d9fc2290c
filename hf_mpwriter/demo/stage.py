"""The processes of the demo: a local Hub, four ranks, and the uploader that they start among themselves.

Leaving the stage ends all of them, whatever happened: ranks by SIGKILL, the uploader by SIGTERM (it may push once
more) and after a while by SIGKILL, the Hub last.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Self

import psutil

from hf_mpwriter.demo.place import RANKS, Place
from hf_mpwriter.localhub import LocalHub
from hf_mpwriter.spool.layout import Spool
from hf_mpwriter.spool.progress import Progress

UPLOADER_PATIENCE = 10.0  # seconds that the uploader may take to leave
TAIL = 400  # bytes at the end of a log that hold the last line

_STEP = re.compile(r"step (\d+) (loss \S+ accuracy \S+)")
_BEGIN = re.compile(r"begins at step (\d+)")


class Rank:
    """A rank, in all its lives."""

    def __init__(self, place: Place, rank: int, arguments: list[str], env: dict[str, str]) -> None:
        self.rank, self.log = rank, place.log(rank)
        self._command = [sys.executable, "-m", "hf_mpwriter.demo.training", place.root, *arguments]
        self._env = env | {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(RANKS)}
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start or start again. A session of its own: Ctrl-C reaches the demo, which ends its ranks itself."""
        with open(self.log, "ab") as log:
            self._process = subprocess.Popen(
                self._command,
                env=self._env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    @property
    def process(self) -> subprocess.Popen[bytes]:
        """The latest process of this rank."""
        if self._process is None:
            raise RuntimeError(f"rank {self.rank} was never started")
        return self._process

    @property
    def has_failed(self) -> bool:
        """Whether it ended, and not well."""
        return self.process.poll() not in (None, 0)

    @property
    def is_over(self) -> bool:
        """Whether it ended."""
        return self.process.poll() is not None

    def kill(self) -> int:
        """SIGKILL; returns the pid that was killed."""
        self.process.kill()
        self.process.wait()
        return self.process.pid

    def end(self) -> None:
        """Make sure that it does not run."""
        if self._process is not None and self._process.poll() is None:
            self.kill()

    def begins(self) -> list[int]:
        """The step at which each life began training."""
        return [int(step) for step in _BEGIN.findall(self._tail(-1))]

    def progress(self) -> tuple[int, str]:
        """Steps done, and how training goes."""
        found = _STEP.findall(self._tail(TAIL))
        return (int(found[-1][0]), found[-1][1]) if found else (0, "")

    def last_words(self) -> str:
        """The end of the log."""
        return "\n".join(self._tail(-1).splitlines()[-15:])

    def _tail(self, count: int) -> str:
        """The last `count` bytes of the log, all of it for -1."""
        with contextlib.suppress(FileNotFoundError), open(self.log, "rb") as log:
            if count >= 0:
                log.seek(max(0, os.fstat(log.fileno()).st_size - count))
            return log.read().decode(errors="replace")
        return ""


class Stage:
    """Hub, ranks and uploader; a context manager.

    Args:
        place: the demo's folder.
        steps: training steps of each rank.
        pace: seconds between two steps.
    """

    def __init__(self, place: Place, steps: int, pace: float) -> None:
        self.place, self.steps = place, steps
        self.hub = LocalHub(place.hub)
        self._arguments = [str(steps), str(pace), str(os.getpid())]
        self.env: dict[str, str] = {}
        self.ranks: list[Rank] = []
        self.view = Progress(Spool(place.run_dir))

    def __enter__(self) -> Self:
        """Start the Hub and the ranks."""
        try:
            self.hub.start()
            self.env = self.place.environment(self.hub.endpoint)
            for rank in range(RANKS):
                self.ranks.append(Rank(self.place, rank, self._arguments, self.env))
                self.ranks[-1].start()
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """End everything."""
        self._end()

    def uploader(self) -> int:
        """Pid of the living uploader of this run, 0 if there is none."""
        pid = self.view.uploader().pid
        return pid if pid in {process.pid for process in self._uploaders()} else 0

    def _uploaders(self) -> list[psutil.Process]:
        """Its command line names the run directory, which is ours alone; no other process of the user's matches."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                command = process.cmdline()
                if self.place.run_dir in command and any("import uploader" in word for word in command):
                    found.append(process)
        return found

    def bytes(self) -> tuple[int, int]:
        """What the Hub has acknowledged of the event files, and their size."""
        size = 0
        for folder, _, names in os.walk(self.place.run_dir):
            with contextlib.suppress(FileNotFoundError):
                size += sum(os.stat(os.path.join(folder, name)).st_size for name in names if "tfevents" in name)
        book = self.view.ledger()
        return sum(held.length for held in book.files.values()) if book else 0, size

    def _end(self) -> None:
        with _uninterrupted():
            for rank in self.ranks:
                rank.end()
            deadline = time.monotonic() + UPLOADER_PATIENCE
            while uploaders := self._uploaders():
                for process in uploaders:
                    with contextlib.suppress(psutil.Error):
                        process.terminate() if time.monotonic() < deadline else process.kill()
                psutil.wait_procs(uploaders, timeout=1)
            self.hub.stop()


@contextlib.contextmanager
def _uninterrupted() -> Iterator[None]:
    """A second Ctrl-C does not leave processes behind; what it protects takes seconds."""
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
