"""Notices: what the user should know, as uploaders have found it out.

    hosts/<host>/notices.json
    {"notices": [{"number": 1795236610123, "time": 1795236610.1, "text": "created https://..."}, ...]}

Invariants:
- Numbers grow, from one uploader to the next, and also after the file was lost: the first one of a file is the time in
  milliseconds. So a reader that knows the last number it has told tells each notice once.
- A notice is on disk before the ledger has what the push did that found it out. A process that has waited for the Hub
  knows them all.
- A text that is found out again and again is one notice for SAME_WITHIN seconds. A repository that is created is always
  news, and what is found out about it afterwards is, too.
- Only the newest KEPT notices are there.
- No secret stands in one.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from hf_mpwriter.base import state
from hf_mpwriter.base.verdicts import CREATED
from hf_mpwriter.spool.layout import HostSpool
from hf_mpwriter.system import disk
from hf_mpwriter.system.redaction import printable, redact_known

logger = logging.getLogger("hf_mpwriter")

KEPT = 20  # notices
SAME_WITHIN = 3600.0  # seconds in which a text is one notice
LONGEST = 500  # characters of a notice that are told


@dataclass(frozen=True)
class NumberedNotice:
    """What the user should know."""

    number: int  # greater than that of all earlier ones of the host
    time: float  # unix time
    text: str  # for people

    @property
    def line(self) -> str:
        """The text as it may be shown: the file may come from anywhere."""
        return printable(self.text)[:LONGEST]


@dataclass(frozen=True)
class NoticesRecord:
    """What the file holds, the newest notice last."""

    notices: tuple[NumberedNotice, ...] = ()


def read_notices(host: HostSpool) -> tuple[NumberedNotice, ...]:
    """The notices of a host's uploaders, the newest last; none if the file cannot be read."""
    return state.read(NoticesRecord, host.notices).notices[-KEPT:]


class NoticesFile:
    """The notices file of a running uploader."""

    def __init__(self, host: HostSpool, wall_clock: Callable[[], float] = time.time) -> None:
        self._host, self._wall_clock = host, wall_clock
        self._notices = read_notices(host)
        self._is_saved = True

    def note(self, texts: Iterable[str]) -> None:
        """Log and keep what was found out, unless that was so a moment ago."""
        for text in map(redact_known, texts):
            if not self._is_known(text):
                logger.info("%s", text)
                self._add(text)
        self.save()

    def _is_known(self, text: str) -> bool:
        if text.startswith(CREATED):
            return False
        for notice in reversed(self._notices):
            if notice.text.startswith(CREATED):
                return False
            if notice.text == text:
                return abs(self._wall_clock() - notice.time) < SAME_WITHIN
        return False

    def _add(self, text: str) -> None:
        now = self._wall_clock()
        last = self._notices[-1].number if self._notices else int(1000 * now)
        self._notices = (*self._notices, NumberedNotice(last + 1, now, text))[-KEPT:]
        self._is_saved = False

    def save(self) -> None:
        """Write what is not on disk yet; what the disk refuses is written the next time."""
        if self._is_saved:
            return
        try:
            disk.replace(self._host.notices, state.dump(NoticesRecord(self._notices)), "notices.save", durable=False)
            self._is_saved = True
        except OSError as error:
            logger.info("the notices cannot be written: %s", error)
