"""Wait for conditions in other processes."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

DEADLINE = 300.0  # seconds for any condition to become true
POLL = 0.005  # seconds between two checks

_T = TypeVar("_T")


def wait_for(condition: Callable[[], _T], what: str) -> _T:
    """Return the value of a condition as soon as it is true."""
    if value := becomes_true(condition, DEADLINE):
        return value
    raise TimeoutError(f"waited {DEADLINE:.0f} s for: {what}")


def becomes_true(condition: Callable[[], _T], seconds: float, every: float = POLL) -> _T:
    """Return the value of a condition as soon as it is true, or its false value after so many seconds."""
    end = time.monotonic() + seconds
    while not (value := condition()) and time.monotonic() < end:
        time.sleep(every)
    return value
