"""What a Hub is started with: options, which travel to a child process as one JSON argument.

Tokens are not among them: arguments of a process are visible to other users, so tokens travel in its environment.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import Self

HOST = "127.0.0.1"  # without a token this Hub accepts every request, so it listens on loopback only
DEFAULT_USER = "local-user"
HOUR = 3600.0  # seconds
MULTIPART_OVER = 10 << 20  # bytes
CONTROL = "/-/"  # prefix of the control endpoints, which are exempt from log, faults and limits
READY_PATH = CONTROL + "ready"
FAULTS_PATH = CONTROL + "faults"
TOKENS_PATH = CONTROL + "tokens"


class ServerError(Exception):
    """The local Hub cannot be started."""


@dataclass(frozen=True)
class HubConfig:
    """The options of a Hub."""

    xet: bool = True  # Whether clients may upload by Xet
    user: str = DEFAULT_USER  # The user name that whoami returns
    multipart_over: int = MULTIPART_OVER  # Bytes above which LFS objects are uploaded in parts
    discard: bool = False  # Whether to drop LFS content once its size and digest are verified
    long_ids: bool = False  # Whether new commits have ids of 64 hex digits
    commits_per_hour: int = 0  # Limit per repository, 0 for unlimited
    commit_window: float = HOUR  # Seconds that count as the hour of that limit
    requests_per_5min: int = 0  # Limit of requests to `/api/`, 0 for unlimited
    # Refuse a commit with 409 while another one to the same repository is in progress, instead of queueing it
    busy: bool = False

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Return the options that `to_json` wrote."""
        return cls(**json.loads(text))

    def to_json(self) -> str:
        """Return the options as one argument."""
        return json.dumps(dataclasses.asdict(self))
