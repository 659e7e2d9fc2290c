"""The tags of a view: what it derives of a tag, and which tags are times of a step.

    loss             loss/mean, loss/min, loss/max
    perf/step_time   perf/step_time/mean, .../min, .../max, .../slowest_rank

Which tags are times of a step follows from the last part of their names, as of `step_time`, `iteration_seconds`,
`batch_duration_ms`, `time_per_step`, `sec_per_iter`. What counts steps per time (`steps_per_second`) is none.
"""

from __future__ import annotations

import re

MEAN, MIN, MAX, SLOWEST = "mean", "min", "max", "slowest_rank"
KINDS = (MEAN, MIN, MAX, SLOWEST)

_TIME = r"(?:time|duration|latency|seconds|second|secs|sec|milliseconds|ms)"
_STEP = r"(?:step|iteration|iter|batch)"
_STEP_TIME = re.compile(
    rf"(?:^|[^a-z]|train){_STEP}[ _.-]?{_TIME}s?(?![a-z])|(?:^|[^a-z])(?:{_TIME}|s)[ _.-]?per[ _.-]?{_STEP}(?![a-z])",
    re.IGNORECASE,
)


def is_step_time(tag: str) -> bool:
    """Whether a tag is the time of a step, by its last part: then the slowest rank is the one with the greatest."""
    return _STEP_TIME.search(tag.rsplit("/", 1)[-1]) is not None


def derived(tag: str) -> tuple[str, ...]:
    """The tags that are derived of a tag."""
    return tuple(f"{tag}/{kind}" for kind in (KINDS if is_step_time(tag) else KINDS[:3]))


def origin(tag: str) -> str | None:
    """The tag of which this one was derived, None if it was not."""
    base, slash, kind = tag.rpartition("/")
    return base if slash and kind in KINDS else None
