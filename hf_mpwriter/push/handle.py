"""TODO push.handle."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import time
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from hf_mpwriter.base import verdicts
from hf_mpwriter.base.verdicts import Done, Sent, Unknown, Verdict

if TYPE_CHECKING:
    pass

from hf_mpwriter.system import launch

GRACE = 10.0  # seconds after which the uploader ends a push that its own timer has not ended: one that is stopped


class PushHandle:
    """A push, seen from the uploader.

    Args:
        in_flight: path of the record that holds the job.
        limit: seconds after which it has to be over.

    Raises:
        OSError: the process cannot be started.
    """

    def __init__(self, in_flight: str, limit: float) -> None:
        command = launch.push_command(in_flight)
        self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, bufsize=0)
        stdout: Any = self._process.stdout  # never None: PIPE was asked for
        os.set_blocking(stdout.fileno(), False)
        self._pipe = stdout
        self._limit, self._end = limit, time.monotonic() + limit + GRACE
        self._heard = b""
        self._verdict: Verdict | None = None

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    def listen(self) -> tuple[list[str], Verdict | None]:
        """What the push has said since the last time, and its verdict once it has ended; never waits."""
        ended = self._process.poll() is not None
        if not ended and time.monotonic() > self._end:
            self.kill()
        while chunk := self._pipe.read(1 << 16):
            self._heard += chunk
        *lines, self._heard = self._heard.split(b"\n")
        notices = []
        for message in _messages(lines):
            if "notice" in message:
                notices.append(str(message["notice"]))
            else:
                self._verdict = parse_verdict(message)
        if not ended:
            return notices, None
        self._pipe.close()
        return notices, self._verdict or self._how_it_ended(self._process.returncode)

    def _how_it_ended(self, code: int) -> Unknown:
        if code == -signal.SIGALRM or time.monotonic() > self._end:  # HTTP has timeouts of its own
            return Unknown(f"the push hung and was ended after {self._limit:.0f} s", xet="failing")
        return Unknown(f"the push ended by signal {-code}" if code < 0 else f"the push ended by exit code {code}")

    def kill(self) -> None:
        """End it; whether what it has sent arrives is then unknown."""
        self._process.kill()

    def wait(self, timeout: float) -> None:
        """Return when the push says something, or after `timeout` seconds."""
        select.select([self._pipe], [], [], timeout)


def _messages(lines: Iterable[bytes]) -> Iterator[dict[str, Any]]:
    """What is ours of these lines; what a start of Python prints (`sitecustomize`, a .pth file) comes the same way."""
    for line in lines:
        with contextlib.suppress(ValueError):
            if isinstance(message := json.loads(line), dict):
                yield message


def parse_verdict(data: dict[str, Any]) -> Verdict | None:
    """The verdict of a message; None if it cannot be read."""
    try:
        kind = getattr(verdicts, data.pop("verdict"))
        if kind is Done:
            data["files"] = {path: Sent(**sent) for path, sent in data["files"].items()}
        verdict: Verdict = kind(**data)
    except (ValueError, TypeError, KeyError, AttributeError):
        return None
    return verdict
