"""The live lane: what is in event files goes to a bucket within seconds, beside the commits, which stay the record.

    each run that asks for it --look--> what the bucket lacks --due--> one round for all runs of a bucket --> a push
    Done       the run knows what the bucket holds
    Refused    told once, as is what fails three times; tried again later each time, and when the token changes
    a file     that is refused, or that Done has left out, waits for itself, and is told in the same way

A file goes when its oldest bytes that the bucket lacks are ROUND old, and the round is worth it: Xet sends the last
chunk of a file again, so few new bytes wait, for AT_LEAST at most. Rounds take at most SHARE of a core in SPAN, and
less than half of the requests of the account, which the nodes of a job divide.

Invariants:
- The bucket is a hint, the repository is the record: the lane delays no commit, and no failure of it is one of the
  upload. It begins once it is known whether the repository is private.
- Of one writer's files in a directory one goes only after all earlier ones are there whole, as a reader never reads an
  earlier one again. A batch is not transactional, so at most one file of a writer goes in a round.
- A file is only ever replaced by more of it. A round whose outcome is not known may come late, and make one shorter for
  a while: until the settle time is over, only what the bucket had before counts as safe. Then it is listed anew.
- Only files of workers of ours go, which the patterns allow; nothing that the Hub has refused, and nothing pulled.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence

from hf_mpwriter.base.files import LocalFile
from hf_mpwriter.base.names import is_ours
from hf_mpwriter.base.settings import full_bucket
from hf_mpwriter.base.verdicts import Done, Quarantine, Refused, Retry, Unknown, Verdict
from hf_mpwriter.base.words import duration, sentence
from hf_mpwriter.daemon.status_file import StatusFile
from hf_mpwriter.push.handle import PushHandle, Spare
from hf_mpwriter.push.job import Job, Quota
from hf_mpwriter.snapshot.event_files import EventFileScan, pending, writer_of
from hf_mpwriter.spool.layout import Spool
from hf_mpwriter.spool.outbox import Batch
from hf_mpwriter.spool.pulled import pulled_files
from hf_mpwriter.system import filesystem, launch
from hf_mpwriter.system.process import usage
from hf_mpwriter.uploader.branch import Branch
from hf_mpwriter.uploader.in_flight import SETTLE_TIME
from hf_mpwriter.uploader.pacing import Backoff, Clocks
from hf_mpwriter.uploader.peers import Peers
from hf_mpwriter.uploader.sending import Sending

logger = logging.getLogger("hf_mpwriter")

ROUND = 3.0  # seconds that bytes wait for others
AT_LEAST = 30.0  # seconds after which they go, however few they are
CHUNK = 64 << 10  # bytes of a file that Xet sends again, on average; measured with hf_xet 1.8.0
TIMES = 20  # so many times the new bytes may be sent
CALL_BYTES = 16 << 20  # of the files of one round: all of each is read and cut into chunks
MOST_RUNS = 100  # in one round, see `branch`
SHARE = 0.05  # of a core that rounds may take
SPAN = 60.0  # seconds over which they may: the first round imports the client
MEMORY = 128 << 20  # bytes of a process, from which on the next round has a new one
LINGER = 60  # seconds that its process waits for the next round
ASK_EVERY = 3600.0  # seconds between two comparisons of the visibility
REQUESTS = 2  # of a round: a token of Xet, and the batch
OF_OTHERS = 0.6  # of the requests of the account in a window, which the lane leaves to commits and to others
SLOWEST = 60.0  # seconds between two rounds; where they were more, the lane is off
LASTS = 3  # failures in a row of which the user is told
SELDOM = "{} requests of the account in {} are too few for a round each minute{} and for others"
ANOTHER = "Name another bucket: live='NAME', or another folder: path_in_repo='FOLDER'."


def is_due(waited: float, new: int, *, is_last: bool) -> bool:
    """Whether a file goes: its oldest new bytes have waited so many seconds; `is_last`: nobody logs any more."""
    return is_last or waited >= AT_LEAST or (waited >= ROUND and TIMES * new >= CHUNK)


def interval(quota: Quota, now: float, nodes: float, requests: int = REQUESTS) -> float:
    """Seconds from a round of so many requests to the next, of so many nodes; infinite if there is none to spare.

    It is no shorter than in a window that nobody has used: at the end of one, all nodes would come at once.
    """
    spare_of_all = quota.limit * (1 - OF_OTHERS)
    is_over = now >= quota.at + quota.seconds
    spare = spare_of_all if is_over else quota.left - quota.limit * OF_OTHERS
    if spare <= 0:
        return math.inf
    return nodes * requests * max(quota.window / spare_of_all, 0.0 if is_over else quota.seconds / spare)


class LiveRun:
    """What a bucket has of one run, and what it lacks."""

    def __init__(
        self,
        spool: Spool,
        sending: Sending,
        peers: Peers,
        status: StatusFile,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._spool, self.sending, self._peers, self._status = spool, sending, peers, status
        self._wall_clock = wall_clock
        self._scan = EventFileScan(spool.run, sending.ledger.length)
        self.is_compared = False  # whether it was read back what the bucket holds
        self._held = dict[str, int]()  # bytes that the bucket holds, per path
        self._since = dict[str, float]()  # monotonic seconds when more of a file was seen first
        self.waiting: list[LocalFile] = []  # as of the last look
        self._failed: Verdict | None = None  # of the last round, None if it went well
        self._tries = 0  # rounds that have failed in a row, anew at the end
        self._is_ending = self._begins_to_end = False
        self._before_late: dict[str, int] | None = None  # what it held before a round that may still come late
        self._late_until = 0.0  # monotonic seconds
        self._files: list[LocalFile] = []  # as of the last look
        self._seen = 0.0  # unix time when they were seen so first
        self.is_off, self._is_told = False, False  # whether rounds would come too seldom, and whether that was told
        self._left = defaultdict[str, Backoff](lambda: Backoff(peers.clocks))  # of files that were left out, per path

    @property
    def bucket(self) -> str:
        """The bucket, "" if the run asks for none, or none may be named yet."""
        ledger = self.sending.ledger
        if ledger.private is None or not ledger.repo_id:
            return ""
        return full_bucket(self.sending.events.settings.live, ledger.repo_id)

    def look(self, now: float) -> None:
        """See what the bucket lacks, and tell how far behind it is. OSError if the disk refuses."""
        if self.sending.is_last_chance and not self._is_ending:
            self._tries, self._begins_to_end = 0, not isinstance(self._failed, Refused)
        self._is_ending = self.sending.is_last_chance
        if self._before_late is not None and now >= self._late_until:
            self._held, self._before_late, self.is_compared = self._before_late, None, False
        at = self._wall_clock()
        settings, peers, ledger = self.sending.events.settings, self._peers, self.sending.ledger
        sends = lambda path: is_ours(os.path.basename(path)) and settings.allows(path) and peers.takes(path)  # noqa: E731
        files = self._scan.files(sends, peers.members.growing, 0, peers.members.named(self._held))
        theirs = pulled_files(self._spool)
        files = [file for file in files if file.path not in theirs]
        first = dict[tuple[str, str], LocalFile]()
        for file in pending(files, lambda file: file.length <= self.held(file.path), ledger.quarantined.keys()):
            first.setdefault(writer_of(file.path), file)
        wait = {path: backoff.next_try for path, backoff in self._left.items()}
        self.waiting = [file for file in first.values() if now >= wait.get(file.path, now)]
        self._since = {file.path: self._since.get(file.path, now) for file in self.waiting}
        if files != self._files:
            self._files, self._seen = files, at
        self._publish()

    def _publish(self, **changes: object) -> None:
        """Change what is told of the bucket, as of the last look at the files."""
        sure = self._held if self._before_late is None else self._before_late
        safe = sum(min(file.length, sure.get(file.path, 0)) for file in self._files)
        lacks = sum(file.length for file in self._files) - safe
        found = {"bucket": self.bucket, "safe": safe, "lacks": lacks, "seen": self._seen}
        self._status.change(live=dataclasses.replace(self._status.status.live, **found, **changes))  # type: ignore[arg-type]

    def held(self, path: str) -> int:
        """Bytes that the bucket holds of a file, as far as is known."""
        return self._held.get(path, 0)

    def due(self, now: float) -> list[LocalFile]:
        """The files that go now."""
        return [
            file
            for file in self.waiting
            if is_due(now - self._since[file.path], file.length - self.held(file.path), is_last=self._is_ending)
        ]

    def conclude(self, verdict: Verdict, now: float) -> None:
        """Take in a verdict, at monotonic seconds; what the bucket is known to hold never becomes less."""
        self._failed = None if isinstance(verdict, (Done, Quarantine)) else verdict
        self._tries = self._tries + 1 if self._failed else 0
        live = self._status.status.live
        if not isinstance(verdict, Done):
            if isinstance(verdict, Unknown):
                self._late_until = now + SETTLE_TIME
                self._before_late = dict(self._held) if self._before_late is None else self._before_late
            paths = verdict.paths if isinstance(verdict, Quarantine) else {}
            why = self._leave_out(paths, Refused, ANOTHER) or getattr(verdict, "reason", "")
            self._publish(why=why)
            return
        self.is_compared, new, at = True, 0, self._wall_clock()
        for path, sent in verdict.files.items():
            new += max(0, sent.length - self.held(path))
            self._held[path] = max(self.held(path), sent.length)
            self._since.pop(path, None)
            self._left.pop(path, None)
        why = self._leave_out(verdict.left, Retry)
        size, interval = verdict.bucket_size or live.size + new, at - live.at if live.at else 0.0
        self._publish(at=at, why=why, size=size, interval=interval)

    def _leave_out(self, paths: Mapping[str, str], sort: type[Retry | Refused], hint: str = "") -> str:
        """Let files wait that were left out, and tell of those that are so for good; why the first one was."""
        told = dict[str, None]()
        for path, why in paths.items():
            self._left[path].failed(sort(why))
            if self._left[path].attempts == (1 if sort is Refused else LASTS):
                told[why] = None
        for why in told:
            self.tell(why, hint)
        return next(iter(paths.values()), "")

    def tell(self, reason: str, hint: str = "") -> None:
        """Tell the user why something is not live."""
        helps = f" {sentence(hint)}" if hint else ""
        self._status.notify([f"not live: {reason.rstrip('.')}.{helps} The upload goes on without it"])

    @property
    def is_behind(self) -> bool:
        """Whether a round is to come before the uploader may leave: the bucket is not refused, and has not failed."""
        fails = isinstance(self._failed, Refused) or self._tries >= (1 if self.sending.requests.is_ending else LASTS)
        return bool(self.bucket and self.waiting) and not (fails or self.is_off)

    def turn_off(self, why: str) -> None:
        """No round comes for now; that is told once."""
        self.is_off = True
        self._publish(why=why)
        if not self._is_told:
            self._is_told = True
            self.tell(why)

    def begins_to_end(self) -> bool:
        """Whether its end has begun since this was asked: then a round waits for no failure to be over."""
        begins, self._begins_to_end = self._begins_to_end, False
        return begins

    @property
    def is_pressing(self) -> bool:
        """Whether a round is not to wait for what rounds may cost: the run ends."""
        return self._is_ending and self.is_behind


class Pause:
    """One bucket: when the next round may start."""

    def __init__(self, clocks: Clocks, next_round: float) -> None:
        self.backoff, self.asked_at, self.next_round = Backoff(clocks), -math.inf, next_round
        self.told = ""  # the refusal that was told
        self._spent, self._at = 0.0, 0.0  # seconds of processor that count, as of monotonic seconds

    def spent(self, seconds: float, now: float) -> float:
        """Note what a round has taken of a core: the seconds until the next one may start for that."""
        self._spent = max(0.0, self._spent - SHARE * (now - self._at)) + seconds
        self._at = now
        return max(0.0, self._spent / SHARE - SPAN)


class LiveLane:
    """The rounds of an uploader, one at a time."""

    def __init__(self, branch: Branch) -> None:
        self._branch, self._clocks = branch, branch.clocks
        self._buckets: dict[str, Pause] = {}
        self._push: PushHandle | None = None
        self.spare = Spare()
        self._going: list[LiveRun] = []
        self._to = ""  # the bucket of the round that is under way
        self._requests = 0  # that it takes
        self._began_with = 0.0  # seconds of processor that its process had used before

    def tick(self, runs: Sequence[LiveRun]) -> None:
        """Take in what a round has led to, or start one."""
        if self._push is not None:
            _, verdicts = self._push.listen()
            if verdicts:
                self._conclude(verdicts)
            return
        self.spare.reap()
        now = self._clocks.now()
        every, nodes, quota = self._every(REQUESTS), self._branch.limit.rule.nodes, self._branch.quota
        on_each = f" on each of {nodes:g} nodes" if nodes > 1 else ""
        for run in runs:
            run.is_off = False
            if every > SLOWEST:
                run.turn_off(SELDOM.format(quota.limit, duration(quota.window), on_each))
        for name in dict.fromkeys(run.bucket for run in runs if run.bucket and not run.is_off):
            if name not in self._buckets:  # the nodes of a job begin together
                wait = self._clocks.rng.uniform(0, every) if nodes > 1 else 0.0
                self._buckets[name] = Pause(self._clocks, now + wait)
            bucket = self._buckets[name]
            wanting = [run for run in runs if run.bucket == name]
            ends = [run.begins_to_end() for run in wanting]
            if any(ends):
                bucket.backoff.end_wait(now)
            is_pressing = any(run.is_pressing for run in wanting)
            if now < bucket.backoff.next_try or (now < bucket.next_round and not is_pressing):
                continue
            if chosen := _chosen(wanting, now):
                self._start(name, bucket, chosen)
                return

    def _every(self, requests: int) -> float:
        """Seconds from a round of so many requests to the next, at least."""
        return interval(self._branch.quota, self._clocks.now(), self._branch.limit.rule.nodes, requests)

    def _start(self, name: str, bucket: Pause, chosen: Sequence[tuple[LiveRun, tuple[LocalFile, ...]]]) -> None:
        self._going, self._to = [run for run, _ in chosen], name
        self._requests = REQUESTS + sum(not run.is_compared for run in self._going)
        now, ledger = self._clocks.now(), chosen[0][0].sending.ledger
        asks = now >= bucket.asked_at + ASK_EVERY
        job = Job(
            destination=dataclasses.replace(ledger.resolved, path_in_repo=""),
            parts=tuple(
                run.sending.in_flight.part(Batch(0, files), private=None, is_trusted=run.is_compared)
                for run, files in chosen
            ),
            private=None,
            squash=False,
            own_head=None,
            fenced=False,
            xet=True,
            create=False,
            was_private=any(run.sending.ledger.private for run in self._going),
            bucket=name,
            asks_bucket=asks,
        )
        bucket.asked_at = now if asks else bucket.asked_at
        self._requests += 3 * asks
        spools = [run.sending.in_flight.spool for run in self._going]
        try:
            self._push = self.spare.begin(job, spools, LINGER)
            self._began_with = usage(self._push.pid).seconds
        except OSError as error:
            self._conclude([Retry(filesystem.explained(error, "cannot start a push"))] * len(self._going))

    def _conclude(self, verdicts: Sequence[Verdict]) -> None:
        bucket, now = self._buckets[self._to], self._clocks.now()
        took = 0.0
        if self._push is not None:
            self._branch.quota = self._push.quota or self._branch.quota
            used = usage(self._push.pid)
            took = used.seconds - self._began_with
            if self._push.lingers and not self._push.has_ended() and all(isinstance(one, Done) for one in verdicts):
                self.spare.keep(self._push)
                if used.memory > MEMORY:
                    self.spare.let_go()
        self._push, going, self._going = None, self._going, []
        bucket.next_round = now + max(bucket.spent(took, now), min(SLOWEST, self._every(self._requests)))
        for run, verdict in zip(going, verdicts, strict=False):
            run.conclude(verdict, now)
        failed = next((one for one in verdicts if not isinstance(one, (Done, Quarantine))), None)
        if failed is None:
            bucket.backoff.succeeded()
            bucket.told = ""
            return
        bucket.backoff.failed(failed)
        bucket.asked_at = -math.inf  # whatever was found out of it
        reason = getattr(failed, "reason", "").rstrip(".")
        logger.info("a round of %s failed: %s", self._to, reason)
        if reason != bucket.told and (isinstance(failed, Refused) or bucket.backoff.attempts >= LASTS):
            bucket.told = reason
            for run in going:
                run.tell(reason, getattr(failed, "hint", ""))

    def token_changed(self) -> None:
        """What was refused is tried again."""
        for bucket in self._buckets.values():
            bucket.backoff.succeeded()

    def forget(self, run: LiveRun) -> None:
        """A run is not served any more: nothing of it may be under way."""
        if run in self._going and self._push is not None:
            self._push.end(launch.GRACE)
            self._push, self._going = None, []


def _chosen(runs: Iterable[LiveRun], now: float) -> list[tuple[LiveRun, tuple[LocalFile, ...]]]:
    """What goes in one round: the files that are due, as far as there is room; one at least."""
    left, chosen = CALL_BYTES, list[tuple[LiveRun, tuple[LocalFile, ...]]]()
    for run in runs:
        files = list[LocalFile]()
        for file in run.due(now):
            if file.length <= left or not (chosen or files):
                files.append(file)
                left -= file.length
        if files and len(chosen) < MOST_RUNS:
            chosen.append((run, tuple(files)))
    return chosen
