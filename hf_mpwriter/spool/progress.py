"""Progress: how much of a run directory is on the Hub.

    ledgers of all hosts  -->  missing, refused, is_hopeless     per path
    status of all hosts   -->  uploader                          what it does, why the last push failed
    both                  -->  wait, status

Everything that waits uses it: the end of a process, `scheduler.trigger()`, `hf-mpwriter sync` and `status`.

Invariants:
- It only reads. No request to the Hub and no reading of event files is needed.
- A wait ends: at its timeout, or as soon as nothing can come before that. A ledger of 200,000 paths takes seconds to
  read, so it is not read when that would end too late, and it takes a part of the time only.
"""

from __future__ import annotations

import contextlib
import math
import shlex
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from hf_mpwriter.base.errors import SpoolFormatError
from hf_mpwriter.base.names import is_attachment
from hf_mpwriter.base.settings import Destination
from hf_mpwriter.base.verdicts import Refused
from hf_mpwriter.snapshot.attachments import NEVER_SENT, stamp_of
from hf_mpwriter.snapshot.event_files import writer_of
from hf_mpwriter.spool.layout import Spool
from hf_mpwriter.spool.ledger import Ledger, Quarantined, load
from hf_mpwriter.spool.status import UploaderStatus
from hf_mpwriter.system import locks
from hf_mpwriter.system.directory import Place

POLL = 0.05  # seconds between two checks of the ledger while waiting
ENSURE_EVERY = 1.0  # seconds between two checks, while waiting, that an uploader lives
NEVER = -1  # before any comparison of a ledger with the Hub
NONE: Mapping[str, Quarantined] = {}  # refusals
LOAD_PAUSE = 4.0  # times as long as the processor was busy with reading the ledgers, until they are read again
CHECK_PAUSE = 4.0  # times as long as a check took, until the next one; at least POLL


class Progress:
    """A view of one run. The ledgers are read again when one of them changes."""

    def __init__(self, spool: Spool, clock: Callable[[], float] = time.monotonic) -> None:
        self._spool, self._clock = spool, clock
        # monotonic seconds; ledgers that were read before are not read again if that would take longer
        self.until = math.inf
        self._load_took = self._next_load = 0.0
        self._seen: list[tuple[str, int, int]] | None = None
        self._ledger: Ledger | None = None

    def ledger(self) -> Ledger | None:
        """What the Hub is known to hold; None while the run has no destination, or if that was never read."""
        with contextlib.suppress(OSError):  # the disk fails, or the spool is another user's now: nothing new is known
            self._read()
        return self._ledger

    def _read(self) -> None:
        seen = [(host, *_stamp(self._spool.host(host).ledger)) for host in self._spool.host_ids()]
        if self._ledger is None or (seen != self._seen and self._may_load()):
            started, busy = self._clock(), time.thread_time()
            destination = self._destination()
            self._ledger, self._seen = load(self._spool, destination) if destination else None, seen
            now, busy = self._clock(), time.thread_time() - busy
            self._load_took, self._next_load = now - started, now + LOAD_PAUSE * busy

    def _may_load(self) -> bool:
        now = self._clock()
        return now >= self._next_load and now + self._load_took <= self.until

    def _destination(self) -> Destination | None:
        try:
            return self._spool.destination()
        except (SpoolFormatError, OSError):
            return None

    def changes(self, paths: Iterable[str]) -> dict[str, int]:
        """The ctime (ns) of each attachment, without those that do not exist."""
        found = {}
        for path in filter(is_attachment, paths):
            with contextlib.suppress(OSError):
                found[path] = (self._spool.run / path).stat().st_ctime_ns
        return found

    def missing(
        self, lengths: Mapping[str, int], since: int = NEVER, asked: Mapping[str, int] | None = None
    ) -> dict[str, int]:
        """Bytes that the Hub does not have yet, per path."""
        ledger = self.ledger()
        if ledger is None or ledger.checked <= since:
            return {path: length for path, length in lengths.items() if length or is_attachment(path)}
        missing = {}
        for path, length in lengths.items():
            if is_attachment(path):
                if not self._has_arrived(ledger, path, (asked or {}).get(path)):
                    missing[path] = length
            elif length > ledger.length(path):
                missing[path] = length - ledger.length(path)
        return missing

    def _has_arrived(self, ledger: Ledger, path: str, asked: int | None) -> bool:
        """Whether the Hub has an attachment as it is now, or as it became after `asked`.

        The ledger knows the stamp of the file that was sent, so the file is not read, and times are compared only with
        times of the same file. A removed file is not waited for.
        """
        refused = ledger.quarantined.get(path)
        if refused is not None and refused.reason == NEVER_SENT:
            return True
        held = ledger.files.get(path)
        try:
            status = (self._spool.run / path).stat()
        except FileNotFoundError:
            return True
        except OSError:
            return False
        if held is None or not held.stamp or held.sent.is_gone or refused is not None or path in ledger.uncertain:
            return False
        return held.stamp == stamp_of(status) or (asked is not None and held.stamp[-1] >= asked)

    def refusals(self) -> dict[str, Quarantined]:
        """What is quarantined now, to see later what was refused since."""
        ledger = self.ledger()
        return dict(ledger.quarantined) if ledger else {}

    def refused(self, missing: Mapping[str, int], before: Mapping[str, Quarantined] = NONE) -> dict[str, str]:
        """The missing paths that will not arrive by themselves soon, with the reason.

        These are quarantined paths, and the later event files of their writers, which wait for them.
        """
        quarantined = {path: entry for path, entry in self.refusals().items() if entry != before.get(path)}
        first: dict[tuple[str, str], str] = {}  # writer -> its first quarantined event file: later ones wait
        for path in sorted(quarantined):
            if not is_attachment(path):
                first.setdefault(writer_of(path), path)
        found = {}
        for path in missing if quarantined else ():
            blocker = path
            if path not in quarantined and not is_attachment(path):
                blocker = first.get(writer_of(path), path)
            if blocker in quarantined and blocker <= path:
                found[path] = f"{blocker}: {quarantined[blocker].reason}"
        return found

    def is_hopeless(
        self, missing: Mapping[str, int], since: int = NEVER, before: Mapping[str, Quarantined] = NONE
    ) -> bool:
        """Whether all that is missing is refused; for the arguments see `missing` and `refused`."""
        ledger = self.ledger()
        return ledger is not None and ledger.checked > since and len(self.refused(missing, before)) == len(missing)

    def uploader(self) -> UploaderStatus:
        """The status of the uploader that was heard of last, on whichever host."""
        return UploaderStatus.newest(self._spool).or_full(self._spool, time.time())

    def uploader_is_alive(self) -> bool:
        """Whether an uploader lives."""
        try:
            return locks.is_held(self._spool.uploader_lock)
        except OSError:
            return False


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


