"""Lanes: what waits to be sent, in batches. Event files take one lane, attachments the other.

    started(batch)          a push of it starts
    done(batch)             the Hub has it
    failed(verdict, batch)  it has not: a refused batch is split, a file that is refused alone is quarantined

Both lanes share `Lane`, in which splitting, waiting and refusals stand once. A push carries a batch of one lane. The
batches of event files are in the outbox, those of attachments in memory.

    100 files --refused--> 50 --refused--> 25 ... 1 --413--> half of what is new of it ... one record --> quarantined

Invariants:
- A batch that is refused as a whole (Split) is replaced by its halves, until one file is left to blame. Of an event
  file that is too large (413), a shorter beginning of whole records goes first; the batch of the whole file stays.
- A file is quarantined when the Hub refuses it alone, or names it. When it is tried again, it is alone in its batch,
  behind all others; the later files of its writer wait until the Hub has it. For one of another machine none waits.
- A large file of another writer that cannot be copied waits, or is quarantined; see `snapshot/large_files`.
- After a failure, or a slow commit, a scan makes the batches anew. Two kinds are sent unchanged: halves of a refused
  batch, and what waits during the settle time.

Attachments take the time that event files leave:

    round:  all allowed paths -> identify -> copy what the Hub lacks -> batch -> push -> go on -> over

- Attachments are scanned and sent only while no event file is due, and never in the same commit. Where commits of
  event files take all the time there is, attachments get a turn YIELD_AFTER after theirs was due.
- A push of attachments that is in the way of event files is ended after YIELD_AFTER, at SIGTERM at once, and repeated
  with less.
- While a worker lives there is one commit of attachments per `commit_every`. A request or an end brings the rest
  sooner.
- One scan reads SCAN_BYTES, then the uploader does something else. One batch at a time has copies, and it is bounded;
  from the second failure of its push on, it has none.
- Commits of attachments always name their parent, so none overwrites what was not read back.
- A request is answered by a round that started after it.
- A path that the Hub has refused is tried again alone, see `Retries`. One that cannot be read here is tried in each
  round.
"""

from __future__ import annotations

import abc
import dataclasses
import logging
import math
import os
from collections.abc import Callable, Collection, Iterable, Sequence

from hf_mpwriter.base.files import BATCH_BYTES, BATCH_FILES, BATCH_IN_MEMORY, LocalFile
from hf_mpwriter.base.names import is_attachment
from hf_mpwriter.base.settings import Settings
from hf_mpwriter.base.verdicts import Quarantine, Split, Unknown, Verdict
from hf_mpwriter.events import framing
from hf_mpwriter.snapshot.attachments import SCAN_BYTES, Attachments, Copies
from hf_mpwriter.snapshot.event_files import FOREIGN_BYTES, EventFileScan, bounded, pending, writer_of
from hf_mpwriter.snapshot.large_files import NO_COPY, LargeFiles
from hf_mpwriter.snapshot.search import Named
from hf_mpwriter.spool.layout import HostSpool, Spool
from hf_mpwriter.spool.ledger import Ledger
from hf_mpwriter.spool.outbox import Batch, Outbox
from hf_mpwriter.spool.workers.members import Members
from hf_mpwriter.system import disk, filesystem
from hf_mpwriter.uploader.decision import Attached, Outgoing
from hf_mpwriter.uploader.pacing import LARGEST, Backoff, BatchSize, Clocks, Retries

logger = logging.getLogger("hf_mpwriter")

BLIND_SCANS = 12  # scans in a row that fail for a file that cannot be read, before it is left out
SCANS_OF_ONE_PUSH = BATCH_BYTES // FOREIGN_BYTES  # as long as there is more to read
ATTACHED_BYTES = 128 << 20  # bytes of attachments in one batch
YIELD_AFTER = 20.0  # seconds that one kind is due before the other gives way


