"""Messages: all that a worker tells while training runs. The end is told by `ending`.

    at the start     a variable of ours that does not exist, or is neither on nor off; that nothing is uploaded; what is
                     switched on and needs a package; where a run is kept that is not kept in its logdir
    housekeeping     where the run goes, notices of the uploader, when an outage begins, when it is over
    the last end     done: 8.3 kB in 3 commits: LINK, alone if it comes before it was told where the run goes
    after it         what becomes of records that come then, from a hook or `__del__`

What concerns the process is told at the start by rank 0, or by a process alone: there is no reporter yet. What concerns
the run is told by the reporter; what goes wrong also by the first rank of every other node. It comes with the next
housekeeping, so with the next call of the user: no thread waits for it. The words are in `delivery/sentences`.

Invariants:
- A refusal is told at once, as a person has to help. Anything else that fails once and then works is no outage: it is
  told when it has failed again, or for NOTABLE seconds.
- Failures of an uploader of an earlier attempt are not told, unless it still tries.
- Public or private is said when the Hub has said it. Where that is not known yet, nothing is guessed, and no link is
  given to a repository whose namespace only the Hub knows.
- What an outage costs is told with its whole length: uploaders may take turns while it lasts.
- A notice is told once. The last number that was told is recorded per host, so an uploader that is replaced, one on
  another host, or a run that is resumed neither repeats nor hides anything. Without a record, what was there before the
  worker is old news, except of the last RECENT seconds: another rank may have been faster.
"""

from __future__ import annotations

import importlib.util
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

from hf_mpwriter.base.settings import (
    DEFAULT_ALLOW_PATTERNS,
    OFFLINE,
    Destination,
    Settings,
    unclear_switches,
    unknown_variables,
)
from hf_mpwriter.base.storage import Layout, Storage
from hf_mpwriter.base.verdicts import Refused
from hf_mpwriter.base.words import duration
from hf_mpwriter.delivery.sentences import TRIES_AGAIN, beginning, done, late, lost_text, outage
from hf_mpwriter.delivery.sinks import HubSink, LogdirSink, name_of
from hf_mpwriter.events.deferred_log import logger
from hf_mpwriter.spool.layout import Spool
from hf_mpwriter.spool.ledger import Ledger
from hf_mpwriter.spool.status import SILENCE, SILENT_FOR, NumberedNotice, UploaderStatus
from hf_mpwriter.spool.workers.losses import losses
from hf_mpwriter.system import contact
from hf_mpwriter.system.interrupts import suppress
from hf_mpwriter.worker.membership import Membership
from hf_mpwriter.worker.patience import ends_here
from hf_mpwriter.worker.reporter import Reporter, ToldRecord
from hf_mpwriter.worker.role import current_role

NOTABLE = 10.0  # seconds without a success, from which on a failure is an outage
RECENT = 60.0  # seconds before the start of a worker from which notices are still told
DISABLED = "HF_MPWRITER_DISABLED"
NVIDIA = "/proc/driver/nvidia"  # there is one where NVIDIA's driver is loaded

Stamp = tuple[int, int]  # inode and mtime (ns) of a file
_told: set[str] = set()  # what the process has told of itself; a forked child inherits it, so it tells nothing again


