"""Damage: what an event file has behind its last whole record, and how that is told.

Found by `event_files`, told by the commands and at the end of a process.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Damage:
    """The end of an event file that no reader reaches."""

    path: str  # relative to the run directory
    offset: int  # bytes up to the end of the last whole record, which are sent
    size: int  # bytes behind it
    is_incomplete: bool = False  # whether it is nothing but the beginning of a record, ordinary after a kill

    def __str__(self) -> str:
        """One line without the path."""
        if self.is_incomplete:
            return f"ends with an incomplete record of {self.size} bytes at offset {self.offset}"
        return f"is damaged at offset {self.offset}: the {self.size} bytes from there on are not uploaded"
