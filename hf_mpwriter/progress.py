"""Progress: how much of a run directory is on the Hub, read from the ledgers without asking anybody.

Used by whoever waits: the end of a process, `scheduler.trigger()`, `hf-mpwriter sync` and `status`.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from hf_mpwriter import disk, locks
from hf_mpwriter.errors import DAMAGED, SettingsError, SpoolFormatError
from hf_mpwriter.identity import boot_id, host_id
from hf_mpwriter.ledger import Ledger, load
from hf_mpwriter.settings import Destination
from hf_mpwriter.spool import Spool, is_attachment

POLL = 0.05  # seconds between two looks at the ledger while waiting
LOOK_EVERY = 1.0  # seconds between two looks at the seat while waiting


class Progress:
    """A view of the ledgers of one run; they are parsed again when one of them changes."""

    def __init__(self, spool: Spool) -> None:
        self._spool = spool
        self._seen: list[tuple[str, int, int]] | None = None
        self._ledger: Ledger | None = None

    def ledger(self) -> Ledger | None:
        """What the Hub is known to hold; None while the run has no destination."""
        seen = [(host, *_stamp(self._spool.host(host).ledger)) for host in self._spool.host_ids()]
        if seen != self._seen or self._ledger is None:
            destination = self._destination()
            self._ledger = load(self._spool, destination) if destination else None
            self._seen = seen
        return self._ledger

    def _destination(self) -> Destination | None:
        try:
            return self._spool.destination()
        except (SpoolFormatError, SettingsError, OSError):
            return None

    def missing(self, lengths: Mapping[str, int], since: float = 0.0, asked: float = math.inf) -> dict[str, int]:
        """Bytes per path of `lengths` that the Hub does not have yet.

        Args:
            lengths: bytes per path; of an attachment all are missing, or none.
            since: unix time; a ledger that was not compared with the Hub after it is not believed.
            asked: unix time; an attachment need not be there as it has become after it.
        """
        book = self.ledger()
        if book is None or book.checked < since:
            return {path: length for path, length in lengths.items() if length or is_attachment(path)}
        missing = {}
        for path, length in lengths.items():
            if is_attachment(path):
                if not self._has_arrived(book, path, asked):
                    missing[path] = length
            elif length > book.length(path):
                missing[path] = length - book.length(path)
        return missing

    def _has_arrived(self, book: Ledger, path: str, asked: float) -> bool:
        """Whether all of a snapshot is there that began after an attachment has changed last, or after `asked`.

        So nobody who waits has to read it. What has been removed is not waited for.
        """
        try:
            changed = os.stat(os.path.join(self._spool.run_dir, path), follow_symlinks=False).st_ctime
        except FileNotFoundError:
            return True
        except OSError:
            changed = math.inf
        held = book.files.get(path)
        there = held is not None and not held.sent.is_gone and path not in book.parked
        return there and book.drained > min(changed, asked)

    def refused(self, missing: Mapping[str, int]) -> dict[str, str]:
        """Of what is missing, the paths that will not come by themselves, with the reason.

        These are parked ones, and the later event files of their directories, which wait for them.
        """
        book = self.ledger()
        parked = book.parked if book else {}
        found = {}
        for path in missing:
            before = [other for other in parked if other == path or _blocks(other, path)]
            if before:
                found[path] = f"{before[0]}: {parked[before[0]]}"
        return found

    def is_hopeless(self, missing: Mapping[str, int], since: float = 0.0) -> bool:
        """Whether all that is missing is refused; a refusal of before `since` is tried again."""
        book = self.ledger()
        return book is not None and book.checked >= since and len(self.refused(missing)) == len(missing)

    def uploader(self) -> Report:
        """The latest report of this host's uploader."""
        try:
            data = json.loads(disk.read(self._spool.host(host_id()).status) or b"{}")
            return Report.from_json(data)
        except (*DAMAGED, OSError):
            return Report()

    def seat_is_taken(self) -> bool:
        """Whether an uploader lives."""
        try:
            return locks.is_held(self._spool.seat)
        except OSError:
            return False


