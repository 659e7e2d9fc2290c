"""Orphans: workers of an earlier attempt whose supervisor or launcher is gone, so that nothing else ends them.

    a member file      says who the worker is, and without which process it is an orphan
    alive              its lock is held, and its process has the recorded start
    an orphan          that other process of this boot and pid namespace has ended

Invariants:
- What cannot be told for certain is no orphan: of another host, boot, pid namespace or user, or without a record.
- Uploaders are no members. Workers of other tasks have a supervisor or launcher that lives.
- Each is ended through a pidfd that was opened before its start was compared.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Collection, Iterator

from hf_mpwriter.spool.homes import find, spool_of
from hf_mpwriter.spool.ownership import check_ownership
from hf_mpwriter.spool.workers.members import Members
from hf_mpwriter.system import kernel
from hf_mpwriter.system.kernel import Handle
from hf_mpwriter.system.process import Process, start_ticks
from hf_mpwriter.worker.naming.holders import is_orphan

PATIENCE = 5.0  # seconds between SIGTERM and SIGKILL


def end_orphans(run_dir: str) -> Iterator[str]:
    """End the orphans of a run directory; a line for each."""
    spool = spool_of(find(run_dir))
    check_ownership(spool.directory)
    if not spool.exists() or not kernel.processes():  # the numbers of this /proc are of another pid namespace
        return
    here, uid = Process.current(), os.getuid()
    with contextlib.ExitStack() as stack:
        found = []
        for member in Members(spool).all():
            if is_orphan(member, here, start_ticks) and kernel.user_of(member.process.pid) == uid:
                with contextlib.suppress(ProcessLookupError):
                    found.append((member, stack.enter_context(Handle(member.process.pid, member.process.ticks))))
        _end([handle for _, handle in found])
        for member, _ in found:
            pid, agent = member.process.pid, member.agent.pid if member.agent else 0
            yield f"ended {member.name.worker} of {run_dir}, process {pid}: process {agent} had left it behind"


def _end(handles: Collection[Handle]) -> None:
    """End processes, and wait until they have ended."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        for handle in handles:
            handle.send(number)
        deadline = time.monotonic() + PATIENCE
        for handle in handles:
            handle.wait(max(0.0, deadline - time.monotonic()))
