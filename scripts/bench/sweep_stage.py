"""What each part of `sweep.py` has for itself: a Hub, a home, run directories, its processes, and who watches them."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from lib.figures import MIB
from lib.isolation import variables
from lib.marked import by_kind, marked
from uploader_costs import Memory

from hf_mpwriter.localhub import LocalHub
from hf_mpwriter.localhub.errors import Refusal
from hf_mpwriter.spool.layout import Spool

PROGRAM = Path(__file__).resolve().parent / "sweep_trial.py"
REPO = "bench/sweep"
SAMPLE = 0.25  # seconds between two looks at the processes
MEMORY_EVERY = 4  # looks
USHER = 2.0  # seconds; a process that is older is an uploader for good
NOT_OURS = ("HF_", "HUGGING_FACE_", "XDG_")


@dataclass
class Peak:
    """The most that was seen at a time."""

    uploaders: int = 0
    settled: int = 0  # of these, older than USHER
    pushes: int = 0
    uploader_memory: float = 0.0  # MiB
    push_memory: float = 0.0  # MiB


class Watch:
    """Samples the uploaders and pushes of a stage in a thread of its own."""

    def __init__(self, mark: str) -> None:
        self._mark, self._over, self.peak = mark, threading.Event(), Peak()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        first, looks, peak = dict[int, float](), 0, self.peak
        while not self._over.wait(SAMPLE):
            found, now = by_kind(self._mark), time.monotonic()
            uploaders, pushes, looks = found["uploader"], found["push"], looks + 1
            old = sum(now - first.setdefault(pid, now) > USHER for pid in uploaders)
            peak.uploaders, peak.settled = max(peak.uploaders, len(uploaders)), max(peak.settled, old)
            peak.pushes = max(peak.pushes, len(pushes))
            if looks % MEMORY_EVERY == 0:
                peak.uploader_memory = max(peak.uploader_memory, memory(uploaders))
                peak.push_memory = max(peak.push_memory, memory(pushes))

    def __enter__(self) -> Peak:
        self._thread.start()
        return self.peak

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()


def end_all(mark: str) -> None:
    """End all processes with a mark: those of another checkout, too; the next one may have been started meanwhile."""
    while pids := list(marked(mark)):
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def memory(pids: Sequence[int]) -> float:
    """MiB of processes."""
    return sum(Memory.of(pid).pss for pid in pids) / MIB


class Stage:
    """What one part has for itself: a Hub, a home with its caches, and a folder of run directories."""

    def __init__(self, directory: Path, name: str) -> None:
        self.place, self.runs = directory / name, directory / name / "runs"
        self.hub, self._children = LocalHub(self.place / "hub"), list[subprocess.Popen[str]]()
        without_torch = self.place / "without_torch"  # tensorboardX would import it, for seconds of each trial
        for folder in (self.runs, without_torch):
            folder.mkdir(parents=True)
        (without_torch / "torch.py").write_text("raise ImportError('hidden: it takes seconds')")
        own = variables(self.place)
        self.mark = f"HF_HOME={own['HF_HOME']}"
        del own["HF_MPWRITER_COMMITS_PER_HOUR"]  # the default, as others have it
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(NOT_OURS)}
        path = os.pathsep.join([str(without_torch), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
        self.env = inherited | own | {"HOME": str(self.place), "HF_TOKEN": "hf_x", "PYTHONPATH": path}

    def __enter__(self) -> Self:
        self.hub.start()
        self.env["HF_ENDPOINT"] = self.hub.endpoint
        return self

    def __exit__(self, *_: object) -> None:
        for child in self._children:
            child.kill()
            child.wait()
        end_all(self.mark)
        self.hub.stop()
        shutil.rmtree(self.place, ignore_errors=True)

    def start(self, what: str, *arguments: object, **env: str) -> subprocess.Popen[str]:
        """Start a program of `sweep_trial`; what it says goes to a file."""
        command = [sys.executable, str(PROGRAM), what, *map(str, arguments)]
        with open(self.place / "said", "a") as said:
            child = subprocess.Popen(
                command, env=self.env | env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=said, text=True
            )
        self._children.append(child)
        return child

    def run(self, what: str, *arguments: object, **env: str) -> tuple[Any, float]:
        """Run a program to its end; what it printed, and the monotonic time of its end."""
        child = self.start(what, *arguments, **env)
        if child.stdin:
            child.stdin.close()
        code, ended_at = child.wait(), time.monotonic()
        printed = child.stdout.read() if child.stdout else ""
        if code:
            raise RuntimeError(f"{what} ended with {code}: {(self.place / 'said').read_text()[-2000:]}")
        return json.loads(printed), ended_at

    # what is where

    def run_dirs(self) -> list[Path]:
        """The run directories."""
        return sorted(path.parent for path in self.runs.rglob(".hf_mpwriter"))

    def tree(self) -> dict[str, int]:
        """Bytes per path on the Hub."""
        with contextlib.suppress(Refusal):
            return {path: entry.size for path, entry in self.hub.store.tree("model", REPO).items()}
        return {}

    def commits(self) -> int:
        """Commits that the Hub got, without the one that made the repository."""
        with contextlib.suppress(Refusal):
            return len(self.hub.store.commits("model", REPO)) - 1
        return 0

    def complete(self, run_dirs: Sequence[Path]) -> int:
        """How many of these runs are on the Hub, by the lengths of their event files."""
        tree, found = self.tree(), 0
        for run_dir in run_dirs:
            folder = folder_of(run_dir)
            sizes = {path.relative_to(run_dir): path.stat().st_size for path in run_dir.rglob("*.tfevents.*")}
            found += bool(sizes) and all(tree.get(f"{folder}/{path}") == size for path, size in sizes.items())
        return found

    def said(self) -> list[str]:
        """The lines that the programs have printed."""
        return [line for line in (self.place / "said").read_text().splitlines() if line.strip()]


def folder_of(run_dir: Path) -> str:
    """The folder of a run in the repository, as its spool records it."""
    destination = Spool(str(run_dir)).destination()
    return destination.path_in_repo if destination else ""
