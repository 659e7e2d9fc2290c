"""The status file of a running daemon: what it publishes about itself, and its heartbeat.

Invariant: the log gets a line when an outage begins, and one when it is over; for the tries between them see
`uploader/sending`.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Generic, TypeVar

from hf_mpwriter.base.timing import USUAL
from hf_mpwriter.base.verdicts import Quarantine, Verdict
from hf_mpwriter.daemon.background import rotate_log
from hf_mpwriter.spool.layout import HostSpool
from hf_mpwriter.spool.status import DEATHS_KEPT, NOTICES_KEPT, DaemonStatus, UploaderStatus, with_notice
from hf_mpwriter.system.interrupts import ours
from hf_mpwriter.system.process import Process
from hf_mpwriter.system.redaction import redact_known

logger = logging.getLogger("hf_mpwriter")

StatusT = TypeVar("StatusT", bound=DaemonStatus)


class DaemonStatusFile(Generic[StatusT]):
    """The status file of a running daemon."""

    def __init__(
        self,
        host: HostSpool,
        status: StatusT,
        clock: Callable[[], float],
        wall_clock: Callable[[], float] = time.time,
        beat_every: float = USUAL.heartbeat_every,
    ) -> None:
        self._host, self._clock, self._wall_clock, self._beat_every = host, clock, wall_clock, beat_every
        self.status = dataclasses.replace(status, started_at=wall_clock(), starts=status.read(host).starts)  # now
        self._published: StatusT | None = None
        self._beat_at = 0.0

    def change(self, **fields: object) -> None:
        """Change fields of the status."""
        self.status = dataclasses.replace(self.status, **fields)  # type: ignore[arg-type]

    def beat(self) -> None:
        """Write the file if something has changed, or if the heartbeat is due."""
        if self.status == self._published and self._clock() - self._beat_at < self._beat_every:
            return
        self._published, self._beat_at = self.status, self._clock()
        try:
            self._write(dataclasses.replace(self.status, beat=self._wall_clock()))
            rotate_log(self._host.daemon(self.status.daemon).log)
        except ours(OSError) as error:  # tried again with the next change, or heartbeat
            logger.info("the status cannot be published: %s", error)

    def _write(self, status: StatusT) -> None:
        status.save(self._host)


class StatusFile(DaemonStatusFile[UploaderStatus]):
    """The status file of a running uploader."""

    def __init__(
        self,
        host: HostSpool,
        process: Process,
        clock: Callable[[], float],
        token_issued_at: float,
        wall_clock: Callable[[], float] = time.time,
        beat_every: float = USUAL.heartbeat_every,
    ) -> None:
        before = UploaderStatus.read(host)
        status = UploaderStatus(
            process=process,
            token_issued_at=token_issued_at,
            notices=before.notices[-NOTICES_KEPT:],
            died=before.died[-DEATHS_KEPT:],
        )
        super().__init__(host, status, clock, wall_clock, beat_every)
        self._next_at = 0.0
        self.serves = 1  # runs; one more or less is no reason to write the files of all

    def notify(self, notices: Iterable[str]) -> None:
        """Log and publish what was found out, unless that was so a moment ago; see `spool/status`."""
        for text in map(redact_known, notices):
            known = self.status.notices
            self.change(notices=with_notice(known, text, self._wall_clock()))
            if self.status.notices != known:
                logger.info("%s", text)
        if self._published is None or self.status.notices != self._published.notices:
            self.beat()

    def remember(self, died: Sequence[str]) -> None:
        """Have the next `publish` name workers that died, by their last event files."""
        new = [path for path in died if path not in self.status.died]
        self.change(died=(*self.status.died, *new)[-DEATHS_KEPT:])

    def failed(self, verdict: Verdict, attempts: int, *, is_outage: bool = True) -> None:
        """A push has failed."""
        now = self._wall_clock()
        since = (self.status.failing_since or now) if is_outage else self.status.failing_since
        kind, hint = type(verdict).__name__, redact_known(getattr(verdict, "hint", ""))
        if isinstance(verdict, Quarantine):
            reason = redact_known("; ".join(f"{path}: {why}" for path, why in verdict.paths.items()))
        else:
            reason = redact_known(getattr(verdict, "reason", ""))
        is_other, cause = self.status.kind != kind, getattr(verdict, "cause", None)
        self.change(kind=kind, cause=cause, reason=reason, hint=hint)
        self.change(failures=attempts, failed_at=now, failing_since=since)
        if is_other:
            logger.info("%s", f"{kind}: {self.status.why}")

    def waits(self, reason: str) -> None:
        """The next push waits for the rate limit; an outage says more."""
        if not self.status.kind:
            self.change(reason=reason, hint="")

    def recovered(self) -> None:
        """A push has succeeded."""
        if self.status.kind:
            logger.info("the outage is over")
        if self.status.kind or self.status.reason:
            self.change(kind="", cause=None, reason="", hint="", failures=0, failed_at=0.0, failing_since=0.0)
        self.change(succeeded_at=self._wall_clock())

    def publish(self, next_at: float = 0.0, **fields: object) -> None:
        """Change fields, and write the file if that is due; `next_in` is what is left until monotonic seconds."""
        self.change(**fields)
        if next_at != self._next_at:
            self._next_at, self._published = next_at, None
        self.beat()

    def _write(self, status: UploaderStatus) -> None:
        blocked_for, next_in = (max(0.0, until - self._clock()) for until in (status.blocked_until, self._next_at))
        told = {"blocked_for": blocked_for, "next_in": next_in, "serves": self.serves}
        super()._write(dataclasses.replace(status, **told))  # type: ignore[arg-type]
