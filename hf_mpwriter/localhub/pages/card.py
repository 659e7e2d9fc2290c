"""The model card: Markdown that others wrote, as HTML that is safe to show.

HTML in the Markdown is shown as text. Links with `javascript:` and the like stay text, too: markdown-it refuses them.
Relative addresses lead into the repository.
"""

from __future__ import annotations

import functools
import posixpath
import re
from typing import TYPE_CHECKING

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
