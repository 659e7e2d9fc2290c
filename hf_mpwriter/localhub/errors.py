"""Refusals: every way in which this Hub says no, with the status and the code that the real one uses.

The client decides by `X-Error-Code` which exception it raises, so the code belongs to the refusal and not to the
place that sends it.
"""

from __future__ import annotations

from typing import ClassVar


class Refusal(Exception):  # noqa: N818  # the Hub did not fail, it said no
    """The Hub refused a request."""

    status: ClassVar[int] = 400
    code: ClassVar[str | None] = None

    def __init__(self, message: str | None = None, **extra: str) -> None:
        super().__init__(message or self.__doc__)
        self.message = str(self.args[0])
        self.extra = extra  # further fields of the JSON body, such as the url of what exists already


class BadRequest(Refusal):
    """The request is malformed."""


class Unauthorized(Refusal):
    """Invalid credentials in Authorization header."""

    status = 401


class Forbidden(Refusal):
    """You may not do this here."""

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
    """There is one of that name already."""

    status = 409


class StaleParent(Refusal):
    """A commit has happened since. Please refresh and try again."""

    status = 412


class RangeNotSatisfiable(Refusal):
    """The requested range lies outside the content."""

    status = 416
