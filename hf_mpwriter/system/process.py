"""Processes and hosts: an identity that is never used twice, and what the system knows of this process.

    Process    host id, boot id, pid namespace, pid, start ticks
    host id    <hostname>-<8 hex of the machine id>

Start ticks are field 22 of /proc/<pid>/stat. They count from the boot, so a change of the clock does not move them.
Without /proc they are 0, and the lock on the member file decides which process lives.

Invariant: no descriptor of ours that can be written is below 3. Where the program has closed a standard stream, its
number is taken before we open, by a descriptor that cannot be written: no print gets into a file of ours.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import hashlib
import os
import re
import socket
import sys
import time
from dataclasses import dataclass

_PATH_ONLY = getattr(os, "O_PATH", os.O_RDONLY)  # a write to such a descriptor fails as on a closed one
_STAT_SIZE = 4096  # bytes; 52 numbers and a short name
_UNSAFE = re.compile(r"[^A-Za-z0-9_-]+")


def safe_name(text: str) -> str:
    """`text` as part of a file name: no separator, no dot, nothing that TensorBoard takes for an event file."""
    return _UNSAFE.sub("_", text).replace("tfevents", "tf_events").strip("_")[:64]


def host_name() -> str:
    """The host name for the names of event files."""
    return re.sub(r"[^A-Za-z0-9.-]+", "-", socket.gethostname()) or "localhost"


@functools.cache
def host_id() -> str:
    """`<hostname>-<8 hex>`: the hex is a digest of the machine id, or of the boot id where there is none.

    Cloned images share a host name more often than a machine id. A machine id is private, hence the digest.
    """
    machine = _read_line("/etc/machine-id") or boot_id()
    digest = hashlib.sha256(f"hf_mpwriter {machine}".encode()).hexdigest()[:8]
    return f"{safe_name(host_name().split('.')[0]) or 'localhost'}-{digest}"


@functools.cache
def boot_id() -> str:
    """An id that changes with every boot; "" where the system has none."""
    return _read_line("/proc/sys/kernel/random/boot_id")


def start_ticks(pid: int) -> int:
    """Start time of a process in clock ticks since boot; 0 if it is gone, a zombie too, or there is no /proc."""
    try:
        fields = stat_fields(pid)
        return 0 if fields[0] in (b"Z", b"X") else int(fields[19])
    except (OSError, ValueError, IndexError):
        return 0


def stat_fields(pid: int) -> list[bytes]:
    """The fields of /proc/<pid>/stat after the program's name, which may hold any character."""
    fd = open_above(f"/proc/{pid}/stat", os.O_RDONLY)
    try:
        return os.read(fd, _STAT_SIZE).rpartition(b")")[2].split()
    finally:
        os.close(fd)


def ancestors(pid: int | None = None) -> list[int]:
    """The processes that one descends from, by default this one; the nearest first; those before them may be gone."""
    found, above = list[int](), os.getppid() if pid is None else _parent(pid)
    while above > 0 and above not in found:
        found.append(above)
        above = _parent(above)
    return found


def _parent(pid: int) -> int:
    try:
        return int(stat_fields(pid)[1])
    except (OSError, ValueError, IndexError):  # there is no /proc, or it has ended
        return 0


def pid_namespace() -> int:
    """Inode of the pid namespace of this process, 0 where there is none."""
    try:
        return os.stat("/proc/self/ns/pid").st_ino
    except OSError:
        return 0


