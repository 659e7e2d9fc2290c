"""The share of this host in a run: all of it, but where each host has a spool of its own beside a common logdir.

    file of the run directory                                              its host
    event file of ours                                                     the one in its name
    any other file                                                         where a worker of its directory has lived
    event file of ours of another host, unchanged for LEFT_ALONE seconds   also where that worker, or the first, has

Of a folder of another user, for which `sync` has made the spool, all is the share of whoever syncs it.

A worker has lived on a host if there is the lock file of its claim in that host's spool.

Invariants:
- This host waits for its own share only, and sends its own share, and what others seem to have left behind.
- So two hosts may send one file at a time: where a spool is of one host, each commit names its parent.
- The age of a file is that by the clock of the filesystem that it is on.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable

from hf_mpwriter.base.home import is_of_others
from hf_mpwriter.base.names import MAIN_WORKER, SPOOL_NAME, event_host, is_ours, worker_of
from hf_mpwriter.spool.layout import Spool
from hf_mpwriter.system import disk
from hf_mpwriter.system.directory import Place
from hf_mpwriter.system.process import host_name

LEFT_ALONE = 300.0  # seconds without a change, after which the file of another host may be sent from here
_LOOK_EVERY = 5.0  # seconds between two looks at who has lived here, and at the filesystem's clock


def is_apart(spool: Spool) -> bool:
    """Whether a spool is not in its run directory, so that other hosts have spools of their own."""
    return spool.root != os.path.join(spool.run_dir, SPOOL_NAME)


class Share:
    """The share of this host in a run.

    Args:
        spool: of the run.
        clock: monotonic seconds.
    """

    def __init__(self, spool: Spool, clock: Callable[[], float] = time.monotonic) -> None:
        self._spool, self._clock, self._is_all = spool, clock, not is_apart(spool) or is_of_others(spool.root)
        self._next_look, self._lived, self._now = -1.0, frozenset[str](), 0.0

    def has(self, path: str) -> bool:
        """Whether a file is of this host: it has written it, or answers for it.

        Args:
            path: relative to the run directory.
        """
        if self._is_all:
            return True
        name = os.path.basename(path)
        return event_host(name) == host_name() if is_ours(name) else worker_of(path) in self._lived_here()

    def of(self, allows: Callable[[str], bool]) -> Callable[[str], bool]:
        """What of the files that may be uploaded is of this host."""
        return allows if self._is_all else lambda path: allows(path) and self.has(path)

    def takes(self, path: str) -> bool:
        """Whether a file is sent from here: it is of this host, or another one seems to have left it behind.

        Args:
            path: relative to the run directory.
        """
        if self.has(path):
            return True
        if not is_ours(os.path.basename(path)) or self._lived_here().isdisjoint((worker_of(path), MAIN_WORKER)):
            return False
        try:
            return self._now - (self._spool.run / path).stat().st_mtime >= LEFT_ALONE
        except OSError:
            return False

    def _lived_here(self) -> frozenset[str]:
        """The workers that have had a claim in this spool, as of the last look."""
        if self._clock() >= self._next_look:
            self._next_look = self._clock() + _LOOK_EVERY
            try:
                names = self._spool.claims.names()
                self._now = disk.time_of(Place(self._spool.run))
            except OSError:  # what was known lasts
                return self._lived
            self._lived = frozenset(name.removesuffix(".lock") for name in names if name.endswith(".lock"))
        return self._lived
