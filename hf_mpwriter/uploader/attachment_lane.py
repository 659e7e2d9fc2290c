"""Attaching: attachments take the time that event files leave.

    round:  all allowed paths -> identify -> copy what the Hub does not have -> entry -> push -> go on -> over

Invariants:
- Attachments are looked at and sent only while no event file is due, and never in the same commit. Where commits of
  event files take all the time there is, attachments get a turn PATIENCE after theirs was due.
- A push of attachments that is in the way of event files is ended after PATIENCE, and repeated with less.
- While somebody lives there is one commit of attachments per `commit_every`; whoever asks or ends gets the rest sooner,
  after the first commits not faster than DISTANCE.
- One look reads LOOK_BYTES, then the uploader does something else. One entry has copies at a time, and it is bounded;
  while pushes of it fail, it has none.
- Its commits always name their parent, so none overwrites what it has not read back.
- Everybody is answered by a round that began after the question.
"""

from __future__ import annotations

import logging
import math
import random
from collections.abc import Callable

from hf_mpwriter.base.files import BATCH_FILES, BATCH_IN_MEMORY, LocalFile
from hf_mpwriter.base.settings import Settings
from hf_mpwriter.base.verdicts import Quarantine, Split, Unknown, Verdict
from hf_mpwriter.snapshot import attachments
from hf_mpwriter.snapshot.attachments import Attachments, Copies
from hf_mpwriter.spool.layout import Spool
from hf_mpwriter.spool.ledger import Ledger
from hf_mpwriter.spool.outbox import Batch
from hf_mpwriter.uploader import backoff
from hf_mpwriter.uploader.backoff import Step
from hf_mpwriter.uploader.decision import Situation

logger = logging.getLogger("hf_mpwriter")

BATCH_BYTES_ATTACHED = 128 << 20  # bytes of attachments in one entry
LOOK_BYTES = 256 << 20  # bytes that one look reads, about a second
DISTANCE = 10.0  # seconds between two commits of attachments for which somebody waits ...
FREE_COMMITS = 2  # ... after so many
PATIENCE = 20.0  # seconds that one kind is due before the other gives way
REFUSALS = 3  # times that the Hub must refuse a file alone before it is quarantined


