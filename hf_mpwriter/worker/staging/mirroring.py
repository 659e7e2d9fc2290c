"""Mirroring: the part of a worker in having a mirror at work, and what it tells of one that gets nowhere.

    keep house --every few seconds--> mirror lock free --spool/starts--> a mirror
                                      trouble of the mirror -----------> one warning

    trouble        told
    refused        at once: a person has to do something
    stuck          at once
    any other      after SEVERAL failures in a row

Invariant: each trouble is told once by a process, and by the member that speaks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from hf_mpwriter.events.deferred_log import logger
from hf_mpwriter.spool.layout import Spool
from hf_mpwriter.spool.staging.logdir import Logdir
from hf_mpwriter.spool.staging.record import MirrorStatus
from hf_mpwriter.system.redaction import printable
from hf_mpwriter.worker.election import MirrorElection

SEVERAL = 3  # failures in a row: one is ordinary on a network


def trouble(status: MirrorStatus, refused: Mapping[str, str]) -> str:
    """What keeps files from the logdir and has to be told, "" if that is nothing."""
    if status.is_over:
        return ""
    if status.failures and (status.is_refused or status.phase == "stuck" or status.failures >= SEVERAL):
        return status.reason
    if not refused:
        return ""
    path, reason = min(refused.items())
    return f"{path}: {reason.rstrip('.')}{f', and {len(refused) - 1} more' if len(refused) > 1 else ''}"


class Mirroring:
    """The mirror of one run, as one worker sees it; of a run that is not staged there is none."""

    def __init__(self, spool: Spool, is_first: Callable[[], bool]) -> None:
        self._spool, self._is_first = spool, is_first
        self.forget()

    def forget(self) -> None:
        """After fork: started processes are the parent's."""
        self._election = MirrorElection(self._spool)
        self._told = ""

    @property
    def logdir(self) -> Logdir:
        """The logdir of the run."""
        return self._election.logdir

    def is_needed(self) -> bool:
        """Whether the run is staged."""
        return self.logdir.is_staged

    def keep_house(self) -> bool:
        """Make sure that a mirror lives, and tell what keeps it from its work; whether a child will end soon."""
        if not self.is_needed():  # the records of all hosts are read below, by each worker
            return False
        self._election.ensure_mirror()
        status = self.logdir.status()
        found = trouble(status, self.logdir.mirrored().refused)
        if found and found != self._told and self._is_first():
            self._told = found
            text = f"{self.logdir.to} does not take what is logged: {found.rstrip('.')}. It is kept in"
            logger.warning("%s", printable(f"{text} {self._spool.run_dir} and tried again; see: hf-mpwriter status"))
        elif not found and not status.failures:
            self._told = ""
        return self._election.reap()
