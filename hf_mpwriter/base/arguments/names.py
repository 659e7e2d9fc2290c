"""Names of arguments: one that does not exist is refused, and the nearest one is named.

Type checkers see the signature of the decorated function, and so does `help`.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar, cast

_Function = TypeVar("_Function", bound=Callable[..., Any])


def nearest(name: str, known: Sequence[str]) -> str | None:
    """Return the known name that is most like a name, None if none is like it."""
    import difflib  # only for what is wrong already

    spelt = {one.lower(): one for one in known}
    return next((spelt[one] for one in difflib.get_close_matches(name.lower(), spelt, n=1)), None)


def check_known(given: Iterable[str], function: Callable[..., Any]) -> None:
    """Check the names of arguments.

    Args:
        given: names.
        function: that is called with them; one that takes any name takes these.

    Raises:
        TypeError: the function has no argument of such a name.
    """
    parameters = inspect.signature(function).parameters
    if any(one.kind is one.VAR_KEYWORD for one in parameters.values()):
        return
    for name in given:
        if name not in parameters:
            found = nearest(name, [one for one in parameters if one != "self"])
            raise TypeError(f"unexpected argument {name!r}." + (f" Did you mean {found!r}?" if found else ""))


def naming(function: _Function) -> _Function:
    """Wrap a function, so that an argument that it does not have is refused with the nearest name."""

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        check_known(kwargs, function)
        return function(*args, **kwargs)

    return cast("_Function", call)
