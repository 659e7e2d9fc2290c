"""Delivery: what this process has logged in a run, whether the Hub has it, and what uploaders have found out.

    event files      bytes on disk; records that wait in memory, or were dropped, because the disk refuses them
    attachments      where the patterns ask for them: a reporter answers for all, other processes for their own
    notices          told as warnings whenever the worker keeps house, and at the end of a wait

`push`, `status` and the Future of `scheduler.trigger` all start from `logged`.

Invariants:
- Delivered means: the record of every call that had returned is on the Hub. What waits in memory is not, and what was
  dropped never will be. Of an event file that was damaged, the Hub has all or not.
- It counts what this process has logged in this run directory, by whichever writer.
- A notice is told once. The last number that was told is recorded per host, so an uploader that is replaced, one on
  another host, or a run that is resumed neither repeats nor hides anything. Without a record, what was there before the
  worker is old news, except of the last RECENT seconds: another rank may have been faster.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from hf_mpwriter.base.names import worker_dir
from hf_mpwriter.base.settings import DEFAULT_ALLOW_PATTERNS
from hf_mpwriter.events.deferred_log import logger
from hf_mpwriter.snapshot import attachments
from hf_mpwriter.spool import progress
from hf_mpwriter.spool.layout import Spool
from hf_mpwriter.spool.progress import Logged, Progress
from hf_mpwriter.spool.status import NumberedNotice, ToldRecord, read_notices
from hf_mpwriter.worker.files import WorkerFiles
from hf_mpwriter.worker.membership import Membership

RECENT = 60.0  # seconds before the start of a worker from which notices are still told
MEMORY_POLL = 0.2  # seconds between two looks at whether the disk takes what waits in memory


def logged(membership: Membership, files: WorkerFiles) -> Logged:
    """What a process has logged until now.

    Args:
        membership: of the process.
        files: its event files.
    """
    in_memory = files.in_memory  # before the lengths: a record that is written in between counts twice, not never
    lengths = files.lengths() | _attachments(membership)
    return Logged(lengths, in_memory, files.dropped, files.disk_error, files.damaged)


def _attachments(membership: Membership) -> dict[str, int]:
    settings = membership.settings
    if membership.destination is None or settings.allow_patterns == DEFAULT_ALLOW_PATTERNS:
        return {}
    found = attachments.sizes(membership.spool.run, settings.allows)
    if membership.role.is_reporter or not membership.name:
        return found
    own = f"{worker_dir(membership.name)}/"
    return {path: size for path, size in found.items() if path.startswith(own)}


def push(spool: Spool, request: Callable[[], Logged], timeout: float, keep_house: Callable[[], object]) -> bool:
    """Ask for a push and wait for it.

    Args:
        spool: of the run directory.
        request: asks for a push; what was logged until then.
        timeout: seconds.
        keep_house: has the disk tried again, and makes sure that an uploader lives.

    Returns:
        Whether everything is delivered.
    """
    end = time.monotonic() + timeout
    while (asked_for := request()).in_memory and (left := end - time.monotonic()) > 0:
        time.sleep(min(MEMORY_POLL, left))
    left = max(0.0, end - time.monotonic())
    view = Progress(spool)
    is_there = not progress.wait(view, asked_for.lengths, left, keep_house)
    return is_there and asked_for.is_on_disk and not view.missing(asked_for.damaged)


class Notices:
    """The notices of a run, as one worker tells them.

    Args:
        spool: of the run directory.
        started_at: unix time when the worker started.
    """

    def __init__(self, spool: Spool, started_at: float) -> None:
        self._told = ToldRecord.read(spool.told).numbers  # the last number per host
        self._seen: dict[str, tuple[int, int]] = {}  # inode and mtime (ns) of the file when it was read last
        for host in set(_hosts(spool)) - set(self._told):
            old = [notice for notice in read_notices(spool.host(host)) if notice.time < started_at - RECENT]
            self._told[host] = old[-1].number if old else 0

    def tell(self, spool: Spool) -> None:
        """Log what is new."""
        before = dict(self._told)
        for host in _hosts(spool):
            for notice in self._news(spool, host):
                self._told[host] = notice.number
                logger.warning("%s", notice.line)
        if self._told != before:
            ToldRecord(self._told).save(spool.told)

    def _news(self, spool: Spool, host: str) -> list[NumberedNotice]:
        try:
            status = spool.host(host).notices.stat()
        except OSError:
            return []
        if (stamp := (status.st_ino, status.st_mtime_ns)) == self._seen.get(host):
            return []
        self._seen[host] = stamp
        return [notice for notice in read_notices(spool.host(host)) if notice.number > self._told.get(host, 0)]


def _hosts(spool: Spool) -> list[str]:
    try:
        return spool.host_ids()
    except OSError:
        return []
