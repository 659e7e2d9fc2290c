"""The bulletin: what an uploader tells the world about itself, in its log and in `uploader.json`.

    hosts/<host>/uploader.json
    {"process": {...}, "started": ..., "born": ..., "beat": ..., "phase": "idle", "repo_id": "me/run", "queue": 0,
     "push": null, "commits": 3, "blocked_until": 0.0, "notices": ["..."],
     "error": {"kind": "Retry", "reason": "...", "hint": "", "since": ..., "at": ..., "attempts": 2}}

It is a report only, which `progress.Report` reads, and may be older after a power cut. All that is decided by it is
who may start the next uploader how soon, see `election.py`.
One line in the log when an outage begins, and one when it is over.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Iterable
from typing import Any

from hf_mpwriter import disk, redaction
from hf_mpwriter.daemon import rotate_log, say
from hf_mpwriter.errors import Park, Verdict
from hf_mpwriter.identity import Process
from hf_mpwriter.spool import HostSpool

BEAT_EVERY = 10.0  # seconds between two heartbeats, if nothing changes
NOTICES = 5  # the last ones are kept


class Bulletin:
    """What one uploader has to tell.

    Args:
        host: where to publish it.
        process: the uploader.
        clock: monotonic seconds.
        born: unix time of the worker that brought the token.
    """

    def __init__(self, host: HostSpool, process: Process, clock: Callable[[], float], born: float) -> None:
        self._host, self._process, self._clock = host, process, clock
        self.born, self._started = born, time.time()
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
                say(text)
                self._notices = [*self._notices, text][-NOTICES:]

    def complain(self, verdict: Verdict, attempts: int) -> None:
        """Tell that a push has failed."""
        reason, hint = getattr(verdict, "reason", ""), getattr(verdict, "hint", "")
        if isinstance(verdict, Park):
            reason = "; ".join(f"{path}: {why}" for path, why in verdict.paths.items())
        reason, hint = redaction.redact_known(reason), redaction.redact_known(hint)
        kind = type(verdict).__name__
        if self.trouble != kind:
            say(f"{kind}: {reason} {hint}".strip())
        now = time.time()
        since = self._error.get("since", now)
        self._error = {"kind": kind, "reason": reason, "hint": hint, "since": since, "at": now, "attempts": attempts}

    def recover(self) -> None:
        """Tell that it goes on."""
        if self._error:
            say("the outage is over")
            self._error = {}

    def publish(self, **state: Any) -> None:
        """Write uploader.json if something has changed or the heartbeat is due."""
        told = {"process": dataclasses.asdict(self._process), "started": self._started, "born": self.born}
        bulletin = {**told, "error": self._error, "notices": self._notices, **state}
        if bulletin == self._published and self._clock() - self._beat_at < BEAT_EVERY:
            return
        self._published, self._beat_at = bulletin, self._clock()
        try:
            data = json.dumps({**bulletin, "beat": time.time()}).encode()
            disk.replace(self._host.status, data, "bulletin.publish", durable=False)
            rotate_log(self._host.log)
        except OSError as error:
            say(f"cannot report: {error}")
