"""The usher: what a process does first that is started as an uploader. It hands its run over, or is an uploader.

    started with a lock --> a living uploader of the same key takes the run  --> over
                        --> none does: listen for others, look once more     --> serve

Invariant: a process that hands its run over imports nothing of what an uploader does.
"""

from __future__ import annotations

import contextlib
import os

from hf_mpwriter.system import launch
from hf_mpwriter.uploader.meeting import PATIENCE, Descriptors, Key, Meeting, folder_of, hand_over, surroundings


def main() -> None:
    """Entry point of the process."""
    record, environ = launch.read_record(), os.environ
    own, meeting = Descriptors(launch.LOCK_FD, launch.RUN_DIR_FD, launch.SPOOL_FD, log=2), None
    with contextlib.suppress(ValueError, KeyError, TypeError):  # the uploader tells of a record that cannot be read
        folder, key = folder_of(environ), Key.of(record, environ, surroundings(launch.RUN_DIR_FD))
        is_taken = hand_over(folder, key, record, own, PATIENCE)
        if not is_taken and (meeting := Meeting.open(folder, key)) is not None:
            # of two that have started at once, the younger one sees the older one now
            is_taken = hand_over(folder, key, record, own, PATIENCE, younger=meeting.name)
        if is_taken:
            if meeting is not None:
                meeting.close()
            os._exit(0)
    from hf_mpwriter.uploader.loop import serve

    serve(record, meeting)
