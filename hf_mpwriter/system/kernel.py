"""What Linux offers to a parent: adoption, a death that children follow, signals as data.

    adopt_orphans      descendants that lose their parent become children of this process, as of an init
    die_with_parent    this process is killed when its parent ends
    SignalQueue        signals are read from a descriptor, with their sender, instead of interrupting code
    Handle             one process, which is signalled only while it is that very process

Invariants:
- A signal is queued from the moment at which the queue is made, also for process 1, which else gets none.
- A process id is never trusted for itself: between reading it and a signal, the process may have ended, and the id
  may be another's. A handle holds a pidfd, and has compared the start ticks after opening it.
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import struct
from collections.abc import Collection, Iterator
from typing import NamedTuple, Self

from hf_mpwriter.system import process
from hf_mpwriter.system.interrupts import ours, suppress

_SET_PDEATHSIG = 1
_PIDFD_OPEN, _PIDFD_SEND_SIGNAL = 434, 424  # the same on all machines but Alpha
_SET_CHILD_SUBREAPER = 36
_SIGNALFD_FLAGS = os.O_CLOEXEC | os.O_NONBLOCK
_SIGNAL_INFO = struct.Struct("=IiiII108x")  # struct signalfd_siginfo: number, errno, code, pid, uid
_SIGNAL_SET_WORDS = 1024 // (8 * ctypes.sizeof(ctypes.c_ulong))  # sigset_t of glibc and musl
_FROM_KERNEL = 0x80  # SI_KERNEL: of a terminal, which signals a whole process group


def adopt_orphans() -> None:
    """Become the parent of all descendants that lose theirs."""
    _prctl(_SET_CHILD_SUBREAPER, 1)


def die_with_parent(parent: int) -> None:
    """End this process when its parent ends, even by SIGKILL."""
    with suppress(OSError):
        _prctl(_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def _prctl(option: int, value: int) -> None:
    if ctypes.CDLL(None, use_errno=True).prctl(option, ctypes.c_ulong(value), *[ctypes.c_ulong(0)] * 3):
        raise OSError(ctypes.get_errno(), f"prctl {option}: {os.strerror(ctypes.get_errno())}")


def _call(*numbers: int) -> int:
    """A system call by its number: a Python that was built for an old Linux lacks `os.pidfd_open`."""
    result = ctypes.CDLL(None, use_errno=True).syscall(*map(ctypes.c_long, numbers))
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return int(result)


class Received(NamedTuple):
    """A signal that was read."""

    number: int  # of the signal
    of_terminal: bool  # whether the terminal has sent it, to the whole foreground process group


class SignalQueue:
    """Signals of this process, blocked and read from a descriptor."""

    def __init__(self, numbers: Collection[int]) -> None:
        # the signals that were blocked before, for children
        self.mask_before = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
        words = (ctypes.c_ulong * _SIGNAL_SET_WORDS)()
        for number in numbers:
            word, bit = divmod(number - 1, 8 * ctypes.sizeof(ctypes.c_ulong))
            words[word] |= 1 << bit
        libc = ctypes.CDLL(None, use_errno=True)
        process.take_standard()
        self.fd = libc.signalfd(-1, words, _SIGNALFD_FLAGS)  # readable while a signal waits
        if self.fd < 0:
            raise OSError(ctypes.get_errno(), f"signalfd: {os.strerror(ctypes.get_errno())}")

    def read(self) -> Iterator[Received]:
        """What has come, without waiting."""
        while True:
            try:
                data = os.read(self.fd, _SIGNAL_INFO.size)
            except ours(BlockingIOError):
                return
            number, _, code, _, _ = _SIGNAL_INFO.unpack(data)
            yield Received(number, code == _FROM_KERNEL)


class Handle:
    """One process."""

    def __init__(self, pid: int, ticks: int) -> None:
        process.take_standard()
        self.fd = _call(_PIDFD_OPEN, pid, 0)
        if process.start_ticks(pid) != ticks:
            os.close(self.fd)
            raise ProcessLookupError(pid)

    def send(self, number: int) -> None:
        """Send a signal; nothing happens if the process has ended."""
        with suppress(ProcessLookupError):
            _call(_PIDFD_SEND_SIGNAL, self.fd, number, 0, 0)

    def wait(self, timeout: float) -> bool:
        """Wait until it has ended, at most so many seconds; whether it has."""
        over = select.poll()
        over.register(self.fd, select.POLLIN)
        return bool(over.poll(1000 * timeout))

    def __enter__(self) -> Self:
        """Hold the process until the end of the block."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the descriptor."""
        os.close(self.fd)


def send(pid: int, ticks: int, number: int) -> None:
    """Send a signal to this very process; nothing happens if it has ended, or belongs to another user."""
    try:
        with Handle(pid, ticks) as handle:
            handle.send(number)
    except ours(ProcessLookupError):
        return
    except ours(OSError):  # Linux before 5.3, a seccomp filter, gVisor, or no descriptor is free
        with suppress(OSError):
            if process.start_ticks(pid) == ticks:
                os.kill(pid, number)
