"""The deferred log: warnings that are logged once no lock is held, because a log handler may log events in turn."""

from __future__ import annotations

import logging
from collections import deque

logger = logging.getLogger("hf_mpwriter")


class DeferredLog:
    """Collects warnings."""

    def __init__(self) -> None:
        self._warnings: deque[tuple[str, tuple[object, ...]]] = deque()

    def warning(self, text: str, *arguments: object) -> None:
        """Collect a warning.

        Args:
            text: format of the message.
            *arguments: of the format.
        """
        self._warnings.append((text, arguments))

    def flush(self) -> None:
        """Log what was collected; called while no lock is held."""
        while self._warnings:
            text, arguments = self._warnings.popleft()
            logger.warning(text, *arguments)

    def clear(self) -> None:
        """Forget what was collected."""
        self._warnings.clear()
