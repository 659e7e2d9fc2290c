"""Faults in action: choose the fault that strikes a request, and produce what the client sees.

Everything here runs in the event loop. A hanging request holds no thread, so hanging requests never delay others.
uvicorn does not cancel a request when its client disconnects. A commit that hangs `before` is therefore applied when
it resumes, like the late request of a killed client.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import zlib

from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from hf_mpwriter.localhub.faults import Fault, Standing, When

PIECES = 20  # approximate number of pieces of a slow response
HALF_OPEN = 5.0  # seconds for the client to close its side
BROKEN_OFF = Fault(".", "close")  # strikes requests that hang while the Hub stops
_RESET = struct.pack("ii", 1, 0)  # SO_LINGER: close drops unsent bytes and sends RST


class Faults:
    """The faults of a running Hub; the first one that matches and is due strikes."""

    def __init__(self) -> None:
        self._standing: list[Standing] = []
        self._released = asyncio.Event()
        self._ending = False

    def add(self, fault: Fault) -> None:
        """Add a fault; it applies from now on."""
        self._standing.append(Standing(fault))

    def list(self) -> list[Standing]:
        """Return all faults since the last clear, used-up ones included."""
        return list(self._standing)

    def clear(self) -> None:
        """Remove all faults and resume the requests that they hold."""
        self._standing.clear()
        self._released.set()
        self._released = asyncio.Event()

    def end(self) -> None:
        """Remove all faults and abort the requests that hang; a stopping Hub must not carry them out."""
        self._ending = True
        self.clear()

    async def strike(self, when: When, method: str, path: str) -> Fault | None:
        """Return the fault that strikes a request; None if it may go on, possibly after a hang."""
        standing = self._next(when, method, path)
        if standing is None:
            return None
        standing.hits += 1
        if standing.fault.kind != "hang":
            return standing.fault
        await self._hold(standing)
        return BROKEN_OFF if self._ending else None

    def _next(self, when: When, method: str, path: str) -> Standing | None:
        """Return the next fault for a request, and count the request for every fault that it passes."""
        for standing in self._standing:
            if standing.fault.when == when and standing.fault.matches(method, path):
                standing.seen += 1
                if standing.due:
                    return standing
        return None

    async def _hold(self, standing: Standing) -> None:
        standing.held += 1
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._released.wait(), standing.fault.seconds or None)
        standing.held -= 1


class Protocol(H11Protocol):
    """HTTP/1.1 whose requests know their connection, so that a fault can break it."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as in the base class
        """Put the transport into the state of every request."""
        self.app_state = self.app_state | {"transport": transport}
        super().connection_made(transport)


def answer_of(fault: Fault, answer: ASGIApp | None = None) -> ASGIApp:
    """Return the ASGI application that a fault puts in place of a response."""
    if fault.kind == "status":
        return _status_answer(fault)
    if fault.kind == "bomb":
        return Response(_bomb(fault.size), 200, {"content-encoding": "gzip"}, "application/json")
    if fault.kind == "slow" and answer:
        return _Slowed(answer, fault.seconds)
    return _Broken(reset=fault.kind == "reset")


def _status_answer(fault: Fault) -> Response:
    message = fault.message or f"Fault of the local Hub: {fault.status}"
    headers = {"X-Error-Message": message.encode("ascii", "replace").decode("ascii")}
    if fault.code:
        headers["X-Error-Code"] = fault.code
    headers |= dict(fault.headers)
    if fault.body:
        return Response(fault.body, fault.status, headers, "text/html")
    return JSONResponse({"error": message}, fault.status, headers)


def _bomb(size: int) -> bytes:
    """Return blanks and an empty JSON object, packed by gzip."""
    blanks, end, crc = b" " * (1 << 20), b"{}", 0
    packer, last = (zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS) for _ in range(2))
    block = packer.compress(blanks) + packer.flush(zlib.Z_FULL_FLUSH)
    for _ in range(size):
        crc = zlib.crc32(blanks, crc)
    trailer = struct.pack("<II", zlib.crc32(end, crc), (size * len(blanks) + len(end)) & 0xFFFFFFFF)
    return b"\x1f\x8b\x08" + bytes(7) + block * size + last.compress(end) + last.flush() + trailer


class _Broken:
    def __init__(self, *, reset: bool) -> None:
        self.reset = reset

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002  # ASGI
        """Break the connection and wait for its end."""
        transport: asyncio.Transport = scope["state"]["transport"]
        if self.reset:
            transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        else:  # closing with unread bytes of the request would send a reset
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
    """Spread the bytes of a body over a number of seconds."""

    def __init__(self, seconds: float, headers: list[tuple[bytes, bytes]]) -> None:
        self.total = next((int(value) for name, value in headers if name.lower() == b"content-length"), 0)
        self.seconds = seconds
        self.done = 0
        self.started_at = asyncio.get_running_loop().time()

    async def wait(self, size: int) -> None:
        """Wait until the next `size` bytes are due."""
        self.done += size
        share = min(1.0, self.done / self.total) if self.total else 1.0
        await asyncio.sleep(self.started_at + self.seconds * share - asyncio.get_running_loop().time())


class _Slowed:
    def __init__(self, answer: ASGIApp, seconds: float) -> None:
        self.answer = answer
        self.seconds = seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the response slowly."""
        pace = _Pace(self.seconds, [])

        async def slow_send(message: Message) -> None:
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
    """Return a `receive` that spreads the request body over the seconds of a fault."""
    pace = _Pace(fault.seconds, scope["headers"])

    async def receive_slowly() -> Message:
        message = await receive()
        await pace.wait(len(message.get("body", b"")))
        return message

    return receive_slowly
