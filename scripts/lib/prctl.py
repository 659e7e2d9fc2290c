"""What a process on Linux can ask for about its parent and its descendants."""

from __future__ import annotations

import ctypes
import signal

_SET_PDEATHSIG = 1
_SET_CHILD_SUBREAPER = 36


def die_with_parent(by: signal.Signals = signal.SIGKILL) -> None:
    """End this process when its parent ends: a script that is killed must not leave its processes behind."""
    ctypes.CDLL(None).prctl(_SET_PDEATHSIG, by)


def adopt_orphans() -> None:
    """Make this process the parent of all descendants that lose theirs, such as uploaders."""
    ctypes.CDLL(None).prctl(_SET_CHILD_SUBREAPER, 1)
