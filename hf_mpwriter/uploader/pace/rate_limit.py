"""The rate limit: how many commits a repository gets from all uploaders of a user on this host.

    <cache>/hf_mpwriter/rate_limit/lock              held while a bucket is read and written
    <cache>/hf_mpwriter/rate_limit/<24 hex>.json     {"tokens": 17.25, "at": 1795236610.0}   one for each repository

The Hub allows a repository some commits per hour (128 were seen) and refuses all others, those of people included. So
every uploader takes a token from one bucket before each commit. `<cache>` is the user's cache folder, or the spool
where that cannot be written; then each run directory has a limit of its own.

Invariants:
- In no hour are there more commits than the limit: a full bucket and an hour's refill are the limit together.
- The last tokens are for urgent commits: those that a request waits for, and the last records of a run.
- No uploader waits for the lock. One that is stopped while it holds the lock stops no other for long: a run directory
  goes on with a limit of its own. Garbage in a bucket, or a clock that was set back, costs no more than a full bucket.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from hf_mpwriter.base import state
from hf_mpwriter.base.settings import Destination
from hf_mpwriter.system import disk, hf_home, locks
from hf_mpwriter.system.directory import Directory, Place

LARGEST_BURST = 20.0  # commits that a rested repository may get at once
RESERVE = 0.25  # of the burst, for urgent commits
BUSY_WAIT = 0.2  # seconds, while another uploader holds the lock
BUSY_LIMIT = 10.0  # seconds, after which that one counts as stopped
USED_UP = "the commits that this repository gets per hour are used up (HF_MPWRITER_COMMITS_PER_HOUR): they come slower"
HOUR = 3600.0
ROUNDING = 1e-6  # tokens; after the wait that was named there is one


@dataclass(frozen=True)
class Bucket:
    """Tokens at a time.

    Attributes:
        tokens: commits that may start.
        at: unix time.
    """

    tokens: float
    at: float


@dataclass(frozen=True)
class Rule:
    """What a limit of so many commits per hour means.

    Attributes:
        limit: commits per hour, at least 2.
    """

    limit: float

    @property
    def burst(self) -> float:
        """Tokens of a full bucket."""
        return max(1.0, min(LARGEST_BURST, self.limit / 5))

    @property
    def rate(self) -> float:
        """Tokens per second that come back."""
        return (self.limit - self.burst) / HOUR

    def spend(self, bucket: Bucket, now: float, *, urgent: bool) -> tuple[Bucket, float]:
        """Take a token.

        Returns:
            The bucket afterwards, and the seconds until there is a token: 0 if one was taken.
        """
        tokens = min(self.burst, max(0.0, bucket.tokens) + max(0.0, now - bucket.at) * self.rate)
        needed = 1.0 if urgent else min(self.burst, 1.0 + RESERVE * self.burst)
        if tokens > needed - ROUNDING:
            return Bucket(tokens - 1.0, now), 0.0
        return Bucket(tokens, now), (needed - tokens) / self.rate

    def give_back(self, bucket: Bucket) -> Bucket:
        """The bucket after a token that led to no commit came back."""
        return Bucket(min(self.burst, bucket.tokens + 1.0), bucket.at)


class RateLimit:
    """The bucket of one repository.

    Args:
        destination: whose repository.
        limit: commits per hour.
        folders: where buckets may be; the first one that can be written is taken.
        clock: unix time; several processes share a bucket.
    """

    def __init__(
        self, destination: Destination, limit: float, folders: list[Place], clock: Callable[[], float] = time.time
    ) -> None:
        self._rule, self._clock = Rule(limit), clock
        repository = f"{destination.endpoint} {destination.repo_type} {destination.repo_id}"
        self._name = f"{hashlib.sha256(repository.encode()).hexdigest()[:24]}.json"
        self._folders = folders
        self._busy_since: float | None = None

    def take(self, *, urgent: bool) -> float:
        """Take a token; 0 if there was one, else the seconds until another try is worth it."""
        return self._update(lambda bucket, now: self._rule.spend(bucket, now, urgent=urgent))

    def give_back(self) -> None:
        """Give a token back: no commit was made."""
        self._update(lambda bucket, _: (self._rule.give_back(bucket), 0.0))

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
            bucket, wait = change(self._read(path, now), now)
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
            return Bucket(self._rule.burst, now)
        return Bucket(bucket.tokens, min(now, bucket.at))

    @staticmethod
    def _forget_rested(folder: Place, now: float) -> None:
        """Remove buckets that were not touched for an hour: they are full, as a missing one is.

        A temporary file is that of a killed process: the holder of the lock is alone.
        """
        for name in folder.names():
            with contextlib.suppress(OSError):
                rested = name.endswith(".json") and (folder / name).stat().st_mtime < now - HOUR
                if rested or name.endswith(".tmp"):
                    (folder / name).unlink()


def folders(environ: Mapping[str, str], spool: Directory) -> list[Place]:
    """Where buckets may be: the user's cache folder, else the spool."""
    own = Directory(os.path.join(hf_home.cache_folder(environ), "hf_mpwriter", "rate_limit"))
    return [Place(own), spool / "rate_limit"]
