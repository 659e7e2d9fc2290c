"""Types of what users log. They name no framework: a tensor is what numpy converts to an array."""

from __future__ import annotations

from typing import Any, Protocol, SupportsFloat, SupportsIndex


class SupportsArray(Protocol):
    """A numpy array, a tensor of torch, jax or paddle, and whatever else numpy converts."""

    def __array__(self) -> Any:
        """Return a numpy array."""


Array = SupportsArray | list[Any] | tuple[Any, ...]
Number = SupportsFloat | str | bytes  # a tensor or an array of one element is a SupportsFloat
Step = SupportsIndex | None  # a whole float such as 2.0 is accepted too, but rarely meant
