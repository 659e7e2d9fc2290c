"""Runs of several ranks as files, and what is to be derived of them, computed from scratch."""

from __future__ import annotations

import math
import struct
import time
from collections import defaultdict

from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary

from hf_mpwriter.events import framing
from hf_mpwriter.ranks import is_step_time


def bits(number):
    """A number as float32, compared by its bytes; any NaN is the same."""
    return "nan" if math.isnan(number) else struct.pack("<f", number)


def kept(directory):
    """Per tag the points (step, value) of a directory that TensorBoard shows: what no later START hides."""
    points = defaultdict(list)
    for path in sorted(directory.glob("events.out.tfevents.*")):
        for payload in framing.payloads(str(path)):
            event = Event.FromString(payload)
            if event.session_log.status == SessionLog.START:
                for tag in points:
                    points[tag] = [point for point in points[tag] if point[0] < event.step]
            for value in event.summary.value:
                points[value.tag].append((event.step, value.simple_value))
    return {tag: found for tag, found in points.items() if found}


def recomputed(run_dir, ranks):
    """Per derived tag its points, of all that the ranks have logged."""
    values = defaultdict(lambda: defaultdict(dict))
    for rank in ranks:
        directory = run_dir / f"rank_{rank:05d}" if rank else run_dir
        for tag, points in kept(directory).items():
            for step, value in points:
                values[tag][step][rank] = value
    derived = {}
    for tag, steps in values.items():
        for step, by_rank in sorted(steps.items()):
            if len(by_rank) < 2:
                continue
            found = {"mean": _mean(by_rank.values()), **_bounds(by_rank.values())}
            if is_step_time(tag):
                numbers = {rank: value for rank, value in by_rank.items() if not math.isnan(value)}
                greatest = max(numbers.values(), default=0.0)
                found["slowest_rank"] = min((rank for rank in numbers if numbers[rank] == greatest), default=-1)
            for name, number in found.items():
                derived.setdefault(f"{tag}/{name}", []).append((step, bits(number)))
    return derived


def _mean(numbers):
    numbers = list(numbers)
    try:
        return math.fsum(numbers) / len(numbers)
    except ValueError:
        return math.nan


def _bounds(numbers):
    if any(map(math.isnan, numbers)):
        return {"min": math.nan, "max": math.nan}
    return {"min": min(numbers), "max": max(numbers)}


def shown(directory):
    """Per tag the points of a derived run that TensorBoard shows."""
    return {tag: [(step, bits(value)) for step, value in points] for tag, points in kept(directory).items()}


class RankFiles:
    """Writes the event files of ranks as their workers would."""

    def __init__(self, run_dir, host="host"):
        self.run_dir, self._host, self._second, self._open = run_dir, host, int(time.time()), {}

    def start(self, rank, purge_step=None):
        """Open the next file of a rank, with START if that is asked for."""
        directory = self.run_dir / f"rank_{rank:05d}" if rank else self.run_dir
        directory.mkdir(parents=True, exist_ok=True)
        self._second += 1
        self._open[rank] = (
            directory / f"events.out.tfevents.{self._second}.{self._host}.{100 + rank}.{self._second:08x}"
        )
        head = framing.frame(framing.version_event(1.0))
        if purge_step is not None:
            head += 2 * framing.frame(framing.session_start_event(1.0, purge_step))
        self._open[rank].write_bytes(head)

    def log(self, rank, step, metrics, wall_time=1.0):
        """Append one record of a rank."""
        summary = Summary(value=[Summary.Value(tag=tag, simple_value=value) for tag, value in metrics.items()])
        self.write(rank, framing.frame(framing.summary_event(wall_time, step, summary.SerializeToString())))

    def hide(self, rank, step):
        """Append START."""
        self.write(rank, 2 * framing.frame(framing.session_start_event(1.0, step)))

    def tear(self, rank):
        """Leave the beginning of a record, as a kill does."""
        self.write(rank, b"\x30\0\0\0\0\0\0\0")

    def write(self, rank, data):
        """Append bytes."""
        with self._open[rank].open("ab") as file:
            file.write(data)