class Messages:
    """What one worker tells of its run while it has a destination."""

    def __init__(
        self, membership: Membership, reporter: Reporter, started_at: float, clock: Callable[[], float] = time.time
    ) -> None:
        self._membership, self._reporter, self._started_at, self._clock = membership, reporter, started_at, clock
        self._seen: dict[str, tuple[Stamp, UploaderStatus]] = {}  # of the uploader of each host
        self._has_begun, self._since = False, 0.0
        self.told = ""  # what the user knows of an outage that goes on, "" if there is none
        self._is_unrecorded = False  # whether a full disk has refused the record of the outage that was told
        self._lost = 0  # records of which was told that they are lost
        self._numbers: dict[str, int] | None = None  # of the last notice that was told, per host

    @property
    def _spool(self) -> Spool:
        return self._membership.spool

    def tell(self, *, at_end: bool = False) -> None:
        """Log what is new, as far as it is for this process to tell it; a wait at the end tells of outages itself."""
        if self._membership.destination is not None:
            self._look()
            self._tell_notices()
            if not at_end:
                self._tell_upload(self._membership.destination)

    def _look(self) -> None:
        """Read what uploaders have to tell, where a file has changed."""
        seen = {}
        for host, stamp in _stamps(self._spool).items():
            known = self._seen.get(host)
            seen[host] = known if known and known[0] == stamp else (stamp, UploaderStatus.read(self._spool.host(host)))
        self._seen = seen  # as a whole: another thread may tell, too

    # notices

    def _tell_notices(self) -> None:
        told = self._spool.told
        if self._numbers is None:
            old = {host: self._last_old(host) for host in _hosts(self._spool)}
            self._numbers = old | ToldRecord.read(told).numbers
        if not self._news(self._numbers):
            return
        record = ToldRecord.read(told)
        for host in self._seen:
            self._numbers[host] = max(self._numbers.get(host, 0), record.numbers.get(host, 0))
        news = self._news(self._numbers) if self._reporter.reports else []
        for host, notice in news:
            self._numbers[host] = notice.number
            logger.warning("%s", notice.line)
        if news:
            replace(record, numbers=record.numbers | self._numbers).save(told)

    def _last_old(self, host: str) -> int:
        notices = self._seen[host][1].notices if host in self._seen else ()
        return max((notice.number for notice in notices if notice.time < self._started_at - RECENT), default=0)

    def _news(self, numbers: Mapping[str, int]) -> list[tuple[str, NumberedNotice]]:
        """The notices of all hosts behind those numbers."""
        found = ((host, notice) for host, (_, status) in self._seen.items() for notice in status.notices)
        return [(host, notice) for host, notice in found if notice.number > numbers.get(host, 0)]

    # the upload

    def _tell_upload(self, destination: Destination) -> None:
        seen = self._seen
        heard = [(stamp[1], host) for host, (stamp, _) in seen.items()]
        newest = UploaderStatus.newest_of(heard, lambda host: seen[host][1])
        status = newest.or_full(self._spool, self._clock(), SILENT_FOR)
        fails = is_outage(status, self._started_at, self._clock())
        if fails:
            self._since = min(self._since or status.failing_since, status.failing_since)
        begins = not self._has_begun and (status.private is not None or (fails and not status.why.startswith(OFFLINE)))
        fails = fails and not self._is_told(status)
        ends = self._since > 0 and not status.kind and status.succeeded_at >= self._since
        if begins or fails or ends:
            self._tell_change(destination, status, begins=begins, fails=fails, ends=ends)

    def _tell_change(
        self, destination: Destination, status: UploaderStatus, *, begins: bool, fails: bool, ends: bool
    ) -> None:
        """Log what this process is to tell of a change, and no other has told."""
        watch, now, lines = self._reporter.watch, self._clock(), list[tuple[Callable[..., None], str]]()
        record = ToldRecord.read(watch or self._spool.told)
        if record.start >= self._started_at:
            begins, self._has_begun = False, True
        if fails and record.outage >= self._started_at and record.why == status.why:
            fails, self.told = False, status.why
        if ends and not record.outage and not self._is_unrecorded:
            ends, self._since, self.told = False, 0.0, ""
        if watch is None:
            return
        if begins and self._reporter.reports:  # who does not report may have to tell it later
            self._has_begun, record = True, replace(record, start=now)
            lines.append((logger.info, self._beginning(destination, status)))
        if fails:
            record, self.told = replace(record, outage=now, why=status.why), status.why
            lines.append((logger.warning, outage(status, log_of(self._spool, status))))
        if ends:
            record, self.told = replace(record, outage=0.0, why=""), ""
            took = duration(max(1.0, status.succeeded_at - self._since))
            self._since = 0.0
            lines.append((logger.info, f"uploading again, after {took}"))
        if lines:
            self._is_unrecorded = not record.save(watch) and fails  # before a handler of the user may raise
        for log, text in lines:
            log("%s", text)

    def _is_told(self, status: UploaderStatus) -> bool:
        """Whether this outage was told: once, and again if only now a person has to help."""
        return bool(self.told) and (status.kind != Refused.__name__ or self.told == status.why)

    # around a wait at the end

    def begin(self) -> None:
        """Tell where the run goes, if this process reports and that was not told yet: the first line of all."""
        destination, status = self._membership.destination, UploaderStatus.newest(self._spool)
        if destination is None or self._has_begun or not self._reporter.reports:
            return
        record, self._has_begun = ToldRecord.read(self._spool.told), True
        if record.start < self._started_at:
            replace(record, start=self._clock()).save(self._spool.told)
            logger.info("%s", self._beginning(destination, status))

    def _beginning(self, asked: Destination, status: UploaderStatus) -> str:
        to, live = self._spool.destination_of(asked), self._membership.settings.live
        return beginning(self._spool.logdir, to, status, live)

    def done(self, ledger: Ledger, left_at: float) -> None:
        """Tell that all is there, once: the last member has left, at a unix time."""
        destination, record = self._membership.destination, ToldRecord.read(self._spool.told)
        if self._membership.has_logged:
            is_told = record.done >= left_at
        else:  # its children may have logged
            is_told = not ledger.has_grown(max(self._started_at, record.done))
        if destination is None or is_told:
            return
        has_begun = self._has_begun or record.start >= self._started_at
        start, self._has_begun = record.start if has_begun else self._clock(), True
        replace(record, start=start, done=time.time()).save(self._spool.told)
        logger.info("%s", done(ledger, self._spool.destination_of(destination), has_begun=has_begun))

    def late(self) -> None:
        """Tell what becomes of records that came after the end was told: the reporter, or who has to warn."""
        logdir, ends_with = LogdirSink(self._spool), "" if contact.supervisor() else ends_here()
        alive = {"uploader": HubSink(self._spool).is_alive()} if self._membership.uploads else {}
        alive |= {"mirror": logdir.is_alive()} if logdir.is_staged else {}
        lacks = [f"and no {name} runs any more" for name, lives in alive.items() if not lives]
        lacks += [f"and the {name} ends with {ends_with}" for name in alive if ends_with]
        if lacks or self._reporter.reports:
            text = late(name_of(self._spool), next(iter(lacks), ""))
            (logger.warning if lacks else logger.info)("%s%s", self._reporter.label, text)

    def tell_lost(self) -> None:
        """Tell what the run has lost, in this attempt or an earlier one, unless a person has seen it."""
        found = losses(self._spool)
        told, self._lost = self._lost, sum(loss.records for loss in found)
        if self._lost > told:
            logger.warning("%s: %s", self._spool.logdir, lost_text(found, self._spool.logdir))


