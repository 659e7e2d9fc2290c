"""What the benchmarks do with their measurements: interleave them, reduce them, compare them with targets."""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Iterable, Sequence
from typing import TypeVar

MIB = 1 << 20

_T = TypeVar("_T", str, bool)


def interleaved(names: Iterable[_T], rng: random.Random) -> list[_T]:
    """Return the names in random order: what one round measures is next to each other in time, and no one is first."""
    ordered = sorted(names)
    return rng.sample(ordered, len(ordered))


def quantile(values: Sequence[float], share: float) -> float:
    """Return the smallest value that this share of all values does not exceed."""
    return sorted(values)[math.ceil(share * len(values)) - 1]


def median_ratio(ours: Iterable[float], theirs: Iterable[float]) -> float:
    """Compare within each round, so that both sides share its conditions; return the median of the rounds."""
    return statistics.median(one / other for one, other in zip(ours, theirs, strict=True))


def verdict(value: float, target: float) -> str:
    """Return whether a value is within its target."""
    return "met" if value <= target else "MISSED"


def show(what: str, value: float, unit: str, target: float | None = None) -> None:
    """Print one row, with its target if it has one."""
    judged = "" if target is None else f"target {target:g}  {verdict(value, target)}"
    print(f"{what:64}{value:10.3f} {unit:6} {judged}".rstrip(), flush=True)


def show_times(what: str, seconds: Sequence[float], target: float) -> None:
    """Print the median, the 95 % quantile with its target, and the maximum."""
    show(f"{what}, p50 of {len(seconds)}", statistics.median(seconds), "s")
    show(f"{what}, p95", quantile(seconds, 0.95), "s", target)
    show(f"{what}, max", max(seconds), "s")
