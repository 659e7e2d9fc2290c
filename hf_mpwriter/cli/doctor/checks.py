"""A check: its name, whether it is well, what was found, what helps."""

from __future__ import annotations

import enum
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from hf_mpwriter.system.redaction import printable


class Health(enum.Enum):
    """Whether something is well; `fail` keeps uploads from working."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True)
class Check:
    """What was found."""

    name: str  # what was looked at
    health: Health  # whether it is well
    text: str  # what was found
    cure: str = ""  # what helps, "" if nothing has to

    def to_json(self) -> dict[str, str | None]:
        """For programs."""
        return {"name": self.name, "health": self.health.value, "text": self.text, "cure": self.cure or None}


def lines(checks: Iterable[Check]) -> Iterator[str]:
    """A line for each check."""
    found = list(checks)
    width = max((len(check.name) for check in found), default=0)
    for check in found:
        cure = f". {check.cure}" if check.cure else ""
        yield printable(f"{check.health.value:<4}  {check.name:<{width}}  {check.text}{cure}")
