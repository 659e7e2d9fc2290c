"""The lane of attachments: they take the time that event files leave.

    round:  all allowed paths -> identify -> copy what the Hub lacks -> batch -> push -> go on -> over

Invariants:
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

import math
from collections.abc import Callable

from hf_mpwriter.base.files import BATCH_FILES, BATCH_IN_MEMORY, LocalFile
from hf_mpwriter.base.names import is_attachment
from hf_mpwriter.base.verdicts import Quarantine, Split, Unknown, Verdict
from hf_mpwriter.snapshot import attachments
from hf_mpwriter.snapshot.attachments import Attachments, Copies
from hf_mpwriter.spool.layout import HostSpool, Spool
from hf_mpwriter.spool.ledger import Ledger
from hf_mpwriter.spool.outbox import Batch
from hf_mpwriter.uploader.decision import Attached
from hf_mpwriter.uploader.lanes import Lane
from hf_mpwriter.uploader.pacing import Backoff, Clocks, Retries, Step

ATTACHED_BYTES = 128 << 20  # bytes of attachments in one batch
SCAN_BYTES = 256 << 20  # bytes that one scan reads, about a second
YIELD_AFTER = 20.0  # seconds that one kind is due before the other gives way


class AttachmentLane(Lane):
    """The attachments of a run."""

    def __init__(
        self, spool: Spool, host: HostSpool, ledger: Ledger, backoff: Backoff, retries: Retries, clocks: Clocks
    ) -> None:
        super().__init__(ledger, backoff, retries)
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
        self.backoff.hurry(self._now())

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
        if now < self.backoff.next_try:
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
                self._retries.left_out(path, attachments.reason_of(error))
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
        self._left = self._scanner.paths(lambda path: allows(path) and takes(path))[::-1]
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

    def done(self, batch: Batch, *, committed: bool) -> None:
        """The Hub has a batch; `committed` if that took a commit."""
        super().done(batch, committed=committed)
        self.drop(batch)
        self.backoff.succeeded()
        self._bound = min(ATTACHED_BYTES, 2 * self._bound)
        if committed:
            self._next_round = self._now() + self._interval
        if not self._batches and not self._left:
            self._end_round()

    def failed(self, verdict: Verdict, batch: Batch) -> tuple[Verdict, Step]:
        """Take in that a push of a batch has failed; what was not sent is scanned again."""
        if isinstance(verdict, Unknown) or (isinstance(verdict, Quarantine) and verdict.committed):
            self._ledger.mark_uncertain(batch.files)
        verdict, step = super().failed(verdict, batch)
        again = not isinstance(verdict, Split) and (self.backoff.attempts > 1 or self.yielded)
        if again:
            self.drop(batch)
        if isinstance(verdict, Quarantine) or again:
            self._left = [*(self._left or ()), *(file.path for file in reversed(batch.files))]
        return verdict, step

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
