"""Hubs for tests, forked from a process that has loaded the server: starting a Python for each costs more than a test.

Each Hub still is a process of its own, with its own port and folder, so what an earlier test left running reaches
nobody, and tests may kill and restart it.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import select
import signal
import socket
import threading
from collections.abc import Mapping

from hf_mpwriter.localhub.child import ChildServer

_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(["hf_mpwriter.localhub.serving", "warm_hubs"])


class WarmServer(ChildServer):
    """Stands for a child process that is started afresh."""

    def __init__(
        self, _: str, sock: socket.socket, root: str, config: str, *, log: str, env: Mapping[str, str]
    ) -> None:
        self._log = log
        self._forked = _FORKS.Process(target=_serve, args=(sock, root, config, log, dict(env), os.getpid()))
        self._forked.start()
        self.pid = self._forked.pid or 0

    @property
    def lives(self) -> bool:
        """Whether it is running."""
        return self._forked.is_alive()

    def stop(self, deadline: float) -> None:
        """End it by SIGTERM, and after a number of seconds by SIGKILL."""
        self._forked.terminate()
        self._forked.join(deadline)
        if self.lives:
            self.kill()

    def kill(self) -> None:
        """End it by SIGKILL."""
        self._forked.kill()
        self._forked.join()


def _serve(sock: socket.socket, root: str, config: str, log: str, env: dict[str, str], parent: int) -> None:
    """Serve a Hub, as `hf_mpwriter.localhub.__main__` does, until a signal or the end of the tests."""
    from hf_mpwriter.localhub.config import HubConfig, take_token
    from hf_mpwriter.localhub.serving import serve

    def watch() -> None:
        """Wait for the end of the tests."""
        with contextlib.suppress(ProcessLookupError):
            select.select([os.pidfd_open(parent)], [], [])
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()
    os.setsid()
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    for stream in (1, 2):
        os.dup2(output, stream)
    os.environ.clear()
    os.environ.update(env)
    serve(root, HubConfig(**json.loads(config)), token=take_token(os.environ), sock=sock)
