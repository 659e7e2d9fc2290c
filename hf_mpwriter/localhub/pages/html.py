"""Pages from templates, and the addresses of pages, those of the real Hub.

Values are escaped by jinja2, with headers let a browser run no script and load nothing elsewhere.
"""

from __future__ import annotations

import functools
import importlib.resources
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from starlette.responses import HTMLResponse, Response

from hf_mpwriter.localhub.storage.store import MAIN

if TYPE_CHECKING:
    from jinja2 import Environment

    from hf_mpwriter.localhub.endpoints.routing import Call
    from hf_mpwriter.localhub.errors import Refusal

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
def _templates() -> Environment:
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

    repo_type: str  # "model", "dataset" or "space"
    repo_id: str  # Namespace and name

    @property
    def home(self) -> str:
        """The model card."""
        return ("" if self.repo_type == "model" else f"/{self.repo_type}s") + "/" + quote(self.repo_id)

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

    def commits(self, revision: str = MAIN, page: int = 0) -> str:
        """A page of the history."""
        return self._at("commits", revision) + (f"?p={page}" if page else "")

    def commit(self, oid: str) -> str:
        """What a commit changed."""
        return self._at("commit", oid)

    def _at(self, page: str, revision: str, path: str = "") -> str:
        """Return the address of something at a revision; `exp/1` is one part of a path, as the client sends it."""
        return f"{self.home}/{page}/{quote(revision, safe='')}" + (f"/{quote(path)}" if path else "")
