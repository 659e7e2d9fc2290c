"""What of a staged run is not in its logdir, and what is told of it.

    4.7 kB in 2 files are not in LOGDIR yet: REASON.
    What is in RUN_DIR stays there, and a mirror goes on trying; then: COMMAND

| what keeps it from there           | told                                                       |
|------------------------------------|------------------------------------------------------------|
| all of it is refused               | the first reason; the command, for when that is mended     |
| no mirror lives                    | the last failure; the command                              |
| the mirror stands, or its copy     | what lets it go on; the command, for then                  |
| a mirror lives                     | the last failure; the command                              |
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from hf_mpwriter.spool.progress import size_text, sync_command


@dataclass(frozen=True)
class Shortfall:
    """What is not in the logdir; nothing is missing of a run that is not staged."""

    run_dir: str = ""  # absolute path
    to: str = ""  # the logdir: an absolute path, or a URL; "" for a run that is not staged
    missing: Mapping[str, int] = field(default_factory=dict)  # bytes per path
    # of these, what will not get there by itself, with the reason
    refused: Mapping[str, str] = field(default_factory=dict)
    reason: str = ""  # why the last copy failed, "" if it did not
    is_alive: bool = False  # whether a mirror lives
    stillness: str = ""  # what keeps the mirror from its work, "" if nothing is known

    @property
    def command(self) -> str:
        """The command that brings what is missing."""
        return sync_command(self.to or self.run_dir)

    @property
    def why(self) -> str:
        """Why something is missing, "" if that is not known."""
        if self.missing and len(self.refused) == len(self.missing):
            first, *others = dict.fromkeys(self.refused.values())
            return f"{first}{f', and {len(others)} more' if others else ''}"
        return self.reason

    @property
    def trouble(self) -> str:
        """What keeps something from the logdir, as a sentence; "" if nothing is known, or nothing is missing."""
        found = (self.why or self.stillness).rstrip(".") if self.missing else ""
        return f"{self.to}: {found}." if found else ""

    def sentence(self) -> str:
        """What is missing, and why; "" if nothing is."""
        if not self.missing:
            return ""
        files = f"{len(self.missing)} file{'s' * (len(self.missing) > 1)}"
        text = f"{size_text(sum(self.missing.values()))} in {files} are not in {self.to} yet"
        return f"{text}{f': {self.why}' if self.why else ''}".rstrip(".") + "."

    def outlook(self) -> str:
        """What becomes of it, and the command."""
        stays = f"What is in {self.run_dir} stays there"
        if self.missing and len(self.refused) == len(self.missing):
            return f"{stays}. When that is mended: {self.command}"
        if not self.is_alive:
            return f"{stays}, but no mirror runs. To finish: {self.command}"
        if self.stillness:
            return f"{stays}, but the mirror does not work: {self.stillness}. To finish then: {self.command}"
        return f"{stays}, and a mirror goes on trying; then: {self.command}"
