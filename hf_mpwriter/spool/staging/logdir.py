"""The logdir of a staged run, as all processes of the run see it: what is there, and what keeps the rest from it.

    mirror.json                    -->  to, is_staged
    mirrored.json of all hosts     -->  missing, refused       per path
    mirror_status.json             -->  status

Everything that waits uses it, beside `spool/progress` for the Hub. What is missing is told so:

    4.7 kB in 2 files are not in LOGDIR yet: REASON.
    What is in RUN_DIR stays there, and a mirror goes on trying; then: COMMAND

| what keeps it from there           | told                                                       |
|------------------------------------|------------------------------------------------------------|
| all of it is refused               | the first reason; the command, for when that is mended     |
| no mirror lives                    | the last failure; the command                              |
| the mirror stands, or its copy     | what lets it go on; the command, for then                  |
| a mirror lives                     | the last failure; the command                              |

Invariants:
- It only reads the spool, and never the logdir, which may hang.
- A wait ends: at its timeout, or as soon as nothing can come before that.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from hf_mpwriter.base.names import is_attachment, is_embedding
from hf_mpwriter.snapshot.event_files import writer_of
from hf_mpwriter.spool.layout import Spool
from hf_mpwriter.spool.progress import size_text, sync_command
from hf_mpwriter.spool.staging.record import Mirrored, MirrorPlaces, MirrorRecord, MirrorStatus, mirror_lock
from hf_mpwriter.system import locks

POLL = 0.05  # seconds between two looks while waiting
STILL = 5.0  # seconds after which a mirror that stands is not waited for
ENSURE_EVERY = 1.0  # seconds between two checks, while waiting, that a mirror lives


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


class Logdir:
    """The logdir of one run."""

    def __init__(self, spool: Spool, clock: Callable[[], float] = time.monotonic) -> None:
        self._spool, self._clock = spool, clock
        self._to = ""
        self._seen: list[tuple[str, int, int]] | None = None
        self._mirrored = Mirrored()

    @property
    def to(self) -> str:
        """Where it is: an absolute path or a URL; "" for a run that is not staged."""
        if not self._to and (record := MirrorRecord.read(self._spool)):
            self._to = record.to
        return self._to

    @property
    def is_staged(self) -> bool:
        """Whether the run has a logdir beside its run directory."""
        return bool(self.to)

    def mirrored(self) -> Mirrored:
        """What is known to be there, by the records of all hosts."""
        with contextlib.suppress(OSError):  # the disk fails: nothing new is known
            hosts = [self._spool.host(host) for host in self._spool.host_ids()]
            seen = []
            for host in hosts:
                with contextlib.suppress(FileNotFoundError):
                    status = MirrorPlaces.of(host).mirrored.stat()
                    seen.append((host.root.basename, status.st_ino, status.st_mtime_ns))
            if seen != self._seen:
                self._mirrored, self._seen = _merged([Mirrored.read(host) for host in hosts]), seen
        return self._mirrored

    def missing(self, lengths: Mapping[str, int]) -> dict[str, int]:
        """Bytes that are not there yet, per path of an event file; {} for a run that is not staged."""
        if not self.is_staged:
            return {}
        there = self.mirrored().files
        wanted = {path: length for path, length in lengths.items() if not is_attachment(path) or is_embedding(path)}
        return {path: length for path, length in wanted.items() if length > there.get(path, 0)}

    def refused(self, missing: Mapping[str, int]) -> dict[str, str]:
        """The missing paths that will not get there by themselves, with the reason.

        These are what cannot be written there, and the later event files of their writers, which wait for them.
        """
        refused, first = self.mirrored().refused, dict[tuple[str, str], str]()
        for path in sorted(refused):
            first.setdefault(writer_of(path), path)
        blockers = {path: first.get(writer_of(path), path) for path in missing}
        return {
            path: f"{blocker}: {refused[blocker]}"
            for path, blocker in blockers.items()
            if blocker in refused and blocker <= path
        }

    def status(self) -> MirrorStatus:
        """The status of the mirror that was heard of last, on whichever host; an empty one if there is none."""
        found = [MirrorStatus()]
        with contextlib.suppress(OSError):
            found += [MirrorStatus.read(self._spool.host(host)) for host in self._spool.host_ids()]
        return max(found, key=lambda status: status.beat)

    def is_alive(self) -> bool:
        """Whether a mirror lives."""
        try:
            return locks.is_held(mirror_lock(self._spool))
        except OSError:
            return False

    @property
    def is_returning(self) -> bool:
        """Whether a mirror lives that still brings something from there, or does not know yet whether it has to."""
        if not self.is_staged:
            return False
        status = self.status()
        is_unlisted = status.listed < status.started_at and not status.failures
        return (status.returning > 0 or is_unlisted) and not status.is_over and self.is_alive()

    def wait_until_back(self, timeout: float, ensure_mirror: Callable[[], object], since: float) -> str:
        """Wait until all is here that was there and can be read, listed since a unix time.

        Why it is not, "" if it is.
        """
        end, next_check = self._clock() + timeout, 0.0
        patience = self._clock() + STILL  # a mirror that was just started has not said anything
        while True:
            status, now = self.status(), self._clock()
            if status.listed >= since and not status.returning:
                return next((f"{path}: {reason}" for path, reason in status.unread.items()), "")
            if status.failures and status.failed_at >= since:
                return status.reason
            if now >= end:
                return status.stillness(time.time()) or "it takes longer than it may"
            if now >= patience and self.is_alive() and (why := status.stillness(time.time())):
                return why
            if now >= next_check:
                ensure_mirror()
                next_check = now + ENSURE_EVERY
            time.sleep(min(POLL, max(0.0, end - now)))

    def shortfall(self, lengths: Mapping[str, int]) -> Shortfall:
        """What of these lengths is not there, and why."""
        missing, status = self.missing(lengths), self.status()
        return Shortfall(
            run_dir=self._spool.run_dir,
            to=self.to,
            missing=missing,
            refused=self.refused(missing),
            reason=status.reason,
            is_alive=self.is_alive(),
            stillness=status.stillness(time.time()),
        )

    def wait(
        self,
        lengths: Mapping[str, int],
        timeout: float,
        ensure_mirror: Callable[[], object],
        notify: Callable[[dict[str, int]], object] | None = None,
        since: float = 0.0,
    ) -> dict[str, int]:
        """Wait until these lengths are there.

        It ends early when the next try comes after the timeout, when all that is missing is refused, and when the
        logdir as a whole was refused after it had begun.
        What is missing at the end, {} if nothing is.
        """
        end, started_at, next_check = self._clock() + timeout, time.time(), 0.0
        while True:
            status, now = self.status(), self._clock()
            missing, is_compared = self.missing(lengths), status.checked >= since
            if not missing and is_compared:
                return missing
            if now >= next_check:
                ensure_mirror()
                next_check = now + ENSURE_EVERY
            has_failed = status.failures and status.failed_at >= started_at and self.is_alive()
            is_late = status.is_refused or status.next_try - time.time() > end - now
            is_hopeless = missing and is_compared and len(self.refused(missing)) == len(missing)
            if now >= end or is_hopeless or (has_failed and is_late) or (notify is not None and notify(missing)):
                return missing
            time.sleep(min(POLL, max(0.0, end - self._clock())))


def _merged(records: list[Mirrored]) -> Mirrored:
    """What several hosts have brought, by the greatest length; what one of them has brought is not refused."""
    files: dict[str, int] = {}
    for record in records:
        files |= {path: max(length, files.get(path, 0)) for path, length in record.files.items()}
    refused = {path: why for record in records for path, why in record.refused.items() if path not in files}
    return Mirrored(files, refused)
