"""The deferred log: the warnings of a training process, logged while it holds no thread lock of ours.

    logger.warning    no lock held by this thread: logged at once
                      else: collected --flush--> logged, after the outermost lock was released

A handler of the user may log events in turn, in any thread. If it waited for a lock of ours while the thread that
holds that lock waits for the handler's, both would wait for ever.

Invariants:
- Code that runs in training calls `logger` of this module, and the module `logging` nowhere else.
- Code that collects under a lock calls `flush` after it.
- What was collected belongs to this process: a forked child starts with nothing.
- A handler that fails is shown as `logging` shows it, on stderr. It never fails the call that logs.
"""

from __future__ import annotations

import contextlib
import logging
import os
import traceback
from collections import deque

from hf_mpwriter.system import locks


class DeferredLog:
    """Collects messages for a logger.

    Args:
        name: of the logger.
    """

    def __init__(self, name: str) -> None:
        self._logger = logging.getLogger(name)
        self._waiting: deque[tuple[int, str, tuple[object, ...]]] = deque()

    def warning(self, text: str, *arguments: object) -> None:
        """Log a warning, or collect it while this thread holds a lock of ours.

        Args:
            text: format of the message.
            *arguments: of the format.
        """
        self._waiting.append((logging.WARNING, text, arguments))
        self.flush()

    def info(self, text: str, *arguments: object) -> None:
        """Log what is no warning, in the same way.

        Args:
            text: format of the message.
            *arguments: of the format.
        """
        self._waiting.append((logging.INFO, text, arguments))
        self.flush()

    def flush(self) -> None:
        """Log what was collected, in any thread; nothing happens inside a lock, as in a signal handler."""
        while self._waiting and not locks.is_any_held():
            try:
                level, text, arguments = self._waiting.popleft()
            except IndexError:  # another thread has taken it
                return
            try:
                self._logger.log(level, text, *arguments)
            except Exception:  # noqa: BLE001 - of a handler or a filter of the user
                if logging.raiseExceptions:
                    with contextlib.suppress(Exception):  # stderr may be closed
                        traceback.print_exc()

    def clear(self) -> None:
        """Forget what was collected."""
        self._waiting.clear()


logger = DeferredLog("hf_mpwriter")
os.register_at_fork(after_in_child=logger.clear)
