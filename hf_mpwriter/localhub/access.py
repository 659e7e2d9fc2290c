"""Who may send requests, and how many.

Accounts: there is one, identified by a token, or by the token with `-read` behind it, which may only read. A Hub
without a token accepts every request. A Hub with one hides all repositories from requests without a token, as the real
Hub hides private ones: a private repository and a missing one look the same.

Limits: requests per five minutes, commits per hour, one commit at a time. All are off by default. The real Hub counts
requests in fixed windows and returns the remaining number in the header `ratelimit`. How it counts commits is known
only from its refusals. This Hub counts them per repository over the last hour; a refused commit does not count.
"""

from __future__ import annotations

import base64
import contextlib
import hmac
import math
import threading
from collections import defaultdict
from collections.abc import Iterator, MutableMapping
from typing import Literal

from hf_mpwriter.localhub.config import HubConfig
from hf_mpwriter.localhub.errors import CommitUnderway, RateLimited, Refusal, Unauthorized

TOKEN_VARIABLE = "HF_MPWRITER_LOCALHUB_TOKEN"  # noqa: S105  # a variable's name
READS = "-read"  # what stands behind the token in the one that may only read
WINDOW = 300.0  # seconds

Name = tuple[str, str]  # type and id of a repository
Role = Literal["stranger", "read", "write"]


def take_token(environ: MutableMapping[str, str]) -> str | None:
    """Return the token of an environment and remove it from there, so that child processes do not inherit it."""
    return environ.pop(TOKEN_VARIABLE, None) or None


def role_of(authorization: str | None, token: str | None) -> Role:
    """Return the role that an Authorization header grants on a Hub with this token."""
    if token is None or _carries(authorization, token):
        return "write"
    if _carries(authorization, token + READS):
        return "read"
    if authorization is None:
        return "stranger"
    raise Unauthorized


def bearer_of(authorization: str | None) -> str | None:
    """Return an Authorization header with the token that a browser sends as the password of Basic authentication."""
    scheme, _, credentials = (authorization or "").partition(" ")
    if scheme.lower() != "basic":
        return authorization
    try:
        password = base64.b64decode(credentials, validate=True).decode().partition(":")[2]
    except ValueError:
        return authorization
    return f"Bearer {password}"


def _carries(authorization: str | None, token: str) -> bool:
    return hmac.compare_digest((authorization or "").encode(), f"Bearer {token}".encode())


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
