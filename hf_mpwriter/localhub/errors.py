"""Refusals: every error response of this Hub, with the status and code that the real Hub uses.

The client chooses the exception it raises by `X-Error-Code`, so the code belongs to the refusal, not to the endpoint.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import ClassVar


class Refusal(Exception):  # noqa: N818  # an answer, not a failure
    """The Hub refused a request."""

    status: ClassVar[int] = 400
    code: ClassVar[str | None] = None
    headers: Mapping[str, str] = MappingProxyType({})

    def __init__(self, message: str | None = None, **extra: str) -> None:
        super().__init__(message or self.__doc__)
        self.message = str(self.args[0])
        self.extra = extra  # further fields of the JSON body, such as the URL of the existing repository


class BadRequest(Refusal):
    """The request is malformed."""


class Unauthorized(Refusal):
    """Invalid credentials in Authorization header"""  # noqa: D415  # the client compares this text

    status = 401
    headers = MappingProxyType({"WWW-Authenticate": 'Bearer realm="Authentication required", charset="UTF-8"'})


class Stranger(Unauthorized):
    """Invalid username or password."""


class HiddenRepo(Stranger):
    """Invalid username or password."""

    code = "RepoNotFound"


class Forbidden(Refusal):
    """This token has no permission for this action."""

    status = 403


class RepoNotFound(Refusal):
    """Repository not found."""

    status = 404
    code = "RepoNotFound"


class RevisionNotFound(Refusal):
    """Invalid rev id: no such branch or commit."""

    status = 404
    code = "RevisionNotFound"


class EntryNotFound(Refusal):
    """Entry not found."""

    status = 404
    code = "EntryNotFound"


class NotFound(Refusal):
    """Not found."""

    status = 404


class Exists(Refusal):
    """This name already exists."""

    status = 409


class StaleParent(Refusal):
    """A commit has happened since. Please refresh and try again."""

    status = 412


class RateLimited(Refusal):
    """Too Many Requests: the rate limit is reached."""

    status = 429


class TooLarge(Refusal):
    """The body is longer than this Hub holds in memory."""

    status = 413


class UnsupportedMedia(Refusal):
    """This type of content is not taken."""

    status = 415


class RangeNotSatisfiable(Refusal):
    """The requested range is outside the content."""

    status = 416
