"""Progress: how much of a run directory is on the Hub, read from the ledgers without asking anybody.

Used by whoever waits: the end of a process, `scheduler.trigger()`, `hf-mpwriter sync` and `status`.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from hf_mpwriter.base.errors import SpoolFormatError
from hf_mpwriter.base.names import is_attachment
from hf_mpwriter.base.settings import Destination
from hf_mpwriter.base.verdicts import Refused
from hf_mpwriter.snapshot.attachments import stamp_of
from hf_mpwriter.snapshot.event_files import writer_of
from hf_mpwriter.spool.layout import Spool
from hf_mpwriter.spool.ledger import Ledger, load
from hf_mpwriter.spool.status import UploaderStatus
from hf_mpwriter.system import locks
from hf_mpwriter.system.process import host_id

POLL = 0.05  # seconds between two looks at the ledger while waiting
ENSURE_EVERY = 1.0  # seconds between two checks, while waiting, that an uploader lives
NEVER = -1.0  # unix time; every ledger is believed


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
        except (SpoolFormatError, OSError):
            return None

    def changes(self, paths: Iterable[str]) -> dict[str, int]:
        """The ctime (ns) of each attachment, as the filesystem tells it; those that are not there are left out."""
        found = {}
        for path in filter(is_attachment, paths):
            with contextlib.suppress(OSError):
                found[path] = os.stat(os.path.join(self._spool.run_dir, path), follow_symlinks=False).st_ctime_ns
        return found

    def missing(
        self, lengths: Mapping[str, int], since: float = NEVER, asked: Mapping[str, int] | None = None
    ) -> dict[str, int]:
        """Bytes per path of `lengths` that the Hub does not have yet.

        Args:
            lengths: bytes per path; of an attachment all are missing, or none.
            since: a ledger that was not compared with the Hub again after it was at this time is not believed.
            asked: from `changes`; an attachment need not be there as it has become after that.
        """
        book = self.ledger()
        if book is None or book.checked <= since:
            return {path: length for path, length in lengths.items() if length or is_attachment(path)}
        missing = {}
        for path, length in lengths.items():
            if is_attachment(path):
                if not self._has_arrived(book, path, (asked or {}).get(path)):
                    missing[path] = length
            elif length > book.length(path):
                missing[path] = length - book.length(path)
        return missing

    def _has_arrived(self, book: Ledger, path: str, asked: int | None) -> bool:
        """Whether the Hub has an attachment as it is now, or as it became after `asked`.

        The file that was sent is known by its stamp, so nobody who waits has to read it, and times are compared only
        with times of the same file. What has been removed is not waited for.
        """
        held = book.files.get(path)
        try:
            status = os.stat(os.path.join(self._spool.run_dir, path), follow_symlinks=False)
        except FileNotFoundError:
            return True
        except OSError:
            return False
        if held is None or not held.stamp or held.sent.is_gone or path in book.quarantined or path in book.uncertain:
            return False
        return held.stamp == stamp_of(status) or (asked is not None and held.stamp[-1] >= asked)

    def refused(self, missing: Mapping[str, int]) -> dict[str, str]:
        """Of what is missing, the paths that will not come by themselves, with the reason.

        These are quarantined ones, and the later event files of their writers, which wait for them.
        """
        book = self.ledger()
        quarantined = book.quarantined if book else {}
        first: dict[tuple[str, str], str] = {}  # what follows each other -> its first quarantined file: later ones wait
        for path in sorted(quarantined):
            if not is_attachment(path):
                first.setdefault(writer_of(path), path)
        found = {}
        for path in missing:
            before = path
            if path not in quarantined and not is_attachment(path):
                before = first.get(writer_of(path), path)
            if before in quarantined and before <= path:
                found[path] = f"{before}: {quarantined[before]}"
        return found

    def is_hopeless(self, missing: Mapping[str, int], since: float = NEVER) -> bool:
        """Whether all that is missing is refused; a refusal of `since` is tried again."""
        book = self.ledger()
        return book is not None and book.checked > since and len(self.refused(missing)) == len(missing)

    def uploader(self) -> UploaderStatus:
        """The latest status of this host's uploader."""
        return UploaderStatus.read(self._spool.host(host_id()))

    def uploader_is_alive(self) -> bool:
        """Whether an uploader lives."""
        try:
            return locks.is_held(self._spool.uploader_lock)
        except OSError:
            return False


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
    ensure_uploader: Callable[[], object],
    tell: Callable[[dict[str, int]], object] | None = None,
    clock: Callable[[], float] = time.monotonic,
    since: float = NEVER,
    asked: Mapping[str, int] | None = None,
) -> dict[str, int]:
    """Wait until the Hub has these lengths, and these attachments as they are now or were later.

    Args:
        progress: view of the run.
        lengths: bytes per path.
        timeout: seconds.
        ensure_uploader: called every second, makes sure that an uploader lives.
        tell: called at every poll with what is missing; what it raises ends the wait.
        clock: monotonic seconds.
        since: see `Progress.missing`.
        asked: likewise; by default the attachments have to be there as they are now.

    Returns:
        What is missing at the end, {} if nothing is. The wait is not begun when the next allowed try lies beyond it,
        and not gone on with when all that is missing, or the destination, was refused since it began.
    """
    end, began = clock() + timeout, time.time()
    next_check, asked = 0.0, progress.changes(lengths) if asked is None else asked
    while missing := progress.missing(lengths, since, asked):
        now, report = clock(), progress.uploader()
        if now >= end or report.blocked_until > end or progress.is_hopeless(missing, since):
            break
        if report.kind == Refused.__name__ and report.failed_at >= began:
            break
        if now >= next_check:
            ensure_uploader()
            next_check = now + ENSURE_EVERY
        if tell is not None:
            tell(missing)
        time.sleep(POLL)
    return missing


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
