"""The pages: one function each, from a request to HTML.

The model card is Markdown that others wrote, as HTML that is safe to show. HTML in it is shown as text. Links with
`javascript:` and the like stay text, too: markdown-it refuses them. In all pages values are escaped by jinja2, and
headers let a browser run no script and load nothing elsewhere.
"""

from __future__ import annotations

import functools
import importlib.resources
import importlib.util
import itertools
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple
from urllib.parse import quote

from starlette.responses import HTMLResponse, Response

from hf_mpwriter.localhub import buckets
from hf_mpwriter.localhub.buckets import iso
from hf_mpwriter.localhub.endpoints.routing import Call, raw_path
from hf_mpwriter.localhub.errors import EntryNotFound, NotFound, Refusal
from hf_mpwriter.localhub.pages.boards import Board, Tree, event_files
from hf_mpwriter.localhub.store import BUCKET, MAIN, REPO_TYPES, Commit, TreeEntry, last_changes

CARD = "README.md"
LONGEST_TEXT = 1 << 19  # bytes of a file that is shown
FILES_SHOWN = 1000  # of a bucket
COMMITS_SHOWN = 500  # the newest ones
ASKED = ("accept", "accept-encoding", "content-type", "if-none-match")  # headers that reach TensorBoard: no token
DEEPEST = 200  # commits that a page reads to find who changed an entry; older changes are shown without a commit
PICTURES = (".gif", ".jpeg", ".jpg", ".png", ".webp")  # no SVG, which may hold scripts
_METADATA = re.compile(r"\A---[^\S\n]*\n.*?\n---[^\S\n]*(\n|\Z)", re.DOTALL)

UNITS = ("Bytes", "kB", "MB", "GB", "TB")
HEADERS = MappingProxyType(
    {
        "Content-Security-Policy": (
            "default-src 'none'; style-src 'self'; img-src 'self' data:; frame-src 'self'; "
            "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        ),
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cache-Control": "no-store",
    }
)
_BASIC = 'Basic realm="local Hub: any user name, and a token as the password", charset="UTF-8"'
STYLE_PATH = "/-/style.css"
_NO_HEADERS: Mapping[str, str] = MappingProxyType({})


def home(call: Call) -> Response:
    """GET /: all repositories and buckets."""
    repos = [(repo, Links(repo.type, repo.id)) for repo in call.hub.store.repos((*REPO_TYPES, BUCKET))]
    return html("home.html", repos=repos, endpoint=call.endpoint)


def bucket(call: Call) -> Response:
    """GET /buckets/{id}: the newest files first."""
    repo, held = call.hub.store.repo_info(*call.repo), buckets.read(call.hub.store, call.repo[1])
    newest = sorted(held.files.items(), key=lambda item: (-item[1].uploaded, item[0]))[:FILES_SHOWN]
    files = [(path, file, iso(file.uploaded)) for path, file in newest]
    return html("bucket.html", repo=repo, links=Links(*call.repo), bucket=held, files=files)


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
    return call.repo[0] == "model" and bool(_event_files(call))


def _event_files(call: Call) -> Tree:
    return event_files(call.hub.store, call.hub.xet, call.repo)


def card(call: Call) -> Response:
    """GET [/Ts]/{id}: the model card."""
    values = frame(call, "card")
    store, head = call.hub.store, values["head"]
    content = None
    if CARD in head.tree:
        text = store.read_blob(*call.repo, CARD, head.oid).decode("utf-8", "replace")
        content = to_html(text)
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
    """GET [/Ts]/{id}/commits/{rev}: the history."""
    values = frame(call, "files", call.path_params["rev"])
    history = call.hub.store.history(*call.repo, values["revision"])
    return html("commits.html", commits=itertools.islice(history, COMMITS_SHOWN), **values)


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
    return call.hub.boards.open(call.repo, Links(*call.repo).board, lambda: _event_files(call))


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


class Difference(NamedTuple):
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


def to_html(text: str) -> str:
    """Return a card as HTML, without its metadata."""
    from markdown_it import MarkdownIt

    return str(MarkdownIt("js-default").render(_METADATA.sub("", text, count=1)))  # with tables, and without HTML


def html(template: str, code: int = 200, headers: Mapping[str, str] = _NO_HEADERS, **values: Any) -> Response:
    """Return a page."""
    return HTMLResponse(_templates().get_template(template).render(**values), code, {**HEADERS, **headers})


def refusal_page(refusal: Refusal) -> Response:
    """Return the page of a refused request; a browser then asks its user for a token where one is missing."""
    headers = {"WWW-Authenticate": _BASIC} if refusal.status == 401 else {}
    return html("refusal.html", refusal.status, headers, status=refusal.status, message=refusal.message)


def style(_: Call) -> Response:
    """GET /-/style.css."""
    source = importlib.resources.files(__package__).joinpath("templates", "style.css").read_bytes()
    return Response(source, media_type="text/css", headers={"X-Content-Type-Options": "nosniff"})


@functools.cache
def _templates() -> Any:
    """Return the templates; jinja2 is loaded by the first page."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    templates = Environment(
        loader=PackageLoader(__package__),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters |= {"size": size_text, "date": date_text}
    return templates


def size_text(size: int) -> str:
    """Return a size as the real Hub shows it, such as "1.52 kB"."""
    number, unit = float(size), 0
    while number >= 999.5 and unit < len(UNITS) - 1:
        number, unit = number / 1000, unit + 1
    return f"{number:.3g} {UNITS[unit]}"


def date_text(date: str) -> str:
    """Return a time of the API as text: UTC, to the second."""
    return date[:19].replace("T", " ")


@dataclass(frozen=True)
class Links:
    """The addresses of a repository, without the Hub's own."""

    repo_type: str  # "model", "dataset", "space" or "bucket"
    repo_id: str  # Namespace and name

    @property
    def home(self) -> str:
        """The model card."""
        return ("" if self.repo_type == "model" else f"/{self.repo_type}s") + "/" + quote(self.repo_id)

    def content(self, path: str) -> str:
        """The content of a file of a bucket."""
        return f"{self.home}/resolve/{quote(path)}"

    @property
    def metrics(self) -> str:
        """The tab "Training metrics"."""
        return f"{self.home}/tensorboard"

    @property
    def board(self) -> str:
        """What TensorBoard has before its own paths."""
        return f"{self.metrics}/board"

    def tree(self, revision: str = MAIN, path: str = "") -> str:
        """A folder."""
        return self._at("tree", revision, path)

    def blob(self, revision: str, path: str) -> str:
        """A file."""
        return self._at("blob", revision, path)

    def resolve(self, revision: str, path: str) -> str:
        """The content of a file."""
        return self._at("resolve", revision, path)

    def commits(self, revision: str = MAIN) -> str:
        """The history."""
        return self._at("commits", revision)

    def commit(self, oid: str) -> str:
        """What a commit changed."""
        return self._at("commit", oid)

    def _at(self, page: str, revision: str, path: str = "") -> str:
        """Return the address of something at a revision; `exp/1` is one part of a path, as the client sends it."""
        return f"{self.home}/{page}/{quote(revision, safe='')}" + (f"/{quote(path)}" if path else "")