class AttachmentLane:
    """What of the attachments is looked at and sent, and when.

    Args:
        spool: of the run directory.
        copies: directory of their copies.
        clock: monotonic seconds.
        rng: source of the jitter.
        first: when the first look is allowed.
    """

    def __init__(self, spool: Spool, copies: str, clock: Callable[[], float], rng: random.Random, first: float) -> None:
        for host in spool.host_ids():  # whoever had the uploader lock before and was killed
            Copies(spool.host(host).copies, spool.run_dir).keep(())
        self._looking, self._copies = Attachments(spool.run_dir), Copies(copies, spool.run_dir)
        self._clock, self._rng = clock, rng
        self.entries: list[Batch] = []  # more than one only while a refused one is being split
        self.attempts = 0  # failures in a row
        self._refusals: dict[str, int] = {}  # path -> times that the Hub refused it alone, in a row
        self._left_out: dict[str, str] = {}  # what this disk does not give or take, with the reason
        self._bound = BATCH_BYTES_ATTACHED
        self._due_since = math.inf  # since when event files are due while an entry is pushed
        self.yielded = False  # whether the last push was ended for them
        # the round
        self._left: list[str] | None = None  # what it has still to look at, the last one first; None: there is none
        self._asked = self._answering = False  # whether somebody has asked since it began, or before
        self._alone = self._over = False  # whether it began, or the last one ended, with nobody alive
        # when
        self._next_round = self._last_turn = first
        self._not_before = 0.0
        self._patient = True
        self._last_commit, self._commits = -math.inf, 0

    def ask(self) -> None:
        """Somebody waits: what there is now has to be looked at soon; a wait that the Hub did not ask for ends."""
        self._asked = True
        if self._patient:
            self._not_before = min(self._not_before, self._clock() + backoff.FIRST_WAIT)

    def is_over(self, living: int) -> bool:
        """Whether all that is left behind when nobody lives has been looked at and sent."""
        self._over = self._over and not living
        return self._over and not self.entries and not self._asked

    def is_due(self, living: int) -> bool:
        """Whether attachments may be looked at or sent now."""
        now = self._clock()
        if now < self._not_before:
            return False
        if not living:
            return not self.is_over(living)
        if self._asked or self._answering:
            return self._commits < FREE_COMMITS or now >= self._last_commit + DISTANCE
        return now >= self._next_round

    def is_starved(self, settings: Settings) -> bool:
        """Whether event files have left no time for so long that attachments get a turn before the next of them."""
        return self._clock() - self._last_turn > 60 * settings.commit_every + PATIENCE

    def look(self, book: Ledger, settings: Settings, *, alone: bool) -> bool:
        """Look at some attachments; if the Hub lacks some of them, they are an entry afterwards.

        Returns:
            Whether the ledger has changed.
        """
        self._last_turn = self._clock()
        if self._left is None:
            self._begin(book, settings, alone=alone)
        left: list[str] = self._left or []
        quarantined, seen, files = dict(book.quarantined), list[LocalFile](), list[LocalFile]()
        enough = self._read + LOOK_BYTES
        while left and self._read < enough:
            path = left.pop()
            if path in book.quarantined and book.quarantined[path] != self._left_out.get(path):  # the Hub refuses it
                continue
            try:
                file = self._taken(path, book, files)
            except FileNotFoundError:  # nothing is left to send
                continue
            except OSError as error:
                self._leave_out(path, attachments.reason_of(error), book)
                continue
            if not book.covers(file) and not self._fits(files, file):
                left.append(path)
                break
            (seen if book.covers(file) else files).append(file)
            self._let_in(path, book)
        news = book.see(seen)
        self._copies.keep(files)
        if files:
            self.entries = [Batch(0, tuple(files))]
        elif not left:
            self._end(settings)
        return news or book.quarantined != quarantined

    @property
    def _read(self) -> int:
        return self._looking.read + self._copies.read

    def _taken(self, path: str, book: Ledger, files: list[LocalFile]) -> LocalFile:
        """What an attachment has; a copy of it is there if the Hub lacks it and it seems to fit to these files."""
        file = self._looking.identify(path)
        needed = not book.covers(file) and self._fits(files, file)
        return self._copies.take(file) if needed else file

    def _begin(self, book: Ledger, settings: Settings, *, alone: bool) -> None:
        self._left = self._looking.paths(settings.allows)[::-1]
        self._answering, self._asked, self._alone = self._asked, False, alone
        for path in self._left_out.keys() - set(self._left):
            self._let_in(path, book)

    def _end(self, settings: Settings) -> None:
        self._left, self._answering = None, False
        self._over = self._alone and not self._asked
        self._next_round = self._clock() + 60 * settings.commit_every

    def _fits(self, files: list[LocalFile], file: LocalFile) -> bool:
        together = [*files, file]
        return not files or (
            len(together) <= BATCH_FILES
            and sum(one.length for one in together) <= self._bound
            and sum(one.length for one in together if one.in_memory) <= BATCH_IN_MEMORY
        )

    def _leave_out(self, path: str, why: str, book: Ledger) -> None:
        """Quarantine what this disk does not give or take, for as long as that is so."""
        if self._left_out.get(path) != why:
            logger.info("%s is left out: %s", path, why)
        self._left_out[path] = book.quarantined[path] = why

    def _let_in(self, path: str, book: Ledger) -> None:
        why = self._left_out.pop(path, None)
        if why is not None and book.quarantined.get(path) == why:
            del book.quarantined[path]

    def mark_in_flight(self) -> Batch:
        """The entry whose push starts now."""
        self.yielded, self._due_since, self._last_turn = False, math.inf, self._clock()
        return self.entries[0]

    def clear_in_flight(self, entry: Batch, settings: Settings, *, own: bool) -> None:
        """The Hub has an entry; `own` if it took a commit."""
        now = self._clock()
        self._drop(entry)
        self.attempts, self._not_before, self._bound = 0, 0.0, min(BATCH_BYTES_ATTACHED, 2 * self._bound)
        for file in entry.files:
            self._refusals.pop(file.path, None)
        if own:
            self._commits, self._last_commit = self._commits + 1, now
            self._next_round = now + 60 * settings.commit_every
        if not self.entries and not self._left:
            self._end(settings)

    def must_yield(self, now: Situation) -> bool:
        """Whether the push of an entry is to be ended, as event files have been due for too long; then less is sent."""
        due = now.urgent or now.now >= now.next_commit
        self._due_since = min(self._due_since, now.now) if due else math.inf
        if not self.yielded and (now.terminating or now.now - self._due_since > PATIENCE):
            self.yielded, self._bound = True, max(1, self._bound // 2)
            return True
        return False

    def failed(self, verdict: Verdict, entry: Batch, book: Ledger) -> Step:
        """A push of an entry has failed; when to try again."""
        self.attempts += 1
        if isinstance(verdict, Unknown) or (isinstance(verdict, Quarantine) and verdict.committed):
            book.mark_uncertain(entry.files)
        if isinstance(verdict, Split):
            verdict = self._split(entry, verdict)
        if isinstance(verdict, Quarantine):
            for path, reason in verdict.paths.items():
                logger.info("%s is refused: %s", path, reason)
                self._refusals.pop(path, None)
            book.quarantined |= verdict.paths
        if isinstance(verdict, Quarantine) or (not isinstance(verdict, Split) and (self.attempts > 1 or self.yielded)):
            self._drop(entry)
            self._left = [*(self._left or ()), *(file.path for file in reversed(entry.files))]
        step = backoff.next_step(verdict, self.attempts, self._rng)
        self._not_before, self._patient = self._clock() + step.wait, step.patient
        return step

    def _split(self, entry: Batch, verdict: Split) -> Verdict:
        """Two halves in the place of a refused entry; a file that is refused alone is quarantined in the end."""
        middle = len(entry.files) // 2
        if middle:
            halves = [Batch(0, entry.files[:middle]), Batch(0, entry.files[middle:])]
            self.entries = [*halves, *(other for other in self.entries if other is not entry)]
            return verdict
        path = entry.files[0].path
        self._refusals[path] = self._refusals.get(path, 0) + 1
        return verdict if self._refusals[path] < REFUSALS else Quarantine({path: verdict.reason})

    def _drop(self, entry: Batch) -> None:
        self.entries = [other for other in self.entries if other is not entry]
        self._copies.keep(file for other in self.entries for file in other.files)

    def restart(self) -> None:
        """The Hub has lost something: look at everything again."""
        self._left, self._asked, self._next_round = None, True, self._clock()

    def close(self) -> None:
        """The uploader leaves: no copy stays behind."""
        self._copies.keep(())
