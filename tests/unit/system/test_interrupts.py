"""What a signal handler of the program raises is told from what our code and the system raise."""

from __future__ import annotations

import functools
import os
import signal
import sys
from pathlib import Path

import pytest

from hf_mpwriter.system.interrupts import ours, suppress


def plain(_signum, _frame):
    """A function."""
    raise TimeoutError("of the program")


def walking(_signum, frame):
    """A function that walks up from where it was called."""
    while frame is not None:
        frame = frame.f_back
    raise TimeoutError("of the program")


def restoring(*_):
    """A function that sets the handler of before; its arguments are in a tuple."""
    signal.signal(signal.SIGUSR1, signal.SIG_DFL)
    raise TimeoutError("of the program")


def with_more(more, _signum, _frame):
    """A function with an argument of its own."""
    plain(more, None)


class Handler:
    """An object with a method, which can be called itself."""

    def handle(self, _signum, _frame):
        """A method."""
        raise TimeoutError("of the program")

    __call__ = handle


HANDLERS = {
    "function": plain,
    "walking": walking,
    "restoring": restoring,
    "partial": functools.partial(with_more, 5),
    "method": Handler().handle,
    "object": Handler(),
}


@pytest.fixture(params=HANDLERS)
def alarmed(request):
    """A call of ours in which the signal comes: this module counts as one of the package."""
    before, handler = signal.getsignal(signal.SIGUSR1), HANDLERS[request.param]
    source = "def call():\n    signal.signal(signal.SIGUSR1, handler)\n    signal.raise_signal(signal.SIGUSR1)\n"
    space = {"__name__": "hf_mpwriter.call", "signal": signal, "handler": handler}
    exec(source, space)  # noqa: S102 - code with the name of a module of ours
    yield space["call"]
    signal.signal(signal.SIGUSR1, before)


def caught(call, *kinds):
    """What is caught of a call."""
    try:
        call()
    except ours(*kinds) as error:
        return error
    return None


def test_what_a_handler_raises_is_not_ours(alarmed):
    """Whatever kind of handler it is, and whatever the classes that are to be caught."""
    with pytest.raises(TimeoutError, match="of the program"):
        caught(alarmed, OSError, Exception)
    with pytest.raises(TimeoutError, match="of the program"), suppress(OSError):
        alarmed()


@pytest.mark.parametrize("function", [os.stat, os.makedirs, os.listdir, Path.read_bytes])
def test_what_the_system_raises_in_what_we_call_is_ours(function):
    """An OSError of a system call, in Python's own functions as well; other classes pass as ever."""
    nowhere = Path("/proc/nowhere/nothing")
    assert isinstance(caught(functools.partial(function, nowhere), OSError), FileNotFoundError)
    with suppress(OSError):
        function(nowhere)
    with pytest.raises(FileNotFoundError), suppress(ValueError):
        function(nowhere)


def test_what_a_trace_function_raises_is_not_ours():
    """Tests of ours interrupt calls by one; a debugger may."""

    def trace(*_):
        raise TimeoutError("of the tracer")

    def traced():
        sys.settrace(trace)
        os.path.join("a", "b")

    with pytest.raises(TimeoutError, match="of the tracer"):
        caught(traced, OSError)
    sys.settrace(None)
