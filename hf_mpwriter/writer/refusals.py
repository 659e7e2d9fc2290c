"""Refusals: what is raised for a value, a tag or a step that cannot be logged.

torch's and tensorboardX's writer raise different classes for the same value, and programs catch the one that they know:
skorch's callback skips a list because torch raises NotImplementedError. So one class is an instance of all of them.

Invariant: only an exception of exactly such a class is replaced. What a signal handler, a model or a user's object
raises of a class of its own passes unchanged.
"""

from __future__ import annotations

import functools
import inspect
import struct
from collections.abc import Callable
from typing import Any, NoReturn


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


def refuse(error: Exception) -> NoReturn:
    """Raise an error that came of what was to be logged, as an instance of all classes that callers may catch."""
    kind = type(error)
    if kind in (*REPLACED, NotImplementedError) or kind.__module__.partition(".")[0] == "numpy":
        raise NotLoggableError(str(error)).with_traceback(error.__traceback__) from None
    raise error


def refusing(method: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap an `add_*` method, so that it raises NotLoggableError, and takes a tag in bytes as torch does."""
    takes_tag = list(inspect.signature(method).parameters)[1] == "tag"

    @functools.wraps(method)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            if takes_tag and args and type(args[0]) is bytes:
                args = (args[0].decode(), *args[1:])
            return method(self, *args, **kwargs)
        except REPLACED as error:
            refuse(error)

    return call
