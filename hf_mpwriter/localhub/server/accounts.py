"""Who a request comes from: the one account of this Hub, by its token, or by a token that may only read.

Without a token the Hub believes everybody. With one, whoever brings none sees what the real Hub shows to strangers:
no repository at all, and so no difference between a private one and one that does not exist.
"""

from __future__ import annotations

import hmac
from collections.abc import MutableMapping
from dataclasses import dataclass, field
from typing import Literal, Self

from hf_mpwriter.localhub.errors import Unauthorized

TOKEN_VARIABLE = "HF_MPWRITER_LOCALHUB_TOKEN"  # noqa: S105  # the name of a variable
READ_TOKEN_VARIABLE = "HF_MPWRITER_LOCALHUB_READ_TOKEN"  # noqa: S105  # likewise

Role = Literal["stranger", "read", "write"]


@dataclass(frozen=True)
class Tokens:
    """The tokens that requests may carry.

    Attributes:
        write: May do all; None believes everybody.
        read: May read, private repositories included; None is nobody's.
    """

    write: str | None = field(default=None, repr=False)
    read: str | None = field(default=None, repr=False)

    @classmethod
    def take(cls, environ: MutableMapping[str, str]) -> Self:
        """Return the tokens of an environment and remove them from it: other users do not see them there."""
        return cls(environ.pop(TOKEN_VARIABLE, None) or None, environ.pop(READ_TOKEN_VARIABLE, None) or None)

    def environ(self) -> dict[str, str]:
        """Return the variables that `take` reads."""
        named = {TOKEN_VARIABLE: self.write, READ_TOKEN_VARIABLE: self.read}
        return {name: token for name, token in named.items() if token}

    def role(self, authorization: str | None) -> Role:
        """Return what the sender of a request may do.

        Raises:
            Unauthorized: if it carries a token that is none of ours, such as one that has expired.
        """
        if self.read and _carries(authorization, self.read):
            return "read"
        if self.write is None or _carries(authorization, self.write):
            return "write"
        if authorization is None:
            return "stranger"
        raise Unauthorized


def _carries(authorization: str | None, token: str) -> bool:
    """Return whether a header carries a token."""
    return hmac.compare_digest((authorization or "").encode(), f"Bearer {token}".encode())
