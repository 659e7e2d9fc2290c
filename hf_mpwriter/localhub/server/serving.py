"""The server process: claim the root, serve until a signal.

    ROOT/server.lock      held by the only server of this root

A server empties the root's `tmp/` when it starts, so it must hold the lock before that.
"""

from __future__ import annotations

import fcntl
import importlib.util
import os
import socket
import time
from typing import TYPE_CHECKING, BinaryIO

import uvicorn

from hf_mpwriter.localhub.endpoints.app import create_app
from hf_mpwriter.localhub.server.child import listen
from hf_mpwriter.localhub.server.config import HOST, HubConfig, ServerError
from hf_mpwriter.localhub.server.faulting import Protocol
from hf_mpwriter.localhub.server.state import SELF_HEADER, HubState, load_secret
from hf_mpwriter.localhub.storage.writing import WritableStore
from hf_mpwriter.localhub.storage.xet import XetStore

if TYPE_CHECKING:
    from collections.abc import Iterable

    from hf_mpwriter.localhub.server.accounts import Tokens
    from hf_mpwriter.localhub.server.faults import Fault
    from hf_mpwriter.localhub.storage.xet import Access


KEEP_ALIVE = 75  # seconds; longer than clients keep idle connections, so that clients close first
GRACE = 3  # seconds for responses in progress when the server stops
TAKEOVER = 10.0  # seconds to wait for a root that a dying server still holds
RETRY_EVERY = 0.02  # seconds


def serve(
    root: str | os.PathLike[str],
    config: HubConfig,
    *,
    tokens: Tokens,
    port: int = 0,
    sock: socket.socket | None = None,
    faults: Iterable[Fault] = (),
) -> None:
    """Serve a Hub until SIGTERM or SIGINT."""
    if config.xet and importlib.util.find_spec("hf_xet") is None:
        raise ServerError("Xet needs the package hf_xet; install it or switch Xet off (--no-xet)")
    store = WritableStore(root, discard=config.discard, long_ids=config.long_ids)
    lock = _lock_root(store.root)
    store.prepare()
    sock = sock or listen(port)
    port = sock.getsockname()[1]
    hub = HubState(store, load_secret(store.root), config, tokens)
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
        """Abort hanging requests and end the boards, then let the others finish."""
        self._hub.faults.end()
        self._hub.boards.end()
        await super().shutdown(sockets)


def _lock_root(root: str, deadline: float = TAKEOVER) -> BinaryIO:
    """Claim a root for this process: the locks of repositories do not reach across processes."""
    os.makedirs(root, exist_ok=True)
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
        """Return the address and credentials of the Hub's own CAS."""
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
