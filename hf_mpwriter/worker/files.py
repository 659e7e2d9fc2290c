"""The purge of ranks that are no more: on resume with a smaller world, rank 0 speaks for them.

A rank that resumes hides its own later steps: its first event file begins with START (see `eventfile`). The directory
of a rank beyond the new world has nobody who does so, and TensorBoard would show its steps after the resumed one for
ever. Rank 0 puts an event file there that holds nothing but the START.

Invariants:
- Only under the claim of that rank, which a process of a crashed launcher may still hold: then it is left alone.
- Only if the launcher says how many ranks there are: none of them is ever found claimed by somebody else.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable

from hf_mpwriter.base.names import is_event_file, rank_of_directory
from hf_mpwriter.events.event_file import EventFile
from hf_mpwriter.spool.layout import Spool
from hf_mpwriter.system import locks


def rewind_missing_ranks(world: int | None, spool: Spool, step: int, announce: Callable[[str, str, int], None]) -> None:
    """Hide the steps from `step` on in the directories of ranks that the world does not have.

    Args:
        world: how many ranks there are, None if the launcher does not say.
        spool: of the run directory.
        step: global step.
        announce: see `EventFile`.
    """
    if world is None:
        return
    for name in sorted(os.listdir(spool.run_dir)):
        rank = rank_of_directory(name)
        if rank is None or rank < world or (claim := locks.try_exclusive(spool.claim(name))) is None:
            continue
        try:
            for directory in event_directories(os.path.join(spool.run_dir, name)):
                file = EventFile(functools.partial(str, directory), announce)
                file.purge(step)
                file.begin()
                file.close()
        finally:
            locks.release(claim)


def event_directories(top: str) -> list[str]:
    """The directories from `top` downwards that hold event files."""
    return [directory for directory, _, names in os.walk(top) if any(map(is_event_file, names))]
