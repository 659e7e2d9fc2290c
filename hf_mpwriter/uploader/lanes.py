"""Lanes: what waits to be sent, in batches. Event files take one lane, attachments the other.

    start                   the batch that is to be pushed
    done(batch)             the Hub has it
    failed(verdict, batch)  it has not: wait; a refused batch is split, a file that is refused alone is quarantined

Both lanes share `Lane`, in which splitting, waiting and counting refusals stand once. A push carries a batch of one
lane. This module owns the lane of event files: its batches are in the outbox.

Invariants:
- A batch that is refused as a whole (Split) is replaced by its halves, until one file is left to blame.
- A file is quarantined when the Hub has refused it alone REFUSALS times in a row, or names it.
- A large file of another writer that cannot be copied now waits, see `snapshot/large_files`. It is quarantined while it
  cannot be copied at all.
- Batches that are older than the last failure are not sent: a scan replaces them. Halves of a refused batch, and what
  waits while a request may still be under way, are sent as they are.
"""

from __future__ import annotations

import abc
import logging
import time
from collections.abc import Callable

from hf_mpwriter.base.files import LocalFile
from hf_mpwriter.base.settings import Settings
from hf_mpwriter.base.verdicts import Quarantine, Split, Verdict
from hf_mpwriter.snapshot.event_files import EventFileScan, bounded, pending
from hf_mpwriter.snapshot.large_files import NO_COPY, LargeFiles
from hf_mpwriter.spool.ledger import Ledger
from hf_mpwriter.spool.members import Members
from hf_mpwriter.spool.outbox import Batch, Outbox
from hf_mpwriter.uploader.decision import Outgoing
from hf_mpwriter.uploader.pacing import Backoff, Step

logger = logging.getLogger("hf_mpwriter")

REFUSALS = 3  # times in a row that the Hub must refuse a file alone before it is quarantined
BLIND_SCANS = 12  # scans in a row that fail for a file that cannot be read, before it is left out


class Lane(abc.ABC):
    """One kind of content.

    Args:
        ledger: what the Hub is known to hold.
        backoff: the waits after failures.

    Attributes:
        commits: made for this lane by this uploader.
        yielded: whether the last push was ended for the other lane.
    """

    def __init__(self, ledger: Ledger, backoff: Backoff) -> None:
        self._ledger, self.backoff = ledger, backoff
        self._refusals: dict[str, int] = {}  # path -> times in a row that the Hub refused it alone
        self.commits, self.yielded = 0, False

    @property
    @abc.abstractmethod
    def batches(self) -> list[Batch]:
        """What waits, the next one first."""

    @property
    def settings(self) -> Settings:
        """How the run is uploaded: what the newest member wants."""
        return self._ledger.settings or Settings()

    def start(self) -> Batch:
        """The batch whose push starts now; there must be one."""
        return self.batches[0]

    @abc.abstractmethod
    def done(self, batch: Batch, *, committed: bool) -> None:
        """The Hub has a batch; `committed` if that took a commit."""
        self.commits += committed
        for file in batch.files:
            self._refusals.pop(file.path, None)

    def failed(self, verdict: Verdict, batch: Batch) -> tuple[Verdict, Step]:
        """Take in that a push has failed.

        Returns:
            The verdict, Quarantine instead of Split when a file was refused too often: once the ledger is saved, the
            batch is to be dropped. And when to try again.
        """
        if isinstance(verdict, Split):
            verdict = self._refused(verdict, batch)
        if isinstance(verdict, Quarantine):
            for path, reason in verdict.paths.items():
                logger.info("%s is refused: %s", path, reason)
                self._refusals.pop(path, None)
            self._ledger.quarantined |= verdict.paths
        return verdict, self.backoff.failed(verdict)

    def _refused(self, verdict: Split, batch: Batch) -> Verdict:
        """Split a refused batch; a single file is quarantined in the end."""
        if len(batch.files) > 1:
            self._halve(batch)
            return verdict
        path = batch.files[0].path
        self._refusals[path] = self._refusals.get(path, 0) + 1
        return verdict if self._refusals[path] < REFUSALS else Quarantine({path: verdict.reason})

    @abc.abstractmethod
    def drop(self, batch: Batch) -> None:
        """Forget a batch."""

    @abc.abstractmethod
    def _halve(self, batch: Batch) -> None:
        """Put two halves in the place of a batch."""


