"""Processes and hosts: an identity that is never used twice, and what the system knows of this process.

    Process    host id, boot id, pid namespace, pid, start ticks
    host id    <hostname>-<8 hex of the machine id>

Start ticks are field 22 of /proc/<pid>/stat. They count from the boot, so a change of the clock does not move them.
Without /proc they are 0, and the lock on the member file decides which process lives.

Invariant: no descriptor of ours that can be written is below 3. Where the program has closed a standard stream, its
number is taken before we open, by a descriptor that cannot be written: no print gets into a file of ours.
"""

from __future__ import annotations

import errno
import fcntl
import functools
import hashlib
import itertools
import os
import re
import socket
import sys
import time
from dataclasses import dataclass
from typing import NamedTuple

from hf_mpwriter.system.interrupts import ours, suppress

READ_LIMIT = 64 << 20  # bytes of a file that are held at most; a ledger of 100,000 paths has half of that
PIECE = 1 << 16  # bytes that are read at once

_UNSAFE = re.compile(r"[^A-Za-z0-9_-]+")
_PATH = sys.path  # the list: the interpreter takes it from `sys` before the last `__del__`


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


class Entry(NamedTuple):
    """A process in the table."""

    parent: int  # its process id
    state: str  # a letter, Z for a zombie
    name: str  # of its program, or what it calls itself; a zombie keeps it
    ticks: int  # start time in clock ticks since boot


def entry(pid: int) -> Entry | None:
    """What /proc shows of a process; None if it is gone, or there is no /proc."""
    named, _, rest = contents(f"/proc/{pid}/stat").rpartition(b")")  # the name may hold any character
    fields = rest.decode().split()
    return Entry(int(fields[1]), fields[0], os.fsdecode(named.partition(b"(")[2]), int(fields[19])) if fields else None


def take_name(name: str) -> None:
    """Be called so in /proc, where the system allows it; 15 characters."""
    with suppress(OSError), open("/proc/self/comm", "w", opener=open_above) as file:
        file.write(name)


def processes() -> dict[int, Entry]:
    """All processes that /proc shows; {} where its numbers are those of another pid namespace."""
    try:
        is_own = os.readlink("/proc/self") == str(os.getpid())
        names = os.listdir("/proc") if is_own else []
    except ours(OSError):
        return {}
    return {int(name): found for name in names if name.isdecimal() and (found := entry(int(name)))}


def start_ticks(pid: int) -> int:
    """Start time of a process in clock ticks since boot; 0 if it is gone, a zombie too, or there is no /proc."""
    found = entry(pid)
    return found.ticks if found and found.state not in "ZX" else 0


def command_line(pid: int) -> list[str]:
    """The arguments of a process; [] if it has ended, or is a zombie."""
    return [os.fsdecode(word) for word in contents(f"/proc/{pid}/cmdline").split(b"\0")[:-1]]


def user_of(pid: int) -> int | None:
    """The real user id of a process, None if it has ended."""
    match = re.search(rb"^Uid:\s+(\d+)", contents(f"/proc/{pid}/status"), re.MULTILINE)
    return int(match[1]) if match else None


def ancestors(pid: int | None = None) -> list[int]:
    """The processes that one descends from, by default this one; the nearest first; those before them may be gone."""
    found, above = list[int](), os.getppid() if pid is None else _parent(pid)
    while above > 0 and above not in found:
        found.append(above)
        above = _parent(above)
    return found


def _parent(pid: int) -> int:
    found = entry(pid)
    return found.parent if found else 0


def pid_namespace() -> int:
    """Inode of the pid namespace of this process, 0 where there is none."""
    try:
        return os.stat("/proc/self/ns/pid").st_ino
    except ours(OSError):
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
    def digest(self) -> str:
        """16 hex digits that no other process has, "" where the system does not tell when one starts."""
        said = f"hf_mpwriter {self.host} {self.boot} {self.namespace} {self.pid} {self.ticks}"
        return hashlib.sha256(said.encode()).hexdigest()[:16] if self.ticks else ""

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
        found = entry(self.pid)
        return found is not None and found.state in "Tt" and found.ticks == self.ticks


@functools.cache
def start_directory() -> str:
    """The working directory at the first call, "" if there is none; the program may change it afterwards."""
    try:
        return os.getcwd()
    except ours(OSError):  # it was removed
        return ""


@functools.cache
def links_are_protected() -> bool:
    """Whether the system makes no second name of a file for a user who may not read and write it."""
    return _read_line("/proc/sys/fs/protected_hardlinks") == "1"


