"""The processes of the demo: a local Hub, four ranks, and the uploader that the ranks start.

    demo  --Popen-->  local Hub
          --Child-->  rank 0 ... rank 3  --start-->  uploader  --Child-->  push

Invariant: when the stage is left, all of them end, whatever happened. Ranks end by SIGKILL. The uploader ends by
SIGTERM, after which it may push once more, and after UPLOADER_PATIENCE by SIGKILL. The Hub ends last.

    DIRECTORY/
      runs/digits/              run directory, of one machine after the other
      followed/digits/          what another one follows
      hub/                      data of the local Hub
      journals/                 which calls returned, noted by each rank
      checkpoints/rank_2.npz    weights and step of a rank
      logs/rank_2.log           output of a rank, all its lives in one file; rank_4.log of both pulls
      hf_home/, cache/          HF_HOME and XDG_CACHE_HOME of all processes

The user's caches and tokens are neither read nor written.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import time
from pathlib import Path
from typing import Self

import psutil
from tensorboardX.proto.event_pb2 import Event

from hf_mpwriter.base.timing import VARIABLE
from hf_mpwriter.delivery.sinks import HubSink
from hf_mpwriter.events import framing
from hf_mpwriter.localhub import LocalHub, buckets
from hf_mpwriter.localhub.errors import RepoNotFound
from hf_mpwriter.spool.storage import find, spool_of
from hf_mpwriter.system.launch import Child
from hf_mpwriter.testing import processes

REPO = "demo/digits"
RANKS = 4
STEPS = 160  # of each rank
PACE = 0.1  # seconds between two steps
LOOK_EVERY = 0.05  # seconds between two looks for uploaders
UPLOADER_PATIENCE = 10.0  # seconds from SIGTERM to SIGKILL of the uploader
PATIENCE = 10.0  # seconds to wait for the end of a process that was killed

# The matrices are small: threads of numpy in four processes would only compete for the cores.
_ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")


class Folder:
    """The demo's folder."""

    def __init__(self, root: str) -> None:
        self.root = root  # absolute path
        self.run_dir = os.path.join(root, "runs", "digits")
        self.followed = os.path.join(root, "followed", "digits")
        self.hub = os.path.join(root, "hub")
        self.journals = os.path.join(root, "journals")

    def checkpoint(self, rank: int) -> str:
        """The checkpoint of a rank."""
        return os.path.join(self.root, "checkpoints", f"rank_{rank}.npz")

    def log(self, rank: int) -> str:
        """The output of a rank."""
        return os.path.join(self.root, "logs", f"rank_{rank}.log")

    def make(self) -> None:
        """Make the folder, and in it what the other processes expect."""
        os.makedirs(self.root, exist_ok=True)
        if os.listdir(self.root):
            raise FileExistsError(f"{self.root} is not empty; give another directory.")
        for path in (self.journals, os.path.dirname(self.checkpoint(0)), os.path.dirname(self.log(0))):
            os.makedirs(path)

    def environment(self, endpoint: str) -> dict[str, str]:
        """The user's environment without what concerns the real Hub."""
        env = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING_FACE_"))}
        env |= {VARIABLE: os.environ.get(VARIABLE, "")}
        env |= {"HF_ENDPOINT": endpoint, "HF_HOME": os.path.join(self.root, "hf_home"), "HF_HUB_DISABLE_TELEMETRY": "1"}
        env |= {"XDG_CACHE_HOME": os.path.join(self.root, "cache"), "HF_MPWRITER_COMMITS_PER_HOUR": "100000"}
        return env | {"NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"} | dict.fromkeys(_ONE_THREAD, "1")


class Rank:
    """A rank, in all its lives."""

    def __init__(self, place: Folder, rank: int, env: dict[str, str]) -> None:
        self.rank, self._root, self._log = rank, place.root, Path(place.log(rank))
        self._env = env | {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(RANKS)}
        self.start()

    def start(self) -> None:
        """Begin a life."""
        with self._log.open("ab") as log:
            self.process = Child("rank", b"", self._root, {2: log.fileno()}, env=self._env)  # of its latest life

    def kill(self) -> None:
        """End its latest life by SIGKILL."""
        self.process.end(PATIENCE)

    def first_steps(self) -> list[int]:
        """The first step of each life."""
        return [int(step) for step in re.findall(r"begins at step (\d+)", self.output())]

    @property
    def step(self) -> int:
        """Steps done."""
        return last_step(self.output())

    def output(self) -> str:
        """All that it has printed, a few ten kB."""
        return self._log.read_text(encoding="utf-8", errors="replace")


