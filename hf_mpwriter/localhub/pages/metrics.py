"""The tab "Training metrics": TensorBoard in a frame, and the requests of that frame.

A board lives below the page of its repository, so whoever may not see the repository does not reach its board.
"""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING

from starlette.responses import Response

from hf_mpwriter.localhub.boards.board import BoardError
from hf_mpwriter.localhub.errors import NotFound, Refusal
from hf_mpwriter.localhub.pages.handlers import frame, shows_metrics
from hf_mpwriter.localhub.pages.html import html
from hf_mpwriter.localhub.pages.links import Links
from hf_mpwriter.localhub.server.request_log import raw_path

if TYPE_CHECKING:
    from hf_mpwriter.localhub.boards.board import Board
    from hf_mpwriter.localhub.endpoints.routing import Call

ASKED = ("accept", "accept-encoding", "content-type", "if-none-match")  # headers that reach TensorBoard: no token
ANSWERED = (
    "cache-control",
    "content-encoding",
    "content-security-policy",
    "content-type",
    "etag",
    "expires",
    "vary",
    "x-content-type-options",
)


class NoBoard(Refusal):
    """TensorBoard does not answer."""

    status = 502


def metrics(call: Call) -> Response:
    """GET /{id}/tensorboard: the tab. It starts TensorBoard, which loads while the browser does."""
    values = frame(call, "metrics")
    is_installed = importlib.util.find_spec("tensorboard") is not None
    if is_installed and values["has_metrics"]:
        _open(call)
    return html("metrics.html", is_installed=is_installed, **values)


def _open(call: Call) -> Board:
    """Return the board of a repository."""
    try:
        return call.hub.boards.open(call.repo, Links(*call.repo).board)
    except BoardError as error:
        raise NoBoard(str(error)) from None


def board(call: Call) -> Response:
    """GET and POST /{id}/tensorboard/board/...: a request for TensorBoard, which shows the head of `main`."""
    if not shows_metrics(call):
        raise NotFound("There are no training metrics.")
    headers = call.request.headers
    query = call.request.scope.get("query_string", b"").decode("latin-1")
    path = raw_path(call.request.scope) + ("?" + query if query else "")
    carried = {name: headers[name] for name in ASKED if name in headers}
    try:
        answer = _open(call).ask(call.request.method, path, carried, call.body)
    except BoardError as error:
        raise NoBoard(str(error)) from None
    passed = {name: value for name, value in answer.headers.items() if name.lower() in ANSWERED}
    return Response(answer.content, answer.status, passed)
