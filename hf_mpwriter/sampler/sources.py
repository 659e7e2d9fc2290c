"""Sources: what is measured, each by itself. One that fails is told once, and the others go on.

    {"cpu": read} --sample--> {"cpu/percent": 12.5, ...}

Invariant: nothing that a source raises leaves `sample`. Below it are drivers, which may raise anything.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping

logger = logging.getLogger("hf_mpwriter")

Source = Callable[[], Mapping[str, float]]  # gives values per name of a metric


class Sources:
    """All that one sampler measures."""

    def __init__(self, sources: Mapping[str, Source]) -> None:
        self._sources = dict(sources)
        self._failures: dict[str, str] = {}  # why each one failed last

    def sample(self) -> dict[str, float]:
        """What can be measured now, per name of a metric."""
        found: dict[str, float] = {}
        for name, read in self._sources.items():
            try:
                found.update(read())
            except Exception as error:  # noqa: BLE001 - see above
                self._tell(name, f"{type(error).__name__}: {error}")
            else:
                self._failures.pop(name, None)
        return found

    def _tell(self, name: str, failure: str) -> None:
        if self._failures.get(name) != failure:
            self._failures[name] = failure
            logger.info("%s cannot be measured: %s", name, failure)


class Rates:
    """What counters grow by, per second."""

    def __init__(self) -> None:
        self._before: dict[str, tuple[float, float]] = {}  # when, and what it was then

    def of(self, counters: Mapping[str, float], now: float) -> dict[str, float]:
        """The growth per second of each counter since the last call.

        A counter that is new has none, and neither has one that has become less: it was reset.
        """
        found = {}
        for name, count in counters.items():
            at, before = self._before.get(name, (now, count))
            if now > at and count >= before:
                found[name] = (count - before) / (now - at)
        self._before = {name: (now, count) for name, count in counters.items()}
        return found