class Lane(abc.ABC):
    """One kind of content."""

    def __init__(self, ledger: Ledger, retries: Retries) -> None:
        self._ledger, self._retries = ledger, retries
        self.yielded = False

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
    def done(self, batch: Batch, *, committed: bool, in_time: bool = True) -> None:
        """The Hub has a batch; `committed` if that took a commit, and whether that took no longer than it may."""

    def failed(self, verdict: Verdict, batch: Batch, attempts: int) -> Verdict:  # noqa: ARG002 - of event files
        """A push has failed, in a row of so many: the verdict, a Quarantine instead of a Split of one file.

        Once the ledger is saved, what is quarantined is to be dropped.
        """
        certain = isinstance(verdict, Quarantine)
        if isinstance(verdict, Split):
            verdict = self._refused(verdict, batch)
        if isinstance(verdict, Quarantine):
            for path, reason in verdict.paths.items():
                self._retries.refused(path, reason, certain=certain)
        return verdict

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

    def __init__(
        self,
        outbox: Outbox,
        ledger: Ledger,
        size: BatchSize,
        retries: Retries,
        clocks: Clocks,
        theirs: Callable[[], Collection[str]] = tuple,
    ) -> None:
        """`theirs`: returns the files that other machines have written."""
        super().__init__(ledger, retries)
        self._read_theirs, self._theirs = theirs, frozenset[str]()
        self._outbox, self._scan = outbox, EventFileScan(outbox.run, ledger.length)
        self._size, self._time_there = size, clocks.there
        self._large = LargeFiles(outbox.run, outbox.directory, clocks.now)
        self._too_large: dict[str, int] = {}  # the least length that the Hub has refused for its size
        self._up_to_date = self._splitting = self.has_scanned = False
        self._scans = 0  # in a row that had no time, or no bytes, for all
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
    def left_out(self) -> list[str]:
        """What the last scan has left out, for people."""
        return self._scan.left_out

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
        self._large.started(batch.files)

    def scan(self, members: Members, takes: Callable[[str], bool], *, everything: bool = False) -> list[LocalFile]:
        """Put what the Hub lacks of the files that this host takes into the outbox; all event files of these."""
        allows = self.settings.allows
        allowed = lambda path: allows(path) and takes(path)  # noqa: E731
        here = members.named(self._ledger.files)
        files = self._scan.files(allowed, members.growing, self.blind_scans, here)
        files = self._scan.with_quiet(files, self._ledger.covers, self._time_there)
        later = self._leave_large(files, everything=everything)
        self._theirs = frozenset(self._read_theirs())
        waiting = pending(files, self._ledger.covers, self._ledger.quarantined.keys() | later, self._theirs)
        self._outbox.put([*self._grouped(waiting), *([file] for file in self._again(files, later))])
        if self._outbox.trouble:
            logger.info(self._outbox.trouble)
        self._up_to_date, self.has_scanned = True, not self._scan.unread
        self._scans = 0 if self.has_scanned else self._scans + 1
        return files

    @property
    def reads_on(self) -> bool:
        """Whether another scan is to read more before a push; what others may have made keeps no push for long."""
        return self._scans % SCANS_OF_ONE_PUSH > 0

    def _grouped(self, files: Iterable[LocalFile]) -> list[list[LocalFile]]:
        return bounded(files, self._size.files, LARGEST)

    def _again(self, files: list[LocalFile], later: set[str]) -> list[LocalFile]:
        """Of the refused files those that are tried now, at most one of a writer."""
        if not (due := self._retries.due(attachments=False)):
            return []
        out = (self._ledger.quarantined.keys() - due) | later
        first: dict[tuple[str, str], LocalFile] = {}
        # what the ledger covers, too: the Hub's copy was another one, so only the Hub knows whether it still is
        for file in pending(files, lambda file: file.path not in due and self._ledger.covers(file), out, self._theirs):
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

    def done(self, batch: Batch, *, committed: bool, in_time: bool = True) -> None:  # noqa: ARG002 - it is the same
        """The Hub has a batch; what waits behind it is of the same scan."""
        if all(map(self._ledger.covers, batch.files)):
            self._outbox.remove(batch)
        for path in [path for path, least in self._too_large.items() if self._ledger.length(path) >= least]:
            del self._too_large[path]
        self._splitting = self._splitting and bool(self.batches)
        self._up_to_date = bool(self.batches) and in_time  # what waits was made in the hope of faster commits

    def failed(self, verdict: Verdict, batch: Batch, attempts: int) -> Verdict:
        """Take in that a push of a batch has failed."""
        verdict = super().failed(verdict, batch, attempts)
        if not isinstance(verdict, (Quarantine, Split)):
            self._splitting = False
        return verdict

    def drop(self, batch: Batch) -> None:
        """Take a batch out of the outbox, and all others with a refused file or a later one of its writer.

        The next scan finds the rest.
        """
        refused = self._ledger.quarantined.keys()
        first = {writer_of(path): path for path in sorted(refused - self._theirs, reverse=True)}
        for other in self.batches:
            paths = {file.path for file in other.files}
            own = {writer_of(path): path for path in sorted(paths - self._theirs)}
            follows = any(path >= first[writer] for writer, path in own.items() if writer in first)
            if other is batch or follows or not refused.isdisjoint(paths):
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


