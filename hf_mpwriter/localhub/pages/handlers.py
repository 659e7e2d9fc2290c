"""The pages: one function each, from a request to HTML."""

from __future__ import annotations

import importlib.util
import itertools
from typing import TYPE_CHECKING, Any

from starlette.responses import Response

from hf_mpwriter.localhub.errors import BadRequest, EntryNotFound, NotFound, Refusal
from hf_mpwriter.localhub.pages.boards import BoardError, is_event_file
from hf_mpwriter.localhub.pages.html import Links, html
from hf_mpwriter.localhub.pages.listing import differences, listing, to_html
from hf_mpwriter.localhub.server.request_log import raw_path
from hf_mpwriter.localhub.storage.store import MAIN

if TYPE_CHECKING:
    from hf_mpwriter.localhub.endpoints.routing import Call
    from hf_mpwriter.localhub.pages.boards import Board
    from hf_mpwriter.localhub.storage.store import Commit

CARD = "README.md"
LONGEST_TEXT = 1 << 19  # bytes of a file that is shown
COMMITS_PER_PAGE = 50
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
PICTURES = (".gif", ".jpeg", ".jpg", ".png", ".webp")  # no SVG, which may hold scripts


class NoBoard(Refusal):
    """TensorBoard does not answer."""

    status = 502


def home(call: Call) -> Response:
    """GET /: all repositories."""
    repos = [(repo, Links(repo.type, repo.id)) for repo in call.hub.store.repos()]
    return html("home.html", repos=repos, endpoint=call.endpoint)


def frame(call: Call, tab: str, revision: str = MAIN) -> dict[str, Any]:
    """Return what all pages of a repository show: its name, its tabs, a commit."""
    repo = call.hub.store.repo_info(*call.repo)
    head = call.hub.store.commit(*call.repo, revision)
    return {
        "repo": repo,
        "links": Links(*call.repo),
        "tab": tab,
        "revision": revision,
        "head": head,
        "has_metrics": shows_metrics(call),
    }


def shows_metrics(call: Call) -> bool:
    """Return whether a repository has the tab: the real Hub shows it for models with event files."""
    return call.repo[0] == "model" and any(map(is_event_file, call.hub.store.tree(*call.repo)))


def card(call: Call) -> Response:
    """GET [/Ts]/{id}: the model card."""
    values = frame(call, "card")
    store, head = call.hub.store, values["head"]
    content = None
    if CARD in head.tree:
        text = store.read_blob(*call.repo, CARD, head.oid).decode("utf-8", "replace")
        content = to_html(text, values["links"], MAIN)
    return html("card.html", content=content, **values)


def tree(call: Call) -> Response:
    """GET [/Ts]/{id}/tree/{rev}[/{path}]: a folder."""
    revision, folder = call.path_params["rev"], call.path_params["path"].strip("/")
    values = frame(call, "files", revision)
    entries = listing(values["head"].tree, folder, call.hub.store.history(*call.repo, revision))
    if folder and not entries:
        raise EntryNotFound(f"{folder} does not exist in {call.repo[1]} at {revision}")
    return html("tree.html", entries=entries, crumbs=_crumbs(values["links"], revision, folder), **values)


def _crumbs(links: Links, revision: str, path: str) -> list[tuple[str, str]]:
    """Return the folders above a folder, and itself: name and address."""
    parts = path.split("/") if path else []
    paths = itertools.accumulate(parts, lambda above, name: f"{above}/{name}")
    return [(name, links.tree(revision, above)) for name, above in zip(parts, paths, strict=True)]


def blob(call: Call) -> Response:
    """GET [/Ts]/{id}/blob/{rev}/{path}: one file."""
    revision, path = call.path_params["rev"], call.path_params["path"]
    values = frame(call, "files", revision)
    head: Commit = values["head"]
    entry = call.hub.store.entry(*call.repo, path, head.oid)
    is_picture = path.lower().endswith(PICTURES)
    text = None
    if not is_picture and entry.size <= LONGEST_TEXT:
        text = _text(call.hub.store.read_blob(*call.repo, path, head.oid))
    folder, _, name = path.rpartition("/")
    crumbs = [*_crumbs(values["links"], revision, folder), (name, values["links"].blob(revision, path))]
    content = values["links"].resolve(head.oid, path)
    shown = {"text": text, "is_picture": is_picture, "is_large": entry.size > LONGEST_TEXT, "content": content}
    return html("blob.html", path=path, entry=entry, crumbs=crumbs, **shown, **values)


def _text(data: bytes) -> str | None:
    """Return the content of a text file, None for a binary one."""
    try:
        return None if b"\0" in data else data.decode()
    except UnicodeDecodeError:
        return None


def commits(call: Call) -> Response:
    """GET [/Ts]/{id}/commits/{rev}: the history, page by page."""
    revision, page = call.path_params["rev"], call.query_params.get("p", "0")
    if not (page.isascii() and page.isdecimal() and len(page) < 10):
        raise BadRequest(f"Invalid page: {page!r}")
    first = int(page) * COMMITS_PER_PAGE
    values = frame(call, "files", revision)
    history = call.hub.store.history(*call.repo, revision)
    shown = list(itertools.islice(history, first, first + COMMITS_PER_PAGE + 1))
    return html(
        "commits.html",
        commits=shown[:COMMITS_PER_PAGE],
        page=int(page),
        has_more=len(shown) > COMMITS_PER_PAGE,
        **values,
    )


def commit(call: Call) -> Response:
    """GET [/Ts]/{id}/commit/{oid}: what a commit changed."""
    values = frame(call, "files", call.path_params["rev"])
    head: Commit = values["head"]
    parent = call.hub.store.commit(*call.repo, head.parent) if head.parent else None
    return html("commit.html", changes=differences(head, parent), **values)


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
    headers = call.headers
    query = call.scope.get("query_string", b"").decode("latin-1")
    path = raw_path(call.scope) + ("?" + query if query else "")
    carried = {name: headers[name] for name in ASKED if name in headers}
    try:
        answer = _open(call).ask(call.method, path, carried, call.content)
    except BoardError as error:
        raise NoBoard(str(error)) from None
    passed = {name: value for name, value in answer.headers.items() if name.lower() in ANSWERED}
    return Response(answer.content, answer.status, passed)
