"""A training in which one function of the package after another fails. Run as a program: see `main`.

    failing_functions.py DIRECTORY FIRST EVERY [all]     each EVERY-th function from FIRST on; `all`: with all errors

It prints a line for each call of training that has raised and may not, and at last how many functions have failed.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator
from types import CodeType, FunctionType
from typing import Any

from hf_mpwriter import HFSummaryWriter
from hf_mpwriter.base.errors import HfMpWriterError
from hf_mpwriter.events import boundary, framing
from hf_mpwriter.worker import registry

FOLDERS = ("hf_mpwriter.snapshot.", "hf_mpwriter.events.", "hf_mpwriter.spool.")
ERRORS = (
    ValueError("a value"),
    OSError(5, "Input/output error", "/nowhere"),
    MemoryError("no memory"),
    UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"),
)


def failing(code: CodeType, error: Exception) -> CodeType:
    """Code that raises, for a function that has this code."""
    stub = compile("def stub(*_, **__): raise 'error'", "<failing>", "exec").co_consts[0]
    constants = tuple(error if constant == "error" else constant for constant in stub.co_consts)
    return stub.replace(co_consts=constants, co_freevars=code.co_freevars, co_name=code.co_name)


def functions() -> Iterator[FunctionType]:
    """All functions and methods of the three folders, but those of the boundary itself."""
    for name, module in sorted(sys.modules.items()):
        if name.startswith(FOLDERS) and module is not boundary:
            for value in vars(module).values():
                found = vars(value).values() if inspect.isclass(value) else [value]
                for one in map(unwrapped, found):
                    if isinstance(one, FunctionType) and one.__module__ == name:
                        yield one


def unwrapped(value: Any) -> Any:
    """The function in a property, a class method, or a cache."""
    for attribute in ("fget", "func", "__func__"):
        value = getattr(value, attribute, value)
    return inspect.unwrap(value) if callable(value) else value


class Training:
    """Calls of a training, one after another, whatever one of them raises."""

    def __init__(self, run_dir: str) -> None:
        self.raised: list[tuple[str, Exception]] = []
        self._writer: HFSummaryWriter | None = None
        self._call("constructor", lambda: HFSummaryWriter("me/run", logdir=run_dir, exit_timeout=0, purge_step=5))

    def _call(self, name: str, call: Callable[[], object]) -> None:
        try:
            made = call()
        except Exception as error:  # noqa: BLE001 - of any kind
            self.raised.append((name, error))
        else:
            self._writer = made if isinstance(made, HFSummaryWriter) else self._writer

    def run(self) -> None:
        """All calls."""
        writer = self._writer
        if writer is None:
            return
        self._call("add_scalar", lambda: writer.add_scalar("a", 1.0, 5))
        self._call("log", lambda: writer.log({"a": 1.0, "b": 2}, step=6))
        self._call("log", lambda: writer.log({"a": 1.0}))
        self._call("add_scalars", lambda: writer.add_scalars("group", {"x": 1.0, "y": 2.0}, 7))
        self._call("add_text", lambda: writer.add_text("t", "text", 7))
        self._call("flush", writer.flush)
        self._call("push", lambda: writer.push(0.001))
        self._call("status", writer.status)
        self._call("close", writer.close)
        self._call("add_scalar", lambda: writer.add_scalar("a", 1.0, 8))
        self._call("close", lambda: writer.close(wait=True))
        self._call("end", registry._at_exit)


def reached(run_dir: str) -> set[CodeType]:
    """The code that a training runs."""
    found = set[CodeType]()
    sys.setprofile(lambda frame, event, _: found.add(frame.f_code) if event == "call" else None)
    try:
        Training(run_dir).run()
    finally:
        sys.setprofile(None)
    return found


def is_allowed(call: str, error: Exception, function: FunctionType) -> bool:
    """Whether a call may raise: a constructor what its table has, and who logs what cannot be encoded."""
    if call == "constructor":
        return isinstance(error, HfMpWriterError)
    return call in ("add_scalar", "log", "add_scalars", "add_text") and (
        function.__module__ == framing.__name__ and isinstance(error, ValueError)
    )


def try_one(function: FunctionType, error: Exception, run_dir: str, *, from_start: bool) -> list[str]:
    """Let a function fail, from the constructor on or after it; what was raised and may not be."""
    sound = function.__code__
    registry._workers.clear()
    training = None if from_start else Training(run_dir)
    function.__code__ = failing(sound, error)
    try:
        training = training or Training(run_dir)
        training.run()
    finally:
        function.__code__ = sound
    name = f"{function.__module__}.{function.__qualname__}: {type(error).__name__}"
    return [f"{name}: {call}: {one!r}" for call, one in training.raised if not is_allowed(call, one, function)]


def main(directory: str, first: str, every: str, errors: str = "") -> None:
    """Try functions, each with one error or with all."""
    hit = reached(f"{directory}/reached")
    all_functions = sorted(
        {one for one in functions() if one.__code__ in hit}, key=lambda one: (one.__module__, one.__qualname__)
    )
    chosen = all_functions[int(first) :: int(every)]
    for number, function in enumerate(chosen):
        for turn, error in enumerate(ERRORS):
            if not errors and turn != (number + int(first)) % len(ERRORS):
                continue
            for from_start in (False, True) if errors else (number % 3 == 0,):
                for text in try_one(function, error, f"{directory}/{number}", from_start=from_start):
                    print(text)
    print(f"{len(chosen)} of {len(all_functions)} functions failed")


if __name__ == "__main__":
    main(*sys.argv[1:])
