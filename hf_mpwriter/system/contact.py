"""Contact: how the processes below a supervisor tell it where they log.

    supervisor   Inbox      a datagram socket, named in HF_MPWRITER_SUPERVISOR
    worker       tell       one datagram: the path of its run directory

    hf-mpwriter.<pid namespace>.<pid>.<start ticks>.<16 hex>       the name, in the abstract namespace of Linux
    <name>@<unix time>                                             below a rank: when the launcher of the rank started

The name survives launchers that close descriptors, and there is no file that a process leaves behind. It also says who
the supervisor is, so a worker can record it.

Invariants:
- A worker sends without waiting. Where that is not possible now, it tries again when it keeps house.
- The inbox takes what processes of its own user have sent, as the kernel says, and absolute paths only.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import socket
import struct
from collections.abc import Iterator, Mapping

from hf_mpwriter.system import process
from hf_mpwriter.system.interrupts import ours
from hf_mpwriter.system.process import Process

VARIABLE = "HF_MPWRITER_SUPERVISOR"
_VALUE = re.compile(
    r"(?P<name>hf-mpwriter\.(?P<namespace>\d+)\.(?P<pid>\d+)\.(?P<ticks>\d+)\.[0-9a-f]{16})"
    r"(?:@(?P<launched_at>\d+(?:\.\d+)?))?"
)
_CREDENTIALS = struct.Struct("=iII")  # struct ucred: pid, uid, gid
LONGEST = 4096  # bytes of a path


class Inbox:
    """The end of the supervisor."""

    def __init__(self) -> None:
        own = Process.current()
        # of the socket, for the environment of the program
        self.name = f"hf-mpwriter.{own.namespace}.{own.pid}.{own.ticks}.{secrets.token_hex(8)}"
        process.take_standard()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        self._socket.setblocking(False)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        self._socket.bind(f"\0{self.name}")
        self.fd = self._socket.fileno()  # readable while a message waits

    def read(self) -> Iterator[str]:
        """The run directories that were told since, without waiting."""
        while True:
            try:
                data, ancillary, _, _ = self._socket.recvmsg(LONGEST, socket.CMSG_SPACE(_CREDENTIALS.size))
            except ours(BlockingIOError):
                return
            path = os.fsdecode(data)
            if _sender(ancillary) == os.geteuid() and os.path.isabs(path) and "\0" not in path:
                yield path


def _sender(ancillary: list[tuple[int, int, bytes]]) -> int | None:
    """The user id of the sender, None if the kernel does not say."""
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_CREDENTIALS) and len(data) >= _CREDENTIALS.size:
            return int(_CREDENTIALS.unpack_from(data)[1])
    return None


def value(name: str, launched_at: float | None) -> str:
    """What a supervisor sets the variable to, for the program below it."""
    return name if launched_at is None else f"{name}@{launched_at:f}"


def launched_at(environ: Mapping[str, str] = os.environ) -> float | None:
    """When the launcher started, as a supervisor between it and this rank has found out; None without one."""
    told = _VALUE.fullmatch(environ.get(VARIABLE, ""))
    return float(told["launched_at"]) if told and told["launched_at"] else None


def tell(run_dir: str, environ: Mapping[str, str] = os.environ) -> bool:
    """Tell the supervisor of this process, if there is one, where this process logs.

    Whether that is done; else it has to be tried again.
    """
    told = _VALUE.fullmatch(environ.get(VARIABLE, ""))
    if told is None:
        return True
    try:
        process.take_standard()
        sending = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        with contextlib.closing(sending):
            sending.setblocking(False)
            sending.sendto(os.fsencode(run_dir), f"\0{told['name']}")
    except ours(ConnectionRefusedError, PermissionError):  # it has ended, or is in another network namespace
        return True
    except ours(OSError):  # too many messages wait, or no descriptor is free
        return False
    return True


def supervisor(environ: Mapping[str, str] = os.environ) -> Process | None:
    """The supervisor below which this process runs, None if there is none.

    The name alone may come from elsewhere: srun and sbatch hand the environment to other hosts and to later jobs.
    """
    if (match := _VALUE.fullmatch(environ.get(VARIABLE, ""))) is None:
        return None
    found, named = Process.of(int(match["pid"])), (int(match["namespace"]), int(match["ticks"]))
    is_above = found.pid in (os.getpid(), *process.ancestors())
    return found if is_above and (found.namespace, found.ticks) == named else None
