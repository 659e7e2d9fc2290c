"""A stage: what a case of a launcher needs. A Hub, folders, processes, and how soon what they log is on the Hub.

    FOLDER/runs/exp1/        run directory of processes that share one
    FOLDER/nodes/NAME/       disk of a node; it goes with the node
    FOLDER/shared/           what outlives a node: programs, checkpoints, marks
    FOLDER/shared/journals/  calls that returned

A case is a function of a stage. It returns its laps: what was killed or ended -> seconds until all was on the Hub.
"""

from __future__ import annotations

import contextlib
import os
import random
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import psutil
from programs import wait_for
from repository import HELPERS, ROOT
from supervised import Supervised
from waits import timing

from hf_mpwriter import testing
from hf_mpwriter.localhub import LocalHub, View
from hf_mpwriter.testing import processes
from launching.ranks import TO_THE_END

Laps = dict[str, float]

REPO, FOLDER = "me/run", "tensorboard"
PATIENCE = 240.0  # seconds for processes that import torch to begin, on a busy machine
POLL = 0.05  # seconds
PORTS = range(15000, 30000)  # below those that the system gives away


class Stage:
    """The place of one case."""

    def __init__(self, folder: Path, hub: LocalHub, *, hurry: bool, seed: int = 0) -> None:
        self.folder, self.hub, self.random = folder, hub, random.Random(seed)
        self.run_dir = folder / "runs" / "exp1"
        self.shared, self.journals = folder / "shared", folder / "shared" / "journals"
        self.journals.mkdir(parents=True)
        self._without_torch = folder / "without_torch"  # it takes seconds of each process
        self._without_torch.mkdir()
        (self._without_torch / "torch.py").write_text("raise ImportError('hidden')")
        self._watch, self._timing = ([HELPERS / "watch"], timing()) if hurry else ([], "")
        self._supervised: list[Supervised] = []
        self._started: list[subprocess.Popen[str]] = []
        self._run_dirs = {self.run_dir}

    # processes

    def environ(self, *, torch: bool = False, **more: object) -> dict[str, str]:
        """The environment of a process."""
        paths = [*([] if torch else [self._without_torch]), *self._watch, ROOT]
        own = {
            "PYTHONPATH": os.pathsep.join(map(str, paths)),
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
            "OMP_NUM_THREADS": "1",
            "HF_ENDPOINT": self.hub.endpoint,
            "HF_MPWRITER_TIMING": self._timing,
        }
        return os.environ | own | {name: str(value) for name, value in more.items()}

    def supervise(self, *command: object, torch: bool = False, **more: object) -> Supervised:
        """Start a program below a supervisor; the other arguments are those of `Supervised`."""
        words = {name: more.pop(name) for name in ("options", "is_first", "host", "cwd") if name in more}
        self._supervised.append(Supervised(*command, **words, **self.environ(torch=torch, **more)))
        return self._supervised[-1]

    def start(self, *command: object, torch: bool = False, cwd: Path | None = None, **more: object) -> subprocess.Popen:
        """Start a program in a session of its own; its output is in one file."""
        with self._output(len(self._started)).open("w") as file:
            process = subprocess.Popen(
                list(map(str, command)),
                env=self.environ(torch=torch, **more),
                cwd=cwd,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                start_new_session=True,
            )
        self._started.append(process)
        return process

    def succeed(self, process: subprocess.Popen) -> None:
        """Wait for the good end of a program."""
        code = process.wait(PATIENCE)
        assert code == 0, f"{process.args} ended with {code}: {self.output(process)[-4000:]}"

    def output(self, process: subprocess.Popen) -> str:
        """What a program has printed."""
        return self._output(self._started.index(process)).read_text()

    def _output(self, number: int) -> Path:
        return self.folder / f"output_{number}"

    def program(self, source: str, name: str = "train.py") -> Path:
        """A program in the shared folder."""
        path = self.shared / name
        path.write_text(source)
        return path

    def uses(self, run_dir: Path) -> Path:
        """Note a run directory; what is left of its processes is ended with the stage."""
        self._run_dirs.add(run_dir)
        return run_dir

    def uploaders(self, run_dir: Path | None = None) -> list[int]:
        """The uploaders of a run directory, in whichever namespace."""
        return processes.left_behind(str(run_dir or self.run_dir), "uploader")

    def close(self) -> None:
        """End everything."""
        for one in self._supervised:
            one.kill()
        for process in self._started:
            with contextlib.suppress(psutil.NoSuchProcess):
                parent = psutil.Process(process.pid)
                for member in (*parent.children(recursive=True), parent):
                    with contextlib.suppress(psutil.NoSuchProcess):
                        member.kill()
            process.wait()
        for run_dir in map(str, self._run_dirs):
            workers = processes.workers(run_dir) if os.path.exists(run_dir) else []
            for pid in [*processes.left_behind(run_dir), *workers]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, 9)

    # marks, which programs make in the shared folder

    def wait_for_marks(self, *names: str, by: Iterable[Supervised] = ()) -> None:
        """Wait until these files are there."""

        def are_there() -> bool:
            missing = [name for name in names if not (self.shared / name).exists()]
            for one in by if missing else ():
                assert not one.is_over(), f"ended before {missing}: {one.finish()}"
            return not missing

        wait_for(are_there, f"marks {', '.join(names)}", PATIENCE)

    def let_end(self) -> int:
        """Let all ranks go on to the same last step, and end; that step."""
        last = max(int(path.read_text()) for path in self.shared.glob("checkpoint_*")) + TO_THE_END
        (self.shared / ".last").write_text(str(last))
        (self.shared / ".last").rename(self.shared / "last")
        return last

    # the Hub

    def view(self, name: str = "exp1") -> View:
        """What the Hub has of a run."""
        return View(self.hub.store, REPO, f"{FOLDER}/{name}")

    def lengths(self, run_dir: Path | None = None) -> dict[str, int]:
        """Bytes of each event file on disk."""
        top = run_dir or self.run_dir
        return {str(path.relative_to(top)): path.stat().st_size for path in top.rglob("*tfevents*")}

    def has(self, lengths: dict[str, int], name: str = "exp1") -> bool:
        """Whether the Hub has that much of each file."""
        view = self.view(name)
        there = view.tree("main") if view.commits() else {}
        return all(path in there and there[path].size >= size for path, size in lengths.items())

    def seconds_until_on_hub(self, since: float, lengths: dict[str, int], name: str = "exp1") -> float:
        """Wait until the Hub has that much of each file; seconds since a moment."""
        wait_for(lambda: self.has(lengths, name), "all is on the Hub", PATIENCE)
        return time.monotonic() - since

    def watch(self, since: float, is_over: Callable[[], bool], run_dirs: Iterable[Path]) -> float | None:
        """Wait for an end; the seconds after which the Hub had all that there is then, None if it does not."""
        arrived, run_dirs = None, list(run_dirs)
        deadline = time.monotonic() + PATIENCE
        while True:
            over = is_over()
            if all(self.has(self.lengths(run_dir), run_dir.name) for run_dir in run_dirs):
                arrived = arrived or time.monotonic()
            else:
                arrived = None
            if over:
                return None if arrived is None else arrived - since
            assert time.monotonic() < deadline, "it does not end"
            time.sleep(POLL)

    def judge(self, run_dir: Path | None = None) -> testing.Report:
        """Let the oracle judge a run directory, with all that is known to have returned."""
        top = run_dir or self.run_dir
        report = testing.check(str(top), self.view(top.name), testing.read_journals(str(self.journals)))
        assert report.problems == []
        assert report.returned
        return report


def free_port() -> int:
    """A port that no process listens on, and that the system gives to none."""
    while True:
        port = random.choice(PORTS)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
