"""Notices, told to the user: each one once, by the process that speaks for the run.

    hosts/<host>/notices.json  --tell-->  warnings

They are told whenever the worker keeps house, and at the end of a wait, so that also a short run is told all that is
known by then.

Invariants:
- The last number that was told is remembered per host, so an uploader that is replaced, or one on another host, neither
  repeats nor hides anything.
- What was there before the worker is old news, except of the last RECENT seconds: another rank may have been faster.
"""

from __future__ import annotations

import os

from hf_mpwriter.events.deferred_log import logger
from hf_mpwriter.spool import notices
from hf_mpwriter.spool.layout import Spool

RECENT = 60.0  # seconds before the start of a worker from which notices are still told


class Notices:
    """The notices of a run, as one worker tells them.

    Args:
        spool: of the run directory.
        started_at: unix time when the worker started.
    """

    def __init__(self, spool: Spool, started_at: float) -> None:
        self._told: dict[str, int] = {}  # the last number per host
        self._seen: dict[str, tuple[int, int]] = {}  # inode and mtime (ns) of the file when it was read last
        for host in _hosts(spool):
            old = [notice for notice in notices.read(spool.host(host)) if notice.time < started_at - RECENT]
            self._told[host] = old[-1].number if old else 0

    def tell(self, spool: Spool) -> None:
        """Log what is new."""
        for host in _hosts(spool):
            for notice in self._news(spool, host):
                self._told[host] = notice.number
                logger.warning("%s", notice.line)

    def _news(self, spool: Spool, host: str) -> list[notices.Notice]:
        try:
            status = os.stat(spool.host(host).notices)
        except OSError:
            return []
        if (stamp := (status.st_ino, status.st_mtime_ns)) == self._seen.get(host):
            return []
        self._seen[host] = stamp
        return [notice for notice in notices.read(spool.host(host)) if notice.number > self._told.get(host, 0)]


def _hosts(spool: Spool) -> list[str]:
    try:
        return spool.host_ids()
    except OSError:
        return []
