"""Servers that no Hub would be: they keep what they are asked, and answer with any bytes, as slowly as they like."""

from __future__ import annotations

import contextlib
import hashlib
import json
import socket
import socketserver
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Self
from urllib.parse import unquote

COMMIT = "1" * 40
DRIP = 0.05  # seconds between two bytes


@dataclass(frozen=True)
class Asked:
    """A request that came."""

    method: str
    path: str  # with its query
    headers: dict[str, str]  # by names in lower case
    body: bytes


class StrangeServer:
    """A server on a port of its own; `answer` makes the bytes of each answer, for this server and what it was asked."""

    def __init__(self, answer: Callable[[StrangeServer, Asked], Iterable[bytes]]) -> None:
        self.asked: list[Asked] = []
        self.over = threading.Event()
        outer = self

        class Handler(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                with contextlib.suppress(OSError, ValueError):
                    request = _read(self.rfile)
                    outer.asked.append(request)
                    for piece in answer(outer, request):
                        self.wfile.write(piece)

        class Server(socketserver.ThreadingTCPServer):
            daemon_threads, allow_reuse_address = True, True

        self._server = Server(("127.0.0.1", 0), Handler)
        self.endpoint = f"http://127.0.0.1:{self._server.server_address[1]}"

    def drip(self, data: bytes = b"a") -> Iterator[bytes]:
        """Bytes, one after the other, for as long as the server lives."""
        while not self.over.wait(DRIP):
            yield data

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()
        self._server.shutdown()
        self._server.server_close()


def _read(file: socket.SocketIO) -> Asked:
    method, path, _ = file.readline().decode().split(" ", 2)
    headers = {}
    while (line := file.readline().decode().strip()) != "":
        name, _, value = line.partition(":")
        headers[name.lower()] = value.strip()
    body = file.read(int(headers.get("content-length", "0")))
    if headers.get("transfer-encoding") == "chunked":
        while size := int(file.readline(), 16):
            body += file.read(size)
            file.readline()
    return Asked(method, path, headers, body)


def answered(content: object, status: int = 200, **headers: str) -> Iterator[bytes]:
    """An answer; what is no bytes is JSON. An underscore in the name of a header stands for a dash."""
    data = content if isinstance(content, bytes) else json.dumps(content).encode()
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    fields = {"content-length": str(len(data)), "connection": "close"} | named
    lines = [f"HTTP/1.1 {status} Said", *(f"{name}: {value}" for name, value in fields.items())]
    yield "\r\n".join([*lines, "", ""]).encode() + data


def as_hub(asked: Asked, files: Mapping[str, bytes]) -> Iterator[bytes]:
    """The answer of a Hub whose repository has these files, and lists all of them in every folder."""
    path = asked.path.partition("?")[0]
    listed = [
        {"type": "file", "path": path, "size": len(data), "oid": blob_id(data)} for path, data in sorted(files.items())
    ]
    if "/resolve/" in path:
        content = files[unquote(path.partition(f"/{COMMIT}/")[2])]
        headers = {"etag": f'"{blob_id(content)}"', "x_repo_commit": COMMIT, "content_length": str(len(content))}
        return answered(b"" if asked.method == "HEAD" else content, **headers)
    return answered(listed if "/tree/" in path else {"id": "me/run", "sha": COMMIT})


def blob_id(data: bytes) -> str:
    """Git's id of a content."""
    return hashlib.sha1(b"blob %d\0%s" % (len(data), data), usedforsecurity=False).hexdigest()