def is_outage(status: UploaderStatus, started_at: float, now: float) -> bool:
    """Whether nothing gets to the Hub, as far as it concerns a worker."""
    if not status.failing_since:
        return False
    is_new = status.failed_at >= started_at
    if status.kind == Refused.__name__:
        return is_new
    tries = not status.is_over and now - status.beat < SILENCE
    lasts = status.failures > 1 or now - status.failing_since >= NOTABLE
    return status.kind in TRIES_AGAIN and lasts and (is_new or tries)


def url_of(spool: Spool, asked: Destination) -> str:
    """The page on the Hub of a run whose writers ask for a destination.

    With the folder that an uploader has settled, and the full name of the repository that a push has resolved.
    """
    return spool.destination_of(asked).resolved(UploaderStatus.newest(spool).repo_id).url


def log_of(spool: Spool, status: UploaderStatus) -> str:
    """The path of the log of an uploader."""
    return os.fspath(spool.host(status.process.host if status.process else "").daemon("uploader").log)


def _hosts(spool: Spool) -> list[str]:
    with suppress(OSError):
        return spool.host_ids()
    return []


def _stamps(spool: Spool) -> dict[str, Stamp]:
    """Whether the status of an uploader has changed, for each host."""
    found = dict[str, Stamp]()
    for host in _hosts(spool):
        with suppress(OSError):
            status = spool.host(host).daemon("uploader").status.stat()
            found[host] = status.st_ino, status.st_mtime_ns
    return found


# of the process, at the start


def tell_environment(rank: int | None = None, *, disabled: bool, environ: Mapping[str, str] = os.environ) -> None:
    """Tell once what is wrong with our variables, and that uploads are disabled."""
    warnings = {name: text for name, text in _warnings(environ) if name not in _told}
    says_disabled = disabled and DISABLED not in _told
    if not warnings and not says_disabled:
        return
    _told.update(warnings, [DISABLED] if disabled else [])
    if not _is_first(rank):
        return
    for text in warnings.values():
        logger.warning("%s", text)
    if says_disabled:
        logger.info("disabled by %s: nothing is uploaded", DISABLED)


def _warnings(environ: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    for name in unknown_variables(environ):
        yield name, f"{name} is set, but hf_mpwriter has no such variable."
    for name, value in unclear_switches(environ).items():
        yield name, f"{name} is {value!r}, which is neither on nor off, and counts as off. On is 1, off is 0."


def tell_idle(settings: Settings, rank: int | None = None) -> None:
    """Tell once that system metrics lack the GPUs of NVIDIA that this machine has; nothing is imported to know it."""
    if settings.system_metrics and "gpu" not in _told and os.path.isdir(NVIDIA):
        _told.add("gpu")
        if importlib.util.find_spec("pynvml") is None and _is_first(rank):
            logger.warning("system_metrics leaves out the GPUs of this machine: pip install nvidia-ml-py")


def tell_storage(storage: Storage, settings: Settings, rank: int | None, *, uploads: bool) -> None:
    """Tell where a run is kept, if that is not its logdir."""
    text = announcement(storage, settings, uploads=uploads)
    if text and _is_first(rank):
        logger.warning("%s", text)
        logger.flush()


def announcement(storage: Storage, settings: Settings, *, uploads: bool) -> str:
    """Where a run is kept, and what that means; "" if it is in its logdir, and nothing of it in a refused place."""
    if storage.layout is Layout.DIRECT:
        return f"{storage.logdir}: {storage.refused}" if storage.refused else ""
    refused = f" {storage.refused}" if storage.refused else ""
    if storage.layout is Layout.LOCAL_SPOOL:
        kept = f"Locks and the state of the upload are kept in {storage.spool}"
        return f"{storage.logdir}: {storage.why}. {kept}, and each host uploads what it has written.{refused}"
    every = f"every {settings.commit_every:g} minutes, less often in a long run, at push() and at the end"
    text = f"Event files are written to {storage.run_dir}, and copied to the logdir {every}"
    lost = "If this machine is lost, so is what it has logged since"
    others = uploads and settings.allow_patterns != DEFAULT_ALLOW_PATTERNS
    more = " Of other files, those in that directory are uploaded, and none that is in the logdir." if others else ""
    return f"{storage.logdir}: {storage.why}. {text}. {lost}.{more}{refused}"


def _is_first(rank: int | None) -> bool:
    """Whether this process is rank 0 or a process alone."""
    role = current_role(rank)
    return not role.is_child and not role.rank
