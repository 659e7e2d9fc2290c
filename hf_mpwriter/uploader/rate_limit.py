"""The rate limit: how many commits a repository gets from all uploaders of a user on this host.

    <cache>/hf_mpwriter/rate_limit/<24 hex>.json                            of a repository and a host
    {"used": 2.75, "at": 1795236610.0, "private": false}

The Hub allows a repository some commits per hour (128 were seen) and refuses all others, those of people included. So
every uploader takes a token from the bucket of its repository before each commit. The buckets are in the user's cache,
see `system/user_cache`; where that cannot be written, there is no limit but the Hub's own.

Nodes of a job do not see each other's buckets, so each takes its share: of `n` nodes apart, each has one n-th of the
burst, and waits `n` times as long for a token. Nodes that share a run directory have one uploader, and one share for
each of them. Where there are more nodes than tokens in a burst, a bucket begins with a random part of one, so that not
all commit at the same moment.

With its bucket an uploader leaves to the next one what the user knows: whether the repository is private.

Invariants:
- In no hour are there more commits on a host than a full bucket and an hour's refill: together its share of the limit,
  and one more where that is less than a burst of one.
- The last tokens are for urgent commits: those that a request waits for, and the last records of a run.
- No uploader waits for the lock. One that is stopped while it holds the lock stops no other for long: those go on
  without the bucket. Garbage in a bucket, or a clock that was set back, costs no more than a full bucket.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace

from hf_mpwriter.base import state
from hf_mpwriter.base.job import Nodes
from hf_mpwriter.base.settings import Destination
from hf_mpwriter.base.words import duration
from hf_mpwriter.system import disk, user_cache
from hf_mpwriter.system.directory import Place

LARGEST_BURST = 20.0  # commits that a rested repository may get at once
RESERVE = 0.25  # of the burst, for urgent commits
BUSY_WAIT = 0.2  # seconds, while another uploader holds the lock
BUSY_LIMIT = 10.0  # seconds, after which that one counts as stopped
HOUR = 3600.0
RESTED_AFTER = 24 * HOUR  # without a commit, the file of a bucket is removed
ONE_NODE = Nodes()
ROUNDING = 1e-6  # tokens; after the wait that was named there is one


@dataclass(frozen=True)
class Bucket:
    """Tokens at a time; counted by what is missing, as a full bucket depends on the number of nodes."""

    used: float = 0.0  # tokens that have not come back yet
    at: float = 0.0  # unix time
    private: bool | None = None  # visibility of the repository when the user was told of it last


@dataclass(frozen=True)
class Rule:
    """What a limit of so many commits per hour means for one bucket."""

    limit: float  # commits per hour of the repository, at least 2
    nodes: float = 1.0  # buckets among which the limit is divided, at least 1

    @property
    def burst_of_all(self) -> float:
        """Commits that a rested repository may get at once."""
        return max(1.0, min(LARGEST_BURST, self.limit / 5))

    @property
    def burst(self) -> float:
        """Tokens of a full bucket."""
        return max(1.0, self.burst_of_all / self.nodes)

    @property
    def pause(self) -> float:
        """Seconds until a token comes back."""
        return HOUR / (self.limit - self.burst_of_all) * self.nodes

    def tokens(self, bucket: Bucket, now: float) -> float:
        """Commits that may start now."""
        used = min(self.burst, max(0.0, bucket.used))
        return min(self.burst, self.burst - used + max(0.0, now - bucket.at) / self.pause)

    def spend(self, bucket: Bucket, now: float, *, urgent: bool) -> tuple[Bucket, float]:
        """Take a token; the bucket afterwards, and the seconds until there is a token: 0 if one was taken."""
        tokens = self.tokens(bucket, now)
        needed = 1.0 if urgent else min(self.burst, 1.0 + RESERVE * self.burst)
        taken = tokens > needed - ROUNDING
        wait = 0.0 if taken else (needed - tokens) * self.pause
        return replace(bucket, used=self.burst - tokens + taken, at=now), wait


class RateLimit:
    """The bucket of one repository."""

    def __init__(
        self,
        destination: Destination,
        limit: float,
        folder: Place,
        clock: Callable[[], float] = time.time,
        *,
        nodes: Nodes = ONE_NODE,
        host: str = "",
        rng: random.Random | None = None,
    ) -> None:
        self._limit, self._clock, self._nodes = limit, clock, nodes
        self._hosts = {host}  # that share this run directory, and its uploader
        self._is_only, self._has_committed = nodes.rank == 0, False
        self._folder, self._name = folder, _name_of(destination, host)
        self._phase = rng.random() if rng else 0.0  # part of a token that a new bucket of many lacks
        self._busy_since: float | None = None
        self.private: bool | None = None  # what the user was told last, as far as the bucket was read
        self.has_taken = False  # whether there was a bucket to take the last token from

    @property
    def rule(self) -> Rule:
        """What holds for this bucket, as far as is known of the other nodes."""
        nodes = 1 if self._is_only else self._nodes.count
        return Rule(self._limit, max(1.0, nodes / len(self._hosts)))

    @property
    def explanation(self) -> str:
        """Why commits come slower, for people."""
        rule = self.rule
        if rule.nodes == 1:
            return (
                f"many commits in a short time: from now on this repository gets one in {duration(rule.pause)}, "
                f"with all that waits (HF_MPWRITER_COMMITS_PER_HOUR={self._limit:g})"
            )
        return (
            f"{self._nodes.count} nodes share the {self._limit:.0f} commits per hour of this repository "
            f"(HF_MPWRITER_COMMITS_PER_HOUR), so this one makes about one in {rule.pause / 60:.0f} minutes; "
            "with one logdir for all nodes, on a shared filesystem, one commit serves all of them; "
            "if only this one logs: HF_MPWRITER_NODES=1"
        )

    def saw(self, hosts: Collection[str], apart: Collection[str] = ()) -> bool:
        """Note hosts that share the run directory, and our uploader; whether that changes the share."""
        before = self.rule
        self._hosts = self._hosts.union(hosts).difference(apart) or self._hosts
        return self.rule != before

    def committed(self, *, beside_others: bool) -> None:
        """Note a commit of ours: where no other node commits, as if rank 0 alone logs, nothing is divided.

        The node of rank 0 believes that until its second commit, the others after two commits in a row.
        """
        if self._has_committed:
            self._is_only = not beside_others
        self._has_committed = True

    def take(self, *, urgent: bool) -> float:
        """Take a token; 0 if there was one, or no bucket, else the seconds until another try is worth it."""
        wait = self._update(lambda bucket, now: self.rule.spend(bucket, now, urgent=urgent))
        self.has_taken = wait == 0.0
        return wait or 0.0

    def give_back(self) -> None:
        """Give a token back: no commit was made."""
        self._update(lambda bucket, _: (replace(bucket, used=max(0.0, bucket.used - 1.0)), 0.0))

    def saw_visibility(self, *, private: bool) -> None:
        """Note what the user was told, for the next uploader of the repository: each trial may have one."""
        if private != self.private:
            self._update(lambda bucket, _: (replace(bucket, private=private), 0.0))
            self.private = private

    def _update(self, change: Callable[[Bucket, float], tuple[Bucket, float]]) -> float | None:
        """Change the bucket; the seconds to wait. None without it: there is no limit then but the Hub's own."""
        now = self._clock()
        try:
            with user_cache.locked(self._folder) as is_held:
                if not is_held:
                    self._busy_since = now if self._busy_since is None else self._busy_since
                    return BUSY_WAIT if now - self._busy_since <= BUSY_LIMIT else None
                self._busy_since = None
                before = self._read(self._folder / self._name, now)
                self.private = before.private
                bucket, wait = change(before, now)
                disk.replace(self._folder / self._name, state.dump(bucket), "rate_limit", durable=False)
                user_cache.forget(self._folder, before=now - RESTED_AFTER)
                return wait
        except OSError:
            return None

    def _read(self, path: Place, now: float) -> Bucket:
        rule = self.rule
        try:
            bucket = state.load(Bucket, disk.read(path) or b"")
        except state.DamagedError:
            return Bucket(self._phase if rule.nodes > rule.burst_of_all else 0.0, now)
        return replace(bucket, at=min(now, bucket.at))


def folder_of(environ: Mapping[str, str]) -> Place:
    """Where the buckets are: in the user's cache folder."""
    return user_cache.folder_of("rate_limit", environ)


def _name_of(destination: Destination, host: str) -> str:
    """The file of the bucket of a repository and a host."""
    return user_cache.name_of(destination.endpoint, destination.repo_type, destination.repo_id, host)
