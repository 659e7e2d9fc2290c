"""Failpoints: named points of the code where a test injects a fault.

    HF_MPWRITER_FAILPOINT=outbox.put.fsync=kill,ledger.save.rename=enospc:3

    <word>.<step>=<action>[:<n>]    several with commas

The n-th passage through a point, by default the first, strikes:

    kill      SIGKILL to this process
    enospc    OSError ENOSPC
    eio       OSError EIO
    estale    OSError ESTALE

The word names what is written and comes from the caller. The step is the system call that would come next: `open`,
`write`, `fsync`, `syncfs`, `rename`, `link`, `dirsync` or `unlink`.

Without the variable a point costs one test of an empty dict.
"""

from __future__ import annotations

import errno
import os
import signal
from typing import NoReturn

_ERRORS = {"enospc": errno.ENOSPC, "eio": errno.EIO, "estale": errno.ESTALE}


def parse(text: str) -> dict[str, tuple[str, int]]:
    """Read the syntax above: per point, the action and the passages until it strikes."""
    points = {}
    for item in filter(None, text.split(",")):
        name, _, action = item.partition("=")
        action, _, count = action.partition(":")
        points[name.strip()] = (action.strip(), int(count or 1))
    return points


armed = parse(os.environ.get("HF_MPWRITER_FAILPOINT", ""))  # tests add to it


def reach(name: str) -> None:
    """Pass through a point, and fail there if it is armed and its time has come."""
    if armed and name in armed:
        action, count = armed[name]
        armed[name] = (action, count - 1)
        if count == 1:
            strike(name, action)


def strike(name: str, action: str) -> NoReturn:
    """Kill this process, or raise the OSError of this action."""
    if action == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    raise OSError(_ERRORS.get(action, errno.EIO), f"failpoint {name}")
