"""The branch: what all runs of an uploader share on their way to one branch of a repository.

    parcels (of a run, a lane, a batch)  --together-->  one push  --verdicts-->  each run its own
    pacing, rate limit, back-off, size of a commit, the process of the push, the last commit

    own head    the last commit of this uploader, while nothing else is known to have come after it
    trusted     the runs whose ledgers were compared with the Hub at that commit, or at one before it in an unbroken
                row of commits of ours: of these only what is new is read back

Invariants:
- One push at a time. It carries event files or attachments, never both, and one batch of a run.
- Each run has its record of the push on disk before the push starts. A run whose disk refuses that stays behind.
- A failure is of the branch, and holds up all runs, only if it cannot be of one run alone, see `failure_of_all`.
- Of what is refused as a whole, or fails for no known reason, half as many runs go together, until one run is left to
  blame; that one goes alone until nothing of it waits. No other run goes with them. What the Hub or the network fails
  with is sent as it was.
- A commit names no parent only if no run of it has an uploader on another host that can send.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from hf_mpwriter.base.files import BATCH_BYTES, BATCH_IN_MEMORY
from hf_mpwriter.base.settings import Destination
from hf_mpwriter.base.verdicts import Cause, Done, Quarantine, Refused, Retry, Split, Unknown, Verdict
from hf_mpwriter.push.handle import PushHandle, Spare
from hf_mpwriter.push.job import Job, Quota
from hf_mpwriter.spool.outbox import Batch
from hf_mpwriter.system import filesystem
from hf_mpwriter.uploader.in_flight import InFlight
from hf_mpwriter.uploader.lanes import Lane
from hf_mpwriter.uploader.pacing import Backoff, BatchSize, Clocks, Pacing
from hf_mpwriter.uploader.rate_limit import RateLimit

LINGER = 10  # seconds for which a push that went well waits for the next batch
CLOSELY = 6  # times LINGER; a push that began so soon after another one waits as long, as the next may come as soon
MOST_RUNS = 100  # in one commit; each has two descriptors, of which 253 fit into a message
_OF_A_RUN = frozenset({Cause.DISK, Cause.DISK_FULL, Cause.DISK_QUOTA, Cause.VISIBILITY})


class Parcel(NamedTuple):
    """A batch of one run."""

    run: InFlight
    lane: Lane
    batch: Batch


Outcome = tuple[Parcel, Verdict]


class Result(NamedTuple):
    """What a push has led to."""

    outcomes: Sequence[Outcome]
    failure: Verdict | None = None  # of all runs; None if none is, or if each run failed for itself
    attempts: int = 1  # in a row that failed for all
    in_time: bool = True  # whether a commit took no longer than it may


class Branch:
    """The way to one branch of a repository."""

    def __init__(self, destination: Destination, limit: RateLimit, clocks: Clocks) -> None:
        self._root = dataclasses.replace(destination, path_in_repo="")
        self.limit, self.clocks = limit, clocks
        self.pacing, self.attachments = Pacing(clocks, limit), Backoff(clocks)
        self.size = BatchSize(clocks.now)
        self.serves = 0  # runs
        self._explained = set[str]()  # what the user was told of the rate limit
        self.push: PushHandle | None = None  # the push that runs, None while there is none
        self.spare = Spare()
        self.quota = Quota()  # requests of the account
        self._began_at = self._ended_at = -math.inf  # when the last push began, and when it ended
        # the last commit of this uploader; None if there is none, or if it may have been overtaken
        self.own_head: str | None = None
        self._trusted = set[InFlight]()
        self._private: bool | None = None
        self._sent: list[Parcel] = []
        self._fenced = True  # whether the commit that is under way names its parent
        self._squashes = self._is_audit = False  # of what is under way
        self._suspects = set[InFlight]()  # of which one may have led to a failure of all that went together
        self._alone = set[InFlight]()  # what is refused of these as a whole was sent alone
        self._suspects_together = MOST_RUNS

    def explain(self) -> str:
        """Why commits come slower, "" if the user was told that, in whichever run."""
        text = self.limit.explanation
        is_known = text in self._explained
        self._explained.add(text)
        return "" if is_known else text

    # a push

    def choose(self, waiting: Sequence[Parcel]) -> list[Parcel]:
        """The parcels that go together, the first one in any case: suspects with suspects, and others with others."""
        first = waiting[0].run
        if first in self._alone:
            return [waiting[0]]
        is_suspect = first in self._suspects
        alike = [one for one in waiting if one.run not in self._alone and (one.run in self._suspects) == is_suspect]
        runs = self._suspects_together if is_suspect else MOST_RUNS
        return together(alike, runs, self.size.files, exists=self.own_head is not None)

    def start(self, parcels: Sequence[Parcel], *, squash: bool = False, audit: bool = False) -> Result:
        """Start a push; the verdicts on parcels that take no part in it. An audit trusts no ledger."""
        self._began_at, self._squashes, self._is_audit = self.clocks.now(), squash, audit
        if audit:  # whatever was in flight when it was asked for
            self.distrust()
        self._fenced, self._sent, left_behind = self.pacing.is_fenced, list(parcels), list[Outcome]()
        for step in (self._fence, self._mark, self._fence):  # an uploader that came before the record has not seen it
            left_behind += self._refused_by_disks(step)
        if not self._sent:
            self.pacing.learn(verdict for _, verdict in left_behind)
            return Result(left_behind)
        self.size.started()
        self.pacing.started()
        try:
            self.push = self._begin(self._job(self._sent, squash=squash))
        except OSError as error:  # of the system
            verdict = Retry(filesystem.explained(error, "cannot start a push"))
            failed = self.end([verdict] * len(self._sent))
            return failed._replace(outcomes=[*left_behind, *failed.outcomes])
        return Result(left_behind)

    def _fence(self, parcel: Parcel) -> None:
        """Let the commit name its parent, if this parcel makes that necessary. OSError if the disk does not tell."""
        self._fenced = self._fenced or parcel.batch.has_attachments or parcel.run.is_fenced

    def _mark(self, parcel: Parcel) -> None:
        if parcel.batch.files:
            parcel.lane.started(parcel.batch)
        parcel.run.mark(parcel.batch, fenced=self._fenced)

    def _refused_by_disks(self, step: Callable[[Parcel], None]) -> list[Outcome]:
        """Do a step of a start for each parcel; those whose disk refuses stay behind, with this outcome."""
        outcomes = list[Outcome]()
        for parcel in list(self._sent):
            try:
                step(parcel)
            except OSError as error:
                self._sent.remove(parcel)
                outcomes.append((parcel, Retry(filesystem.explained(error, "cannot start a push"), cause=Cause.DISK)))
        return outcomes

    def carries(self, run: InFlight) -> bool:
        """Whether a push of this run is under way."""
        return self.push is not None and any(parcel.run is run for parcel in self._sent)

    @property
    def parcels(self) -> list[Parcel]:
        """What is under way."""
        return self._sent if self.push is not None else []

    @property
    def took(self) -> float:
        """Seconds that the last push took."""
        return self._ended_at - self._began_at

    def prepare(self, run: InFlight) -> None:
        """Start the process of a push that is sure to come, so that it has its client when there is something to send.

        Where that fails, the push itself tells why.
        """
        if self.push is None and not self.spare:
            with contextlib.suppress(OSError):
                part = run.part(Batch(0, ()), private=None, is_trusted=False)
                job = dataclasses.replace(self._job([], squash=False), parts=(part,), prepares=True)
                self.spare.keep(self.spare.begin(job, [run.spool], LINGER))

    def _job(self, parcels: Sequence[Parcel], *, squash: bool) -> Job:
        runs = [parcel.run for parcel in parcels]
        wishes = [parcel.lane.settings.private for parcel in parcels]
        names = (run.ledger.repo_id for run in runs if run.ledger.repo_id)
        seen = (self._private, *(run.ledger.private for run in runs), self.limit.private)
        return Job(
            destination=self._root.resolved(next(names, "")),
            parts=tuple(
                parcel.run.part(parcel.batch, private=wish, is_trusted=parcel.run in self._trusted)
                for parcel, wish in zip(parcels, wishes, strict=True)
            ),
            private=True if True in wishes else next((wish for wish in wishes if wish is not None), None),
            squash=squash,
            own_head=self.own_head,
            fenced=self._fenced,
            xet=self.pacing.uses_xet,
            create=all(run.creates for run in runs),
            was_private=next((private for private in seen if private is not None), None),
        )

    def _begin(self, job: Job) -> PushHandle:
        closely = self.clocks.now() - self._ended_at < CLOSELY * LINGER
        spools = [parcel.run.spool for parcel in self._sent]
        return self.spare.begin(job, spools, CLOSELY * LINGER if closely else LINGER)

    # its outcome

    def listen(self) -> tuple[list[tuple[Parcel, str]], Result | None]:
        """What the push tells, and whose user, and the result once it has ended; never waits."""
        if self.push is None:
            return [], None
        notices, verdicts = self.push.listen()
        self.quota = self.push.quota or self.quota
        told = [(self._sent[one.part], one.text) for one in notices if one.part < len(self._sent)]
        return told, self.end(verdicts) if verdicts else None

    def end(self, verdicts: Sequence[Verdict]) -> Result:
        """Take in the verdicts on what was under way."""
        done = [verdict for verdict in verdicts if isinstance(verdict, Done)]
        if self.push is not None and self.push.lingers and len(done) == len(verdicts):
            self.spare.keep(self.push)
        sent, self._sent, self.push, self._ended_at = self._sent, [], None, self.clocks.now()
        outcomes = list(zip(sent, verdicts, strict=True))
        for parcel, verdict in outcomes:
            if isinstance(verdict, Unknown) and not self._fenced:
                parcel.run.settle()
        is_unbroken = bool(done) and self.own_head is not None and done[0].parent == self.own_head
        if not is_unbroken:
            self.distrust()
        if done:
            # what was committed of these is not in their ledgers
            self._trusted -= {one.run for one, verdict in outcomes if getattr(verdict, "committed", False)}
            self._trusted |= {parcel.run for parcel, verdict in outcomes if isinstance(verdict, Done)}
            self.own_head = next((verdict.commit for verdict in done if verdict.own), done[0].commit)
            self._private = next((verdict.private for verdict in done if verdict.private is not None), self._private)
            if self._private is not None:
                self.limit.saw_visibility(private=self._private)
        if self._squashes:
            self.distrust()
        return self._conclude(outcomes, done, is_unbroken=is_unbroken)

    def distrust(self) -> None:
        """Read everything back with the next push."""
        self.own_head, self._trusted = None, set()

    def forget(self, run: InFlight) -> None:
        """Forget a run: it is not served any more."""
        for runs in (self._trusted, self._suspects, self._alone):
            runs.discard(run)

    def _conclude(self, outcomes: Sequence[Outcome], done: Sequence[Done], *, is_unbroken: bool) -> Result:
        """Draw the conclusions for all runs."""
        of_attachments = any(parcel.batch.has_attachments for parcel, _ in outcomes)
        files = sum(len(parcel.batch.files) for parcel, _ in outcomes)
        self._judge(outcomes)
        failure = failure_of_all(outcomes)
        if done and failure is None:
            committed = any(verdict.own for verdict in done)
            beside_others = None if self._is_audit else not is_unbroken  # it reads back what was not moved, too
            self.pacing.done(committed=committed, beside_others=beside_others)
            if of_attachments:
                self.attachments.succeeded()
            return Result(outcomes, in_time=not committed or of_attachments or self.size.done(files))
        self.pacing.learn(verdict for _, verdict in outcomes)
        for _, verdict in [] if of_attachments else outcomes:
            self.size.failed(verdict, files)
        if failure is None:
            return Result(outcomes)
        backoff = self.attachments if of_attachments else self.pacing
        step = backoff.failed(failure)
        if of_attachments and (isinstance(failure, Refused) or not step.may_hurry):
            self.pacing.hold(step)
        return Result(outcomes, failure, backoff.attempts)

    def _judge(self, outcomes: Sequence[Outcome]) -> None:
        """Find the run that is to blame where one may be: half as many of the suspects go together the next time."""
        runs, failure = {parcel.run for parcel, _ in outcomes}, failure_of_all(outcomes)
        if len(runs) == 1 and isinstance(outcomes[0][1], Split):
            self._alone |= runs
        elif failure is not None and len(runs) > 1 and may_be_of_one(failure):
            self._suspects |= runs
            self._suspects_together = max(1, len(runs) // 2)
        elif failure is None:
            if runs & self._suspects:
                self._suspects_together = min(MOST_RUNS, 2 * self._suspects_together)
            self._suspects -= runs
            self._alone -= {
                parcel.run
                for parcel, verdict in outcomes
                if isinstance(verdict, Done) and len(parcel.lane.batches) <= 1
            }
            if not self._suspects:
                self._suspects_together = MOST_RUNS


def together(waiting: Sequence[Parcel], runs: int, files: int, *, exists: bool) -> list[Parcel]:
    """Those that go in one commit: the first one, and as many others as it has room for.

    Unless it is known that the repository exists, runs that may create it go without those that may not. No two files
    of a commit have the same path in the repository.
    """
    first, chosen = waiting[0], [waiting[0]]
    if any(file.is_large for file in first.batch.files):  # it may fail for want of room
        return chosen
    found, taken = list(first.batch.files), _targets(first)
    for parcel in waiting[1:]:
        more, targets = [*found, *parcel.batch.files], _targets(parcel)
        fits = (
            len(chosen) < runs
            and len(more) <= files
            and sum(file.length for file in more) <= BATCH_BYTES
            and sum(file.length for file in more if file.in_memory) <= BATCH_IN_MEMORY
            and not any(file.is_large for file in parcel.batch.files)
            and not targets & taken
        )
        if fits and (exists or parcel.run.creates == first.run.creates):
            chosen.append(parcel)
            found, taken = more, taken | targets
    return chosen


def _targets(parcel: Parcel) -> set[str]:
    """The paths in the repository of its files."""
    return {parcel.run.ledger.destination.path(file.path) for file in parcel.batch.files}


def failure_of_all(outcomes: Iterable[Outcome]) -> Verdict | None:
    """The failure that is not of one run alone: nothing was committed, and neither a file nor a disk is to blame."""
    verdicts = [verdict for _, verdict in outcomes]
    failed = [verdict for verdict in verdicts if not isinstance(verdict, Done)]
    if any(isinstance(verdict, Done) and verdict.own for verdict in verdicts):
        return None
    return next((verdict for verdict in failed if not is_of_a_run(verdict, alone=len(verdicts) == 1)), None)


def is_of_a_run(verdict: Verdict, *, alone: bool) -> bool:
    """Whether a failure says nothing about other runs."""
    if isinstance(verdict, Quarantine) or (isinstance(verdict, Split) and alone):
        return True
    return isinstance(verdict, (Retry, Refused)) and verdict.cause in _OF_A_RUN


def may_be_of_one(failure: Verdict) -> bool:
    """Whether one of several runs may have led to a failure of all."""
    if isinstance(failure, (Retry, Unknown)):
        return failure.cause is Cause.OTHER or (isinstance(failure, Unknown) and failure.too_slow)
    return isinstance(failure, Split)
