"""A folder of a commit, each entry with the commit that changed it last, and what a commit changed.

The model card: Markdown that others wrote, as HTML that is safe to show.

HTML in the Markdown is shown as text. Links with `javascript:` and the like stay text, too: markdown-it refuses them.
Relative addresses lead into the repository.
"""

from __future__ import annotations

import functools
import itertools
import posixpath
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hf_mpwriter.localhub.storage.store import last_changes

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from hf_mpwriter.localhub.storage.store import Commit, TreeEntry

DEEPEST = 200  # commits that a page reads to find who changed an entry; older changes are shown without a commit


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


if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from markdown_it import MarkdownIt
    from markdown_it.token import Token

    from hf_mpwriter.localhub.pages.html import Links

_METADATA = re.compile(r"\A---[^\S\n]*\n.*?\n---[^\S\n]*(\n|\Z)", re.DOTALL)
_ELSEWHERE = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]*:|[/#?]")


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
    """Yield tokens and those inside them."""
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
