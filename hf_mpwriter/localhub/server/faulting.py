"""Faults at work: which of them strikes a request, and what the client then sees.

Everything here runs in the event loop. A request that hangs holds no thread, so any number of them leaves the others
alone; and uvicorn does not cancel a request whose client has gone, so a commit that hangs `before` is applied when it
goes on: the late request of a client that was killed.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from typing import TYPE_CHECKING

from starlette.responses import JSONResponse, Response
from uvicorn.protocols.http.h11_impl import H11Protocol

from hf_mpwriter.localhub.server.faults import Fault, Standing

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from hf_mpwriter.localhub.server.faults import When

PIECES = 20  # a slow answer leaves in about so many
HALF_OPEN = 5.0  # seconds that a client may need to see that nothing will come
BROKEN_OFF = Fault(".", "close")  # what happens to a request that hangs when the Hub stops
_RESET = struct.pack("ii", 1, 0)  # SO_LINGER: closing drops what is unsent and sends RST


class Faults:
    """The faults of a running Hub; the first one that fits and is due strikes."""

    def __init__(self) -> None:
        self._standing: list[Standing] = []
        self._released = asyncio.Event()
        self._ending = False

    def add(self, fault: Fault) -> None:
        """Let a fault strike from now on."""
        self._standing.append(Standing(fault))

    def list(self) -> list[Standing]:
        """Return all faults since the last clearing, those that will not strike any more included."""
        return list(self._standing)

    def clear(self) -> None:
        """Forget all faults and let go on what they hold."""
        self._standing.clear()
        self._released.set()
        self._released = asyncio.Event()

    def end(self) -> None:
        """Break off what hangs: a Hub that stops does not do it late."""
        self._ending = True
        self.clear()

    async def strike(self, when: When, method: str, path: str) -> Fault | None:
        """Return the fault that changes the course of a request; None, after a hang too, if it goes on."""
        standing = self._next(when, method, path)
        if standing is None:
            return None
        standing.hits += 1
        if standing.fault.kind != "hang":
            return standing.fault
        await self._hold(standing)
        return BROKEN_OFF if self._ending else None

    def _next(self, when: When, method: str, path: str) -> Standing | None:
        """Return the fault that strikes, counting the request for all that it passes."""
        for standing in self._standing:
            if standing.fault.when == when and standing.fault.matches(method, path):
                standing.seen += 1
                if standing.due:
                    return standing
        return None

    async def _hold(self, standing: Standing) -> None:
        """Wait until the faults are cleared or the seconds are over."""
        standing.held += 1
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._released.wait(), standing.fault.seconds or None)
        standing.held -= 1


class Protocol(H11Protocol):
    """Tells every request of its connection, so that a fault can break it."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as in the base class
        """Note the connection where each request finds it."""
        self.app_state = self.app_state | {"transport": transport}
        super().connection_made(transport)


def answer_of(fault: Fault, answer: ASGIApp | None = None) -> ASGIApp:
    """Return what the client gets in place of an answer."""
    if fault.kind == "status":
        return _status_answer(fault)
    if fault.kind == "slow" and answer:
        return _Slowed(answer, fault.seconds)
    return _Broken(reset=fault.kind == "reset")


def _status_answer(fault: Fault) -> Response:
    """Return the answer that a fault describes."""
    message = fault.message or f"Fault of the local Hub: {fault.status}"
    headers = {"X-Error-Message": message.encode("ascii", "replace").decode("ascii")}
    if fault.code:
        headers["X-Error-Code"] = fault.code
    headers |= dict(fault.headers)
    if fault.body:
        return Response(fault.body, fault.status, headers, "text/html")
    return JSONResponse({"error": message}, fault.status, headers)


class _Broken:
    """The connection ends without an answer."""

    def __init__(self, *, reset: bool) -> None:
        self.reset = reset

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002  # ASGI
        """Break the connection and wait until it is gone."""
        transport: asyncio.Transport = scope["state"]["transport"]
        if self.reset:
            transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        else:  # to close while a part of the request is unread would be a reset, too
            transport.write_eof()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._end_of(receive), HALF_OPEN)
        transport.close()
        await self._end_of(receive)

    @staticmethod
    async def _end_of(receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass


class _Pace:
    """Spreads a body over some seconds."""

    def __init__(self, seconds: float, headers: list[tuple[bytes, bytes]]) -> None:
        self.total = next((int(value) for name, value in headers if name.lower() == b"content-length"), 0)
        self.seconds = seconds
        self.done = 0
        self.began = asyncio.get_running_loop().time()

    async def wait(self, size: int) -> None:
        """Wait until so many bytes more may have passed."""
        self.done += size
        share = min(1.0, self.done / self.total) if self.total else 1.0
        await asyncio.sleep(self.began + self.seconds * share - asyncio.get_running_loop().time())


class _Slowed:
    """An answer whose body takes its time."""

    def __init__(self, answer: ASGIApp, seconds: float) -> None:
        self.answer = answer
        self.seconds = seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer slowly."""
        pace = _Pace(self.seconds, [])

        async def slow_send(message: Message) -> None:
            """Send a body in pieces."""
            nonlocal pace
            if message["type"] == "http.response.start":
                pace = _Pace(self.seconds, message["headers"])
                await send(message)
                return
            body, size = message.get("body", b""), max(1, pace.total // PIECES)
            while True:
                piece, body = body[:size], body[size:]
                await pace.wait(len(piece))
                await send({**message, "body": piece, "more_body": bool(body) or message.get("more_body", False)})
                if not body:
                    return

        await self.answer(scope, receive, slow_send)


def slow_receive(fault: Fault, scope: Scope, receive: Receive) -> Receive:
    """Return a way to read the body of a request that takes the seconds of a fault."""
    pace = _Pace(fault.seconds, scope["headers"])

    async def receive_slowly() -> Message:
        """Read a piece, then wait for its time to be over."""
        message = await receive()
        await pace.wait(len(message.get("body", b"")))
        return message

    return receive_slowly
