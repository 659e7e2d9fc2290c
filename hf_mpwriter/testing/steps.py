"""Steps: whether each step that `log` wrote is one record with all of its values."""

from __future__ import annotations

import os
from collections.abc import Iterable

from tensorboardX.proto import event_pb2

from hf_mpwriter.events import framing
from hf_mpwriter.testing.journal import Returned


def split_steps(path: str, returned: Iterable[Returned], end: int | None = None) -> int:
    """How many steps of `log` are in an event file, or in its first `end` bytes, but not all of it in one record."""
    wanted = {(note.step, frozenset(note.together)) for note in returned if note.together}
    if not wanted or end == 0 or not os.path.exists(path):
        return 0
    events = map(event_pb2.Event.FromString, framing.payloads(path, end))
    records = {(event.step, frozenset(value.tag for value in event.summary.value)) for event in events}
    present = {(step, tag) for step, tags in records for tag in tags}
    return sum(any((step, tag) in present for tag in tags) for step, tags in wanted - records)
