"""The election: the part of one worker in having an uploader at work.

    keep house --every few seconds--> ensure_uploader --uploader lock free--> spool/starts

Invariants:
- An uploader that this process cannot start is tried ever more rarely: the pauses double from FIRST_PAUSE to
  LONGEST_PAUSE seconds. Uploaders that end soon after their start are counted for all workers of the host. Of either
  a worker warns once.
- A token is as old as the worker that brought it. When the Hub refuses a token, its uploader leaves; for a while only
  workers that joined later start the next one.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from hf_mpwriter.base.errors import SpoolFormatError
from hf_mpwriter.base.nodes import nodes_of
from hf_mpwriter.base.settings import Destination
from hf_mpwriter.base.start import StartRecord
from hf_mpwriter.events.deferred_log import logger
from hf_mpwriter.spool import starts
from hf_mpwriter.spool.layout import Spool
from hf_mpwriter.spool.starts import Starter
from hf_mpwriter.system import hf_home
from hf_mpwriter.system.process import host_id, start_directory
from hf_mpwriter.worker.orphans import Orphans


def child_environment(environ: Mapping[str, str], token: str | None, directory: str) -> dict[str, str]:
    """The environment of the uploader: the user's, with the token and absolute paths, without what loads more code.

    Args:
        environ: of this process.
        token: of the writer, None leaves it to the environment.
        directory: that relative paths in the environment refer to.
    """
    knows_home = os.path.isabs(environ.get("HOME", ""))  # then no user database is asked, which may be on the network
    env = hf_home.settled(environ, directory, "" if knows_home else hf_home.account_home())
    env["HF_HUB_DISABLE_TELEMETRY"] = env.get("HF_HUB_DISABLE_TELEMETRY", "1")
    for name in ("PYTHONSTARTUP", "PYTHONINSPECT", "PYTHONWARNINGS", "COVERAGE_PROCESS_START"):
        env.pop(name, None)
    if token is not None:
        env["HF_TOKEN"] = token
        env.pop("HF_HUB_DISABLE_IMPLICIT_TOKEN", None)
    return env


@dataclass
class Election:
    """The part of one process in the election of one run directory.

    Attributes:
        spool: of the run directory.
        destination: the only one that the uploader sends to; None starts none.
        token: for the uploader, None leaves it to the environment.
        clock: monotonic seconds.
        token_issued_at: unix time when the worker that brings the token joined.
        directory: that relative paths in the environment refer to; where the program was when the first one was made.
        seeks_siblings: whether the uploader starts those of unfinished runs beside this one.
        by_hand: whether a user asks for it now; then the pauses of workers do not count.
    """

    spool: Spool
    destination: Destination | None = None
    token: str | None = field(default=None, repr=False)
    clock: Callable[[], float] = time.monotonic
    token_issued_at: float = field(default_factory=time.time)
    directory: str = field(default_factory=start_directory)
    seeks_siblings: bool = False
    by_hand: bool = False
    _quiet_until: float = 0.0  # monotonic seconds; this process fails to start one
    _pause: float = 0.0
    _warned_of: str = ""

    def __post_init__(self) -> None:
        """Have nothing started."""
        self.forget()

    def ensure_uploader(self) -> bool:
        """Start an uploader if the uploader lock is free; never waits, never raises. True if one was started."""
        self.reap()
        if self.destination is None or self.clock() < max(self._quiet_until, self._starter.quiet_until):
            return False
        nodes = nodes_of(os.environ)
        record = StartRecord(self.spool.run_dir, self.destination, self.token_issued_at, self.seeks_siblings, nodes)
        try:
            is_started = self._starter.start(record, lambda: child_environment(os.environ, self.token, self.directory))
        except (OSError, ValueError, SpoolFormatError) as error:
            self._pause = min(starts.LONGEST_PAUSE, 2 * self._pause or starts.FIRST_PAUSE)
            self._quiet_until = self.clock() + self._pause
            self._warn("cannot start an uploader", str(error))
            return False
        self._pause = 0.0
        if self.clock() < self._starter.quiet_until:
            self._warn("uploaders end soon after their start", f"see {self.spool.host(host_id()).log}")
        elif is_started:
            self._warned_of = ""
        if is_started:
            self._orphans.add_child(self._starter.children[-1])
        return is_started

    def _warn(self, trouble: str, more: str) -> None:
        if trouble != self._warned_of:
            self._warned_of = trouble
            logger.warning("%s: %s: %s; events are kept on disk", self.spool.run_dir, trouble, more)

    def reap(self) -> bool:
        """Collect processes that were started here and ended, without waiting; whether one will end soon."""
        self._orphans.collect()
        return self._starter.reap()

    def forget(self) -> None:
        """After fork: started processes are the parent's."""
        self._starter, self._orphans = Starter(self.spool, self.clock, by_hand=self.by_hand), Orphans(self.spool)
