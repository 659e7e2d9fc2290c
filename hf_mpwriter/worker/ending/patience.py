"""Patience: how long a process waits at its end, as pure functions.

In seconds (the first row that fits; no row exceeds `exit_timeout`):

    end                   uploader          peers    in all              without progress
    ordinary              any               any      `exit_timeout`      any
    after an exception    fails or stands   any      FAILING_WAIT        any
    after an exception    works             yes      WAIT_BESIDE_PEERS   IDLE_BESIDE_PEERS
    after an exception    works             none     `exit_timeout`      any

After an exception in a `with` block, the block does not wait: the end of the interpreter does, when it has printed the
traceback. Progress is what the Hub has taken, and each step of the uploader: it starts a push, or ends one.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from hf_mpwriter.worker.role import Role

FAILING_WAIT = 2.0  # seconds after an exception, while nothing gets to the Hub
IDLE_BESIDE_PEERS = 2.0  # seconds
WAIT_BESIDE_PEERS = 10.0  # seconds; the launcher restarts the others only when this process has ended


class Terms(NamedTuple):
    """How a process ends.

    Attributes:
        exit_timeout: seconds that it may wait for the Hub.
        failed: whether it ends after an exception.
        has_peers: whether it is a rank of several.
        spent: seconds that it has waited for other run directories.
    """

    exit_timeout: float
    failed: bool = False
    has_peers: bool = False
    spent: float = 0.0


class Patience(NamedTuple):
    """How long a process waits at its end.

    Attributes:
        longest: seconds in all.
        idle: seconds without progress.
    """

    longest: float
    idle: float = math.inf


def patience(terms: Terms, *, is_stuck: bool) -> Patience:
    """How long a process waits at its end; for the rows, see the head of this module.

    Args:
        terms: how it ends.
        is_stuck: whether the uploader fails or stands.
    """
    longest, idle = terms.exit_timeout, math.inf
    if terms.failed and is_stuck:
        longest = min(longest, FAILING_WAIT)
    elif terms.failed and terms.has_peers:
        longest, idle = min(longest, WAIT_BESIDE_PEERS), IDLE_BESIDE_PEERS
    return Patience(max(0.0, longest - terms.spent), idle)


def is_failure(error: BaseException | None) -> bool:
    """Whether an exception that leaves a block is a failure; the end of a generator and `sys.exit(0)` are none."""
    if isinstance(error, SystemExit):
        return error.code not in (None, 0)
    return error is not None and not isinstance(error, GeneratorExit)


def has_peers(role: Role, world_size: int | None) -> bool:
    """Whether a process is a rank of several.

    Args:
        role: of the process.
        world_size: ranks that the launcher started, None if it does not tell.
    """
    return role.rank is not None and (role.rank > 0 if world_size is None else world_size > 1)