def last_step(output: str) -> int:
    """The last step that a rank has printed, 0 before the first."""
    return int([0, *re.findall(r"step (\d+) loss", output)][-1])


class Stage:
    """Hub, ranks and uploader. A context manager, which starts the Hub and the ranks and ends all."""

    def __init__(self, place: Folder) -> None:
        self.place = place
        self.hub = LocalHub(place.hub)
        self.env: dict[str, str] = {}  # of the demo's processes
        self.ranks: list[Rank] = []  # by number
        self.follower: Child | None = None

    def __enter__(self) -> Self:
        """Start the Hub and the ranks."""
        try:
            self.hub.start()
            self.env = self.place.environment(self.hub.endpoint)
            for rank in range(RANKS):
                self.ranks.append(Rank(self.place, rank, self.env))
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """End everything; ignore SIGINT and SIGTERM meanwhile, so that a second Ctrl-C leaves no process behind."""
        before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            for rank in self.ranks:
                rank.kill()
            if self.follower is not None:
                self.follower.end(PATIENCE)
            self._end_uploaders(UPLOADER_PATIENCE)
            self.hub.stop()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _end_uploaders(self, patience: float) -> None:
        """End the uploaders, and one that a killed rank was about to start: that one holds the lock before its name."""
        deadline = time.monotonic() + patience
        while True:
            uploaders, is_over = processes.left_behind(self.place.run_dir, "uploader"), time.monotonic() >= deadline
            if not uploaders and (is_over or not self.view.is_alive()):
                return
            for pid in uploaders:
                with contextlib.suppress(psutil.Error):
                    uploader = psutil.Process(pid)
                    uploader.kill() if is_over else uploader.terminate()
                    psutil.wait_procs([uploader], timeout=1)
            time.sleep(LOOK_EVERY)

    @property
    def view(self) -> HubSink:
        """The progress of the run, from its spool."""
        return HubSink(spool_of(find(self.place.run_dir)))

    def records(self) -> dict[Path, list[float]]:
        """When the records that are here were logged, in unix seconds, per event file."""
        files = [path for path in Path(self.place.run_dir).rglob("*tfevents*") if path.is_file()]
        return {
            path: [Event.FromString(payload).wall_time for payload in framing.payloads(str(path))] for path in files
        }

    def lose_machine(self) -> dict[Path, list[float]]:
        """End all processes of the run by SIGKILL, and remove its disk; the records that were on it."""
        for rank in self.ranks:
            rank.kill()
        self._end_uploaders(0.0)
        records = self.records()
        shutil.rmtree(self.place.run_dir)
        return records

    def pull(self, *options: str) -> Child:
        """Begin to bring the run to another machine, or to one that follows it."""
        words = ["pull", self.place.followed if options else self.place.run_dir, "--repo-id", REPO, *options]
        with Path(self.place.log(RANKS)).open("ab") as log:
            return Child("elsewhere", json.dumps(words).encode(), self.place.root, {2: log.fileno()}, env=self.env)

    def follow(self) -> None:
        """Follow the run, until the stage is left."""
        self.follower = self.pull("--follow")

    def is_followed(self) -> bool:
        """Whether the follower has all event files."""
        here, there = Path(self.place.run_dir), Path(self.place.followed)
        files = [path.relative_to(here) for path in here.rglob("*tfevents*") if path.is_file()]
        return all(
            (there / file).exists() and (there / file).read_bytes().startswith((here / file).read_bytes())
            for file in files
        )

    def uploader(self) -> int:
        """Pid of the living uploader of this run, 0 if there is none."""
        return processes.uploader(self.place.run_dir)

    def there(self) -> int:
        """Bytes of the event files that the Hub acknowledged."""
        ledger = self.view.ledger()
        return sum(held.length for held in ledger.files.values()) if ledger else 0

    def live(self) -> int:
        """Bytes in the live bucket."""
        with contextlib.suppress(RepoNotFound):
            return buckets.read(self.hub.store, f"{REPO}-live").size
        return 0
