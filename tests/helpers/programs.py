"""Programs in processes of their own, and conditions with a deadline."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable

import pytest

DEADLINE = 200.0  # seconds that any condition may take: it ends a hang, and is no limit of a slow machine


def wait_for(condition: Callable[[], object], what: str, deadline: float = DEADLINE) -> object:
    """Wait until `condition` is true and return its value."""
    end = time.monotonic() + deadline
    while True:
        began = time.monotonic()
        if value := condition():
            return value
        now = time.monotonic()
        if now > end:
            pytest.fail(f"waited {deadline:.0f} s in vain: {what}")
        time.sleep(min(1.0, max(0.02, 5 * (now - began))))  # the processes that are waited for need the cores


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
        """Wait for the end; return exit code, output and errors."""
        try:
            out, err = self.process.communicate(timeout=deadline)
        except subprocess.TimeoutExpired:
            self.process.kill()
            out, err = self.process.communicate()
            pytest.fail(f"the program did not end within {deadline:.0f} s; it printed:\n{out}\n{err}")
        return self.process.returncode, out, err

    def succeed(self, deadline: float = DEADLINE) -> str:
        """Wait for the end, which must be a good one; return the output."""
        code, out, err = self.finish(deadline)
        assert code == 0, err
        return out


def run_python(source: str, *arguments: object, env: dict[str, str] | None = None) -> subprocess.CompletedProcess:
    """Run a program in a fresh interpreter and wait for its end."""
    return subprocess.run(
        [sys.executable, "-c", source, *map(str, arguments)],
        env=os.environ | (env or {}),
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
    )


def succeed(source: str, *arguments: object, env: dict[str, str] | None = None) -> str:
    """Run a program that must end well; return its output."""
    result = run_python(source, *arguments, env=env)
    assert result.returncode == 0, result.stderr
    return result.stdout
