"""Further hosts of `sweep.py`: namespaces with a host name and a network of their own, and a cache.

    script: Hub on 127.0.0.1:PORT  <--- relay ---  host: 127.0.0.1:PORT  <--- its workers, uploaders, pushes

A listening socket stays in the network that it was made in. So the relay, a process with the script's network, has one
of the host's. All workers of a host join the same namespaces; the run directories are shared.
"""

from __future__ import annotations

import ctypes
import fcntl
import multiprocessing.process
import os
import socket
import struct
from pathlib import Path

from lib import relay

from hf_mpwriter.localhub.config import HOST
from hf_mpwriter.system import process

SPACES = {"uts": 0x04000000, "net": 0x40000000}  # flags of unshare
SET_FLAGS, IS_UP = 0x8914, 1  # SIOCSIFFLAGS, IFF_UP
BACKLOG = 2048


class Host:
    """A host beside the one of the script."""

    def __init__(self, number: int, root: Path) -> None:
        self._name, self._cache = f"other{number}", root / f"cache-{number}"
        self._spaces: list[int] = []
        self._relay: multiprocessing.process.BaseProcess | None = None

    def start(self, port: int) -> None:
        """Make its namespaces, and relay a port of its loopback to the same one here."""
        first = _spaces()
        try:
            _call("unshare", sum(SPACES.values()))
            socket.sethostname(self._name)
            with socket.socket() as any_socket:
                fcntl.ioctl(any_socket, SET_FLAGS, struct.pack("16sh14x", b"lo", IS_UP))
            listener = socket.create_server((HOST, port), backlog=BACKLOG)
            self._spaces = _spaces()
        finally:
            _join(first)
            _close(first)
        with listener:
            self._relay = relay.start(listener, port)

    def enter(self) -> None:
        """Be a process of this host."""
        _join(self._spaces)
        process.host_id.cache_clear()
        os.environ["XDG_CACHE_HOME"] = str(self._cache)

    def end(self) -> None:
        """End the relay; the namespaces end with their last process."""
        if self._relay is not None:
            self._relay.kill()
            self._relay.join()
        _close(self._spaces)


def _spaces() -> list[int]:
    """Descriptors of the namespaces of this thread."""
    return [os.open(f"/proc/thread-self/ns/{name}", os.O_RDONLY) for name in SPACES]


def _join(spaces: list[int]) -> None:
    for fd in spaces:
        _call("setns", fd, 0)


def _close(spaces: list[int]) -> None:
    for fd in spaces:
        os.close(fd)


def _call(name: str, *arguments: int) -> None:
    if getattr(ctypes.CDLL(None, use_errno=True), name)(*arguments):
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")