class EventFileLane(Lane):
    """The event files of a run.

    Args:
        run_dir: absolute path.
        outbox: keeps the batches.
        ledger: what the Hub is known to hold.
        backoff: the waits after failures.
        clock: monotonic seconds.

    Attributes:
        has_scanned: whether a scan was made since the ledger last lost something.
        blind_scans: scans in a row that may fail for what cannot be read.
    """

    def __init__(
        self,
        run_dir: str,
        outbox: Outbox,
        ledger: Ledger,
        backoff: Backoff,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(ledger, backoff)
        self._outbox, self._scan = outbox, EventFileScan(run_dir)
        self._large = LargeFiles(run_dir, outbox.directory, clock)
        self._up_to_date = self._splitting = self.has_scanned = False
        self.blind_scans = BLIND_SCANS

    @property
    def batches(self) -> list[Batch]:
        """What waits in the outbox, the oldest first."""
        return self._outbox.batches

    @property
    def outgoing(self) -> Outgoing:
        """The state of the batches."""
        if not self.batches:
            return Outgoing.NONE
        if self._splitting:
            return Outgoing.SPLIT
        return Outgoing.READY if self._up_to_date else Outgoing.STALE

    def start(self) -> Batch:
        """The batch whose push starts now."""
        batch = super().start()
        self._large.started(batch.files)
        return batch

    def scan(self, members: Members, *, everything: bool = False) -> list[LocalFile]:
        """Put what the Hub lacks into the outbox; all event files that are there.

        Args:
            members: of the run.
            everything: see `LargeFiles.left_for_later`.

        Raises:
            OSError: a file cannot be read or made durable; the outbox is as it was.
        """
        files = self._scan.files(self.settings.allows, members.growing, self.blind_scans)
        later = self._leave_large(files, everything=everything)
        waiting = pending(files, self._ledger.covers, self._ledger.quarantined.keys() | later)
        self._outbox.put(bounded(waiting))
        if self._outbox.trouble:
            logger.info(self._outbox.trouble)
        self._up_to_date = self.has_scanned = True
        return files

    def _leave_large(self, files: list[LocalFile], *, everything: bool) -> set[str]:
        """The large files that are left for later; quarantined for as long as they cannot be sent at all."""
        lacking = [file for file in files if not self._ledger.covers(file)]
        later = self._large.left_for_later(lacking, everything=everything)
        reasons = {path: reason for path, reason in later.items() if reason}
        for path, reason in list(self._ledger.quarantined.items()):  # perhaps of an earlier uploader
            if reason.startswith(NO_COPY) and path not in reasons:
                del self._ledger.quarantined[path]
        for path, reason in reasons.items():
            if self._ledger.quarantined.get(path) != reason:
                logger.info("%s is left out: %s", path, reason)
        self._ledger.quarantined |= reasons
        return set(later)

    def require_scan(self) -> None:
        """Scan again before the next push: it comes late, or something has failed."""
        self._up_to_date = False

    def done(self, batch: Batch, *, committed: bool) -> None:
        """The Hub has a batch; what waits behind it is of the same scan."""
        super().done(batch, committed=committed)
        if all(map(self._ledger.covers, batch.files)):
            self._outbox.remove(batch)
        self._end_split()
        self._up_to_date = bool(self.batches)

    def failed(self, verdict: Verdict, batch: Batch) -> tuple[Verdict, Step]:
        """Take in that a push of a batch has failed."""
        verdict, step = super().failed(verdict, batch)
        if not isinstance(verdict, (Quarantine, Split)):
            self._splitting = False
        return verdict, step

    def drop(self, batch: Batch) -> None:
        """Take a batch out of the outbox; the next scan finds again what was not refused of it."""
        self._outbox.remove(batch)
        self._end_split()

    def _end_split(self) -> None:
        self._splitting = self._splitting and bool(self.batches)

    def _halve(self, batch: Batch) -> None:
        try:
            self._outbox.split(batch)
            self._splitting = True
        except OSError as error:  # a file is gone: the next scan knows
            logger.info("cannot split batch %s: %s", batch.number, error)
