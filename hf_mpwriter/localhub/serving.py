"""The server process: claim the root, share one state among all endpoints, serve until a signal.

    ROOT/server.lock      held by the only server of this root
    ROOT/secret           64 random hex digits

A server empties the root's `tmp/` when it starts, so it must hold the lock before that. The secret signs upload URLs
and Xet access tokens, and its readers may control the Hub. It is on disk so that they stay valid after a crash.

Invariant: other users read nothing of the root: it is 0700 and of this user, or refused, and all in it is private.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import hmac
import importlib.util
import math
import os
import secrets
import socket
import threading
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import BinaryIO

import uvicorn

from hf_mpwriter.localhub.buckets import Feeds
from hf_mpwriter.localhub.child import listen
from hf_mpwriter.localhub.config import HOST, HubConfig, ServerError, make_private
from hf_mpwriter.localhub.endpoints.app import create_app
from hf_mpwriter.localhub.errors import Forbidden, RateLimited, Refusal, Unauthorized
from hf_mpwriter.localhub.faulting import Faults, Protocol
from hf_mpwriter.localhub.faults import Fault
from hf_mpwriter.localhub.pages.boards import Boards
from hf_mpwriter.localhub.store import WritableStore
from hf_mpwriter.localhub.xet import Access, XetStore

KEEP_ALIVE = 75  # seconds; longer than clients keep idle connections, so that clients close first
GRACE = 3  # seconds for responses in progress when the server stops
TAKEOVER = 10.0  # seconds to wait for a root that a dying server still holds
RETRY_EVERY = 0.02  # seconds
SELF_HEADER = "x-localhub-self"  # marks the Hub's requests to itself
XET_TOKEN_SECONDS = 3600


def serve(
    root: str | os.PathLike[str],
    config: HubConfig,
    *,
    token: str | None,
    port: int = 0,
    sock: socket.socket | None = None,
    faults: Iterable[Fault] = (),
) -> None:
    """Serve a Hub until SIGTERM or SIGINT."""
    if config.xet and importlib.util.find_spec("hf_xet") is None:
        raise ServerError("Xet needs the package hf_xet; install it or switch Xet off (--set xet=false)")
    os.umask(0o077)
    store = WritableStore(root, discard=config.discard, long_ids=config.long_ids)
    lock = _lock_root(store.root)
    store.prepare()
    sock = sock or listen(port)
    port = sock.getsockname()[1]
    hub = HubState(store, _load_secret(store), config, token)
    if config.xet:
        _add_xet(hub, port)
    for fault in faults:
        hub.faults.add(fault)
    server = uvicorn.Config(
        create_app(hub),
        http=Protocol,
        lifespan="off",
        log_level="warning",
        access_log=False,
        timeout_keep_alive=KEEP_ALIVE,
        timeout_graceful_shutdown=GRACE,
        server_header=False,
    )
    print(f"local Hub at http://{HOST}:{port}, data in {store.root}", flush=True)
    print(f"to use it: HF_ENDPOINT=http://{HOST}:{port} python train.py", flush=True)
    with lock, sock:
        _Server(server, hub).run(sockets=[sock])


class _Server(uvicorn.Server):
    """A uvicorn server that aborts hanging requests when it stops."""

    def __init__(self, config: uvicorn.Config, hub: HubState) -> None:
        super().__init__(config)
        self._hub = hub

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Abort hanging requests, end boards and feeds, then let the others finish."""
        self._hub.faults.end()
        self._hub.boards.end()
        self._hub.feeds.end()
        await super().shutdown(sockets)


def _lock_root(root: str, deadline: float = TAKEOVER) -> BinaryIO:
    """Claim a root for this process: the locks of repositories do not reach across processes."""
    make_private(root)
    file = open(os.path.join(root, "server.lock"), "ab")  # noqa: SIM115  # open for as long as the lock is held
    ends = time.monotonic() + deadline
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            # A stopping server may still be finishing its responses.
            if time.monotonic() > ends:
                file.close()
                raise ServerError(f"Another local Hub serves {root}") from None
            time.sleep(RETRY_EVERY)
        else:
            return file


def _add_xet(hub: HubState, port: int) -> None:
    """Add the Xet store to a Hub; the Xet client inside it downloads from this same server."""

    def access() -> Access:
        token, ends = hub.xet_token("read")
        return f"http://{HOST}:{port}/xet/{hub.cas_store}", token, ends, {SELF_HEADER: hub.self_key()}

    # hf_xet reads the environment when it is imported. The user's HF_XET_* settings are meant for uploading clients.
    for name in [name for name in os.environ if name.startswith("HF_XET_")]:
        del os.environ[name]
    os.environ["HF_HOME"] = os.environ["HF_XET_CACHE"] = os.path.join(hub.store.root, "xet", "cache")
    os.environ["HF_XET_TELEMETRY_ENABLED"] = "0"
    os.environ["NO_PROXY"] = os.environ["no_proxy"] = HOST
    hub.xet = XetStore(hub.store, access)
    hub.xet.load()


