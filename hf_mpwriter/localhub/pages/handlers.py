"""The pages: one function each, from a request to HTML.

The model card is Markdown that others wrote, as HTML that is safe to show. HTML in it is shown as text. Links with
`javascript:` and the like stay text, too: markdown-it refuses them. Relative addresses lead into the repository.
"""

from __future__ import annotations

import functools
import importlib.util
import itertools
import posixpath
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from starlette.responses import Response

from hf_mpwriter.localhub.endpoints.routing import raw_path
from hf_mpwriter.localhub.errors import BadRequest, EntryNotFound, NotFound
from hf_mpwriter.localhub.pages.boards import is_event_file
from hf_mpwriter.localhub.pages.html import Links, html
from hf_mpwriter.localhub.storage.store import MAIN, last_changes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from markdown_it import MarkdownIt
    from markdown_it.token import Token

    from hf_mpwriter.localhub.endpoints.routing import Call
    from hf_mpwriter.localhub.pages.boards import Board
    from hf_mpwriter.localhub.storage.store import Commit, TreeEntry

CARD = "README.md"
LONGEST_TEXT = 1 << 19  # bytes of a file that is shown
COMMITS_PER_PAGE = 50
ASKED = ("accept", "accept-encoding", "content-type", "if-none-match")  # headers that reach TensorBoard: no token
DEEPEST = 200  # commits that a page reads to find who changed an entry; older changes are shown without a commit
PICTURES = (".gif", ".jpeg", ".jpg", ".png", ".webp")  # no SVG, which may hold scripts
_METADATA = re.compile(r"\A---[^\S\n]*\n.*?\n---[^\S\n]*(\n|\Z)", re.DOTALL)
_ELSEWHERE = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]*:|[/#?]")


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
    return call.hub.boards.open(call.repo, Links(*call.repo).board)


def board(call: Call) -> Response:
    """GET and POST /{id}/tensorboard/board/...: a request for TensorBoard, which shows the head of `main`."""
    if not shows_metrics(call):
        raise NotFound("There are no training metrics.")
    headers = call.headers
    query = call.scope.get("query_string", b"").decode("latin-1")
    path = raw_path(call.scope) + ("?" + query if query else "")
    carried = {name: headers[name] for name in ASKED if name in headers}
    return _open(call).ask(call.method, path, carried, call.content)


@dataclass(frozen=True)
class FolderEntry:
    """An entry of a folder."""

    name: str  # In the folder
    path: str  # In the repository
    is_folder: bool  # Whether it is a folder
    size: int  # Bytes; of all files of a folder
    lfs: bool  # Whether a file is stored as LFS
    commit: Commit | None  # The commit that changed it last; None if it is older than DEEPEST commits


@dataclass(frozen=True)
class Difference:
    """A file that a commit changed, with its sizes before and after; None where it was not."""

    path: str
    before: int | None
    after: int | None


def listing(tree: Mapping[str, TreeEntry], folder: str, history: Iterable[Commit]) -> list[FolderEntry]:
    """Return the entries of a folder, folders first."""
    prefix = f"{folder}/" if folder else ""
    inside = {path: entry for path, entry in tree.items() if path.startswith(prefix)}
    names: dict[str, list[str]] = {}
    for path in inside:
        names.setdefault(path.removeprefix(prefix).split("/")[0], []).append(path)
    last = last_changes({prefix + name for name in names}, itertools.islice(history, DEEPEST))
    entries = [
        FolderEntry(
            name=name,
            path=prefix + name,
            is_folder=paths != [prefix + name],
            size=sum(inside[path].size for path in paths),
            lfs=any(inside[path].lfs for path in paths),
            commit=last.get(prefix + name),
        )
        for name, paths in names.items()
    ]
    return sorted(entries, key=lambda entry: (not entry.is_folder, entry.name))


def differences(commit: Commit, parent: Commit | None) -> list[Difference]:
    """Return what a commit changed, by path."""
    before: Mapping[str, TreeEntry] = parent.tree if parent else {}
    changed = [path for path in {**before, **commit.tree} if before.get(path) != commit.tree.get(path)]
    return [Difference(path, _size(before, path), _size(commit.tree, path)) for path in sorted(changed)]


def _size(tree: Mapping[str, TreeEntry], path: str) -> int | None:
    return tree[path].size if path in tree else None


def to_html(text: str, links: Links, revision: str) -> str:
    """Return a card as HTML."""
    parser = _parser()
    tokens = parser.parse(_METADATA.sub("", text, count=1))
    for token in _all(tokens):
        if token.type == "link_open":
            _lead(token, "href", functools.partial(links.blob, revision))
            token.attrSet("rel", "nofollow noopener")
        elif token.type == "image":
            _lead(token, "src", functools.partial(links.resolve, revision))
    return str(parser.renderer.render(tokens, parser.options, {}))


@functools.cache
def _parser() -> MarkdownIt:
    """Return the parser: `js-default` has tables and lets no HTML through."""
    from markdown_it import MarkdownIt

    return MarkdownIt("js-default")


def _all(tokens: Iterable[Token]) -> Iterable[Token]:
    for token in tokens:
        yield token
        yield from _all(token.children or ())


def _lead(token: Token, attribute: str, address: Callable[[str], str]) -> None:
    """Make a relative address lead into the repository; one that leaves it stays as it is and leads nowhere."""
    from urllib.parse import unquote

    target = str(token.attrGet(attribute) or "")
    if not target or _ELSEWHERE.match(target):
        return
    path, mark, rest = target.partition("#")
    inside = posixpath.normpath(unquote(path))
    if not inside.startswith(".."):
        token.attrSet(attribute, address(inside) + mark + rest)
