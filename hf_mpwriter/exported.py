"""Scalars read back from event files, for `export_scalars_to_json`."""

from __future__ import annotations

import os

import numpy as np
from tensorboardX.proto import event_pb2

from hf_mpwriter import records, spool


def scalars(directory: str, pid: int, seen: dict[str, int]) -> list[list[float]]:
    """The scalars that one process has written into a directory, each as [wall time, step, value].

    Args:
        directory: of a sub-writer.
        pid: of the process.
        seen: events per path that are not wanted again; updated.
    """
    found: list[list[float]] = []
    names = os.listdir(directory) if os.path.isdir(directory) else []
    for name in sorted(name for name in names if spool.is_ours(name) and spool.event_pid(name) == pid):
        path = os.path.join(directory, name)
        payloads = records.payloads(path)
        for event in map(event_pb2.Event.FromString, payloads[seen.get(path, 0) :]):
            found.extend([event.wall_time, event.step, _shortest(value.simple_value)] for value in event.summary.value)
        seen[path] = len(payloads)
    return found


def _shortest(value: float) -> float:
    """The shortest number that is this float32: 0.1, not 0.10000000149."""
    return float(str(np.float32(value)))
