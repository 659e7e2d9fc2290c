"""Rate limits: requests per five minutes, commits per hour, one commit at a time. All are off by default.

The real Hub counts requests in fixed windows and returns the remaining number in the header `ratelimit`. How it counts
commits is known only from its refusals. This Hub counts them per repository over the last hour; a refused commit does
not count.
"""

from __future__ import annotations

import contextlib
import math
import threading
from collections import defaultdict
from collections.abc import Iterator

from hf_mpwriter.localhub.errors import CommitUnderway, RateLimited, Refusal
from hf_mpwriter.localhub.server.config import HubConfig

WINDOW = 300.0  # seconds

Name = tuple[str, str]  # type and id of a repository


class Usage:
    """The used part of the limits."""

    def __init__(self, config: HubConfig) -> None:
        self._limits = config
        self._guard = threading.Lock()
        self._commits: dict[Name, list[float]] = defaultdict(list)  # times of the last hour
        self._underway: set[Name] = set()
        self._window_ends = 0.0
        self._requests = 0

    def request(self, now: float) -> dict[str, str]:
        """Count a request and return the headers with the remaining quota."""
        if not (limit := self._limits.requests_per_5min):
            return {}
        if now >= self._window_ends:
            self._window_ends, self._requests = now + WINDOW, 0
        self._requests += 1
        left, seconds = max(0, limit - self._requests), math.ceil(self._window_ends - now)
        headers = {
            "ratelimit": f'"api";r={left};t={seconds}',
            "ratelimit-policy": f'"fixed window";"api";q={limit};w={WINDOW:.0f}',
        }
        if self._requests > limit:
            raise RateLimited(headers=headers)
        return headers

    @contextlib.contextmanager
    def turn(self, repo: Name) -> Iterator[None]:
        """Hold a repository for one commit. Call this in the event loop only; it takes no lock."""
        if not self._limits.busy:
            yield
            return
        if repo in self._underway:
            raise CommitUnderway
        self._underway.add(repo)
        try:
            yield
        finally:
            self._underway.remove(repo)

    @contextlib.contextmanager
    def commit(self, repo: Name, now: float) -> Iterator[None]:
        """Count a commit, unless it is refused."""
        if not (limit := self._limits.commits_per_hour):
            yield
            return
        with self._guard:
            times = self._commits[repo] = [
                then for then in self._commits[repo] if now - then < self._limits.commit_window
            ]
            if len(times) >= limit:
                raise RateLimited(quota_text(limit, times[0] + self._limits.commit_window - now))
            times.append(now)
        try:
            yield
        except Refusal:
            with self._guard:
                self._commits[repo].remove(now)
            raise


def quota_text(limit: int, seconds: float) -> str:
    """Return the message with which the real Hub refuses a commit above the quota."""
    minutes = max(1, math.ceil(seconds / 60))
    count, unit = (minutes // 60, "hour") if minutes >= 60 else (minutes, "minute")
    wait = f"{count} {unit}{'s' if count > 1 else ''}"
    return (
        f"You have exceeded the rate limit for repository commits ({limit} per hour). "
        f"You can retry this action in about {wait}."
    )
