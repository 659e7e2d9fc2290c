"""The usher: what a process does first that is started as an uploader. It hands its run over, or is an uploader.

    started with a lock --> a living uploader of the same key takes the run  --> over
                        --> none does: listen for others, look once more     --> serve

Invariant: a process that hands its run over imports nothing of what an uploader does.
"""

from __future__ import annotations

import contextlib
import os
import time

from hf_mpwriter.system import launch
from hf_mpwriter.uploader.meeting import PATIENCE, Descriptors, Key, Meeting, folder_of, hand_over, surroundings


def main() -> None:
    """Entry point of the process."""
    record, meeting = launch.read_record(), None
    with contextlib.suppress(ValueError, KeyError, TypeError):  # the uploader tells of a record that cannot be read
        meeting = _unless_handed_over(record)
    from hf_mpwriter.uploader.loop import serve

    serve(record, meeting)


def _unless_handed_over(record: bytes) -> Meeting | None:
    """End here if a living uploader takes the run; else the meeting point of this one, None if there can be none."""
    own = Descriptors(launch.LOCK_FD, launch.RUN_DIR_FD, launch.SPOOL_FD, log=2)
    folder, key = folder_of(os.environ), Key.of(record, os.environ, surroundings(own.run_dir))
    until = time.monotonic() + PATIENCE
    if hand_over(folder, key, record, own, PATIENCE):
        os._exit(0)
    meeting = Meeting.open(folder, key)
    if meeting is not None:  # of two that have started at once, the younger one sees the older one now
        left = until - time.monotonic()
        if hand_over(folder, key, record, own, left, younger=meeting.name):
            meeting.close()
            os._exit(0)
    return meeting
