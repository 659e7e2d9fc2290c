"""The boundary: nothing that our own code or the system raises gets into training.

    with Boundary(name): ...     what is raised in the block ends it, and is told, each text once
                                 what a signal handler of the program raises passes, and so does what is no Exception

Invariant: it needs nothing that may fail: what cannot be told is lost, and training goes on.
"""

from __future__ import annotations

from collections.abc import Callable

from hf_mpwriter.base.errors import HfMpWriterError
from hf_mpwriter.events.deferred_log import logger
from hf_mpwriter.system.interrupts import is_of_handler, ours


class Boundary:
    """The boundary of one object; its block may be entered in another one, and by any thread."""

    def __init__(self, name: Callable[[], object]) -> None:
        self._name, self._told = name, ""  # what is spoken of, and the last text

    def __enter__(self) -> None:
        """Begin the block."""

    def __exit__(self, _: object, error: BaseException | None, *__: object) -> bool:
        """Whether what was raised stays inside."""
        if not isinstance(error, Exception) or is_of_handler(error):
            return False
        self.tell(error)
        return True

    def tell(self, error: Exception, where: object = "") -> None:
        """Tell what was raised; `where` if that is not the name."""
        try:
            why = str(error) if isinstance(error, (OSError, HfMpWriterError)) else repr(error)
            text = f"{where or self._name()}: {why}"
            if text != self._told:
                self._told = text
                logger.warning("%s", text)
        except ours(Exception):  # no memory, or the disk that its name is asked of
            return
