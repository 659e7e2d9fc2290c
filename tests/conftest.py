"""Fixtures: a clean environment, a local Hub, and programs that run in processes of their own."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

pytest.register_assert_rewrite("pushing")  # a plugin of some tests, and imported by them

DEADLINE = 60.0  # seconds that any condition may take on a slow machine
LAUNCHERS = ("SLURM_", "OMPI_", "PMI", "TORCHELASTIC_", "MV2_", "JSM_", "MASTER_")
PREFIXES = (*LAUNCHERS, "HF_", "HUGGING_FACE_", "ACCELERATE_", "TENSORBOARD_")
SUFFIXES = ("RANK", "WORLD_SIZE", "http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY")


@pytest.fixture(scope="session")
def without_torch(tmp_path_factory) -> str:
    """A directory in which torch cannot be imported: tensorboardX would, for more than a second in each process."""
    directory = tmp_path_factory.mktemp("without_torch")
    (directory / "torch.py").write_text("raise ImportError('hidden from this test')")
    return str(directory)


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch, tmp_path, without_torch):
    """No variable of the developer's shell, launcher or Hub account reaches a test."""
    monkeypatch.setenv("PYTHONPATH", without_torch)
    for name in list(os.environ):
        if name.startswith(PREFIXES) or name.endswith(SUFFIXES):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf_home"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_MPWRITER_COMMITS_PER_HOUR", "100000")  # tests have no hour
    monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", "1")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture
def hub(tmp_path, monkeypatch) -> Iterator:
    """A local Hub, and HF_ENDPOINT pointing at it."""
    from hf_mpwriter.localhub import LocalHub

    with LocalHub(tmp_path / "hub") as server:
        monkeypatch.setenv("HF_ENDPOINT", server.endpoint)
        yield server


def wait_for(condition: Callable[[], object], what: str, deadline: float = DEADLINE) -> object:
    """Wait until `condition` is true and return its value."""
    end = time.monotonic() + deadline
    while not (value := condition()):
        if time.monotonic() > end:
            pytest.fail(f"waited {deadline:.0f} s in vain: {what}")
        time.sleep(0.02)
    return value


class Program:
    """A Python program in a process of its own, started by argument list."""

    def __init__(self, source: str, *arguments: object, env: dict[str, str] | None = None) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", source, *map(str, arguments)],
            env=os.environ | (env or {}),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    @property
    def pid(self) -> int:
        """Process id."""
        return self.process.pid

    def finish(self, deadline: float = DEADLINE) -> tuple[int, str, str]:
        """Wait for the end; exit code, output, errors."""
        try:
            out, err = self.process.communicate(timeout=deadline)
        except subprocess.TimeoutExpired:
            self.process.kill()
            out, err = self.process.communicate()
            pytest.fail(f"the program did not end within {deadline:.0f} s; it said:\n{out}\n{err}")
        return self.process.returncode, out, err

    def succeed(self, deadline: float = DEADLINE) -> str:
        """Wait for the end, which must be a good one; the output."""
        code, out, err = self.finish(deadline)
        assert code == 0, err
        return out


@pytest.fixture
def start() -> Iterator[Callable[..., Program]]:
    """Start programs; what still runs at the end of the test is killed."""
    started: list[Program] = []

    def begin(source: str, *arguments: object, env: dict[str, str] | None = None) -> Program:
        started.append(Program(source, *arguments, env=env))
        return started[-1]

    yield begin
    for program in started:
        if program.process.poll() is None:
            program.process.kill()
            program.process.communicate()


@pytest.fixture
def run_dir(tmp_path) -> Path:
    """A run directory that does not exist yet."""
    return tmp_path / "runs" / "exp1"


@pytest.fixture
def frozen(monkeypatch):
    """A clock that stands still."""
    monkeypatch.setattr(time, "time", lambda: 1795233002.25)