@dataclass(frozen=True)
class Report:
    """What an uploader says of itself.

    Attributes:
        phase: idle, pushing, waiting or left.
        beat: unix time of the report.
        pid: process id, 0 if there was no uploader.
        push: process id of the push that runs, 0 if none does.
        queue: entries that wait.
        commits: made by this uploader.
        reason: why the last push failed, "" if it did not.
        hint: what helps.
        failures: in a row.
        failed_at: unix time of the last one.
        blocked_until: monotonic seconds; the Hub asked not to be asked before.
        notices: what the user should know.
    """

    phase: str = ""
    beat: float = 0.0
    pid: int = 0
    push: int = 0
    queue: int = 0
    commits: int = 0
    reason: str = ""
    hint: str = ""
    failures: int = 0
    failed_at: float = 0.0
    blocked_until: float = 0.0
    notices: tuple[str, ...] = field(default=())

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Report:
        """From uploader.json."""
        if not data:
            return cls()
        error = data["error"]
        same_boot = data["process"]["boot"] == boot_id()  # else its monotonic times mean nothing
        return cls(
            phase=str(data["phase"]),
            beat=float(data["beat"]),
            pid=int(data["process"]["pid"]),
            push=int(data["push"] or 0),
            queue=int(data["queue"]),
            commits=int(data["commits"]),
            reason=str(error.get("reason", "")),
            hint=str(error.get("hint", "")),
            failures=int(error.get("attempts", 0)),
            failed_at=float(error.get("at", 0.0)),
            blocked_until=float(data["blocked_until"]) if same_boot else 0.0,
            notices=tuple(map(str, data["notices"])),
        )


@dataclass(frozen=True)
class Status:
    """What a process has logged, and how much of it is on the Hub.

    Attributes:
        destination: where it goes, "" for a local run.
        logged: bytes of event files of this process that are to be uploaded.
        on_hub: of these, bytes that the Hub is known to hold.
        waiting: of these, bytes that it does not hold yet; 0 for a local run.
        dropped: records that the disk refused for good.
        error: why the last push failed, with what helps; "" if it did not.
    """

    destination: str = ""
    logged: int = 0
    on_hub: int = 0
    waiting: int = 0
    dropped: int = 0
    error: str = ""


def status(view: Progress, destination: Destination | None, lengths: Mapping[str, int], dropped: int) -> Status:
    """What of these bytes per path is on the Hub.

    Args:
        view: of the run.
        destination: None for a local run.
        lengths: bytes per path.
        dropped: see `Status`.
    """
    logged = sum(lengths.values())
    if destination is None:
        return Status(logged=logged, dropped=dropped)
    waiting, report = sum(view.missing(lengths).values()), view.uploader()
    return Status(
        str(destination), logged, logged - waiting, waiting, dropped, f"{report.reason} {report.hint}".strip()
    )


def wait(
    progress: Progress,
    lengths: Mapping[str, int],
    timeout: float,
    look: Callable[[], object],
    tell: Callable[[dict[str, int]], object] | None = None,
    clock: Callable[[], float] = time.monotonic,
    since: float = 0.0,
) -> dict[str, int]:
    """Wait until the Hub has these lengths, and these attachments as they are now or were later.

    Args:
        progress: view of the run.
        lengths: bytes per path.
        timeout: seconds.
        look: called every second, makes sure that an uploader lives.
        tell: called at every poll with what is missing; what it raises ends the wait.
        clock: monotonic seconds.
        since: see `Progress.missing`.

    Returns:
        What is missing at the end, {} if nothing is. The wait is not begun when the next allowed try lies beyond it,
        and not gone on with when all that is missing is refused.
    """
    end = clock() + timeout
    next_look, asked = 0.0, since or time.time()
    while missing := progress.missing(lengths, since, asked):
        now = clock()
        if now >= end or progress.uploader().blocked_until > end or progress.is_hopeless(missing, since):
            break
        if now >= next_look:
            look()
            next_look = now + LOOK_EVERY
        if tell is not None:
            tell(missing)
        time.sleep(POLL)
    return missing


def _blocks(parked: str, path: str) -> bool:
    """Whether a parked path keeps another one from going: only event files wait for each other."""
    if is_attachment(parked) or is_attachment(path):
        return False
    return os.path.dirname(parked) == os.path.dirname(path) and parked < path


def size_text(count: float) -> str:
    """Bytes for people."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"


def _stamp(path: str) -> tuple[int, int]:
    try:
        status = os.stat(path)
    except OSError:
        return 0, 0
    return status.st_ino, status.st_mtime_ns
