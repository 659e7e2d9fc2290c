"""The child process of a board: TensorBoard on an inherited socket, until its parent ends.

It reads with TensorBoard's own reader. The reader that is the default is one more process, with a port that every user
of the machine may read. `reload_multifile` reads on in every file that grows, not only in the last one of a directory.
"""

from __future__ import annotations

import hmac
import os
import threading
from collections.abc import Callable, Iterable
from typing import Any

from tensorboard import program
from werkzeug.serving import WSGIRequestHandler, make_server

from hf_mpwriter.localhub.child import inherited
from hf_mpwriter.localhub.config import HOST
from hf_mpwriter.localhub.pages.boards import KEY_HEADER, KEY_VARIABLE

RELOAD_EVERY = 1  # seconds between two looks at the files

App = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


class QuietHandler(WSGIRequestHandler):
    """A request handler that logs no requests: the Hub does."""

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        """Log nothing."""


class BoardServer:
    """The server that TensorBoard runs: on an inherited socket, for requests with the key."""

    def __init__(self, app: App, descriptor: int, key: str) -> None:
        self._app = app
        self._key = key.encode()
        self._server = make_server(HOST, 0, self._answer, threaded=True, request_handler=QuietHandler, fd=descriptor)

    def _answer(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        carried = environ.get("HTTP_" + KEY_HEADER.upper().replace("-", "_"), "")
        if not hmac.compare_digest(carried.encode(), self._key):
            start_response("403 Forbidden", [("Content-Length", "0")])
            return []
        return self._app(environ, start_response)

    def serve_forever(self) -> None:
        """Serve; TensorBoard calls this in a thread."""
        self._server.serve_forever()

    def get_url(self) -> str:
        """Return the address, which TensorBoard asks for."""
        return f"http://{HOST}:{self._server.port}/"


def main() -> None:
    """Serve TensorBoard on the directory and below the path that the arguments name."""
    sock, (logdir, prefix) = inherited()
    key = os.environ.pop(KEY_VARIABLE)
    above, name = os.path.split(logdir)
    os.chdir(above)  # TensorBoard shows the name of its directory to everyone who may see the repository
    board = program.TensorBoard(server_class=lambda app, _: BoardServer(app, sock.fileno(), key))
    board.configure(
        logdir=name,
        path_prefix=prefix,
        load_fast="false",
        reload_interval=RELOAD_EVERY,
        reload_multifile=True,
        reload_multifile_inactive_secs=-1,
    )
    board.launch()
    threading.Event().wait()


if __name__ == "__main__":
    main()
