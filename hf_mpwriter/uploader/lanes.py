"""Lanes: what waits to be sent, in batches. Event files take one lane, attachments the other.

    started(batch)          a push of it starts
    done(batch)             the Hub has it
    failed(verdict, batch)  it has not: wait; a refused batch is split, a file that is refused alone is quarantined

Both lanes share `Lane`, in which splitting, waiting and refusals stand once. A push carries a batch of one lane. This
module owns the lane of event files: its batches are in the outbox.

    100 files --refused--> 50 --refused--> 25 ... 1 --413--> half of what is new of it ... one record --> quarantined

Invariants:
- A batch that is refused as a whole (Split) is replaced by its halves, until one file is left to blame. Of an event
  file that is too large (413), a shorter beginning of whole records goes first; the batch of the whole file stays.
- A file is quarantined when the Hub refuses it alone, or names it. When it is tried again, it is alone in its batch,
  behind all others; the later files of its writer wait until the Hub has it.
- A large file of another writer that cannot be copied waits, or is quarantined; see `snapshot/large_files`.
- Batches that are older than the last failure, or made for faster commits, are not sent: a scan replaces them. Halves
  of a refused batch, and what waits while a request may still be under way, are sent as they are.
"""

from __future__ import annotations

import abc
import dataclasses
import logging
import os
from collections.abc import Callable, Iterable, Sequence

from hf_mpwriter.base.files import LocalFile
from hf_mpwriter.base.settings import Settings
from hf_mpwriter.base.verdicts import Quarantine, Split, Verdict
from hf_mpwriter.events import framing
from hf_mpwriter.snapshot.event_files import EventFileScan, bounded, pending, writer_of
from hf_mpwriter.snapshot.large_files import NO_COPY, LargeFiles
from hf_mpwriter.spool.ledger import Ledger
from hf_mpwriter.spool.outbox import Batch, Outbox
from hf_mpwriter.spool.workers.members import Members
from hf_mpwriter.system import disk
from hf_mpwriter.uploader.decision import Outgoing
from hf_mpwriter.uploader.pacing import LARGEST, Backoff, BatchSize, Clocks, Retries, Step

logger = logging.getLogger("hf_mpwriter")

BLIND_SCANS = 12  # scans in a row that fail for a file that cannot be read, before it is left out


class Lane(abc.ABC):
    """One kind of content."""

    def __init__(self, ledger: Ledger, backoff: Backoff, retries: Retries) -> None:
        self._ledger, self.backoff, self._retries = ledger, backoff, retries
        self.commits, self.yielded = 0, False

    @property
    @abc.abstractmethod
    def batches(self) -> list[Batch]:
        """What waits, the next one first."""

    @property
    def settings(self) -> Settings:
        """How the run is uploaded: what the newest member wants."""
        return self._ledger.settings or Settings()

    @abc.abstractmethod
    def started(self, batch: Batch) -> None:
        """A push of a batch starts."""

    @abc.abstractmethod
    def done(self, batch: Batch, *, committed: bool) -> None:
        """The Hub has a batch; `committed` if that took a commit."""
        self.commits += committed

    def failed(self, verdict: Verdict, batch: Batch) -> tuple[Verdict, Step]:
        """A push has failed: the verdict, a Quarantine instead of a Split of one file; when to try again.

        Once the ledger is saved, what is quarantined is to be dropped.
        """
        certain = isinstance(verdict, Quarantine)
        if isinstance(verdict, Split):
            verdict = self._refused(verdict, batch)
        if isinstance(verdict, Quarantine):
            for path, reason in verdict.paths.items():
                self._retries.refused(path, reason, certain=certain)
        return verdict, self.backoff.failed(verdict)

    def _refused(self, verdict: Split, batch: Batch) -> Verdict:
        """Split a refused batch; a single file is shortened or quarantined."""
        if len(batch.files) > 1:
            self._halve(batch)
            return verdict
        if verdict.too_large and self._shorten(batch):
            return verdict
        return Quarantine({batch.files[0].path: verdict.reason})

    def _shorten(self, batch: Batch) -> bool:  # noqa: ARG002 - of an attachment a part is of no use
        """Put less of a file in front of a batch of it, if that can be."""
        return False

    @abc.abstractmethod
    def drop(self, batch: Batch) -> None:
        """Forget a batch."""

    @abc.abstractmethod
    def _halve(self, batch: Batch) -> None:
        """Put two halves in the place of a batch."""


