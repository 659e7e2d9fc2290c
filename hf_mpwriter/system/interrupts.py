"""Interrupts: what a signal handler of the program raises inside a call of ours passes through it unchanged.

Python runs a signal handler between two bytecodes of the main thread, or in a system call that the signal interrupts.
What it raises comes out of the frame that was interrupted, as if that frame had raised it: the TimeoutError of an alarm
looks like the OSError of a read. So all code that runs in training catches by the two words of this module:

    except ours(OSError):        Python evaluates this only once there is an exception: it costs a call nothing
    with suppress(OSError):      in place of that of contextlib

A handler is called as `handler(signum, frame)`, and `frame` is the one that it has interrupted. In the traceback its
own frame comes right behind that one, which no call of ours is given. So a frame that holds the one before it is that
of a handler, and so is one that runs the code of a handler that is set now.

Invariants:
- Training catches nothing otherwise, unless it raises it again; a test compares all `except` clauses.
- Functions of the standard library that swallow an OSError, such as `os.path.isdir`, run in no call but a constructor.
- What is cleaned up while an object is deleted loses exceptions, so no code of ours runs there in training.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from types import CodeType, FrameType
from typing import TypeVar

Caught = TypeVar("Caught", bound=BaseException)
_PACKAGE = __name__.partition(".")[0]
_LIBRARY = (os.path.dirname(os.__file__), "<frozen")  # Python's own, and what is installed


def ours(*kinds: type[Caught]) -> tuple[type[Caught], ...]:
    """These classes, for an `except`; none of them if a signal handler has raised what is being handled."""
    return () if is_of_handler(sys.exception()) else kinds


class suppress:  # noqa: N801 - as in contextlib
    """A block that swallows exceptions of these classes, but nothing that a signal handler raises."""

    __slots__ = ("_kinds",)

    def __init__(self, *kinds: type[BaseException]) -> None:
        self._kinds = kinds

    def __enter__(self) -> None:
        """Begin the block."""

    def __exit__(self, _: object, error: BaseException | None, *__: object) -> bool:
        """Whether it is swallowed."""
        return isinstance(error, self._kinds) and not is_of_handler(error)


def is_of_handler(error: BaseException | None) -> bool:
    """Whether a signal handler of the program has raised an exception, or a trace function."""
    return any(_is_handler(frame, interrupted) for interrupted, frame in _calls(error))


def _calls(error: BaseException | None) -> Iterator[tuple[FrameType, FrameType]]:
    """The calls that an exception came out of: the frame of the caller, and that of the called, if that is not ours."""
    step = None if error is None else error.__traceback__
    while step is not None and (below := step.tb_next) is not None:
        if str(below.tb_frame.f_globals.get("__name__")).partition(".")[0] != _PACKAGE:
            yield step.tb_frame, below.tb_frame
        step = below


def _is_handler(frame: FrameType, interrupted: FrameType) -> bool:
    for held in frame.f_locals.values():
        if held is interrupted or (type(held) is tuple and any(one is interrupted for one in held)):
            return True
    return not frame.f_code.co_filename.startswith(_LIBRARY) and frame.f_code in _set_now()


def _set_now() -> set[CodeType | None]:
    """The code of the signal handlers that are set, as far as they are functions or methods."""
    handlers = map(signal.getsignal, signal.valid_signals())
    found = {getattr(getattr(handler, "__func__", handler), "__code__", None) for handler in handlers}
    return found - {None}
