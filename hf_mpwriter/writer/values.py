"""Values: what users hand to `add_*`, as numbers and arrays that tensorboardX can encode.

torch's writer takes more than tensorboardX's: bfloat16 and the 8-bit floats, which numpy does not know, Decimals,
numbers in strings, integers beyond 64 bits. Here they are brought to a form that both take. torch is never imported:
whoever has a tensor has loaded it.
"""

from __future__ import annotations

import math
import numbers
import sys
from typing import Any

import numpy as np


def as_number(value: Any) -> float | None:
    """The value as a float; None if it is not plainly one number, which leaves the complaint to tensorboardX.

    Args:
        value: a Python or numpy number, a Decimal, a number in a string, a tensor or an array of one element.

    Raises:
        ValueError: a string that is no number.
    """
    if isinstance(value, (int, np.number, numbers.Number, str)) and not isinstance(value, complex):
        try:
            return float(value)  # type: ignore[arg-type]
        except OverflowError:
            return -math.inf if value < 0 else math.inf  # type: ignore[operator]
    if _is_meta(value):
        return math.nan
    if (item := getattr(value, "item", None)) is not None:
        try:
            return float(item())
        except (TypeError, ValueError, RuntimeError):
            return None
    return None


def as_python(value: Any) -> Any:
    """A numpy or tensor scalar as a Python one, anything else as it is: hyperparameters keep their type."""
    if _is_meta(value):
        return math.nan
    return value.item() if isinstance(value, np.generic) or (_is_tensor(value) and value.numel() == 1) else value


def plain(value: Any) -> Any:
    """A tensor of a type that numpy does not know as float32, lists of them likewise; anything else as it is."""
    if isinstance(value, list):
        return [plain(one) for one in value] if any(map(_is_tensor, value)) else value
    if not _is_tensor(value):
        return value
    torch = sys.modules["torch"]
    if value.dtype == torch.bfloat16 or (value.dtype.is_floating_point and value.dtype.itemsize == 1):
        return value.detach().to(torch.float32)
    return value


def sound(samples: Any) -> Any:
    """Samples of shape (L, C): torch's (1, L), and whatever has more dimensions of size 1, as one channel."""
    shape = tuple(getattr(samples, "shape", ()))
    if len(shape) < 2 or (len(shape) == 2 and shape[1] in (1, 2)):
        return samples
    array = np.asarray(samples.detach().cpu() if _is_tensor(samples) else samples).squeeze()
    return array.reshape(-1, 1) if array.ndim == 1 else array


def square(images: Any) -> Any:
    """Images of shape (N, C, H, W), filled up with black to the larger of H and W; None and squares as they are."""
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
    """Whether a tensor has a shape and no content, as in a dry run."""
    return getattr(getattr(value, "device", None), "type", "") == "meta"
