"""Serving a root: bind to loopback, claim the root, run until told to stop.

    ROOT/server.lock      held by the one server of this root

The process that holds a root empties its `tmp/` at the start, so a second one must not get that far.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib.util
import os
import random
import select
import signal
import socket
import threading
import time
from typing import TYPE_CHECKING, BinaryIO

import uvicorn

from hf_mpwriter.localhub.endpoints.app import FAULTS_PATH, READY_PATH, TOKENS_PATH, create_app
from hf_mpwriter.localhub.server.faulting import Protocol
from hf_mpwriter.localhub.server.limits import HubLimits, Usage
from hf_mpwriter.localhub.server.state import DEFAULT_USER, MULTIPART_OVER, SELF_HEADER, HubState, load_secret
from hf_mpwriter.localhub.storage.writing import WritableStore
from hf_mpwriter.localhub.storage.xet import XetStore

if TYPE_CHECKING:
    from collections.abc import Iterable

    from hf_mpwriter.localhub.server.accounts import Tokens
    from hf_mpwriter.localhub.server.faults import Fault
    from hf_mpwriter.localhub.storage.xet import Access

__all__ = [
    "FAULTS_PATH",
    "HOST",
    "READY_PATH",
    "TOKENS_PATH",
    "ServerError",
    "check_host",
    "end_with",
    "listen",
    "serve",
]

HOST = "127.0.0.1"
BACKLOG = 2048
KEEP_ALIVE = 75  # seconds; longer than clients keep idle connections, so that they close first
GRACE = 3  # seconds for answers under way when the server is told to stop
TAKEOVER = 10.0  # seconds to wait for a port or a root that a dying server still holds
RETRY_EVERY = 0.02  # seconds between tries
ORPHAN_CHECK = 0.2  # seconds between looks at the parent where there is no pidfd
PORTS = range(20000, 32000)  # below the ports that outgoing connections get
PORT_TRIES = 200


class ServerError(Exception):
    """The local Hub cannot be started."""


def check_host(host: str) -> None:
    """Refuse any address but loopback: without a token this Hub believes everybody."""
    if host not in (HOST, "localhost"):
        raise ServerError(f"The local Hub listens on {HOST} only, not on {host!r}")


def listen(port: int = 0, *, deadline: float = TAKEOVER) -> socket.socket:
    """Return a listening socket on loopback; port 0 picks a free one that stays free after a kill."""
    if port:
        return _listen_until(port, deadline)
    for candidate in random.sample(PORTS, PORT_TRIES):
        with contextlib.suppress(OSError):
            return _listen(candidate)
    raise ServerError(f"No free port between {PORTS.start} and {PORTS.stop}")


def _listen(port: int) -> socket.socket:
    """Return a listening socket."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((HOST, port))
        sock.listen(BACKLOG)
    except OSError:
        sock.close()
        raise
    return sock


def _listen_until(port: int, deadline: float) -> socket.socket:
    """Return a listening socket on a port that a killed server may still hold for a moment."""
    ends = time.monotonic() + deadline
    while True:
        try:
            return _listen(port)
        except OSError as error:
            if time.monotonic() > ends:
                raise ServerError(f"Port {port} is taken: {error}") from error
            time.sleep(RETRY_EVERY)


def serve(
    root: str | os.PathLike[str],
    port: int = 0,
    *,
    tokens: Tokens,
    limits: HubLimits,
    xet: bool = True,
    user: str = DEFAULT_USER,
    multipart_over: int = MULTIPART_OVER,
    discard: bool = False,
    sock: socket.socket | None = None,
    faults: Iterable[Fault] = (),
) -> None:
    """Serve a Hub until SIGTERM or SIGINT.

    Args:
        root: The folder with all data; made if it is missing.
        port: The port on 127.0.0.1; 0 picks a free one.
        tokens: What requests must carry.
        limits: What the Hub allows.
        xet: Whether clients may upload by Xet.
        user: The name that whoami tells, and the namespace of ids without one.
        multipart_over: Size in bytes above which LFS objects come in parts.
        discard: Whether LFS content is forgotten once its size and digest were checked.
        sock: A listening socket in place of a port.
        faults: What goes wrong from the start on.
    """
    if xet and importlib.util.find_spec("hf_xet") is None:
        raise ServerError("Xet needs the package hf_xet; install it or switch Xet off (--no-xet)")
    store = WritableStore(root, discard=discard)
    lock = _lock_root(store.root)
    store.prepare()
    sock = sock or listen(port)
    port = sock.getsockname()[1]
    hub = HubState(store, load_secret(store.root), tokens, user, multipart_over=multipart_over, usage=Usage(limits))
    if xet:
        _add_xet(hub, port)
    for fault in faults:
        hub.faults.add(fault)
    config = uvicorn.Config(
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
    with lock, sock:
        _Server(config, hub).run(sockets=[sock])


class _Server(uvicorn.Server):
    """A server that does not wait for what hangs when it is told to stop."""

    def __init__(self, config: uvicorn.Config, hub: HubState) -> None:
        super().__init__(config)
        self._hub = hub

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Break off what hangs, then let the rest finish."""
        self._hub.faults.end()
        await super().shutdown(sockets)


def _lock_root(root: str, deadline: float = TAKEOVER) -> BinaryIO:
    """Claim a root for this process: two servers would not see each other's locks."""
    os.makedirs(root, exist_ok=True)
    file = open(os.path.join(root, "server.lock"), "ab")  # noqa: SIM115  # the lock is held as long as it is open
    ends = time.monotonic() + deadline
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            # A server that was told to stop may still be finishing.
            if time.monotonic() > ends:
                file.close()
                raise ServerError(f"Another local Hub serves {root}") from None
            time.sleep(RETRY_EVERY)
        else:
            return file


def _add_xet(hub: HubState, port: int) -> None:
    """Give a Hub its Xet store and the Xet client that rebuilds content a way back to this very server."""

    def access() -> Access:
        """Return how the Hub reaches its own CAS."""
        token, ends = hub.xet_token("read")
        return f"http://{HOST}:{port}/xet/{hub.cas_store}", token, ends, {SELF_HEADER: hub.self_key()}

    # The client reads these when it is loaded, which happens in this process only. What the user set for uploading
    # clients is not for it.
    for name in [name for name in os.environ if name.startswith("HF_XET_")]:
        del os.environ[name]
    os.environ["HF_HOME"] = os.environ["HF_XET_CACHE"] = os.path.join(hub.store.root, "xet", "cache")
    os.environ["HF_XET_TELEMETRY_ENABLED"] = "0"
    os.environ["NO_PROXY"] = os.environ["no_proxy"] = HOST
    hub.xet = XetStore(hub.store, access)
    hub.xet.load()


def end_with(parent: int) -> None:
    """End this process as soon as its parent has ended.

    PR_SET_PDEATHSIG would also fire when the thread that started this process ends; a pidfd tells of the process.
    """
    try:
        descriptor = os.pidfd_open(parent) if hasattr(os, "pidfd_open") else None
    except ProcessLookupError:
        os._exit(1)
    # The pid may have been used again before the pidfd was opened; then we have been adopted by somebody else.
    if os.getppid() != parent:
        os._exit(1)

    def watch() -> None:
        """Wait for the end of the parent."""
        if descriptor is not None:
            select.select([descriptor], [], [])
        while os.getppid() == parent:
            time.sleep(ORPHAN_CHECK)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, name="parent-watch", daemon=True).start()
