"""Programs in processes of their own, and conditions with a deadline."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable

import pytest
import zygote

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
    """A Python program in a process of its own; `fresh`, in an interpreter of its own, not one that was forked."""

    def __init__(self, source: str, *arguments: object, env: dict[str, str] | None = None, fresh: bool = False) -> None:
        env = os.environ | (env or {})
        start = subprocess.Popen if fresh or not zygote.can_fork(env) else zygote.Forked
        self.process = start(
            [sys.executable, "-c", source, *map(str, arguments)],
            env=env,
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


def run_python(
    source: str, *arguments: object, env: dict[str, str] | None = None, fresh: bool = False
) -> subprocess.CompletedProcess:
    """Run a program and wait for its end."""
    program = Program(source, *arguments, env=env, fresh=fresh)
    return subprocess.CompletedProcess(program.process.args, *program.finish())


def succeed(source: str, *arguments: object, env: dict[str, str] | None = None, fresh: bool = False) -> str:
    """Run a program that must end well; return its output."""
    return Program(source, *arguments, env=env, fresh=fresh).succeed()
