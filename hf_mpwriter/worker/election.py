"""The election: the part of one worker in having an uploader at work, a mirror where the run is staged, a sampler.

    keep house --every few seconds--> ensure_uploader --uploader lock free--> spool/starts
                                      ensure_mirror   --mirror lock free---->
                      ensure_sampler  --sampler lock free--->      only where the user asks for system metrics

Invariants:
- A process that this one cannot start is tried ever more rarely: the pauses double from FIRST_PAUSE to LONGEST_PAUSE
  seconds. What ends soon after its start is counted for all workers of the host. Of either a worker warns once.
- A token is as old as the worker that brought it. When the Hub refuses a token, its uploader leaves; for a while only
  workers that joined later start the next one.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from hf_mpwriter.base.errors import SpoolFormatError
from hf_mpwriter.base.job import nodes_of
from hf_mpwriter.base.settings import Destination, Settings
from hf_mpwriter.events.deferred_log import logger
from hf_mpwriter.spool import starts
from hf_mpwriter.spool.layout import Spool
from hf_mpwriter.spool.staging.logdir import Logdir
from hf_mpwriter.spool.starts import POSTS, AnyStart, MirrorStart, Starter, StartRecord
from hf_mpwriter.spool.workers.samplers import SamplerStart
from hf_mpwriter.system import hf_home, redaction
from hf_mpwriter.system.process import start_directory
from hf_mpwriter.worker.orphans import Orphans


def child_environment(environ: Mapping[str, str], token: str | None, directory: str) -> dict[str, str]:
    """The environment of the uploader: the user's, with the token and absolute paths, without what loads more code."""
    knows_home = os.path.isabs(environ.get("HOME", ""))  # then no user database is asked, which may be on the network
    env = hf_home.settled(environ, directory, "" if knows_home else hf_home.account_home())
    env["HF_HUB_DISABLE_TELEMETRY"] = env.get("HF_HUB_DISABLE_TELEMETRY", "1")
    for name in ("PYTHONSTARTUP", "PYTHONINSPECT", "PYTHONWARNINGS", "COVERAGE_PROCESS_START"):
        env.pop(name, None)
    if token is not None:
        env["HF_TOKEN"] = token
        env.pop("HF_HUB_DISABLE_IMPLICIT_TOKEN", None)
    return env


def mirror_environment(environ: Mapping[str, str], directory: str) -> dict[str, str]:
    """The environment of a mirror and a sampler: that of the uploader, without tokens of the Hub."""
    env = child_environment(environ, None, directory)
    return {name: value for name, value in env.items() if name not in redaction.VARIABLES}


class Poster:
    """Has one process at a post: an uploader, a mirror or a sampler."""

    def __init__(self, spool: Spool, kind: str, clock: Callable[[], float], *, by_hand: bool) -> None:
        self._spool, self._kind, self._clock = spool, kind, clock
        self._post = POSTS[kind]
        self._starter = Starter(spool, clock, by_hand=by_hand, post=self._post)
        self._orphans = Orphans(spool, kind)
        self._quiet_until, self._pause = 0.0, 0.0  # monotonic seconds; this process fails to start one
        self._warned_of = ""

    def ensure(self, record: Callable[[], AnyStart], env: Callable[[], dict[str, str]]) -> bool:
        """Start a process if its lock is free; never waits, never raises. True if one was started."""
        if self._clock() < max(self._quiet_until, self._starter.quiet_until):
            return False
        try:
            is_started = self._starter.start(record(), env)
        except (OSError, ValueError, SpoolFormatError) as error:
            self._pause = min(starts.LONGEST_PAUSE, 2 * self._pause or starts.FIRST_PAUSE)
            self._quiet_until = self._clock() + self._pause
            self._warn(f"cannot start {_WITH_ARTICLE[self._kind]}", str(error))
            return False
        self._pause = 0.0
        if self._clock() < self._starter.quiet_until:
            self._warn(f"{self._kind}s end soon after their start", f"see {self._post(self._spool).log}")
        elif is_started:
            self._warned_of = ""
        if is_started:
            self._orphans.add_child(self._starter.children[-1])
        return is_started

    def _warn(self, trouble: str, more: str) -> None:
        if trouble != self._warned_of:
            self._warned_of = trouble
            logger.warning("%s: %s: %s; %s", self._spool.run_dir, trouble, more, _CONSEQUENCES[self._kind])

    def reap(self) -> bool:
        """Collect processes that were started here and ended, without waiting; whether one will end soon."""
        self._orphans.collect()
        return self._starter.reap()


