"""The state that all endpoints of a Hub share: store, secret, accounts, limits, faults.

    ROOT/secret           32 random bytes, mode 0600

The secret signs upload URLs and Xet access tokens. It is on disk so that they stay valid after a crash.
"""

from __future__ import annotations

import functools
import hashlib
import hmac
import os
import secrets
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from hf_mpwriter.localhub.errors import Forbidden, Unauthorized
from hf_mpwriter.localhub.pages.boards import Boards
from hf_mpwriter.localhub.server.accounts import Tokens
from hf_mpwriter.localhub.server.config import HubConfig
from hf_mpwriter.localhub.server.faulting import Faults
from hf_mpwriter.localhub.server.limits import Usage

if TYPE_CHECKING:
    from collections.abc import Iterable

    from hf_mpwriter.localhub.storage.writing import WritableStore
    from hf_mpwriter.localhub.storage.xet import XetStore

SELF_HEADER = "x-localhub-self"  # marks the Hub's requests to itself
XET_TOKEN_SECONDS = 3600


def load_secret(root: str) -> bytes:
    """Return the secret of a Hub; the first call creates it."""
    path = os.path.join(root, "secret")
    try:
        with open(path, "rb") as file:
            return file.read()
    except FileNotFoundError:
        pass
    temporary = path + ".new"
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with open(descriptor, "wb") as file:
        file.write(secrets.token_bytes(32))
        file.flush()
        os.fsync(descriptor)
    os.replace(temporary, path)
    return load_secret(root)


@dataclass
class HubState:
    """What handlers read and change; one per server process."""

    store: WritableStore
    secret: bytes
    config: HubConfig = field(default_factory=HubConfig)
    tokens: Tokens = field(default_factory=Tokens)
    xet: XetStore | None = None
    faults: Faults = field(default_factory=Faults)
    usage: Usage = field(init=False)
    boards: Boards = field(init=False)

    def __post_init__(self) -> None:
        """Prepare what depends on the other fields; no board starts before it is asked for."""
        self.usage = Usage(self.config)
        self.boards = Boards(self.store)

    def sign(self, *words: object) -> str:
        """Return a signature over some words."""
        text = "\n".join(map(str, words)).encode()
        return hmac.new(self.secret, text, hashlib.sha256).hexdigest()

    def check_signature(self, signature: str, *words: object) -> None:
        """Raise Forbidden unless a signature is valid."""
        if not hmac.compare_digest(signature.encode(), self.sign(*words).encode()):
            raise Forbidden("Invalid signature")

    @functools.cached_property
    def cas_store(self) -> str:
        """The name of the Xet store in the CAS address."""
        return self.sign("store")[:12]

    def xet_token(self, scope: str) -> tuple[str, int]:
        """Return an access token for the Xet store and the Unix time at which it expires."""
        ends = int(time.time()) + XET_TOKEN_SECONDS
        return f"xet.{scope}.{ends}.{self.sign('xet', scope, ends)}", ends

    def check_xet_token(self, authorization: str | None, scope: str) -> None:
        """Raise Unauthorized unless a header carries a Xet token for this scope; a write token may also read."""
        parts = (authorization or "").removeprefix("Bearer ").split(".")
        if parts[0] != "xet" or len(parts) != 4 or not parts[2].isdigit():  # see xet_token
            raise Unauthorized
        if not hmac.compare_digest(parts[3].encode(), self.sign("xet", parts[1], parts[2]).encode()):
            raise Unauthorized
        if int(parts[2]) < time.time() or (scope == "write" and parts[1] != "write"):
            raise Unauthorized

    def is_own(self, headers: Iterable[tuple[bytes, bytes]]) -> bool:
        """Return whether the headers are those of the Hub's own request, made to rebuild content from its Xet store."""
        key = self.self_key().encode()
        return any(name == SELF_HEADER.encode() and value == key for name, value in headers)

    def self_key(self) -> str:
        """Return the value of SELF_HEADER, which only the Hub can compute."""
        return self.sign("self")
