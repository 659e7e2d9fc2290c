"""A training process of `storage.py`, and what it tells."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from queue import Empty, Queue
from threading import Thread
from typing import Any

DEADLINE = 240.0  # seconds for anything
HERE = Path(__file__).resolve().parent


class Process:
    """A training process."""

    def __init__(self, rank: int, told: dict[str, Any], environment: dict[str, str]) -> None:
        self.rank = rank
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - for as long as the process
        self.process = subprocess.Popen(
            [sys.executable, HERE / "program.py", json.dumps(told)],
            env=environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )
        self._lines: Queue[dict[str, Any]] = Queue()
        Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        for line in self.process.stdout or ():
            self._lines.put(json.loads(line))
        self._lines.put({})

    def told(self, what: str) -> dict[str, Any]:
        """Wait for a line."""
        with contextlib.suppress(Empty):
            if what in (line := self._lines.get(timeout=DEADLINE)):
                return line
            raise RuntimeError(f"rank {self.rank} ended before {what!r}: {self.errors()[-800:]}")
        raise RuntimeError(f"rank {self.rank} hangs before {what!r}: {self.errors()[-800:]}")

    def errors(self) -> str:
        """What it has printed for its user."""
        self._errors.seek(0)
        return self._errors.read().decode(errors="replace")

    def kill(self) -> None:
        """End it."""
        self.process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):  # it may hang in a mount
            self.process.wait(10)
