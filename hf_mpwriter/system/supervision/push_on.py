"""Signals that announce an end: a handler asks for a push, then does what would have happened without it.

    before            after the push was asked for
    a handler         it is called
    default           it stands again, and the signal is raised again
    ignored           nothing

Invariants:
- Handlers are changed in the main thread only, the only one in which Python allows it, and once for each signal. What
  the program sets later counts.
- The handler logs nothing, starts nothing, and never fails the program.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Collection
from types import FrameType
from typing import Any

from hf_mpwriter.system import process

_installed: set[int] = set()


def parse(text: str) -> tuple[int, ...]:
    """Signals by their names, separated by commas, with or without SIG."""
    names = [f"SIG{name.strip().upper().removeprefix('SIG')}" for name in text.split(",") if name.strip()]
    for name in names:
        if name not in signal.Signals.__members__ or name in ("SIGKILL", "SIGSTOP"):
            raise ValueError(f"no program can handle {name}.")
    return tuple(signal.Signals[name] for name in names)


def install(numbers: Collection[int], ask: Callable[[], object]) -> None:
    """Ask for a push when one of these signals comes; nothing happens outside the main thread."""
    if threading.current_thread() is not threading.main_thread():
        return
    for number in set(numbers) - _installed:
        before = signal.getsignal(number)
        if before is not None and not (before == signal.SIG_DFL and _is_handled_in_c(number)):
            signal.signal(number, _handler(ask, before))
            _installed.add(number)


def _is_handled_in_c(number: int) -> bool:
    """Whether a signal of which Python knows no handler has one all the same, such as that of faulthandler."""
    with contextlib.suppress(OSError, ValueError, StopIteration):
        with open("/proc/self/status", "rb", opener=process.open_above) as file:
            line = next(line for line in file if line.startswith(b"SigCgt:"))
        return bool(int(line.split()[1], 16) >> (number - 1) & 1)
    return False


def _handler(ask: Callable[[], object], before: Any) -> Callable[[int, FrameType | None], None]:
    def handle(number: int, frame: FrameType | None) -> None:
        with contextlib.suppress(Exception):
            ask()
        if callable(before):
            before(number, frame)
        elif before == signal.SIG_DFL and signal.getsignal(number) is handle:  # else one of theirs has called it
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    return handle
