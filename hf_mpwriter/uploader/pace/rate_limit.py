"""The rate limit: how many commits a repository gets from all uploaders of a user on this host and the other nodes.

    <cache>/hf_mpwriter/rate_limit/lock              held while a bucket is read and written
    <cache>/hf_mpwriter/rate_limit/<24 hex>.json     {"tokens": 17.25, "at": 1795236610.0, "hosts": {"<host>": ...}}

The Hub allows a repository some commits per hour (128 were seen) and refuses all others, those of people included. So
every uploader takes a token from the bucket of its repository before each commit. `<cache>` is the user's cache folder,
or the spool where that cannot be written; then each run directory has a limit of its own.

A job of several nodes divides the limit, as no node sees the buckets of the others:

    parts = nodes of the job / nodes that share this run directory, or this bucket, with us

    one run directory for all nodes      one part: one uploader serves all
    one cache folder for all nodes       one part: they share the bucket, which lists their hosts
    all apart                            as many parts as nodes; each waits for its turn where all would come at once

Invariants:
- In no hour are there more commits than the limit: full buckets and an hour's refill are the limit together. Where the
  parts are more than a burst, their turns and the phases of their refills take its place.
- The last tokens are for urgent commits: those that a request waits for, and the last records of a run.
- No uploader waits for the lock. One that is stopped while it holds the lock stops no other for long: a run directory
  goes on with a limit of its own. Garbage in a bucket, or a clock that was set back, costs no more than a full bucket.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace

from hf_mpwriter.base import state
from hf_mpwriter.base.nodes import Nodes
from hf_mpwriter.base.settings import Destination
from hf_mpwriter.system import disk, hf_home, locks
from hf_mpwriter.system.directory import Directory, Place

LARGEST_BURST = 20.0  # commits that a rested repository may get at once
RESERVE = 0.25  # of the burst, for urgent commits
BUSY_WAIT = 0.2  # seconds, while another uploader holds the lock
BUSY_LIMIT = 10.0  # seconds, after which that one counts as stopped
USED_UP = "the commits that this repository gets per hour are used up (HF_MPWRITER_COMMITS_PER_HOUR): they come slower"
TURN_DISTANCE = 3.0  # seconds between two nodes that commit while a burst is left; a commit takes about two
MANY_PARTS_BURST = 20.0  # a burst is the limit divided by this where the parts are more than a burst
HOUR = 3600.0
RESTED_AFTER = 24 * HOUR  # without a commit, a bucket is full, whatever its part; a host is no neighbour any more
ONE_NODE = Nodes()
ROUNDING = 1e-6  # tokens; after the wait that was named there is one


@dataclass(frozen=True)
class Bucket:
    """Tokens at a time."""

    tokens: float  # commits that may start
    at: float  # unix time
    # that take tokens from it, and the unix time at which each did so last
    hosts: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Rule:
    """What a limit of so many commits per hour means for one bucket."""

    limit: float  # commits per hour of the repository, at least 2
    parts: float = 1.0  # buckets among which the limit is divided, at least 1
    stretch: float = 1.0  # by which all pauses are longer, at least 1

    @property
    def burst_of_all(self) -> float:
        """Commits that a rested repository may get at once."""
        burst = max(1.0, min(LARGEST_BURST, self.limit / 5))
        return burst if self.parts <= burst else max(1.0, self.limit / MANY_PARTS_BURST)

    @property
    def is_by_turns(self) -> bool:
        """Whether the parts are more than may commit at once."""
        return self.parts > self.burst_of_all

    @property
    def burst(self) -> float:
        """Tokens of a full bucket."""
        return max(1.0, self.burst_of_all / self.parts)

    @property
    def distance(self) -> float:
        """Seconds between two commits of all parts together, after a burst."""
        return HOUR / (self.limit - self.burst_of_all) * self.stretch

    @property
    def pause(self) -> float:
        """Seconds until a token comes back."""
        return self.distance * self.parts

    def turn(self, index: int) -> float:
        """Seconds after which a part may commit, where all want to at the same moment."""
        at_once = min(float(index), self.burst_of_all)
        return TURN_DISTANCE * at_once + self.distance * (index - at_once)

    def spend(self, bucket: Bucket, now: float, *, urgent: bool) -> tuple[Bucket, float]:
        """Take a token; the bucket afterwards, and the seconds until there is a token: 0 if one was taken."""
        tokens = min(self.burst, max(0.0, bucket.tokens) + max(0.0, now - bucket.at) / self.pause)
        needed = 1.0 if urgent else min(self.burst, 1.0 + RESERVE * self.burst)
        if tokens > needed - ROUNDING:
            return replace(bucket, tokens=tokens - 1.0, at=now), 0.0
        return replace(bucket, tokens=tokens, at=now), (needed - tokens) * self.pause

    def give_back(self, bucket: Bucket) -> Bucket:
        """The bucket after a token that led to no commit came back."""
        return replace(bucket, tokens=min(self.burst, bucket.tokens + 1.0))


def parts_of(nodes: int, hosts: int) -> float:
    """The parts among which a job of so many nodes divides the limit, if so many hosts share ours."""
    return max(1.0, nodes / max(1, hosts))


def index_of(nodes: Nodes, parts: float, host: str) -> int:
    """The number of the part of this node; by its name where no launcher numbers the nodes."""
    rank = nodes.rank
    if rank is None:
        rank = int(hashlib.sha256(host.encode()).hexdigest()[:8], 16) % nodes.count
    return int(rank * parts / nodes.count)


class RateLimit:
    """The bucket of one repository."""

    def __init__(
        self,
        destination: Destination,
        limit: float,
        folders: list[Place],
        clock: Callable[[], float] = time.time,
        *,
        nodes: Nodes = ONE_NODE,
        host: str = "",
    ) -> None:
        self._limit, self._clock, self._nodes, self._host = limit, clock, nodes, host
        self._seen, self._at_bucket, self.stretch = {host}, 1, 1.0
        self._is_only, self._has_committed = nodes.rank == 0, False
        self._name = _name_of(destination)
        self._folders = folders
        self._busy_since: float | None = None

    @property
    def rule(self) -> Rule:
        """What holds for this bucket, as far as is known of its neighbours."""
        nodes = 1 if self._is_only else self._nodes.count
        return Rule(self._limit, parts_of(nodes, max(len(self._seen), self._at_bucket)), self.stretch)

    @property
    def turn(self) -> float:
        """Seconds after which this node may commit, where all nodes want to at the same moment."""
        rule = self.rule
        return rule.turn(index_of(self._nodes, rule.parts, self._host))

    @property
    def explanation(self) -> str:
        """Why commits come slower, for people."""
        rule = self.rule
        if rule.parts == 1:
            return USED_UP
        return (
            f"{self._nodes.count} nodes share the {self._limit:.0f} commits per hour of this repository "
            f"(HF_MPWRITER_COMMITS_PER_HOUR), so this one makes about one in {rule.pause / 60:.0f} minutes; "
            "with one logdir for all nodes, on a shared filesystem, one commit serves all of them; "
            "if only this one logs: HF_MPWRITER_NODES=1"
        )

    def saw(self, hosts: Collection[str], apart: Collection[str] = ()) -> bool:
        """Note hosts that share the run directory, and our uploader; whether that changes the parts."""
        before = self.rule.parts
        self._seen = self._seen.union(hosts).difference(apart)
        return self.rule.parts != before

    def committed(self, *, beside_others: bool) -> None:
        """Note a commit of ours: where no other node commits, as if rank 0 alone logs, nothing is divided.

        The node of rank 0 believes that until its second commit, the others after two commits in a row.
        """
        if self._has_committed:
            self._is_only = not beside_others
        self._has_committed = True

    def look(self) -> bool:
        """Note who shares the bucket, and be seen there; whether that changes the parts."""
        before = self.rule.parts
        if before > 1:
            self._update(lambda bucket, _: (bucket, 0.0))
        return self.rule.parts != before

    def take(self, *, urgent: bool) -> float:
        """Take a token; 0 if there was one, else the seconds until another try is worth it."""
        return self._update(lambda bucket, now: self.rule.spend(bucket, now, urgent=urgent))

    def give_back(self) -> None:
        """Give a token back: no commit was made."""
        self._update(lambda bucket, _: (self.rule.give_back(bucket), 0.0))

    def _update(self, change: Callable[[Bucket, float], tuple[Bucket, float]]) -> float:
        """Change the bucket. Without any place for it there is no limit but the Hub's own."""
        while self._folders:
            try:
                return self._update_in(self._folders[0], change)
            except OSError:
                self._folders = self._folders[1:]
        return 0.0

    def _update_in(self, folder: Place, change: Callable[[Bucket, float], tuple[Bucket, float]]) -> float:
        disk.make_dirs(folder, durable=False)
        lock = locks.try_exclusive(folder / "lock")
        if lock is None:
            return self._wait_for_lock(self._clock())
        self._busy_since = None
        try:
            now, path = self._clock(), folder / self._name
            bucket = self._with_us(self._read(path, now), now)
            self._at_bucket = len(bucket.hosts)
            bucket, wait = change(bucket, now)
            disk.replace(path, state.dump(bucket), "rate_limit", durable=False)
            self._forget_rested(folder, now)
            return wait
        finally:
            locks.release(lock)

    def _wait_for_lock(self, now: float) -> float:
        self._busy_since = now if self._busy_since is None else self._busy_since
        if now - self._busy_since > BUSY_LIMIT:
            raise OSError("the process that holds the lock is stopped")
        return BUSY_WAIT

    def _read(self, path: Place, now: float) -> Bucket:
        try:
            bucket = state.load(Bucket, disk.read(path) or b"")
        except state.DamagedError:
            return Bucket(self.rule.burst, now)
        return replace(bucket, at=min(now, bucket.at))

    def _with_us(self, bucket: Bucket, now: float) -> Bucket:
        """The bucket with this host among those that use it."""
        hosts = {host: at for host, at in bucket.hosts.items() if abs(now - at) < RESTED_AFTER}
        return replace(bucket, hosts={**hosts, self._host: now})

    @staticmethod
    def _forget_rested(folder: Place, now: float) -> None:
        """Remove buckets that were not touched for so long that they are full, as a missing one is.

        A temporary file is that of a killed process: the holder of the lock is alone.
        """
        for name in folder.names():
            with contextlib.suppress(OSError):
                rested = name.endswith(".json") and (folder / name).stat().st_mtime < now - RESTED_AFTER
                if rested or name.endswith(".tmp"):
                    (folder / name).unlink()


def folders(environ: Mapping[str, str], spool: Directory) -> list[Place]:
    """Where buckets may be: the user's cache folder, else the spool."""
    own = Directory(os.path.join(hf_home.cache_folder(environ), "hf_mpwriter", "rate_limit"))
    return [Place(own), spool / "rate_limit"]


def _name_of(destination: Destination) -> str:
    """The file of the bucket of a repository."""
    repository = f"{destination.endpoint} {destination.repo_type} {destination.repo_id}"
    return f"{hashlib.sha256(repository.encode()).hexdigest()[:24]}.json"
