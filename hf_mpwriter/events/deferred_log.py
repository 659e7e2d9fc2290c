"""The deferred log: the messages of a training process, logged while it holds no thread lock of ours.

    logger.warning, logger.info    no lock held by this thread: logged at once
                                   else: collected --flush--> logged, after the outermost lock was released

    neither `hf_mpwriter` nor root has a handler    to stderr, as "hf_mpwriter: text", information too
    one of them has                                 as it is configured, and nothing beside it

A handler of the user may log events in turn, in any thread. If it waited for a lock of ours while the thread that
holds that lock waits for the handler's, both would wait for ever.

Invariants:
- Code that runs in training calls `logger` of this module, and the module `logging` nowhere else.
- Code that collects under a lock calls `flush` after it.
- What was collected belongs to this process: a forked child starts with nothing.
- A message is taken out before it is logged, so an interrupt costs that one at most, and leaves nothing that blocks the
  next ones.
- A handler that fails is shown as `logging` shows it, on stderr. It never fails the call that logs.
- No handler is added to a logger: one that the user adds later finds no second one beside it.
"""

from __future__ import annotations

import logging
import sys
import traceback
from collections import deque
from typing import TextIO

from hf_mpwriter.system import process_state
from hf_mpwriter.system.interrupts import is_of_handler, ours, suppress


class Speaker(logging.StreamHandler[TextIO]):
    """Writes to what `sys.stderr` is at the moment, for a process that has no handler of its own."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)
        self.setFormatter(logging.Formatter("%(name)s: %(message)s"))

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - of the base class
        """Show what has failed, but let pass what a signal handler raises meanwhile."""
        if is_of_handler(sys.exception()):
            raise  # noqa: PLE0704 - `logging` calls this where it handles the exception
        super().handleError(record)

    @property
    def stream(self) -> TextIO:  # type: ignore[override]  # an attribute of the base class
        """The standard error stream."""
        return sys.stderr


class DeferredLog:
    """Collects messages for a logger."""

    def __init__(self, name: str) -> None:
        self._logger, self._speaker = logging.getLogger(name), Speaker()
        self._messages: deque[tuple[int, str, tuple[object, ...]]] = deque()

    def warning(self, text: str, *arguments: object) -> None:
        """Log a warning, or collect it while this thread holds a lock of ours."""
        self._messages.append((logging.WARNING, text, arguments))
        self.flush()

    def info(self, text: str, *arguments: object) -> None:
        """Log information, or collect it; for the arguments see `warning`."""
        self._messages.append((logging.INFO, text, arguments))
        self.flush()

    def flush(self) -> None:
        """Log what was collected, in any thread; nothing happens inside a lock, as in a signal handler."""
        while self._messages and not process_state.is_any_held():
            try:
                level, text, arguments = self._messages.popleft()
            except ours(IndexError):  # another thread has taken it
                return
            try:
                self._log(level, text, arguments)
            except ours(Exception):
                if logging.raiseExceptions:
                    with suppress(Exception):  # stderr may be closed
                        traceback.print_exc()

    def _log(self, level: int, text: str, arguments: tuple[object, ...]) -> None:
        if self._logger.hasHandlers():
            self._logger.log(level, text, *arguments)
        elif level >= max(self._logger.level, self._logger.manager.disable + 1) and not self._logger.disabled:
            record = self._logger.makeRecord(self._logger.name, level, "", 0, text, arguments, None)
            if self._logger.filter(record):
                self._speaker.handle(record)

    def clear(self) -> None:
        """Forget what was collected."""
        self._messages.clear()


logger = DeferredLog("hf_mpwriter")
process_state.after_fork(logger.clear)
