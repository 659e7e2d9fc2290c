"""What training tells of its upload, as it happens: where it goes, when an outage begins, when it is over.

Each line, see `delivery/sentences`, is told once in an attempt, by the reporter; what goes wrong also by the first rank
of every other node. It comes with the next housekeeping, so with the next call of the user: no thread waits for it. All
of it is in the status of the uploader, which is read when it has changed.

Invariants:
- A refusal is told at once, as a person has to help. Anything else that fails once and then works is no outage: it is
  told when it has failed again, or for NOTABLE seconds.
- What an uploader of an earlier attempt has failed with is no news, unless it still tries.
- Public or private is said when the Hub has said it. Where that is not known yet, nothing is guessed, and no link is
  given to a repository whose namespace only the Hub knows.
- What an outage costs is told with its whole length: uploaders may take turns while it lasts.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import time
from collections.abc import Callable, Iterator

from hf_mpwriter.base.settings import OFFLINE, Destination
from hf_mpwriter.base.verdicts import Refused
from hf_mpwriter.base.words import duration
from hf_mpwriter.delivery.sentences import TRIES_AGAIN, beginning, outage
from hf_mpwriter.events.deferred_log import logger
from hf_mpwriter.spool.layout import Spool
from hf_mpwriter.spool.status import SILENCE, SILENT_FOR, UploaderStatus
from hf_mpwriter.system.directory import Place
from hf_mpwriter.worker.messages.reporter import Reporter, ToldRecord

NOTABLE = 10.0  # seconds without a success, from which on a failure is an outage


class UploadMessages:
    """What one worker tells of the upload of its run directory."""

    def __init__(self, started_at: float, clock: Callable[[], float] = time.time) -> None:
        self._started_at, self._clock = started_at, clock
        self._seen: list[tuple[str, int, int]] = []  # inode and mtime (ns) of each status when they were read last
        self._status = UploaderStatus()
        self._has_begun, self._since, self.told = False, 0.0, ""
        self._is_unrecorded = False  # whether a full disk has refused the record of the outage that was told

    def tell(self, spool: Spool, destination: Destination, reporter: Reporter) -> None:
        """Log what has changed, as far as it is for this process to tell it."""
        status, now = self._newest(spool), self._clock()
        fails = is_outage(status, self._started_at, now)
        if fails:
            self._since = min(self._since or status.failing_since, status.failing_since)
        begins = not self._has_begun and (status.private is not None or (fails and not status.why.startswith(OFFLINE)))
        fails = fails and not self._is_told(status)
        ends = self._since > 0 and not status.kind and status.succeeded_at >= self._since
        if not (begins or fails or ends):
            return
        watch = reporter.watch
        record = ToldRecord.read(watch or spool.told)
        if record.start >= self._started_at:
            begins, self._has_begun = False, True
        if fails and record.outage >= self._started_at and record.why == status.why:
            fails, self.told = False, status.why
        if ends and not record.outage and not self._is_unrecorded:
            ends, self._since, self.told = False, 0.0, ""
        tells_start = begins and reporter.reports
        if watch is not None and (tells_start or fails or ends):
            self._log(spool, watch, destination, record, status, begins=tells_start, fails=fails, ends=ends)
        self._has_begun = self._has_begun or tells_start  # who does not report may have to tell it later

    def _is_told(self, status: UploaderStatus) -> bool:
        """Whether this outage was told: once, and again if only now a person has to help."""
        return bool(self.told) and (status.kind != Refused.__name__ or self.told == status.why)

    def _log(
        self,
        spool: Spool,
        watch: Place,
        destination: Destination,
        record: ToldRecord,
        status: UploaderStatus,
        *,
        begins: bool,
        fails: bool,
        ends: bool,
    ) -> None:
        now = self._clock()
        if begins:
            record = dataclasses.replace(record, start=now)
        if fails:
            record, self.told = dataclasses.replace(record, outage=now, why=status.why), status.why
        if ends:
            record, self.told = dataclasses.replace(record, outage=0.0, why=""), ""
        self._is_unrecorded = not record.save(watch) and fails  # before a handler of the user may raise
        since, self._since = self._since, 0.0 if ends else self._since
        if begins:
            logger.info("%s", beginning(spool.logdir, destination, status.repo_id, private=status.private))
        if fails:
            logger.warning("%s", outage(status, log_of(spool, status)))
        if ends:
            logger.info("uploading again, after %s", duration(max(1.0, status.succeeded_at - since)))

    def begin(self, spool: Spool, destination: Destination, repo_id: str, *, private: bool | None) -> None:
        """Log where a run goes, unless that was told."""
        if self._has_begun:
            return
        record, self._has_begun = ToldRecord.read(spool.told), True
        if record.start < self._started_at:
            dataclasses.replace(record, start=self._clock()).save(spool.told)
            logger.info("%s", beginning(spool.logdir, destination, repo_id, private=private))

    def _newest(self, spool: Spool) -> UploaderStatus:
        """The status of the uploader; it is read only if one of the files has changed."""
        seen = list(_stamps(spool))
        if seen != self._seen:
            self._seen, self._status = seen, UploaderStatus.newest(spool)
        return self._status.or_full(spool, self._clock(), SILENT_FOR)


def is_outage(status: UploaderStatus, started_at: float, now: float) -> bool:
    """Whether nothing gets to the Hub, as far as it concerns a worker."""
    if not status.failing_since:
        return False
    is_new = status.failed_at >= started_at
    if status.kind == Refused.__name__:
        return is_new
    tries = not status.is_over and now - status.beat < SILENCE
    lasts = status.failures > 1 or now - status.failing_since >= NOTABLE
    return status.kind in TRIES_AGAIN and lasts and (is_new or tries)


def url_of(spool: Spool, destination: Destination) -> str:
    """The page of a run on the Hub, with the full name of the repository if a push has resolved it."""
    return destination.resolved(UploaderStatus.newest(spool).repo_id).url


def log_of(spool: Spool, status: UploaderStatus) -> str:
    """The path of the log of an uploader."""
    return os.fspath(spool.host(status.process.host if status.process else "").daemon("uploader").log)


def _stamps(spool: Spool) -> Iterator[tuple[str, int, int]]:
    with contextlib.suppress(OSError):
        for host in spool.host_ids():
            with contextlib.suppress(OSError):
                status = spool.host(host).daemon("uploader").status.stat()
                yield host, status.st_ino, status.st_mtime_ns
