"""Pages from templates: escaped by jinja2, with headers that let a browser run no script and load nothing elsewhere."""

from __future__ import annotations

import functools
import importlib.resources
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from starlette.responses import HTMLResponse, Response

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