class AttachmentLane(Lane):
    """The attachments of a run."""

    def __init__(
        self, spool: Spool, host: HostSpool, ledger: Ledger, backoff: Backoff, retries: Retries, clocks: Clocks
    ) -> None:
        super().__init__(ledger, retries)
        self.backoff, self.alone = backoff, Backoff(clocks)  # of all attachments of the branch, and of this run alone
        for name in spool.host_ids():  # copies of an earlier uploader that was killed
            Copies(spool.host(name).copies, spool.run)
        self._scanner, self._copies = Attachments(spool.run), Copies(host.copies, spool.run)
        self._now = clocks.now
        self._batches: list[Batch] = []  # more than one only while a refused one is split
        self._bound = ATTACHED_BYTES
        self._in_the_way_since = math.inf  # since when event files are due while a batch is pushed
        # the round
        self._left: list[str] | None = None  # what it has still to scan, the last one first; None: there is no round
        self._due = set[str]()  # refused paths that it tries
        self._requested = self._answering = False  # whether a request came after it started, or before
        self._alone = self._over = False  # whether it started, or the last one ended, without a live worker
        # when
        self._next_round = self._last_turn = clocks.now() + clocks.timing.first_scan_after

    @property
    def batches(self) -> list[Batch]:
        """What waits; kept in memory, as the files can be scanned again at any time."""
        return self._batches

    def request(self) -> None:
        """A member waits: what is there now is scanned soon, and a wait ends unless the Hub asked for it."""
        self._requested = True
        for backoff in (self.backoff, self.alone):
            backoff.hurry(self._now())

    def state(self, living: int) -> Attached:
        """What is to be done about attachments while so many members live."""
        if self._is_over(living) and not self._retries.due(attachments=True):
            return Attached.OVER
        if not self._is_due(living):
            return Attached.LATER
        starved = self._now() - self._last_turn > self._interval + YIELD_AFTER
        return Attached.STARVED if starved else Attached.DUE

    def _is_over(self, living: int) -> bool:
        """Whether all that is left behind when no worker lives was scanned and sent."""
        self._over = self._over and not living
        return self._over and not self._batches and not self._requested

    def _is_due(self, living: int) -> bool:
        now = self._now()
        if now < max(self.backoff.next_try, self.alone.next_try):
            return False
        if not living:
            return True
        if self._requested or self._answering or now >= self._next_round:
            return True
        return bool(self._retries.due(attachments=True))

    def scan(self, takes: Callable[[str], bool], *, alone: bool) -> bool:
        """Scan some attachments that this host takes; if the Hub lacks some of them, they are a batch afterwards.

        Whether the ledger has changed.
        """
        self._last_turn = self._now()
        if self._left is None:
            self._start_round(takes, alone=alone)
        left: list[str] = self._left or []
        quarantined, seen, files = dict(self._ledger.quarantined), list[LocalFile](), list[LocalFile]()
        enough, again = self._read + SCAN_BYTES, self._retries.due(attachments=True)
        while left and self._read < enough and not (files and files[0].path in again):
            path = left.pop()
            if self._is_refused(path) and path not in again:
                continue
            if files and path in again:
                left.append(path)
                break
            try:
                file, covered = self._identified(path, files, certain=path not in again)
            except FileNotFoundError:  # nothing is left to send
                continue
            except OSError as error:
                self._retries.left_out(path, filesystem.reason_of(error))
                continue
            if not covered and not self._fits(files, file):
                left.append(path)
                break
            (seen if covered else files).append(file)
            self._let_in(path, covered=covered)
        news = self._ledger.note_stamps(seen)
        self._copies.keep(files)
        if files:
            self._batches = [Batch(0, tuple(files))]
        elif not left:
            self._end_round()
        return news or self._ledger.quarantined != quarantined

    @property
    def _read(self) -> int:
        return self._scanner.read + self._copies.read

    def _is_refused(self, path: str) -> bool:
        """Whether the Hub refuses a path; what this disk refuses is tried in each round."""
        entry = self._ledger.quarantined.get(path)
        return entry is not None and entry.refusals > 0

    def _identified(self, path: str, files: list[LocalFile], *, certain: bool) -> tuple[LocalFile, bool]:
        """What an attachment holds, and whether the Hub has it; copied if not and there is room beside these files."""
        file = self._scanner.identify(path)
        if not (certain and self._ledger.covers(file)) and self._fits(files, file):
            file = self._copies.take(file)
        return file, certain and self._ledger.covers(file)

    def _start_round(self, takes: Callable[[str], bool], *, alone: bool) -> None:
        allows = self.settings.allows
        named = Named(frozenset(self._ledger.files))
        self._left = self._scanner.paths(lambda path: allows(path) and takes(path), named)[::-1]
        self._answering, self._requested, self._alone = self._requested, False, alone
        self._due = self._retries.due(attachments=True)
        for path in self._ledger.quarantined.keys() - set(self._left):
            if is_attachment(path):
                self._let_in(path, covered=False)

    def _end_round(self) -> None:
        self._left, self._answering = None, False
        self._retries.postpone(self._due & self._retries.due(attachments=True))
        self._over = self._alone and not self._requested
        self._next_round = self._now() + self._interval

    @property
    def _interval(self) -> float:
        """Seconds between two commits."""
        return 60 * self.settings.commit_every

    def _fits(self, files: list[LocalFile], file: LocalFile) -> bool:
        together = [*files, file]
        return not files or (
            len(together) <= BATCH_FILES
            and sum(one.length for one in together) <= self._bound
            and sum(one.length for one in together if one.in_memory) <= BATCH_IN_MEMORY
        )

    def _let_in(self, path: str, *, covered: bool) -> None:
        """Leave a path out no more that can be read; one that the Hub refuses only if the Hub has it as it is now."""
        if covered or not self._is_refused(path):
            self._ledger.release(path)

    def started(self, batch: Batch) -> None:  # noqa: ARG002 - there is one
        """A push of a batch starts."""
        self.yielded, self._in_the_way_since, self._last_turn = False, math.inf, self._now()

    def must_yield(self, *, due: bool, terminating: bool) -> bool:
        """Whether the push of a batch is to be ended for event files; then less is sent."""
        now = self._now()
        self._in_the_way_since = min(self._in_the_way_since, now) if due else math.inf
        if not self.yielded and (terminating or now - self._in_the_way_since > YIELD_AFTER):
            self.yielded, self._bound = True, max(1, self._bound // 2)
            return True
        return False

    def done(self, batch: Batch, *, committed: bool, in_time: bool = True) -> None:  # noqa: ARG002 - of event files
        """The Hub has a batch; `committed` if that took a commit."""
        self.drop(batch)
        self._bound = min(ATTACHED_BYTES, 2 * self._bound)
        if committed:
            self._next_round = self._now() + self._interval
        if not self._batches and not self._left:
            self._end_round()

    def failed(self, verdict: Verdict, batch: Batch, attempts: int) -> Verdict:
        """Take in that a push of a batch has failed; what was not sent is scanned again."""
        if isinstance(verdict, Unknown) or (isinstance(verdict, Quarantine) and verdict.committed):
            self._ledger.mark_uncertain(batch.files)
        verdict = super().failed(verdict, batch, attempts)
        again = not isinstance(verdict, Split) and (attempts > 1 or self.yielded)
        if again:
            self.drop(batch)
        if isinstance(verdict, Quarantine) or again:
            self._left = [*(self._left or ()), *(file.path for file in reversed(batch.files))]
        return verdict

    def _halve(self, batch: Batch) -> None:
        middle = len(batch.files) // 2
        halves = [Batch(0, batch.files[:middle]), Batch(0, batch.files[middle:])]
        self._batches = [*halves, *(other for other in self._batches if other is not batch)]

    def drop(self, batch: Batch) -> None:
        """Forget a batch, and remove its copies."""
        self._batches = [other for other in self._batches if other is not batch]
        self._copies.keep(file for other in self._batches for file in other.files)

    def restart(self) -> None:
        """Scan everything again: the Hub has lost something."""
        self._left, self._requested, self._next_round = None, True, self._now()

    def close(self) -> None:
        """Remove the copies: the uploader leaves."""
        self._copies.keep(())
