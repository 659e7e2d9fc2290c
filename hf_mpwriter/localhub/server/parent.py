"""The end of a child with its parent, even one that is killed."""

from __future__ import annotations

import os
import select
import signal
import threading
import time

ORPHAN_CHECK = 0.2  # seconds between checks of the parent where there is no pidfd


def end_with(parent: int) -> None:
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
