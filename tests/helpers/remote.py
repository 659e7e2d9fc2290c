"""An object in a process of its own: its methods are called from the test, one after the other or side by side."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import forks
from programs import DEADLINE


class Remote:
    """A child made by fork that holds an object; what its methods return or raise comes back."""

    def __init__(self, make: Callable[[], object]) -> None:
        self._near, far = multiprocessing.Pipe()
        self.pid = forks.fork(lambda: _serve(make(), far))
        far.close()
        self._is_over = False

    def begin(self, method: str, *arguments: object) -> None:
        """Call a method, without waiting for it."""
        self._near.send((method, arguments))

    def result(self) -> Any:
        """What the oldest call has returned that was begun."""
        assert self._near.poll(DEADLINE), "the process does not answer"
        returned, raised = self._near.recv()
        if raised is not None:
            raise raised
        return returned

    def call(self, method: str, *arguments: object) -> Any:
        """What a method returns."""
        self.begin(method, *arguments)
        return self.result()

    def stop(self) -> None:
        """SIGSTOP it, and return when it stands still."""
        os.kill(self.pid, signal.SIGSTOP)
        os.waitid(os.P_PID, self.pid, os.WSTOPPED)

    def go_on(self) -> None:
        """SIGCONT it."""
        os.kill(self.pid, signal.SIGCONT)

    def kill(self) -> None:
        """SIGKILL it, and return when it is gone, with all that it held."""
        if not self._is_over:
            self._is_over = True
            forks.kill(self.pid)
            self._near.close()


def _serve(one: Any, calls: Connection) -> None:
    while True:
        method, arguments = calls.recv()
        try:
            answer = (getattr(one, method)(*arguments), None)
        except Exception as error:  # noqa: BLE001 - the test gets it
            answer = (None, error)
        calls.send(answer)


def open_files() -> list[str]:
    """What is open in this process."""
    return sorted(
        os.readlink(f"/proc/self/fd/{name}")
        for name in os.listdir("/proc/self/fd")
        if os.path.lexists(f"/proc/self/fd/{name}")
    )
