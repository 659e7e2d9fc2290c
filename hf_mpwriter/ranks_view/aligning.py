"""Aligning: the values of all ranks at one step of one tag, and when they are complete.

    take(rank, step, wall_time, tags, values)  -->  pending: per tag and step the values so far
    settle(now, live, unread)                  -->  Point(step, wall_time, tag, mean, min, max, slowest), in order

A step of a tag is settled when every rank that may still log it has logged that tag at this step or a later one:

    has data that was not read yet    holds all steps of a tag beyond its last one
    lives, and has logged the tag     the same, for HELD seconds
    lives, and has not (since it was  all steps of the tag, until NEW seconds after the tag or the rank was seen first
      seen first)
    is dead                           nothing

While ranks are still joining, nothing is settled: until JOINING seconds after the last one.

Invariants:
- Of a tag, steps are settled in order, each once. What comes later for a settled step is dropped: TensorBoard's default
  reader would delete all later points. Only `rewind` goes back.
- A tag that one rank alone logs at a step is settled there like any other, and no point.
- At most `most` values wait. Beyond that, the older half of the steps of each tag is settled as it is.
- Where no value was dropped, the points do not depend on when what was read: they are those of all values at once.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from hf_mpwriter.ranks_view.tags import is_step_time

HELD = 600.0  # seconds for which a rank that lives, and logs nothing of a tag any more, holds a step of it
NEW = 60.0  # seconds in which a tag that one rank logs may come from the others, too
JOINING = 15.0  # seconds after the last rank has joined, in which the next one may
MOST = 400_000  # values that wait, about ten bytes each
MOST_GROUPS = 4096  # combinations of tags that are known
BEFORE = -(1 << 63) - 1  # below any step


class Point(NamedTuple):
    """What is derived of a tag at a step."""

    step: int  # global step
    wall_time: float  # unix time, the latest one among the ranks
    tag: str  # as the ranks log it
    mean: float  # of all ranks; not a number if that of one rank is none
    least: float  # of all ranks; not a number if that of one rank is none
    greatest: float  # of all ranks; not a number if that of one rank is none
    # the rank with the greatest value, -1 if there is no number; None unless the tag is a time of a step
    slowest: int | None


class _Entry:
    """The values at a step of a tag, in the order in which they were read."""

    __slots__ = ("number", "ranks", "since", "values", "wall_time")

    def __init__(self, number: int, since: float) -> None:
        self.number, self.since, self.wall_time = number, since, 0.0
        self.ranks, self.values = array("I"), array("f")


@dataclass
class _Tag:
    """A tag."""

    name: str  # as the ranks log it
    since: float  # monotonic seconds when it was seen first
    settled: int = BEFORE  # the last step that is settled
    emitted: int = BEFORE  # the last step with a point
    # the last step that each rank has logged, since it was seen first
    last: dict[int, int] = field(default_factory=dict)
    pending: dict[int, _Entry] = field(default_factory=dict)  # what waits, per step


class Aligner:
    """The values of all ranks."""

    def __init__(self, most: int = MOST) -> None:
        self._most = most
        self.waiting, self.highest = 0, BEFORE
        self._now, self._entries = 0.0, 0
        self._tags: dict[str, _Tag] = {}
        self._groups: dict[tuple[str, ...], list[_Tag]] = {}
        self._joined: dict[int, float] = {}
        self._last_joined = -math.inf

    # what comes in

    def begin(self, now: float, live: Collection[int]) -> None:
        """Take note of the time, in monotonic seconds, and of who lives; call it before what is read then is taken."""
        self._now = now
        for rank in live:
            if rank not in self._joined:
                self._joined[rank] = self._last_joined = now
                for tag in self._tags.values():
                    tag.last.pop(rank, None)
        for rank in self._joined.keys() - set(live):
            del self._joined[rank]

    def take(self, rank: int, step: int, wall_time: float, tags: tuple[str, ...], values: Sequence[float]) -> None:
        """Take in what a rank has logged at a step."""
        group = self._groups.get(tags)
        if group is None:
            group = self._group(tags)
        self.highest = max(self.highest, step)
        for tag, value in zip(group, values, strict=True):
            if step > tag.last.get(rank, BEFORE):
                tag.last[rank] = step
            if step <= tag.settled:
                continue
            entry = tag.pending.get(step)
            if entry is None:
                self._entries += 1
                entry = tag.pending[step] = _Entry(self._entries, self._now)
            entry.ranks.append(rank)
            entry.values.append(value)
            self.waiting += 1
            if wall_time > entry.wall_time:  # noqa: PLR1730 - for each value of each rank: no call
                entry.wall_time = wall_time

    def _group(self, names: tuple[str, ...]) -> list[_Tag]:
        if len(self._groups) >= MOST_GROUPS:  # tags in ever new combinations
            self._groups.clear()
        group = self._groups[names] = [self._tag(name) for name in names]
        return group

    def _tag(self, name: str) -> _Tag:
        tag = self._tags.get(name)
        if tag is None:
            tag = self._tags[name] = _Tag(name, self._now)
        return tag

    # what goes out

    def settle(self, live: Collection[int], unread: Collection[int], *, is_over: bool = False) -> list[Point]:
        """The points that are complete, in the order of their steps."""
        points: list[Point] = []
        if is_over or self._now - self._last_joined >= JOINING:
            for tag in self._tags.values():
                if tag.pending:
                    bound = max(tag.pending) if is_over else self._bound(tag, live, unread)
                    self._settle(tag, bound, points)
        if self.waiting > self._most:
            self._make_room(points)
        points.sort(key=lambda point: point.step)
        return points

    def _bound(self, tag: _Tag, live: Collection[int], unread: Collection[int]) -> int:
        """The last step of a tag that nothing holds."""
        now, bound, soft = self._now, max(tag.pending), max(tag.pending)
        is_new = now - tag.since < NEW
        for rank in unread:
            bound = min(bound, tag.last.get(rank, BEFORE))
        for rank in live:
            last = tag.last.get(rank)
            if last is not None:
                soft = min(soft, last)
            elif is_new or now - self._joined.get(rank, now) < NEW:
                return BEFORE
        if soft < bound:  # unless they have held it for too long
            overdue = (step for step, entry in tag.pending.items() if now - entry.since >= HELD)
            bound = min(bound, max(soft, max(overdue, default=BEFORE)))
        return bound

    def _make_room(self, points: list[Point]) -> None:
        for tag in self._tags.values():
            if tag.pending:
                steps = sorted(tag.pending)
                self._settle(tag, steps[len(steps) // 2], points)

    def _settle(self, tag: _Tag, bound: int, points: list[Point]) -> None:
        """Settle all steps of a tag up to this one."""
        is_timed = is_step_time(tag.name)
        for step in sorted(step for step in tag.pending if step <= bound):
            entry = tag.pending.pop(step)
            self.waiting -= len(entry.values)
            tag.settled = step
            point = _point(step, tag.name, entry, is_timed=is_timed)
            if point is not None:
                tag.emitted = step
                points.append(point)

    # back, and on from what is on disk

    def reaches(self, step: int) -> bool:
        """Whether anything at this step or a later one has been taken."""
        return any(tag.settled >= step or max(tag.pending, default=BEFORE) >= step for tag in self._tags.values())

    def has_emitted(self, step: int) -> bool:
        """Whether there was a point at this step or a later one."""
        return any(tag.emitted >= step for tag in self._tags.values())

    def rewind(self, step: int | None) -> None:
        """Forget what waits, and that this step and later ones were settled; all is to be taken again."""
        self.waiting = 0
        for tag in self._tags.values():
            tag.pending.clear()
            tag.last.clear()
            if step is not None:
                tag.settled, tag.emitted = min(tag.settled, step - 1), min(tag.emitted, step - 1)

    def resume(self, settled: dict[str, int], emitted: dict[str, int]) -> None:
        """Go on from the last steps per tag that are settled, and that have a point."""
        for name, step in emitted.items():
            tag = self._tag(name)
            tag.emitted, tag.settled = step, max(tag.settled, step)
        for name, step in settled.items():
            tag = self._tag(name)
            tag.settled = max(tag.settled, step)

    @property
    def settled(self) -> dict[str, int]:
        """The last settled step per tag."""
        return {name: tag.settled for name, tag in self._tags.items() if tag.settled > BEFORE}

    @property
    def emitted(self) -> dict[str, int]:
        """The last step with a point per tag."""
        return {name: tag.emitted for name, tag in self._tags.items() if tag.emitted > BEFORE}

    @property
    def mark(self) -> int:
        """A mark of all that was taken by now, see `is_behind`."""
        return self._entries

    def is_behind(self, mark: int) -> bool:
        """Whether something waits for a step of which a value was taken before this mark."""
        return any(entry.number <= mark for tag in self._tags.values() for entry in tag.pending.values())


def _point(step: int, name: str, entry: _Entry, *, is_timed: bool) -> Point | None:
    """The point of a step, None if fewer than two ranks have logged it."""
    values, ranks = entry.values, entry.ranks
    if len(values) < 2:
        return None
    by_rank = dict(zip(ranks, values, strict=True))
    if len(by_rank) < len(ranks):  # a rank has logged the step twice: the last value counts
        if len(by_rank) < 2:
            return None
        values = array("f", by_rank.values())
    try:
        mean = math.fsum(values) / len(values)  # exact: the order of the ranks does not matter
    except ValueError:  # both infinities
        mean = math.nan
    least, greatest = min(values), max(values)
    if math.isnan(mean) and any(map(math.isnan, values)):
        least = greatest = math.nan
    slowest = _slowest(by_rank) if is_timed else None
    return Point(step, entry.wall_time, name, mean, least, greatest, slowest)


def _slowest(by_rank: dict[int, float]) -> int:
    """The rank with the greatest value, the lowest of several; -1 if there is no number."""
    known = {rank: value for rank, value in by_rank.items() if not math.isnan(value)}
    return min(known, key=lambda rank: (-known[rank], rank), default=-1)
