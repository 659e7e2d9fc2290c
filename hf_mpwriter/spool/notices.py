"""Notices: what the user should know, as uploaders have found it out. They stand in the status of the uploader.

    {"number": 1795236610123, "time": 1795236610.1, "text": "created https://..."}

Invariants:
- Numbers grow, from one uploader to the next, and also after the file was lost: the first one of a file is the time in
  milliseconds. So a reader that knows the last number it has told tells each notice once.
- A notice is on disk before the ledger has what the push did that found it out. A process that has waited for the Hub
  knows them all.
- A text that is found out again and again is one notice for SAME_WITHIN seconds. A repository that is created is always
  news, and what is found out about it afterwards is, too.
- Only the newest NOTICES_KEPT are there.
- No secret stands in one.
"""

from __future__ import annotations

from dataclasses import dataclass

from hf_mpwriter.base.verdicts import CREATED
from hf_mpwriter.system.redaction import printable

NOTICES_KEPT = 20
SAME_WITHIN = 3600.0  # seconds in which a text is one notice
SHOWN = 500  # characters of a notice


@dataclass(frozen=True)
class NumberedNotice:
    """What the user should know."""

    number: int  # greater than that of all earlier ones of the host
    time: float  # unix time
    text: str  # for people

    @property
    def line(self) -> str:
        """The text as it may be shown: the file may come from anywhere."""
        return printable(self.text)[:SHOWN]


Notices = tuple[NumberedNotice, ...]  # the newest last


def with_notice(notices: Notices, text: str, now: float) -> Notices:
    """These notices and one more, unless it is known."""
    if _is_known(notices, text, now):
        return notices
    last = notices[-1].number if notices else int(1000 * now)
    return (*notices, NumberedNotice(last + 1, now, text))[-NOTICES_KEPT:]


def _is_known(notices: Notices, text: str, now: float) -> bool:
    if text.startswith(CREATED):
        return False
    for notice in reversed(notices):
        if notice.text.startswith(CREATED):
            return False
        if notice.text == text:
            return abs(now - notice.time) < SAME_WITHIN
    return False
