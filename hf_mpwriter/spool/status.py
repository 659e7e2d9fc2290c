"""The bulletin: what an uploader tells the world about itself, in its log and in `status.json`.

    hosts/<host>/status.json
    {"process": {...}, "started_at": ..., "token_issued_at": ..., "beat": ..., "phase": "idle", "repo_id": "me/run", "waiting": 0,
     "push": null, "commits": 3, "blocked_until": 0.0, "notices": ["..."],
     "error": {"kind": "Retry", "reason": "...", "hint": "", "since": ..., "at": ..., "attempts": 2}}

It is a report only, which `progress.Report` reads, and may be older after a power cut. All that is decided by it is
who may start the next uploader how soon, see `election.py`.
One line in the log when an outage begins, and one when it is over.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from hf_mpwriter.base.verdicts import Quarantine, Refused, Verdict
from hf_mpwriter.spool.layout import HostSpool
from hf_mpwriter.system import disk, redaction
from hf_mpwriter.system.daemon import rotate_log
from hf_mpwriter.system.process import Process, boot_id

logger = logging.getLogger("hf_mpwriter")

BEAT_EVERY = 10.0  # seconds between two heartbeats, if nothing changes
NOTICES = 5  # the last ones are kept


class StatusFile:
    """What one uploader has to tell.

    Args:
        host: where to publish it.
        process: the uploader.
        clock: monotonic seconds.
        token_issued_at: unix time of the worker that brought the token.
    """

    def __init__(self, host: HostSpool, process: Process, clock: Callable[[], float], token_issued_at: float) -> None:
        self._host, self._process, self._clock = host, process, clock
        self.token_issued_at, self._started_at = token_issued_at, time.time()
        self._error: dict[str, Any] = {}
        self._notices: list[str] = []
        self._published: dict[str, Any] = {}
        self._beat_at = 0.0

    @property
    def trouble(self) -> str:
        """The kind of the verdict that an outage goes on with, "" if there is none."""
        return str(self._error.get("kind", ""))

    def notice(self, notices: Iterable[str]) -> None:
        """Tell what a push found out, each thing once."""
        for text in map(redaction.redact_known, notices):
            if text not in self._notices:
                logger.info(text)
                self._notices = [*self._notices, text][-NOTICES:]

    def complain(self, verdict: Verdict, attempts: int) -> None:
        """Tell that a push has failed."""
        reason, hint = getattr(verdict, "reason", ""), getattr(verdict, "hint", "")
        if isinstance(verdict, Quarantine):
            reason = "; ".join(f"{path}: {why}" for path, why in verdict.paths.items())
        reason, hint = redaction.redact_known(reason), redaction.redact_known(hint)
        kind = type(verdict).__name__
        if self.trouble != kind:
            logger.info("%s", f"{kind}: {reason} {hint}".strip())
        now = time.time()
        since = self._error.get("since", now)
        self._error = {"kind": kind, "reason": reason, "hint": hint, "since": since, "at": now, "attempts": attempts}

    def recover(self) -> None:
        """Tell that it goes on."""
        if self._error:
            logger.info("the outage is over")
            self._error = {}

    def publish(self, **state: Any) -> None:
        """Write status.json if something has changed or the heartbeat is due."""
        told = {
            "process": dataclasses.asdict(self._process),
            "started_at": self._started_at,
            "token_issued_at": self.token_issued_at,
        }
        bulletin = {**told, "error": self._error, "notices": self._notices, **state}
        if bulletin == self._published and self._clock() - self._beat_at < BEAT_EVERY:
            return
        self._published, self._beat_at = bulletin, self._clock()
        try:
            data = json.dumps({**bulletin, "beat": time.time()}).encode()
            disk.replace(self._host.status, data, "status.publish", durable=False)
            rotate_log(self._host.log)
        except OSError as error:
            logger.info("cannot report: %s", error)


SILENCE = 60.0  # seconds; an uploader at work reports every ten


@dataclass(frozen=True)
class UploaderStatus:
    """What an uploader says of itself.

    Attributes:
        phase: idle, pushing, waiting or left.
        beat: unix time of the report.
        started_at: unix time when the uploader began.
        token_issued_at: unix time of the worker that brought its token.
        process: the uploader, None if there was none.
        push: process id of the push that runs, 0 if none does.
        waiting: batches that wait.
        commits: made by this uploader.
        kind: of the verdict on the last push, "" if it did not fail.
        reason: why it failed, likewise.
        hint: what helps.
        failures: in a row.
        failed_at: unix time of the last one.
        blocked_until: monotonic seconds; the Hub asked not to be asked before.
        notices: what the user should know.
    """

    phase: str = ""
    beat: float = 0.0
    started_at: float = 0.0
    token_issued_at: float = 0.0
    process: Process | None = None
    push: int = 0
    waiting: int = 0
    commits: int = 0
    kind: str = ""
    reason: str = ""
    hint: str = ""
    failures: int = 0
    failed_at: float = 0.0
    blocked_until: float = 0.0
    notices: tuple[str, ...] = field(default=())

    @property
    def pid(self) -> int:
        """Process id of the uploader, 0 if there was none."""
        return self.process.pid if self.process else 0

    @property
    def is_over(self) -> bool:
        """Whether the uploader left in good order."""
        return self.phase == "left"

    @property
    def left_to_younger_than(self) -> float:
        """Unix time; workers token_issued_at later may have a better token than the refused one that the uploader had."""
        return self.token_issued_at if self.is_over and self.kind == Refused.__name__ else 0.0

    def stillness(self, now: float) -> str:
        """What keeps an uploader that lives from its work, "" if nothing is known; `now` is the unix time."""
        if not self.is_over and self.process and self.process.is_stopped():
            return f"process {self.pid} is stopped; to let it go on: kill -CONT {self.pid}"
        if self.beat and now - self.beat > SILENCE:
            return f"process {self.pid} has said nothing for {now - self.beat:.0f} s"
        return ""

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> UploaderStatus:
        """From status.json."""
        if not data:
            return cls()
        error, process = data["error"], Process(**data["process"])
        same_boot = process.boot == boot_id()  # else its monotonic times mean nothing
        return cls(
            phase=str(data["phase"]),
            beat=float(data["beat"]),
            started_at=float(data["started_at"]),
            token_issued_at=float(data["token_issued_at"]),
            process=process,
            push=int(data["push"] or 0),
            waiting=int(data["waiting"]),
            commits=int(data["commits"]),
            kind=str(error.get("kind", "")),
            reason=str(error.get("reason", "")),
            hint=str(error.get("hint", "")),
            failures=int(error.get("attempts", 0)),
            failed_at=float(error.get("at", 0.0)),
            blocked_until=float(data["blocked_until"]) if same_boot else 0.0,
            notices=tuple(map(str, data["notices"])),
        )
