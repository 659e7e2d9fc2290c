"""A relay to the local Hub: from another network, or over a line with a limit."""

from __future__ import annotations

import asyncio
import multiprocessing
import multiprocessing.process
import socket

from hf_mpwriter.localhub.config import HOST
from lib.prctl import die_with_parent

CHUNK = 1 << 16  # bytes


def start(listener: socket.socket, port: int, rate: float = 0.0) -> multiprocessing.process.BaseProcess:
    """Start a process that passes on each connection to a port, with so many bytes a second at most; 0 for no limit."""
    process = multiprocessing.get_context("fork").Process(target=_serve, args=(listener, port, rate))
    process.start()
    return process


def _serve(listener: socket.socket, port: int, rate: float) -> None:
    die_with_parent()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            from_hub, to_hub = await asyncio.open_connection(HOST, port)
        except OSError:  # one that the Hub does not take is reset
            writer.transport.abort()
            return
        await asyncio.gather(_pump(reader, to_hub, rate), _pump(from_hub, writer, rate))

    async def serve() -> None:
        async with await asyncio.start_server(connected, sock=listener) as server:
            await server.serve_forever()

    asyncio.run(serve())


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, rate: float) -> None:
    """Pass on what comes, until it ends; both sides of a connection that was reset are reset."""
    try:
        while data := await reader.read(CHUNK):
            writer.write(data)
            await writer.drain()
            if rate:
                await asyncio.sleep(len(data) / rate)
        writer.write_eof()
    except OSError:
        writer.transport.abort()
