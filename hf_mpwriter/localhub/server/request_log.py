"""The request log: one line of JSON per request, for tests that count requests and bytes.

    ROOT/requests.jsonl       {"t": 12.5, "method": "POST", "path": "/api/...", "status": 200,
    ROOT/requests.jsonl.1      "in": 512, "out": 96, "auth": true}

`t` is the monotonic clock at the start of the request. `in` and `out` count bytes of bodies. `status` is null if the
Hub sent no response. The path is the raw path without its query, which may hold a signature; the token is never
logged. At LOG_BYTES the file moves to `.1`, so both together stay below twice that size. Control requests and the
Hub's requests to itself are not logged.
"""

from __future__ import annotations

import json
import os
import time
from typing import TYPE_CHECKING

from hf_mpwriter.localhub.server.config import CONTROL

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from hf_mpwriter.localhub.server.state import HubState

LOG_BYTES = 16 << 20


def raw_path(scope: Scope) -> str:
    """Return the path of a request as it was sent, without its query."""
    raw: bytes = scope.get("raw_path") or scope["path"].encode()
    return raw.split(b"?")[0].decode("latin-1")


class RequestLog:
    """ASGI middleware that logs requests."""

    def __init__(self, app: ASGIApp, hub: HubState, limit: int = LOG_BYTES) -> None:
        self.app = app
        self.hub = hub
        self.limit = limit
        self.path = os.path.join(hub.store.root, "requests.jsonl")
        self._file = open(self.path, "ab", buffering=0)  # noqa: SIM115  # open for the life of the server

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request and log it."""
        if scope["type"] != "http" or scope["path"].startswith(CONTROL) or self.hub.is_own(scope["headers"]):
            await self.app(scope, receive, send)
            return
        started = time.monotonic()
        seen: dict[str, int | None] = {"status": None, "in": 0, "out": 0}

        async def counting_receive() -> Message:
            """Count the bytes of the request body."""
            message = await receive()
            seen["in"] = (seen["in"] or 0) + len(message.get("body", b""))
            return message

        async def counting_send(message: Message) -> None:
            """Count the bytes of the response body."""
            if message["type"] == "http.response.start":
                seen["status"] = message["status"]
            seen["out"] = (seen["out"] or 0) + len(message.get("body", b""))
            await send(message)

        try:
            await self.app(scope, counting_receive, counting_send)
        finally:
            self._write(started, scope, seen)

    def _write(self, started: float, scope: Scope, seen: dict[str, int | None]) -> None:
        """Append one line; on a full disk the line is lost, the request succeeds."""
        line = {"t": round(started, 4), "method": scope["method"], "path": raw_path(scope), **seen}
        line["auth"] = bool(scope.get("authenticated"))
        try:
            self._file.write(json.dumps(line).encode() + b"\n")
            if self._file.tell() > self.limit:
                self._file.close()
                os.replace(self.path, self.path + ".1")
                self._file = open(self.path, "ab", buffering=0)  # noqa: SIM115  # see __init__
        except OSError:
            pass
