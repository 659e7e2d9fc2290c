"""Refusals: what is raised for a value, a tag or a step that cannot be logged.

torch's and tensorboardX's writer raise different classes for the same value, and programs catch the one that they know:
skorch's callback skips a list because torch raises NotImplementedError. So one class is an instance of all of them.

Invariants:
- Only an exception of exactly such a class is replaced. What a model or a user's object raises of a class of its own
  passes unchanged, and so does all that a signal handler raises.
- What keeps a record is never the value's fault: a record that is lost there is counted and told, and training goes on.
"""

from __future__ import annotations

import functools
import inspect
import struct
import traceback
from collections.abc import Callable
from typing import Any, NoReturn

from hf_mpwriter.events import framing
from hf_mpwriter.system.interrupts import ours
from hf_mpwriter.worker.worker import Worker
from hf_mpwriter.writer.values import as_text


class NotLoggableError(
    TypeError, ValueError, AssertionError, NotImplementedError, IndexError, AttributeError, OverflowError
):
    """This cannot be logged; an instance of each class that torch's and tensorboardX's writers raise for it."""


REPLACED = (
    TypeError,
    ValueError,
    AssertionError,
    RuntimeError,
    IndexError,
    AttributeError,
    OverflowError,
    struct.error,
)


_KEEPING = tuple(
    f"hf_mpwriter.{one}." for one in ("worker", "delivery", "daemon", "spool", "snapshot", "events", "system")
)


def stays_inside(error: Exception, worker: Worker | None) -> bool:
    """Whether something failed that keeps records, not what was to be logged; then the record is counted as lost."""
    modules = [str(frame.f_globals.get("__name__")) for frame, _ in traceback.walk_tb(error.__traceback__)]
    keeps = any(one.startswith(_KEEPING) and one != framing.__name__ for one in modules)
    fails = isinstance(error, (MemoryError, OSError)) and modules[-1] == framing.__name__
    if worker is None or not (keeps or fails):
        return False
    with worker.boundary:
        worker.files.count_lost(1)
    worker.boundary.tell(error)
    return True


def refuse(error: Exception) -> NoReturn:
    """Raise an error that came of what was to be logged, as an instance of all classes that callers may catch."""
    kind = type(error)
    if kind in (*REPLACED, NotImplementedError) or kind.__module__.partition(".")[0] == "numpy":
        raise NotLoggableError(str(error)).with_traceback(error.__traceback__) from None
    raise error


def wrong_tag(tag: Any) -> Exception | None:
    """Return what is wrong with a tag; asked only after a failure, so that a call that succeeds does not pay for it."""
    try:
        as_text("tag", tag)
    except ours(TypeError, UnicodeDecodeError) as error:
        return error
    return None


def refusing(method: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap an `add_*` method, so that it raises NotLoggableError, and takes a tag in bytes as torch does.

    An argument that the method does not have is a TypeError and no other: no program expects that.
    """
    parameters = inspect.signature(method).parameters
    takes_tag = list(parameters)[1] == "tag"

    @functools.wraps(method)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        if not kwargs.keys() <= parameters.keys():
            return method(self, *args, **kwargs)  # Python says which one
        try:
            if takes_tag and args and type(args[0]) is bytes:
                args = (args[0].decode(), *args[1:])
            return method(self, *args, **kwargs)
        except ours(Exception) as error:
            if stays_inside(error, self._worker):
                return None
            tag = (args[0] if args else kwargs.get("tag")) if takes_tag else None
            refuse(wrong_tag(tag) or error)

    return call
