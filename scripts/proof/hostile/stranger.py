"""The server of a stranger: records every request, and the token that came with it."""

from __future__ import annotations

import http.server
import threading
from dataclasses import dataclass


@dataclass(frozen=True)
class Request:
    """One request."""

    line: str  # method and path
    authorization: str  # the header, "" without one
    body: bytes  # the first bytes of it


class Stranger:
    """An HTTP server on loopback."""

    def __init__(self) -> None:
        self.requests: list[Request] = []  # all so far
        requests = self.requests

        class Handler(http.server.BaseHTTPRequestHandler):
            """Records a request and answers as a Hub that is out of order: it is tried again."""

            def do(self) -> None:
                length = int(self.headers.get("Content-Length") or 0)
                body = self.rfile.read(min(length, 1 << 20))
                requests.append(Request(self.requestline, self.headers.get("Authorization", ""), body))
                self.send_response(503)
                self.send_header("Content-Length", "0")
                self.end_headers()

            do_GET = do_HEAD = do_POST = do_PUT = do  # noqa: N815 - names of the base class

            def log_message(self, *_: object) -> None:
                """Print nothing."""

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"  # its URL
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def stop(self) -> None:
        """Close it."""
        self._server.shutdown()
        self._server.server_close()