def status(view: Progress, destination: Destination | None, logged: Logged) -> Status:
    """How much of what was logged is on the Hub."""
    total = sum(logged.lengths.values())
    waiting, errors = 0, [f"the disk refuses records: {logged.disk_error}."] if logged.disk_error else []
    errors.append(damage_text(view.missing(logged.damaged) if destination else logged.damaged))
    if destination is not None:
        waiting, uploader = sum(view.missing(logged.lengths).values()), view.uploader()
        errors.append(uploader.why)
        destination = ledger.resolved if (ledger := view.ledger()) else destination
    name, on_hub = (destination.url, total - waiting) if destination else ("", 0)
    return Status(name, total, on_hub, waiting, logged.dropped, " ".join(filter(None, errors)), logged.in_memory)


def damage_text(paths: Iterable[str]) -> str:
    """A sentence about files that were damaged before the Hub had them, "" if there are none."""
    named = ", ".join(paths)
    return f"records are lost: another program or the disk has changed {named:.300}." if named else ""


def wait(
    progress: Progress,
    lengths: Mapping[str, int],
    timeout: float,
    ensure_uploader: Callable[[], object],
    notify: Callable[[dict[str, int]], object] | None = None,
    clock: Callable[[], float] = time.monotonic,
    since: int = NEVER,
    asked: Mapping[str, int] | None = None,
    before: Mapping[str, Quarantined] | None = None,
    began_at: float | None = None,
) -> dict[str, int]:
    """Wait until the Hub has these lengths, and these attachments as they are now or became later.

    It ends early when the next push is not allowed before the timeout, and when all that is missing, or the
    destination, was refused after it had begun.
    What is missing at the end, {} if nothing is.
    """
    end, began_at = clock() + timeout, time.time() if began_at is None else began_at
    progress.until = end
    next_check, asked = 0.0, progress.changes(lengths) if asked is None else asked
    before = progress.refusals() if before is None else before
    while missing := progress.missing(lengths, since, asked):
        now, uploader = clock(), progress.uploader()
        is_refused = uploader.kind == Refused.__name__ and uploader.failed_at >= began_at
        if is_refused or now >= end or uploader.blocked_until > end or progress.is_hopeless(missing, since, before):
            break
        if now >= next_check:
            ensure_uploader()
            next_check = now + ENSURE_EVERY
        if notify is not None and notify(missing):
            break
        time.sleep(min(max(POLL, CHECK_PAUSE * (clock() - now)), max(0.0, end - clock())))
    return missing


def sync_command(run_dir: str) -> str:
    """The command that uploads what is missing, as it is typed into a shell."""
    return f"hf-mpwriter sync {shlex.quote(run_dir)}"


def size_text(count: float) -> str:
    """Bytes for people."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"


def _stamp(place: Place) -> tuple[int, int]:
    with contextlib.suppress(OSError):
        status = place.stat()
        return status.st_ino, status.st_mtime_ns
    return 0, 0