def _load_secret(store: WritableStore) -> bytes:
    """Return the secret of a Hub; the first call creates it."""
    path = os.path.join(store.root, "secret")
    try:
        with open(path, "rb") as file:
            return file.read()
    except FileNotFoundError:
        secret = secrets.token_hex(32).encode()
        store.disk.write(path, secret)
        return secret


class RequestCount:
    """Commits per hour and repository, and requests of the account, as the real Hub limits them.

    A refused commit does not count.
    """

    def __init__(self, config: HubConfig) -> None:
        self._limits = config
        self._guard = threading.Lock()
        self._commits: dict[tuple[str, str], list[float]] = defaultdict(list)  # times of the last hour, by repository
        self._requests, self._window_ends = 0, 0.0

    def request(self, now: float) -> dict[str, str]:
        """Count a request, in the event loop; the headers that tell of the limit. RateLimited above it."""
        if not (limit := self._limits.requests):
            return {}
        if now >= self._window_ends:
            self._requests, self._window_ends = 0, now + self._limits.request_window
        self._requests += 1
        left, ends = max(0, limit - self._requests), math.ceil(self._window_ends - now)
        policy = f'"fixed window";"api";q={limit};w={self._limits.request_window:.0f}'
        headers = {"RateLimit": f'"api";r={left};t={ends}', "RateLimit-Policy": policy}
        if self._requests > limit:
            refusal = RateLimited()
            refusal.headers = headers
            raise refusal
        return headers

    @contextlib.contextmanager
    def commit(self, repo: tuple[str, str], now: float) -> Iterator[None]:
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


@dataclass
class HubState:
    """What handlers read and change; one per server process."""

    store: WritableStore
    secret: bytes
    config: HubConfig = field(default_factory=HubConfig)
    token: str | None = field(default=None, repr=False)
    xet: XetStore | None = None
    faults: Faults = field(default_factory=Faults)
    quota: RequestCount = field(init=False)
    boards: Boards = field(init=False)
    feeds: Feeds = field(init=False)

    def __post_init__(self) -> None:
        """Prepare what depends on the other fields; no board starts before it is asked for."""
        self.quota = RequestCount(self.config)
        self.boards = Boards(self.store.disk)
        self.feeds = Feeds(self.config.feed_kept, self.config.feed_ping)

    def sign(self, *words: object) -> str:
        """Return a signature over some words."""
        text = "\n".join(map(str, words)).encode()
        return hmac.new(self.secret, text, hashlib.sha256).hexdigest()

    def check_signature(self, signature: str, *words: object) -> None:
        """Raise Forbidden unless a signature is valid."""
        if not hmac.compare_digest(signature.encode(), self.sign(*words).encode()):
            raise Forbidden("Invalid signature")

    @functools.cached_property
    def cas_store(self) -> str:
        """The name of the Xet store in the CAS address."""
        return self.sign("store")[:12]

    def xet_token(self, scope: str) -> tuple[str, int]:
        """Return an access token for the Xet store and the Unix time at which it expires."""
        ends = int(time.time()) + XET_TOKEN_SECONDS
        return f"xet.{scope}.{ends}.{self.sign('xet', scope, ends)}", ends

    def check_xet_token(self, authorization: str | None, scope: str) -> None:
        """Raise Unauthorized unless a header carries a Xet token for this scope; a write token may also read."""
        parts = (authorization or "").removeprefix("Bearer ").split(".")
        if parts[0] != "xet" or len(parts) != 4 or not parts[2].isdigit():  # see xet_token
            raise Unauthorized
        if not hmac.compare_digest(parts[3].encode(), self.sign("xet", parts[1], parts[2]).encode()):
            raise Unauthorized
        if int(parts[2]) < time.time() or (scope == "write" and parts[1] != "write"):
            raise Unauthorized

    def is_own(self, headers: Iterable[tuple[bytes, bytes]]) -> bool:
        """Return whether the headers are those of the Hub's own request, made to rebuild content from its Xet store."""
        key = self.self_key().encode()
        return any(name == SELF_HEADER.encode() and value == key for name, value in headers)

    def self_key(self) -> str:
        """Return the value of SELF_HEADER, which only the Hub can compute."""
        return self.sign("self")
