"""A listening socket, and a child process that inherits it: its start, its log, and its end with its parent.

The socket listens before the child starts: the first request waits there, and no other process takes the port.
"""

from __future__ import annotations

import contextlib
import os
import random
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping

from hf_mpwriter.localhub.server.config import HOST, ServerError

BACKLOG = 2048
PORTS = range(20000, 32000)  # below the ephemeral ports of outgoing connections
PORT_TRIES = 200
TAKEOVER = 10.0  # seconds to wait for a port that a dying server still holds
RETRY_EVERY = 0.02  # seconds
ORPHAN_CHECK = 0.2  # seconds between checks of the parent where there is no pidfd
LOG_TAIL = 2000  # bytes of the log in an error message


def listen(port: int = 0, *, deadline: float = TAKEOVER) -> socket.socket:
    """Return a listening socket on loopback."""
    if port:
        return _listen_until(port, deadline)
    for candidate in random.sample(PORTS, PORT_TRIES):
        with contextlib.suppress(OSError):
            return _listen(candidate)
    raise ServerError(f"No free port between {PORTS.start} and {PORTS.stop}")


def _listen(port: int) -> socket.socket:
    """Return a listening socket."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((HOST, port))
        sock.listen(BACKLOG)
    except OSError:
        sock.close()
        raise
    return sock


def _listen_until(port: int, deadline: float) -> socket.socket:
    """Return a listening socket, waiting for a port that a killed server still holds."""
    ends = time.monotonic() + deadline
    while True:
        try:
            return _listen(port)
        except OSError as error:
            if time.monotonic() > ends:
                raise ServerError(f"Port {port} is taken: {error}") from error
            time.sleep(RETRY_EVERY)


class ChildServer:
    """A Python module as a child process; `inherited` is its other side."""

    def __init__(self, module: str, sock: socket.socket, *arguments: str, log: str, env: Mapping[str, str]) -> None:
        self._log = log
        with open(log, "ab") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", module, str(sock.fileno()), str(os.getpid()), *arguments],
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                pass_fds=[sock.fileno()],
                start_new_session=True,
            )
        self.pid = self._process.pid

    @property
    def lives(self) -> bool:
        """Whether it is running."""
        return self._process.poll() is None

    def log_tail(self) -> str:
        """Return the end of its output."""
        with contextlib.suppress(FileNotFoundError), open(self._log, "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - LOG_TAIL))
            return file.read().decode("utf-8", "replace")
        return ""

    def stop(self, deadline: float) -> None:
        """End it by SIGTERM, and after a number of seconds by SIGKILL."""
        self._process.terminate()
        try:
            self._process.wait(deadline)
        except subprocess.TimeoutExpired:
            self.kill()

    def kill(self) -> None:
        """End it by SIGKILL."""
        self._process.kill()
        self._process.wait()


def inherited() -> tuple[socket.socket, list[str]]:
    """Return the socket and the arguments of this child, which from now on ends with its parent."""
    descriptor, parent, *arguments = sys.argv[1:]
    _end_with(int(parent))
    return socket.socket(fileno=int(descriptor)), arguments


def _end_with(parent: int) -> None:
    """End this process as soon as its parent ends.

    PR_SET_PDEATHSIG would also fire when the parent's starting thread ends; a pidfd watches the whole process.
    """
    try:
        descriptor = os.pidfd_open(parent) if hasattr(os, "pidfd_open") else None
    except ProcessLookupError:
        os._exit(1)
    # The pid may have been reused before the pidfd was opened; then this process has another parent by now.
    if os.getppid() != parent:
        os._exit(1)

    def watch() -> None:
        """Wait for the end of the parent."""
        if descriptor is not None:
            select.select([descriptor], [], [])
        while os.getppid() == parent:
            time.sleep(ORPHAN_CHECK)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, name="parent-watch", daemon=True).start()
