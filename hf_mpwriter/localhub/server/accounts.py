"""Authentication: one account, identified by a write token or by a read-only token.

A Hub without a write token accepts every request. A Hub with one hides all repositories from requests without a token,
as the real Hub hides private ones: a private repository and a missing one look the same.
"""

from __future__ import annotations

import base64
import hmac
from collections.abc import MutableMapping
from dataclasses import dataclass, field
from typing import Literal, Self

from hf_mpwriter.localhub.errors import Unauthorized

TOKEN_VARIABLE = "HF_MPWRITER_LOCALHUB_TOKEN"  # noqa: S105  # a variable's name
READ_TOKEN_VARIABLE = "HF_MPWRITER_LOCALHUB_READ_TOKEN"  # noqa: S105  # a variable's name

Role = Literal["stranger", "read", "write"]


@dataclass(frozen=True)
class Tokens:
    """The tokens that the Hub accepts."""

    write: str | None = field(default=None, repr=False)  # Grants everything; None grants everything to every request
    # Grants reading, private repositories included; None disables it
    read: str | None = field(default=None, repr=False)

    @classmethod
    def take(cls, environ: MutableMapping[str, str]) -> Self:
        """Return the tokens of an environment and remove them from it, so that child processes do not inherit them."""
        return cls(environ.pop(TOKEN_VARIABLE, None) or None, environ.pop(READ_TOKEN_VARIABLE, None) or None)

    def environ(self) -> dict[str, str]:
        """Return the environment variables that `take` reads."""
        named = {TOKEN_VARIABLE: self.write, READ_TOKEN_VARIABLE: self.read}
        return {name: token for name, token in named.items() if token}

    def role(self, authorization: str | None) -> Role:
        """Return the role that an Authorization header grants."""
        if self.read and _carries(authorization, self.read):
            return "read"
        if self.write is None or _carries(authorization, self.write):
            return "write"
        if authorization is None:
            return "stranger"
        raise Unauthorized


def bearer_of(authorization: str | None) -> str | None:
    """Return an Authorization header with the token that a browser sends as the password of Basic authentication."""
    scheme, _, credentials = (authorization or "").partition(" ")
    if scheme.lower() != "basic":
        return authorization
    try:
        password = base64.b64decode(credentials, validate=True).decode().partition(":")[2]
    except ValueError:
        return authorization
    return f"Bearer {password}"


def _carries(authorization: str | None, token: str) -> bool:
    """Return whether an Authorization header carries a token."""
    return hmac.compare_digest((authorization or "").encode(), f"Bearer {token}".encode())
