"""The notices of a run, as one worker tells them: warnings, whenever it keeps house and at the end of a wait.

Invariant:
- A notice is told once. The last number that was told is recorded per host, so an uploader that is replaced, one on
  another host, or a run that is resumed neither repeats nor hides anything. Without a record, what was there before the
  worker is old news, except of the last RECENT seconds: another rank may have been faster.
"""

from __future__ import annotations

import dataclasses

from hf_mpwriter.events.deferred_log import logger
from hf_mpwriter.spool.layout import Spool
from hf_mpwriter.spool.notices import NumberedNotice, read_notices
from hf_mpwriter.worker.messages.reporter import ToldRecord

RECENT = 60.0  # seconds before the start of a worker from which notices are still told


class Notices:
    """The notices of a run, as one worker tells them."""

    def __init__(self, spool: Spool, started_at: float) -> None:
        self._told = ToldRecord.read(spool.told).numbers  # the last number per host
        self._seen: dict[str, tuple[int, int]] = {}  # inode and mtime (ns) of the file when it was read last
        self._untold: dict[str, list[NumberedNotice]] = {}  # news per host, until this process or another tells them
        for host in set(_hosts(spool)) - set(self._told):
            old = [notice for notice in read_notices(spool.host(host)) if notice.time < started_at - RECENT]
            self._told[host] = old[-1].number if old else 0

    def tell(self, spool: Spool, *, reports: bool) -> None:
        """Log what is new, if this process is the reporter."""
        for host in _hosts(spool):
            self._look(spool, host)
        if not self._untold:
            return
        record = ToldRecord.read(spool.told)
        for host, news in list(self._untold.items()):
            self._told[host] = max(self._told.get(host, 0), record.numbers.get(host, 0))
            self._untold[host] = [notice for notice in news if notice.number > self._told[host]]
        self._untold = {host: news for host, news in self._untold.items() if news}
        if not self._untold or not reports:
            return
        for host, news in self._untold.items():
            for notice in news:
                self._told[host] = notice.number
                logger.warning("%s", notice.line)
        self._untold = {}
        dataclasses.replace(record, numbers=record.numbers | self._told).save(spool.told)

    def _look(self, spool: Spool, host: str) -> None:
        try:
            status = spool.host(host).notices.stat()
        except OSError:
            return
        if (stamp := (status.st_ino, status.st_mtime_ns)) != self._seen.get(host):
            self._seen[host] = stamp
            told = self._told.get(host, 0)
            if news := [notice for notice in read_notices(spool.host(host)) if notice.number > told]:
                self._untold[host] = news


def _hosts(spool: Spool) -> list[str]:
    try:
        return spool.host_ids()
    except OSError:
        return []