class EventFileLane(Lane):
    """The event files of a run."""

    def __init__(self, outbox: Outbox, ledger: Ledger, backoff: Backoff, retries: Retries, clocks: Clocks) -> None:
        super().__init__(ledger, backoff, retries)
        self._outbox, self._scan = outbox, EventFileScan(outbox.run, ledger.length)
        self._size, self._time_there = BatchSize(clocks.now), clocks.there
        self._large = LargeFiles(outbox.run, outbox.directory, clocks.now)
        self._too_large: dict[str, int] = {}  # the least length that the Hub has refused for its size
        self._up_to_date = self._splitting = self.has_scanned = False
        self.blind_scans = BLIND_SCANS  # scans in a row that may fail for what cannot be read

    @property
    def batches(self) -> list[Batch]:
        """What waits in the outbox, the oldest first."""
        return self._outbox.batches

    @property
    def other_runs(self) -> list[str]:
        """Relative paths of the folders of other runs that the last scan has passed over."""
        return self._scan.other_runs

    @property
    def outgoing(self) -> Outgoing:
        """The state of the batches."""
        if not self.batches:
            return Outgoing.NONE
        if self._splitting:
            return Outgoing.SPLIT
        return Outgoing.READY if self._up_to_date else Outgoing.STALE

    def started(self, batch: Batch) -> None:
        """A push of a batch starts."""
        self._size.started()
        self._large.started(batch.files)

    def scan(self, members: Members, takes: Callable[[str], bool], *, everything: bool = False) -> list[LocalFile]:
        """Put what the Hub lacks of the files that this host takes into the outbox; all event files of these."""
        allows = self.settings.allows
        files = self._scan.files(lambda path: allows(path) and takes(path), members.growing, self.blind_scans)
        files = self._scan.with_quiet(files, self._ledger.covers, self._time_there)
        later = self._leave_large(files, everything=everything)
        waiting = pending(files, self._ledger.covers, self._ledger.quarantined.keys() | later)
        self._outbox.put([*self._grouped(waiting), *([file] for file in self._again(files, later))])
        if self._outbox.trouble:
            logger.info(self._outbox.trouble)
        self._up_to_date = self.has_scanned = True
        return files

    def _grouped(self, files: Iterable[LocalFile]) -> list[list[LocalFile]]:
        return bounded(files, self._size.files, LARGEST)

    def _again(self, files: list[LocalFile], later: set[str]) -> list[LocalFile]:
        """Of the refused files those that are tried now, at most one of a writer."""
        if not (due := self._retries.due(attachments=False)):
            return []
        out = (self._ledger.quarantined.keys() - due) | later
        first: dict[tuple[str, str], LocalFile] = {}
        # what the ledger covers, too: the Hub's copy was another one, so only the Hub knows whether it still is
        for file in pending(files, lambda file: file.path not in due and self._ledger.covers(file), out):
            if file.path in due:
                first.setdefault(writer_of(file.path), file)
        self._retries.postpone(due - {file.path for file in first.values()})
        return list(first.values())

    def _leave_large(self, files: list[LocalFile], *, everything: bool) -> set[str]:
        """The large files that are left for later; quarantined for as long as they cannot be sent at all."""
        lacking = [file for file in files if not self._ledger.covers(file)]
        later = self._large.left_for_later(lacking, everything=everything)
        for path, entry in list(self._ledger.quarantined.items()):  # perhaps of an earlier uploader
            if entry.reason.startswith(NO_COPY) and not later.get(path):
                self._ledger.release(path)
        for path, reason in later.items():
            if reason:
                self._retries.left_out(path, reason)
        return set(later)

    def require_scan(self) -> None:
        """Scan again before the next push: it comes late, or something has failed."""
        self._up_to_date = False

    def done(self, batch: Batch, *, committed: bool) -> None:
        """The Hub has a batch; what waits behind it is of the same scan."""
        super().done(batch, committed=committed)
        in_time = not committed or self._size.done(len(batch.files))
        if all(map(self._ledger.covers, batch.files)):
            self._outbox.remove(batch)
        for path in [path for path, least in self._too_large.items() if self._ledger.length(path) >= least]:
            del self._too_large[path]
        self._splitting = self._splitting and bool(self.batches)
        self._up_to_date = bool(self.batches) and in_time  # what waits was made in the hope of faster commits

    def failed(self, verdict: Verdict, batch: Batch) -> tuple[Verdict, Step]:
        """Take in that a push of a batch has failed."""
        self._size.failed(verdict, len(batch.files))
        verdict, step = super().failed(verdict, batch)
        if not isinstance(verdict, (Quarantine, Split)):
            self._splitting = False
        return verdict, step

    def drop(self, batch: Batch) -> None:
        """Take a batch out of the outbox, and all others with a refused file or a later one of its writer.

        The next scan finds the rest.
        """
        first = {writer_of(path): path for path in sorted(self._ledger.quarantined, reverse=True)}
        for other in self.batches:
            writers = {writer_of(file.path): file.path for file in other.files}
            if other is batch or any(path >= first[writer] for writer, path in writers.items() if writer in first):
                self._outbox.remove(other)
        self._splitting = self._splitting and bool(self.batches)

    def _shorten(self, batch: Batch) -> bool:
        (file,) = batch.files
        least = self._too_large[file.path] = min(file.length, self._too_large.get(file.path, file.length))
        try:
            fd = disk.open_beneath(self._outbox.run / file.path)
            try:
                end = framing.middle(fd, self._ledger.length(file.path), least)
            finally:
                os.close(fd)
            if end:
                self._outbox.shorten(batch, dataclasses.replace(file, length=end, growing=True))
                self._splitting = True
        except OSError as error:  # as in `_halve`
            logger.info("cannot shorten batch %s: %s", batch.number, error)
            return False
        return bool(end)

    def _halve(self, batch: Batch) -> None:
        try:
            self._outbox.split(batch, self._behind(batch))
            self._splitting = True
        except OSError as error:  # a file is gone: the next scan knows
            logger.info("cannot split batch %s: %s", batch.number, error)

    def _behind(self, batch: Batch) -> list[Sequence[LocalFile]]:
        """What waits behind a refused batch, grouped anew; files that were refused before stay alone."""
        files = [file for other in self.batches if other is not batch for file in other.files]
        again = [file for file in files if file.path in self._ledger.quarantined]
        return [*self._grouped(file for file in files if file not in again), *([file] for file in again)]
