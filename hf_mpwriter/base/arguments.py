"""Values of arguments: one of a wrong type is refused by the name of its argument.

Python converts many of them without a word: `bool("false")` is true, and `int(1.5)` is 1.
"""

from __future__ import annotations

import operator
import re
import reprlib
from collections.abc import Iterable, Mapping
from typing import Any

from hf_mpwriter.base.errors import SettingsError
from hf_mpwriter.system.interrupts import ours

HIGHEST_RANK = 100_000  # that a name of a directory has digits for
_URL = re.compile(r"https?://(?:\[[0-9A-Fa-f:.]+\]|[^\s/:\[\]]+)(?::(?P<port>[0-9]+))?(?:/\S*)?")
fractions_are_cut = False  # off steps, as torch does: `patch()` sets it for code that cannot be changed


def is_switch(value: Any) -> bool:
    """Whether this is True or False, also as a 0, a 1 or a bool of numpy."""
    is_numpys = getattr(getattr(value, "dtype", None), "kind", "") == "b" and getattr(value, "ndim", 0) == 0
    return is_numpys or (isinstance(value, int) and value in (0, 1))


def switch(name: str, value: Any) -> bool:
    """Return a switch as a bool."""
    if not is_switch(value):
        raise SettingsError(f"{name} is {reprlib.repr(value)}.", hint="It is True or False.")
    return bool(value)


def text_or_none(name: str, value: Any) -> str | None:
    """Return a text, or None."""
    if value is not None and not isinstance(value, str):
        raise SettingsError(f"{name} is {reprlib.repr(value)}, but must be a string.")
    return value


def token_or_none(token: Any) -> str | None:
    """Return a token, or None; a message never shows what was given."""
    if token is not None and not isinstance(token, str):
        kind = type(token).__name__
        raise SettingsError(
            f"token must be a string, not a value of type {kind}.",
            hint="None takes the one of `hf auth login` or HF_TOKEN.",
        )
    return token


def patterns(name: str, value: Any) -> tuple[str, ...]:
    """Return patterns in the form of huggingface_hub: one or several; a trailing slash means all below."""
    several = isinstance(value, Iterable) and not isinstance(value, (bytes, bytearray, Mapping))
    if not several and value is not None:
        raise SettingsError(f"{name} is {reprlib.repr(value)}.", hint="Give a pattern, or a list of patterns.")
    items = [value] if isinstance(value, str) else list(value or ())
    for item in items:
        if not isinstance(item, str):
            raise SettingsError(f"{name} holds {reprlib.repr(item)}, but patterns are strings.")
    return tuple(item + "*" if item.endswith("/") else item for item in items)


def whole(name: str, value: Any) -> int:
    """Return a whole number as an int: of any type that Python converts, also a float such as 2.0."""
    try:
        number = int(value)
    except ours(TypeError, ValueError, OverflowError) as error:
        if type(error) not in (TypeError, ValueError, OverflowError):  # a class of the program
            raise
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(f"{name} is {reprlib.repr(value)}, but must be a whole number.") from error
    if _has_fraction(value, number):
        raise ValueError(f"{name} is {reprlib.repr(value)}, but must be a whole number.")
    return number


def check_step(purge_step: Any) -> int | None:
    """Return a step to resume at as an int; numpy numbers and tensors are accepted too."""
    if purge_step is None:
        return None
    try:
        step = whole("purge_step", purge_step)
    except ours(TypeError, ValueError) as error:
        raise SettingsError(str(error)) from error
    if isinstance(purge_step, str) or not -(1 << 63) <= step < 1 << 63:
        raise SettingsError(f"purge_step is {purge_step!r}.", hint="It is a global step, an integer of 64 bits.")
    return step


def check_rank(rank: Any) -> int | None:
    """Return a global rank as an int; numpy numbers are accepted too."""
    if rank is None:
        return None
    try:
        found = operator.index(rank)
    except ours(TypeError):
        found = -1
    if isinstance(rank, bool) or not 0 <= found < HIGHEST_RANK:
        raise SettingsError(f"rank is {rank!r}.", hint="It is the global rank of this process: 0, 1, 2, ...")
    return found


def check_endpoint(url: str) -> None:
    """Check the URL of a Hub."""
    if not url.startswith(("https://", "http://")):
        raise SettingsError(f"HF_ENDPOINT is {url!r}.", hint="It must begin with https:// or http://.")
    if "@" in url or "?" in url:  # it would be written to run.json, and no token be sent
        raise SettingsError("HF_ENDPOINT holds a password or a query.", hint="Give the token in HF_TOKEN.")
    match = _URL.fullmatch(url)
    if match is None or not 0 < int(match["port"] or 1) < 1 << 16:
        raise SettingsError(f"HF_ENDPOINT is {url!r}.", hint="It needs a host, and a port is a number.")


def check_memory_limit(limit: Any) -> int | None:
    """Return a limit of memory in bytes, or None."""
    if limit is not None and (not isinstance(limit, int) or limit < 0):
        raise SettingsError(f"memory_limit is {limit!r}.", hint="It is a number of bytes, 0 or more.")
    return limit


def _has_fraction(value: Any, number: int) -> bool:
    try:
        return float(value) != float(number)
    except ours(TypeError, OverflowError):  # it converts to an int only, or is too large for a fraction
        return False
