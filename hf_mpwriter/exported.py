"""Scalars read back from event files, for `export_scalars_to_json`."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from tensorboardX.proto import event_pb2

from hf_mpwriter import records


def scalars(paths: Iterable[str], seen: dict[str, int]) -> list[list[float]]:
    """The scalars of some event files, each as [wall time, step, value].

    Args:
        paths: of the files; one that is gone has none.
        seen: events per path that are not wanted again; updated.
    """
    found: list[list[float]] = []
    for path in paths:
        try:
            payloads = records.payloads(path)
        except FileNotFoundError:
            continue
        for event in map(event_pb2.Event.FromString, payloads[seen.get(path, 0) :]):
            found.extend([event.wall_time, event.step, _shortest(value.simple_value)] for value in event.summary.value)
        seen[path] = len(payloads)
    return found


def _shortest(value: float) -> float:
    """The shortest number that is this float32: 0.1, not 0.10000000149."""
    return float(str(np.float32(value)))
