"""Names of arguments: one that does not exist is refused, and the nearest one is named.

Type checkers see the signature of the decorated function, and so does `help`. The words are those of Python 3.13, which
also names the nearest argument of a function that is not decorated. The methods of a class are refused by its name.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Sequence
from types import FunctionType
from typing import Any, TypeVar, cast

_Function = TypeVar("_Function", bound=Callable[..., Any])
_Class = TypeVar("_Class", bound=type)


def nearest(name: str, known: Sequence[str]) -> str | None:
    """Return the known name that is most like a name, else one that has it as a word; None if none does."""
    import difflib  # only for what is wrong already

    spelt, asked = {one.lower(): one for one in known}, name.lower()
    having = [one for one in spelt if asked in one.split("_")]  # step: global_step
    return next((spelt[one] for one in [*difflib.get_close_matches(asked, spelt, n=1), *having]), None)


def check_known(given: Iterable[str], function: Callable[..., Any]) -> None:
    """Check the names of arguments."""
    parameters = inspect.signature(function).parameters
    if any(one.kind is one.VAR_KEYWORD for one in parameters.values()):
        return
    for name in given:
        if name not in parameters:
            found = nearest(name, [one for one in parameters if one != "self"])
            refusal = f"{function.__qualname__}() got an unexpected keyword argument {name!r}"
            raise TypeError(refusal + (f". Did you mean {found!r}?" if found else ""))


def naming(function: _Function) -> _Function:
    """Wrap a function, so that an argument that it does not have is refused with the nearest name."""

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        check_known(kwargs, function)
        return function(*args, **kwargs)

    return cast("_Function", call)


def named_for_users(cls: _Class) -> _Class:
    """Name the public methods of a class after it, wherever their code stands: Python's errors have that name.

    That costs a call nothing. What another package has written keeps its name.
    """
    package = cls.__module__.partition(".")[0]
    for name in dir(cls):
        method = getattr(cls, name)
        while isinstance(method, FunctionType) and not name.startswith("_"):
            if method.__module__.partition(".")[0] != package:
                break
            method.__module__, method.__qualname__ = cls.__module__, f"{cls.__qualname__}.{name}"  # pickle finds it
            method = getattr(method, "__wrapped__", None)
    return cls
