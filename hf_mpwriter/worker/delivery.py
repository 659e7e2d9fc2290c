"""Delivery: what this process has logged in a run, and whether the Hub has it.

    event files      bytes on disk; records that wait in memory, or were dropped, because the disk refuses them
    attachments      where the patterns ask for them: a reporter answers for all, other processes for their own

`push`, `status` and the Future of `scheduler.trigger` all start from `logged`.

Invariants:
- Delivered means: the record of every call that had returned is on the Hub. What waits in memory is not, and what was
  dropped never will be.
- It counts what this process has logged in this run directory, by whichever writer.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from hf_mpwriter.base.names import worker_dir
from hf_mpwriter.base.settings import DEFAULT_ALLOW_PATTERNS
from hf_mpwriter.snapshot import attachments
from hf_mpwriter.spool import progress
from hf_mpwriter.spool.layout import Spool
from hf_mpwriter.spool.progress import Logged, Progress
from hf_mpwriter.worker.files import WorkerFiles
from hf_mpwriter.worker.membership import Membership

MEMORY_POLL = 0.2  # seconds between two looks at whether the disk takes what waits in memory


def logged(membership: Membership, files: WorkerFiles) -> Logged:
    """What a process has logged until now.

    Args:
        membership: of the process.
        files: its event files.
    """
    in_memory = files.in_memory  # before the lengths: a record that is written in between counts twice, not never
    lengths = files.lengths() | _attachments(membership)
    return Logged(lengths, in_memory, files.dropped, files.disk_error)


def _attachments(membership: Membership) -> dict[str, int]:
    settings = membership.settings
    if membership.destination is None or settings.allow_patterns == DEFAULT_ALLOW_PATTERNS:
        return {}
    found = attachments.sizes(membership.spool.run, settings.allows)
    if membership.role.is_reporter or not membership.name:
        return found
    own = f"{worker_dir(membership.name)}/"
    return {path: size for path, size in found.items() if path.startswith(own)}


def push(spool: Spool, request: Callable[[], Logged], timeout: float, keep_house: Callable[[], object]) -> bool:
    """Ask for a push and wait for it.

    Args:
        spool: of the run directory.
        request: asks for a push; what was logged until then.
        timeout: seconds.
        keep_house: has the disk tried again, and makes sure that an uploader lives.

    Returns:
        Whether everything is delivered.
    """
    end = time.monotonic() + timeout
    while (asked_for := request()).in_memory and (left := end - time.monotonic()) > 0:
        time.sleep(min(MEMORY_POLL, left))
    left = max(0.0, end - time.monotonic())
    return not progress.wait(Progress(spool), asked_for.lengths, left, keep_house) and asked_for.is_on_disk
