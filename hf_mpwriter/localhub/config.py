"""What a Hub is started with: options, which travel to a child process as one JSON argument.

The token is not among them: arguments of a process are visible to other users, so it travels in its environment.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, MutableMapping
from dataclasses import dataclass
from typing import Any, Self

HOST = "127.0.0.1"  # without a token this Hub accepts every request, so it listens on loopback only
USER = "local-user"  # the name that whoami returns
HOUR = 3600.0  # seconds
CONTROL = "/-/"  # prefix of the control endpoints, which are exempt from log, faults and limits
READY_PATH = CONTROL + "ready"
FAULTS_PATH = CONTROL + "faults"
TOKEN_PATH = CONTROL + "token"
TOKEN_VARIABLE = "HF_MPWRITER_LOCALHUB_TOKEN"  # noqa: S105  # a variable's name


class ServerError(Exception):
    """The local Hub cannot be started."""


def make_private(folder: str) -> None:
    """Make a folder of this user alone. One that is there and is not is refused: others may have put things there."""
    os.makedirs(folder, mode=0o700, exist_ok=True)
    found = os.stat(folder)
    if found.st_uid != os.geteuid() or found.st_mode & 0o077:
        raise ServerError(f"{folder} has to be yours alone, with mode 0700")


def take_token(environ: MutableMapping[str, str]) -> str | None:
    """Return the token of an environment and remove it from there, so that child processes do not inherit it."""
    return environ.pop(TOKEN_VARIABLE, None) or None


@dataclass(frozen=True)
class HubConfig:
    """The options of a Hub."""

    xet: bool = True  # Whether clients may upload by Xet
    discard: bool = False  # Whether to drop LFS content once its size and digest are verified
    long_ids: bool = False  # Whether new commits have ids of 64 hex digits
    commits_per_hour: int = 0  # Limit per repository, 0 for unlimited
    commit_window: float = HOUR  # Seconds that count as the hour of that limit
    requests: int = 0  # Limit of API requests of the account in a window, told in every answer; 0 for unlimited
    request_window: float = 300.0  # Seconds of such a window
    feed_kept: int = 256  # Batches that the feed of a bucket keeps for followers that come back
    feed_ping: float = 30.0  # Seconds of silence after which it sends a comment

    @classmethod
    def parse(cls, words: Iterable[str]) -> Self:
        """Return the options of `FIELD=VALUE` each; a value is JSON. ValueError for one that is none."""
        found: dict[str, Any] = {}
        for word in words:
            name, _, text = word.partition("=")
            if name not in cls.__dataclass_fields__:
                raise ValueError(f"{word}: there is no such field")
            default = getattr(cls, name)
            try:
                found[name] = type(default)(json.loads(text))
            except (TypeError, ValueError, OverflowError):
                raise ValueError(f"{word}: not a value such as {json.dumps(default)}") from None
        config = cls(**found)
        if not config.commit_window > 0:
            raise ValueError(f"commit_window={config.commit_window:g}: it is a number of seconds above 0")
        return config