def places_of_the_current_folder() -> set[str]:
    """The working directory at the start, and what PYTHONPATH names below it: who may write there names modules."""
    entries = ("", *os.environ.get("PYTHONPATH", "").split(os.pathsep))
    return {os.path.normpath(os.path.join(start_directory(), entry)) for entry in entries if not os.path.isabs(entry)}


def import_path() -> list[str]:
    """The import path of this process, for a child: absolute places only, and not the current folder.

    The directory or archive of this package comes last, also if it is there before: a program may have found it there,
    or in another way.
    """
    package = os.path.dirname(os.path.dirname(os.path.dirname(os.path.join(start_directory(), __file__))))
    left_out = places_of_the_current_folder()
    known = (entry for entry in sys.path or _PATH if isinstance(entry, str))
    entries = [os.path.normpath(entry) for entry in known if os.path.isabs(entry)]
    return [*dict.fromkeys(entry for entry in entries if entry not in left_out), package]


def initial_environment() -> dict[str, str]:
    """The environment that this process was started with; {} without /proc."""
    items = contents("/proc/self/environ").split(b"\0")
    return {os.fsdecode(k): os.fsdecode(v) for k, _, v in (item.partition(b"=") for item in items) if k}


def parent_started_at() -> float:
    """Unix time at which the parent process started; now, without /proc."""
    if not (ticks := start_ticks(os.getppid())):
        return time.time()
    since_boot = ticks / os.sysconf("SC_CLK_TCK")
    return time.time() - time.clock_gettime(time.CLOCK_BOOTTIME) + since_boot


def _read_line(path: str) -> str:
    return contents(path).decode("ascii", "replace").partition("\n")[0].strip()


def contents(path: str) -> bytes:
    """What the system shows in a file of its own; nothing if there is none."""
    with suppress(OSError):
        return read_path(path)
    return b""


def read_path(path: str, limit: int = READ_LIMIT) -> bytes:
    """What is in a file, but no more than a limit; without `open`, which is gone where a `__del__` logs late."""
    fd = open_above(path, os.O_RDONLY)
    try:
        return read_all(fd, min(limit, READ_LIMIT))
    finally:
        os.close(fd)


def read_all(fd: int, limit: int = READ_LIMIT) -> bytes:
    """All that follows in an open file, but no more than a limit: the one way to read a file as a whole."""
    pieces = list[bytes]()
    while limit > 0 and (piece := os.read(fd, min(PIECE, limit))):
        pieces.append(piece)
        limit -= len(piece)
    return b"".join(pieces)


# descriptors


def take_standard() -> None:
    """Take each number below 3 that the program has closed, for good, by a descriptor that cannot be written."""
    try:
        for fd in range(3):
            os.get_inheritable(fd)
    except ours(OSError):
        while (fd := os.open("/", os.O_PATH | os.O_CLOEXEC)) < 3:
            pass
        os.close(fd)


def is_still(fd: int, before: tuple[int, int]) -> bool:
    """Whether a descriptor is open on the same file; the program may have closed it, and have another file there."""
    try:
        return _identity(fd) == before
    except ours(OSError) as error:  # a disk that fails tells nothing of what is open on it
        return error.errno != errno.EBADF


def close_if(fd: int, before: tuple[int, int]) -> None:
    """Close a descriptor unless the program has closed it, and may have another file there."""
    if is_still(fd, before):
        with suppress(OSError):
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
    opened, opening = list[int](), functools.partial(os.open, path, flags | os.O_CLOEXEC, mode, dir_fd=dir_fd)
    try:
        opened.extend(itertools.starmap(opening, [()]))  # opened and noted in one step of C: no signal handler between
        return above_standard(opened.pop())
    except BaseException:
        for fd in opened:
            os.close(fd)
        raise


def fill_standard() -> None:
    """Open the null device on each number below 3 that is closed; for a process of ours, before anything else."""
    while (fd := os.open(os.devnull, os.O_RDWR)) < 3:
        os.set_inheritable(fd, True)
    os.close(fd)


def _identity(fd: int) -> tuple[int, int]:
    status = os.fstat(fd)
    return status.st_dev, status.st_ino


class Usage(NamedTuple):
    """What a process has used, and uses."""

    seconds: float = 0.0  # of processor, all its threads together
    memory: int = 0  # resident bytes


def usage(pid: int) -> Usage:
    """What a process has used; nothing if it is gone."""
    ticks = contents(f"/proc/{pid}/stat").rpartition(b")")[2].split()[11:13]
    pages = contents(f"/proc/{pid}/statm").split()[1:2]
    return Usage(sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK"), sum(map(int, pages)) * os.sysconf("SC_PAGESIZE"))