@dataclass(frozen=True)
class Process:
    """Identity of a process; no two processes have the same, whatever the clock does."""

    host: str  # host id
    boot: str  # boot id, "" where the system has none
    namespace: int  # inode of the pid namespace, 0 where there is none
    pid: int  # process id in that namespace
    ticks: int  # start time in clock ticks since boot, 0 without /proc

    @classmethod
    def current(cls) -> Process:
        """This process."""
        return cls.of(os.getpid())

    @classmethod
    def of(cls, pid: int) -> Process:
        """A process of this pid namespace."""
        return cls(host_id(), boot_id(), pid_namespace(), pid, start_ticks(pid))

    @property
    def place(self) -> str:
        """Where it is, " on HOST" or so; "" if it is where this process is."""
        if (self.host, self.boot) != (host_id(), boot_id()):
            return f" on {self.host}"
        return "" if self.namespace == pid_namespace() else " in another pid namespace"

    def is_stopped(self) -> bool:
        """Whether SIGSTOP or a debugger holds it; False where this process cannot know."""
        if (self.host, self.boot, self.namespace) != (host_id(), boot_id(), pid_namespace()):
            return False
        try:
            fields = stat_fields(self.pid)
            return fields[0] in (b"T", b"t") and int(fields[19]) == self.ticks
        except (OSError, ValueError, IndexError):
            return False


@functools.cache
def start_directory() -> str:
    """The working directory at the first call, "" if there is none; the program may change it afterwards."""
    try:
        return os.getcwd()
    except OSError:  # it was removed
        return ""


@functools.cache
def links_are_protected() -> bool:
    """Whether the system makes no second name of a file for a user who may not read and write it."""
    return _read_line("/proc/sys/fs/protected_hardlinks") == "1"


def import_path() -> list[str]:
    """The import path of this process, for a child that starts in another directory.

    The directory or archive of this package comes last: a program may have found it in another way.
    """
    package = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    entries = [os.path.normpath(os.path.join(start_directory(), entry)) for entry in sys.path if isinstance(entry, str)]
    return list(dict.fromkeys([*filter(os.path.isabs, entries), package]))


def initial_environment() -> dict[str, str]:
    """The environment that this process was started with; {} without /proc."""
    try:
        with open("/proc/self/environ", "rb", opener=open_above) as file:
            items = file.read().split(b"\0")
    except OSError:
        return {}
    return {os.fsdecode(k): os.fsdecode(v) for k, _, v in (item.partition(b"=") for item in items) if k}


def parent_started_at() -> float:
    """Unix time at which the parent process started; now, without /proc."""
    if not (ticks := start_ticks(os.getppid())):
        return time.time()
    since_boot = ticks / os.sysconf("SC_CLK_TCK")
    return time.time() - time.clock_gettime(time.CLOCK_BOOTTIME) + since_boot


def _read_line(path: str) -> str:
    try:
        with open(path, encoding="ascii", errors="replace", opener=open_above) as file:
            return file.readline().strip()
    except OSError:
        return ""


# descriptors


def take_standard() -> None:
    """Take each number below 3 that the program has closed, for good, by a descriptor that cannot be written."""
    try:
        for fd in range(3):
            os.get_inheritable(fd)
    except OSError:
        while (fd := os.open("/", _PATH_ONLY | os.O_CLOEXEC)) < 3:
            pass
        os.close(fd)


def is_still(fd: int, before: tuple[int, int]) -> bool:
    """Whether a descriptor is open on the same file; the program may have closed it, and have another file there."""
    try:
        return _identity(fd) == before
    except OSError as error:  # a disk that fails tells nothing of what is open on it
        return error.errno != errno.EBADF


def close_if(fd: int, before: tuple[int, int]) -> None:
    """Close a descriptor unless the program has closed it, and may have another file there."""
    if is_still(fd, before):
        with contextlib.suppress(OSError):
            os.close(fd)


def above_standard(fd: int) -> int:
    """Move a new descriptor above 2, should another thread have closed a standard stream at that very moment."""
    if fd > 2:
        return fd
    try:
        return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3)
    finally:
        os.close(fd)


def open_above(path: str, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
    """Open a file, on a descriptor above 2 that children do not inherit."""
    take_standard()
    return above_standard(os.open(path, flags | os.O_CLOEXEC, mode, dir_fd=dir_fd))


def fill_standard() -> None:
    """Open the null device on each number below 3 that is closed; for a process of ours, before anything else."""
    while (fd := os.open(os.devnull, os.O_RDWR)) < 3:
        os.set_inheritable(fd, True)
    os.close(fd)


def _identity(fd: int) -> tuple[int, int]:
    status = os.fstat(fd)
    return status.st_dev, status.st_ino