_WITH_ARTICLE = {"uploader": "an uploader", "mirror": "a mirror", "sampler": "a sampler"}
_CONSEQUENCES = {
    "uploader": "events are kept on disk",
    "mirror": "events are kept on disk",
    "sampler": "no system metrics are logged",
}


@dataclass
class Election:
    """The part of one process in the election of one run directory."""

    spool: Spool  # of the run directory
    destination: Destination | None = None  # the only one that the uploader sends to; None starts none
    token: str | None = field(default=None, repr=False)  # for the uploader, None leaves it to the environment
    clock: Callable[[], float] = time.monotonic  # monotonic seconds
    token_issued_at: float = field(default_factory=time.time)  # unix time when the worker that brings the token joined
    # that relative paths in the environment refer to; where the program was when the first one was made
    directory: str = field(default_factory=start_directory)
    seeks_siblings: bool = False  # whether the uploader starts those of unfinished runs beside this one
    by_hand: bool = False  # whether a user asks for it now; then the pauses of workers do not count

    def __post_init__(self) -> None:
        """Have nothing started."""
        self.forget()

    def ensure_uploader(self) -> bool:
        """Start an uploader if the uploader lock is free; never waits, never raises. True if one was started."""
        self.reap()
        return self.destination is not None and self._poster.ensure(
            self._record, lambda: child_environment(os.environ, self.token, self.directory)
        )

    def _record(self) -> StartRecord:
        assert self.destination is not None  # noqa: S101 - for the type checker
        return StartRecord(
            **vars(self.spool.paths),
            destination=self.destination,
            token_issued_at=self.token_issued_at,
            seeks_siblings=self.seeks_siblings,
            nodes=nodes_of(os.environ),
        )

    def reap(self) -> bool:
        """Collect processes that were started here and ended, without waiting; whether one will end soon."""
        return self._poster.reap()

    def forget(self) -> None:
        """After fork: started processes are the parent's."""
        self._poster = Poster(self.spool, "uploader", self.clock, by_hand=self.by_hand)


@dataclass
class MirrorElection:
    """The part of one process in having a mirror at work for a staged run; of any other run it starts none."""

    spool: Spool  # of the run directory
    clock: Callable[[], float] = time.monotonic  # monotonic seconds
    directory: str = field(default_factory=start_directory)  # that relative paths in the environment refer to
    by_hand: bool = False  # whether a user asks for it now

    def __post_init__(self) -> None:
        """Have nothing started."""
        self.forget()

    @property
    def is_needed(self) -> bool:
        """Whether the run is staged."""
        return self.logdir.is_staged

    def ensure_mirror(self) -> bool:
        """Start a mirror if the mirror lock is free; never waits, never raises. True if one was started."""
        self.reap()
        return self.is_needed and self._poster.ensure(
            lambda: MirrorStart(self.spool.run_dir, to=self.logdir.to),
            lambda: mirror_environment(os.environ, self.directory),
        )

    def reap(self) -> bool:
        """Collect processes that were started here and ended, without waiting; whether one will end soon."""
        return self._poster.reap()

    def forget(self) -> None:
        """After fork: started processes are the parent's."""
        self.logdir = Logdir(self.spool, self.clock)
        self._poster = Poster(self.spool, "mirror", self.clock, by_hand=self.by_hand)


@dataclass
class SamplerElection:
    """The part of one process in having a sampler at work on this host; it starts none unless the settings ask for
    it.
    """

    spool: Spool  # of the run directory
    clock: Callable[[], float] = time.monotonic  # monotonic seconds
    directory: str = field(default_factory=start_directory)  # that relative paths in the environment refer to

    def __post_init__(self) -> None:
        """Have nothing started."""
        self.forget()

    def ensure_sampler(self, settings: Settings) -> bool:
        """Start a sampler if the sampler lock is free; never waits, never raises. True if one was started."""
        if not settings.system_metrics:
            return False
        self._was_wanted = True
        self.reap()
        return self._poster.ensure(
            lambda: SamplerStart(**vars(self.spool.paths), settings=settings),
            lambda: mirror_environment(os.environ, self.directory),
        )

    def reap(self) -> bool:
        """Collect processes that were started here and ended, without waiting; whether one will end soon.

        Without system metrics it costs no system call.
        """
        return self._was_wanted and self._poster.reap()

    def forget(self) -> None:
        """After fork: started processes are the parent's."""
        self._poster = Poster(self.spool, "sampler", self.clock, by_hand=False)
        self._was_wanted = False
