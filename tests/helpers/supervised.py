"""Programs below `hf-mpwriter run`: as process 1 of a pid namespace where that can be made, and watched for zombies."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from programs import DEADLINE, wait_for

LOG = """
import os, signal, sys, time
import numpy as np
from hf_mpwriter import HFSummaryWriter
writer = HFSummaryWriter("me/run", logdir=sys.argv[1])
writer.add_scalar("loss", 1.0, 0)
if sys.argv[2] != "down":
    assert writer.push(wait=150)
for step in range(1, 300):  # what half a minute leaves behind; the next commit is minutes away
    writer.add_scalar("loss", 1 / step, step)
    if step % 100 == 0:
        writer.add_image("noise", np.random.default_rng(step).integers(0, 255, (3, 1024, 1024), np.uint8), step)
if sys.argv[2] == "ignores":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("logged", flush=True)
if sys.argv[2] == "exits":
    os._exit(3)
while True:
    writer.add_scalar("later", 1.0, step)
    step += 1
    time.sleep(0.05)
"""  # run directory, kind of end

RUN = [sys.executable, "-m", "hf_mpwriter", "run"]
NAMESPACE = ["unshare", "--pid", "--fork", "--mount-proc"]
ON_HOST = 'hostname "$0"; exec "$@"'


def why_no_namespace() -> str:
    """Why no pid namespace can be made here, "" if one can."""
    if os.geteuid():
        return "only root can make a pid namespace"
    if not shutil.which("unshare"):
        return "needs unshare of util-linux"
    return "" if subprocess.run([*NAMESPACE, "true"], check=False).returncode == 0 else "no pid namespace can be made"


def has_ended(process: psutil.Process) -> bool:
    """Whether a process has ended; process 1 may yet have to collect it."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.status() == psutil.STATUS_ZOMBIE
    return True


class Supervised:
    """A supervisor, and its program."""

    def __init__(
        self,
        *command: object,
        options: tuple[str, ...] = (),
        is_first: bool = False,
        host: str = "",
        cwd: Path | None = None,
        **environ: str,
    ) -> None:
        apart = [*NAMESPACE, *(["--uts", "sh", "-c", ON_HOST, host] if host else [])] if is_first else []
        words = [*apart, *RUN, *options, "--", *map(str, command)]
        self._process = subprocess.Popen(
            words,
            env=os.environ | environ,
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self._is_first = is_first

    def line(self) -> str:
        """The next line that the program prints."""
        return self._process.stdout.readline()

    @property
    def supervisor(self) -> psutil.Process:
        """The supervisor."""
        outer = psutil.Process(self._process.pid)
        return wait_for(outer.children, "the supervisor starts")[0] if self._is_first else outer

    @property
    def group(self) -> int:
        """The process group of the supervisor."""
        return os.getpgid(self.supervisor.pid)

    def below(self) -> list[psutil.Process]:
        """The processes below the supervisor."""
        try:
            return self.supervisor.children(recursive=True)
        except psutil.NoSuchProcess:
            return []

    def names(self) -> list[str]:
        """The names of the processes below the supervisor; a zombie keeps its own."""
        return self._each(psutil.Process.name)

    def zombies(self) -> int:
        """How many zombies are below the supervisor."""
        return self._each(psutil.Process.status).count(psutil.STATUS_ZOMBIE)

    def _each(self, ask: Callable[[psutil.Process], str]) -> list[str]:
        found = []
        for process in self.below():
            with contextlib.suppress(psutil.NoSuchProcess):
                found.append(ask(process))
        return found

    def is_over(self) -> bool:
        """Whether it has ended."""
        return self._process.poll() is not None

    def finish(self, deadline: float = DEADLINE) -> tuple[int, str, str]:
        """Wait for the end; exit code, output and errors."""
        try:
            out, err = self._process.communicate(timeout=deadline)
        except subprocess.TimeoutExpired:
            self.kill()
            pytest.fail("the supervisor did not end")
        return self._process.returncode, out, err

    def kill(self) -> None:
        """End all of its session, and what is below; uploaders have sessions of their own."""
        below = [] if self.is_over() else self.below()
        for process in below:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError):
                if os.getsid(process.pid) == self._process.pid:
                    process.kill()
        self._process.communicate()


def event_bytes(run_dir: Path) -> int:
    """Bytes of the event files of a run directory."""
    return sum(path.stat().st_size for path in run_dir.rglob("*tfevents*"))
