"""The steps of a sampler: whole seconds since the run was created.

    first step of a process     the seconds since the run was created, and at least one more than the last step on disk
    the next ones               as many more as seconds have passed; at least one more than the one before

Invariants:
- Steps only grow: within a process whatever the clock of the system does, and from one process to the next.
- What others have put among the event files of a sampler does not keep it from its work.
- The run was created when its spool was, or earlier: when the name of the oldest event file of ours says so, here or in
  its logdir. A run that was pulled, or comes back from there, has a new spool.
"""

from __future__ import annotations

import os

from hf_mpwriter.base.names import event_second, is_event_file, is_ours
from hf_mpwriter.events import framing
from hf_mpwriter.events.series import SEGMENT_MAX
from hf_mpwriter.snapshot.event_files import walk
from hf_mpwriter.spool.layout import Spool
from hf_mpwriter.spool.ownership import FORMAT_NAME
from hf_mpwriter.spool.staging.listing import Listing
from hf_mpwriter.system import disk
from hf_mpwriter.system.directory import Place

LARGEST_STEP = 1 << 40  # seconds; more than that is no age of a run
LARGEST_FILE = 2 * SEGMENT_MAX  # bytes


class Steps:
    """The steps of one process."""

    def __init__(self, age: float, last: int | None, now: float) -> None:
        self._first = max(int(age), 0, -1 if last is None else last + 1)
        self._began, self._last = now, self._first - 1

    def take(self, now: float) -> int:
        """The step of a sample."""
        self._last = max(self._last + 1, self._first + int(now - self._began))
        return self._last


def created_at(spool: Spool, now: float) -> float:
    """Unix time when a run was created."""
    oldest = min((event_second(name) for name in map(os.path.basename, walk(spool.run)) if is_ours(name)), default=now)
    try:
        made = (spool.directory / FORMAT_NAME).stat().st_mtime
    except OSError:
        made = now
    return min(oldest, made, Listing.read(spool).first or now, now)


def last_step(directory: Place) -> int | None:
    """The last step in the directory of a sampler, None if there is none; OSError if it cannot be read.

    What is no regular file, not ours to read, or too large to be of a sampler, is passed over; so is a step beyond
    LARGEST_STEP.
    `events/last_step` finds it too, in much larger files, but needs numpy, which a sampler does not load.
    """
    try:
        names = directory.names()
    except FileNotFoundError:
        return None
    for name in sorted(filter(is_event_file, names), reverse=True):
        steps = map(framing.step_of, _payloads(directory / name))
        if found := [step for step in steps if step is not None and step <= LARGEST_STEP]:
            return max(found)
    return None


def _payloads(file: Place) -> list[bytes]:
    try:
        fd = disk.open_beneath(file)
    except OSError as error:
        if error.errno in disk.NOT_REGULAR or isinstance(error, PermissionError):
            return []
        raise
    if os.fstat(fd).st_size > LARGEST_FILE:
        os.close(fd)
        return []
    return framing.payloads(fd)
