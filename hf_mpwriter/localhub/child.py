"""A listening socket, and a child process that inherits it: its start, its log, and its end with its parent.

The socket listens before the child starts: the first request waits there, and no other process takes the port.

Invariant: the current folder is on the import path of no child: in a shared one others may put modules.
"""

from __future__ import annotations

import contextlib
import functools
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from typing import Any

from hf_mpwriter.localhub.config import HOST, ServerError

BACKLOG = 2048
PORTS = range(20000, 32000)  # below the ephemeral ports of outgoing connections
PORT_TRIES = 200
TAKEOVER = 10.0  # seconds to wait for a port that a dying server still holds
RETRY_EVERY = 0.02  # seconds
ORPHAN_CHECK = 0.2  # seconds between checks of the parent
LOG_TAIL = 2000  # bytes of the log in an error message
BOOT = (  # the package comes from its own place only: it may be there twice
    "import sys; sys.path[:] = {!a}; from importlib import machinery, util; import runpy; "
    "spec = machinery.PathFinder.find_spec('hf_mpwriter', sys.path[-1:]); "
    "sys.modules[spec.name] = util.module_from_spec(spec); spec.loader.exec_module(sys.modules[spec.name]); "
    "runpy.run_module(sys.argv.pop(1), run_name='__main__')"
)
PACKAGE = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))  # or the archive that holds it


def listen(port: int = 0) -> socket.socket:
    """Return a listening socket on loopback; a killed server may still hold its port for a while."""
    if not port:
        for candidate in random.sample(PORTS, PORT_TRIES):
            with contextlib.suppress(OSError):
                return socket.create_server((HOST, candidate), backlog=BACKLOG)
        raise ServerError(f"No free port between {PORTS.start} and {PORTS.stop}")
    ends = time.monotonic() + TAKEOVER
    while True:
        try:
            return socket.create_server((HOST, port), backlog=BACKLOG)
        except OSError as error:
            if time.monotonic() > ends:
                raise ServerError(f"Port {port} is taken: {error}") from error
            time.sleep(RETRY_EVERY)


def _current_folder() -> str:
    """The working directory, "" if it was removed."""
    with contextlib.suppress(FileNotFoundError):
        return os.getcwd()
    return ""


def start_python(module: str, *arguments: str, env: Mapping[str, str], **given: Any) -> subprocess.Popen[bytes]:
    """Start a module. It has the absolute places of this import path, without the current folder, and no PYTHONPATH."""
    relative = (place for place in ("", *env.get("PYTHONPATH", "").split(os.pathsep)) if not os.path.isabs(place))
    left_out = {os.path.normpath(os.path.join(_current_folder(), place)) for place in relative}
    absolute = (place for place in sys.path if isinstance(place, str) and os.path.isabs(place))
    places = [place for place in absolute if os.path.normpath(place) not in left_out]
    command = [sys.executable, "-P", "-c", BOOT.format([*places, PACKAGE]), module, *arguments]
    env = {name: value for name, value in env.items() if name != "PYTHONPATH"}
    return subprocess.Popen(command, env=env, **given)


class ChildServer:
    """A Python module as a child process; `inherited` is its other side."""

    def __init__(self, module: str, sock: socket.socket, *arguments: str, log: str, env: Mapping[str, str]) -> None:
        self._log = log
        with open(log, "ab", opener=functools.partial(os.open, mode=0o600)) as output:
            self._process = start_python(
                module,
                str(sock.fileno()),
                str(os.getpid()),
                *arguments,
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
    """End this process soon after its parent. PR_SET_PDEATHSIG would also fire when the thread ends that started it."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(ORPHAN_CHECK)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, name="parent-watch", daemon=True).start()
