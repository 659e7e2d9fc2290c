"""Metrics: what is given to `log`, as names and numbers; and the encoders of the names and tags that are logged.

{"loss": tensor(0.5), "eval": {"acc": 1}}  -->  ("loss", "eval/acc"), [0.5, 1.0]
"""

from __future__ import annotations

import contextlib
import numbers
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from tensorboardX.summary import _clean_tag

from hf_mpwriter.events.framing import ScalarEncoder, StepEncoder
from hf_mpwriter.writer.values import as_number

NAMES_KEPT = 32_768  # names whose encoders a writer keeps
ENCODER_COST = 7  # names that each encoder counts in addition: many small ones take memory, too

Names = tuple[str, ...]
_PLAIN = frozenset([float, int, bool, np.float16, np.float32, np.float64, np.int32, np.int64])  # `float` takes them
_TEXT = (str, bytes, bytearray)  # `add_scalar` takes numbers in them; here they are more likely a mistake


class Encoders(dict[Any, Any]):
    """A ScalarEncoder per tag and a StepEncoder per tuple of names, made at first use.

    All are forgotten once they have too many names, so a name that has a step in it does not fill the memory. Threads
    need no lock: the worst that a race does is to make one once more.
    """

    _size = 0  # names

    def __missing__(self, key: str | bytes | Names) -> ScalarEncoder | StepEncoder:
        """Make the encoder of a tag or of names."""
        if isinstance(key, tuple):
            encoder: ScalarEncoder | StepEncoder = StepEncoder(tags_of(key))
        else:
            encoder = ScalarEncoder(_clean_tag(key.decode() if isinstance(key, bytes) else key) or "")
        size = ENCODER_COST + (len(key) if isinstance(key, tuple) else 1)
        self._size += size
        if self._size > NAMES_KEPT:
            self.clear()
            self._size = size
        self[key] = encoder
        return encoder


def read(metrics: Mapping[str, Any]) -> tuple[Names, list[float]]:
    """Return names and numbers, in the order of the mapping; `log` does it itself for a dictionary of floats."""
    if type(metrics) is not dict and not isinstance(metrics, Mapping):
        raise TypeError(f"metrics is of type {type(metrics).__name__}, not a mapping of names to scalars")
    names, values = (*metrics,), [*metrics.values()]
    if _PLAIN.issuperset(map(type, values)):
        with contextlib.suppress(OverflowError):  # an integer that is too large for a float
            return names, [*map(float, values)]
    leaves = list(_leaves(metrics, ""))
    return tuple([name for name, _ in leaves]), [number for _, number in leaves]


def _leaves(metrics: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, float]]:
    for name, value in metrics.items():
        path = prefix + _checked(name)
        if type(value) is float:
            yield path, value
        elif isinstance(value, Mapping):
            yield from _leaves(value, f"{path}/")
        else:
            yield path, _number(path, value)


def _checked(name: Any) -> str:
    if not isinstance(name, str):
        raise TypeError(f"the name {name!r} is of type {type(name).__name__}, not a string")
    return name


def _number(name: str, value: Any) -> float:
    is_complex = isinstance(value, numbers.Complex) and not isinstance(value, numbers.Real)
    try:
        number = None if is_complex or isinstance(value, _TEXT) else as_number(value)
    except (TypeError, ValueError):  # a timedelta64, a signaling NaN of a Decimal
        number = None
    if number is None:
        shape = getattr(value, "shape", None)
        kind = type(value).__name__ + (f" of shape {tuple(shape)}" if shape else "")
        raise TypeError(f"{name!r} is no scalar: {kind}")
    return number


def tags_of(names: Names) -> list[str]:
    """Return the names as they go into the file: what TensorBoard does not take becomes an underscore."""
    tags: dict[str, str] = {}
    for name in names:
        tag = _clean_tag(_checked(name))
        if tag in tags:
            raise ValueError(f"{tags[tag]!r} and {name!r} are the same name in the event file: {tag!r}")
        tags[tag] = name
    return list(tags)
