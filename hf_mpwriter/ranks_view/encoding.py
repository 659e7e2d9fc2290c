"""Encoding: the points of a step as one record of the derived event file.

    Point, Point, ...  --Encoder.records-->  one framed record per step: <tag>/mean, <tag>/min, <tag>/max, ...

As in `decoding`, records of the same tags differ in their numbers only, so all else is made once.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from itertools import groupby

from hf_mpwriter.events import framing
from hf_mpwriter.ranks_view.aligning import Point
from hf_mpwriter.ranks_view.tags import derived

MOST_FORMS = 256  # that are kept
LARGEST = 1 << 20  # bytes of a record, about


class Form:
    """Summaries of the same tags."""

    __slots__ = ("_marks", "_pack")

    def __init__(self, names: Iterable[str]) -> None:
        self._marks, form = list[bytes](), "<"
        for name in names:
            mark = framing.value_head(name.encode())
            self._marks.append(mark)
            form += f"{len(mark)}sf"
        self._pack = struct.Struct(form).pack

    def summary(self, values: Iterable[float]) -> bytes:
        """The summary with these numbers."""
        return self._pack(*(part for pair in zip(self._marks, values, strict=True) for part in pair))


class Encoder:
    """Encodes points."""

    def __init__(self) -> None:
        self._forms: dict[tuple[str, ...], Form] = {}

    def records(self, points: Iterable[Point]) -> Iterator[tuple[int, bytes]]:
        """Step and framed record, in the order of the points, which is that of their steps."""
        for step, group in groupby(points, key=lambda point: point.step):
            part, size = list[Point](), 0
            for point in group:
                part.append(point)
                size += 4 * (len(point.tag) + 30)
                if size >= LARGEST:
                    yield step, self._record(step, part)
                    part, size = [], 0
            if part:
                yield step, self._record(step, part)

    def _record(self, step: int, points: list[Point]) -> bytes:
        tags = tuple(point.tag for point in points)
        form = self._forms.get(tags)
        if form is None:
            if len(self._forms) >= MOST_FORMS:
                self._forms.clear()
            form = self._forms[tags] = Form(name for tag in tags for name in derived(tag))
        summary = form.summary(value for point in points for value in _values(point))
        return framing.frame(framing.summary_event(max(point.wall_time for point in points), step, summary))


def _values(point: Point) -> tuple[float, ...]:
    """The numbers of a point, as many as `derived` has tags for it."""
    values = (point.mean, point.least, point.greatest)
    return values if point.slowest is None else (*values, float(point.slowest))
