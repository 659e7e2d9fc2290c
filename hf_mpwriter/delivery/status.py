"""What a process has logged, and what its writers say of that.

event files, attachments, memory  -->  Logged
Logged, sinks                     -->  Status      what `writer.status()` returns
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Logged:
    """What a process has logged in a run directory, at one moment."""

    lengths: Mapping[str, int]  # bytes per path that are on disk and are to be uploaded
    in_memory: int = 0  # records that wait in memory because the disk refuses them
    dropped: int = 0  # records that the disk refused for good
    disk_error: str = ""  # why the disk refuses records, "" while it accepts them
    # bytes that it wrote to each file that holds less now; only what was sent before is on the Hub
    damaged: Mapping[str, int] = field(default_factory=dict)
    # bytes per path of all its event files, whatever the patterns
    written: Mapping[str, int] = field(default_factory=dict)

    @property
    def is_on_disk(self) -> bool:
        """Whether all that was logged is in files."""
        return not self.in_memory and not self.dropped


@dataclass(frozen=True)
class Status:
    """What a process has logged, and how much of it is on the Hub."""

    destination: str = ""  # its page on the Hub, "" if the run is local
    # bytes on disk to be uploaded: event files of this process, and attachments if the patterns ask for them
    logged: int = 0
    on_hub: int = 0  # of these, bytes that the Hub is known to hold
    # bytes that it does not hold yet; 0 for a local run. Of a staged run, those not in the logdir count too
    waiting: int = 0
    dropped: int = 0  # records that the disk refused for good
    error: str = ""  # why the disk refuses records, what damage has cost, why the last push failed; or ""
    in_memory: int = 0  # records that wait in memory, as the disk refuses them; not in `logged`
    logdir: str = ""  # of a staged run, "" for any other
    in_logdir: int = 0  # bytes of this process's event files there
