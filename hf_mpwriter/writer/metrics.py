"""Metrics: what is given to `log`, as names and numbers; and the encoders of the names and tags that are logged.

{"loss": tensor(0.5), "eval": {"acc": 1}, "note": None}  -->  ("loss", "eval/acc"), [0.5, 1.0]; "note" is left out
("acc (1)", "acc [1]")                                   -->  tags "acc__1_", "acc__1__2"

Invariant: what a program finds out only after days does not end it. What is left out or renamed is told once per name.
"""

from __future__ import annotations

import numbers
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from tensorboardX.summary import _clean_tag

from hf_mpwriter.events.deferred_log import logger
from hf_mpwriter.events.framing import ScalarEncoder, StepEncoder
from hf_mpwriter.system.interrupts import ours, suppress
from hf_mpwriter.writer.values import as_number

NAMES_KEPT = 32_768  # names whose encoders a writer keeps
ENCODER_COST = 7  # names that each encoder counts in addition: many small ones take memory, too
MOST_TOLD = 1000  # names that are left out or renamed with a word

Names = tuple[str, ...]
_PLAIN = frozenset([float, int, bool, np.float16, np.float32, np.float64, np.int32, np.int64])  # `float` takes them
_TEXT = (str, bytes, bytearray)  # `add_scalar` takes numbers in them; here they are more likely a mistake


class Encoders(dict[Any, Any]):
    """A ScalarEncoder per tag and a StepEncoder per tuple of names, made at first use.

    All are forgotten once they have too many names, so a name that has a step in it does not fill the memory. Threads
    need no lock: the worst that a race does is to make one once more.
    """

    _size = 0  # names

    def __init__(self) -> None:
        super().__init__()
        self._told: set[str] = set()

    def __missing__(self, key: str | bytes | Names) -> ScalarEncoder | StepEncoder:
        """Make the encoder of a tag or of names."""
        if isinstance(key, tuple):
            tags = tags_of(key)
            encoder: ScalarEncoder | StepEncoder = StepEncoder(tags)
            for name, tag in zip(key, tags, strict=True):
                if tag != (wanted := _clean_tag(name)):
                    self._tell(name, f"is logged as {tag!r}, as {wanted!r} is the name of another value")
        else:
            encoder = ScalarEncoder(_clean_tag(key.decode() if isinstance(key, bytes) else key) or "")
        size = ENCODER_COST + (len(key) if isinstance(key, tuple) else 1)
        self._size += size
        if self._size > NAMES_KEPT:
            self.clear()
            self._size = size
        self[key] = encoder
        return encoder

    def leave_out(self, name: str, value: Any) -> None:
        """Tell that a value is no scalar, so that it is not logged."""
        shape = getattr(value, "shape", None)
        kind = type(value).__name__ + (f" of shape {tuple(shape)}" if shape else "")
        self._tell(name, f"is left out: it is no scalar, but of type {kind}")

    def _tell(self, name: str, text: str) -> None:
        if name not in self._told and len(self._told) < MOST_TOLD:
            self._told.add(name)
            logger.warning("log: %r %s", name, text)
            logger.flush()


def read(metrics: Mapping[str, Any], leave_out: Callable[[str, Any], object]) -> tuple[Names, list[float]]:
    """Return names and numbers, in the order of the mapping; `log` does it itself for a dictionary of floats."""
    if type(metrics) is not dict and not isinstance(metrics, Mapping):
        raise TypeError(f"metrics is of type {type(metrics).__name__}, not a mapping of names to scalars")
    names, values = (*metrics,), [*metrics.values()]
    if _PLAIN.issuperset(map(type, values)):
        with suppress(OverflowError):  # an integer that is too large for a float
            return names, [*map(float, values)]
    taken: list[tuple[str, float]] = []
    for name, value in _leaves(metrics, ""):
        if (number := value if type(value) is float else _number(value)) is None:
            leave_out(name, value)
        else:
            taken.append((name, number))
    return tuple([name for name, _ in taken]), [number for _, number in taken]


def _leaves(metrics: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for name, value in metrics.items():
        path = prefix + _checked(name)
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{path}/")
        else:
            yield path, value


def _checked(name: Any) -> str:
    if not isinstance(name, str):
        raise TypeError(f"the name {name!r} is of type {type(name).__name__}, not a string")
    return name


def _number(value: Any) -> float | None:
    """The number that a value is, None if it is none."""
    if isinstance(value, _TEXT) or (isinstance(value, numbers.Complex) and not isinstance(value, numbers.Real)):
        return None
    try:
        return as_number(value)
    except ours(TypeError, ValueError):  # a timedelta64, a signaling NaN of a Decimal
        return None


def tags_of(names: Names) -> list[str]:
    """Names as they go into the file: what TensorBoard does not take is an underscore; a second one gets a number."""
    tags: dict[str, None] = {}
    for name in names:
        tag = cleaned = _clean_tag(_checked(name))
        count = 1
        while tag in tags:
            count += 1
            tag = f"{cleaned}_{count}"
        tags[tag] = None
    return list(tags)
