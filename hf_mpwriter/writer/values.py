"""Values that users log, as numbers and arrays that tensorboardX can encode.

torch's writer accepts more types than tensorboardX's: bfloat16 and the 8-bit floats, which numpy lacks, Decimals,
numbers in strings and in bytes, and integers beyond 64 bits. These functions convert them. They never import torch: a
program that has a tensor has loaded it. The types for checkers name no framework: a tensor is what numpy converts to an
array.
"""

from __future__ import annotations

import math
import numbers
import reprlib
import sys
from typing import Any, Protocol, SupportsFloat, SupportsIndex

import numpy as np

from hf_mpwriter.base import arguments
from hf_mpwriter.base.arguments import whole
from hf_mpwriter.system.interrupts import ours


class SupportsArray(Protocol):
    """A numpy array, a tensor of torch, jax or paddle, and whatever else numpy converts."""

    def __array__(self) -> Any:
        """Return a numpy array."""


Array = SupportsArray | list[Any] | tuple[Any, ...]
Number = SupportsFloat | str | bytes  # a tensor or an array of one element is a SupportsFloat
Step = SupportsIndex | None  # a whole float such as 2.0 is accepted too, but rarely meant


def as_number(value: Any) -> float | None:
    """Return the value as a float; None if it is not exactly one number, so that tensorboardX raises its own error."""
    if isinstance(value, (int, np.number, numbers.Number, str, bytes)) and not isinstance(value, complex):
        try:
            return float(value)  # type: ignore[arg-type]
        except ours(OverflowError):
            return -math.inf if value < 0 else math.inf  # type: ignore[operator]
    if _is_meta(value):
        return math.nan
    if (item := getattr(value, "item", None)) is not None:
        try:
            return float(item())
        except ours(TypeError, ValueError, RuntimeError):
            return None
    return None


def as_step(step: Any) -> int | None:
    """Return a step as an int; None stays None."""
    if step is None:
        return None
    try:
        number = whole("global_step", step)
    except ours(ValueError):
        if not arguments.fractions_are_cut:
            raise
        number = int(step)
    if not -(1 << 63) <= number < 1 << 63:
        raise ValueError(f"global_step {number} does not fit into 64 bits")
    return number


def as_text(name: str, value: Any) -> Any:
    """Return a name that TensorBoard shows as a string; bytes are decoded, as torch does, and None stays None."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, bytes):
        return value.decode()
    raise TypeError(f"{name} is {reprlib.repr(value)}, but must be a string.")


def as_python(value: Any) -> Any:
    """Return a numpy or tensor scalar as a Python one, so that it keeps its type; other values unchanged."""
    if _is_meta(value):
        return math.nan
    return value.item() if isinstance(value, np.generic) or (_is_tensor(value) and value.numel() == 1) else value


def plain(value: Any) -> Any:
    """Return a tensor of a type that numpy lacks as float32, also within a list; other values unchanged."""
    if isinstance(value, list):
        return [plain(one) for one in value] if any(map(_is_tensor, value)) else value
    if not _is_tensor(value):
        return value
    torch = sys.modules["torch"]
    if value.dtype == torch.bfloat16 or (value.dtype.is_floating_point and value.dtype.itemsize == 1):
        return value.detach().to(torch.float32)
    return value


def sound(samples: Any) -> Any:
    """Return samples of shape (L, C); torch's (1, L), and shapes with more dimensions of size 1, become one channel."""
    shape = tuple(getattr(samples, "shape", ()))
    if len(shape) < 2 or (len(shape) == 2 and shape[1] in (1, 2)):
        return samples
    array = np.asarray(samples.detach().cpu() if _is_tensor(samples) else samples).squeeze()
    return array.reshape(-1, 1) if array.ndim == 1 else array


def square(images: Any) -> Any:
    """Pad images of shape (N, C, H, W) with black to the larger of H and W; return None and squares unchanged."""
    if images is None or len(images.shape) != 4 or images.shape[2] == images.shape[3]:
        return images
    array = np.asarray(images.detach().cpu() if _is_tensor(images) else images)
    missing = [max(array.shape[2:]) - size for size in array.shape[2:]]
    return np.pad(array, [(0, 0), (0, 0), (0, missing[0]), (0, missing[1])])


def _is_tensor(value: Any) -> bool:
    torch = sys.modules.get("torch")
    tensor = getattr(torch, "Tensor", None)
    return tensor is not None and isinstance(value, tensor)


def _is_meta(value: Any) -> bool:
    """Return whether this is a tensor on the meta device: a shape without values, as in a dry run."""
    return getattr(getattr(value, "device", None), "type", "") == "meta"
