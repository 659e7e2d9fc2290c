"""The election: the part of one worker in having an uploader at work, a mirror where the run is staged, a sampler.

    keep house --every few seconds--> UploaderElection.ensure --uploader lock free--> spool/starts
                                      MirrorElection.ensure   --mirror lock free---->        where the run is staged
                                      SamplerElection.ensure  --sampler lock free--->        where system metrics are on

Invariants:
- A process that this one cannot start is tried ever more rarely: the pauses double from FIRST_PAUSE to LONGEST_PAUSE
  seconds. What ends soon after its start is counted for all workers of the host. Of either a worker warns once.
- A token is as old as the worker that brought it. When the Hub refuses a token, its uploader leaves; for a while only
  workers that joined later start the next one.
"""

from __future__ import annotations

import abc
import os
import time
from collections.abc import Callable, Mapping
from typing import ClassVar

from hf_mpwriter.base.errors import SpoolFormatError
from hf_mpwriter.base.job import nodes_of
from hf_mpwriter.base.settings import Destination, Settings
from hf_mpwriter.delivery.sinks import LogdirSink
from hf_mpwriter.events.deferred_log import logger
from hf_mpwriter.spool import starts
from hf_mpwriter.spool.layout import Spool
from hf_mpwriter.spool.starts import AnyStart, MirrorStart, Starter, StartRecord
from hf_mpwriter.spool.workers.samplers import SamplerStart
from hf_mpwriter.system import disk, hf_home, redaction
from hf_mpwriter.system.process import host_id, start_directory
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


class Election(abc.ABC):
    """The part of one process in having a daemon of one kind at work for a run directory."""

    kind: ClassVar[str]  # see `system/launch`
    name: ClassVar[str]  # with an article
    without: ClassVar[str] = "events are kept on disk"  # what is so while none can be started

    def __init__(self, spool: Spool, clock: Callable[[], float] = time.monotonic, *, by_hand: bool = False) -> None:
        """`by_hand`: a user asks for it now, so the pauses of workers do not count."""
        self.spool, self._clock, self._by_hand = spool, clock, by_hand
        self._directory = start_directory()  # that relative paths in the environment refer to
        self.forget()

    def forget(self) -> None:
        """After fork: started processes are the parent's."""
        self._starter = Starter(self.spool, self.kind, self._clock, by_hand=self._by_hand)
        self._orphans = Orphans(self.spool, self.kind)
        self._quiet_until, self._pause = 0.0, 0.0  # monotonic seconds; this process fails to start one
        self._warned_of = ""

    @abc.abstractmethod
    def _record(self) -> AnyStart:
        """What it needs to know at its start."""

    def _environment(self) -> dict[str, str]:
        return mirror_environment(os.environ, self._directory)

    @property
    @abc.abstractmethod
    def is_needed(self) -> bool:
        """Whether the run needs one."""

    def ensure(self) -> bool:
        """Start one if the run needs it and its lock is free; never waits, never raises. True if one was started."""
        self.reap()
        if not self.is_needed or self._clock() < max(self._quiet_until, self._starter.quiet_until):
            return False
        try:
            is_started = self._starter.start(self._record(), self._environment)
        except (OSError, ValueError, SpoolFormatError) as error:
            self._pause = min(starts.LONGEST_PAUSE, 2 * self._pause or starts.FIRST_PAUSE)
            self._quiet_until = self._clock() + self._pause
            self._warn(f"cannot start {self.name}", str(error))
            return False
        self._pause = 0.0
        if self._clock() < self._starter.quiet_until:
            log = self.spool.host(host_id()).daemon(self.kind).log
            self._warn(f"{self.kind}s end soon after their start", f"see {log}")
        elif is_started:
            self._warned_of = ""
        if is_started:
            self._orphans.add_child(self._starter.children[-1])
        return is_started

    def _warn(self, trouble: str, more: str) -> None:
        if trouble != self._warned_of:
            self._warned_of = trouble
            logger.warning("%s: %s: %s; %s", self.spool.run_dir, trouble, more, self.without)

    def reap(self) -> bool:
        """Collect processes that were started here and ended, without waiting; whether one will end soon."""
        self._orphans.collect()
        return self._starter.reap()


class UploaderElection(Election):
    """The election of an uploader; without a destination it starts none."""

    kind, name = "uploader", "an uploader"

    def __init__(
        self,
        spool: Spool,
        destination: Destination | None = None,
        clock: Callable[[], float] = time.monotonic,
        *,
        seeks_siblings: bool = False,
        by_hand: bool = False,
    ) -> None:
        """`seeks_siblings`: the uploader starts those of unfinished runs beside this one."""
        super().__init__(spool, clock, by_hand=by_hand)
        self.destination = destination  # the only one that the uploader sends to
        self.token: str | None = None  # for the uploader, None leaves it to the environment
        self.token_issued_at = time.time()  # unix time when the worker that brings the token joined
        self._seeks_siblings = seeks_siblings

    @property
    def is_needed(self) -> bool:
        """Whether something is to be sent."""
        return self.destination is not None

    def _record(self) -> StartRecord:
        assert self.destination is not None  # noqa: S101 - for the type checker
        return StartRecord(
            **vars(self.spool.paths),
            destination=self.destination,
            token_issued_at=self.token_issued_at,
            seeks_siblings=self._seeks_siblings,
            nodes=nodes_of(os.environ),
        )

    def _environment(self) -> dict[str, str]:
        return child_environment(os.environ, self.token, self._directory)


class MirrorElection(Election):
    """The election of a mirror, for a staged run."""

    kind, name = "mirror", "a mirror"

    def forget(self) -> None:
        """After fork: started processes are the parent's."""
        super().forget()
        self.logdir = LogdirSink(self.spool)

    @property
    def is_needed(self) -> bool:
        """Whether the run is staged."""
        return self.logdir.is_staged

    def _record(self) -> MirrorStart:
        return MirrorStart(self.spool.run_dir, to=self.logdir.to)


class SamplerElection(Election):
    """The election of a sampler on this host, once settings ask for it; until then it costs no system call."""

    kind, name, without = "sampler", "a sampler", "no system metrics are logged"
    settings = Settings()  # of the run

    @property
    def is_needed(self) -> bool:
        """Whether the user asks for system metrics."""
        return self.settings.system_metrics

    def _record(self) -> SamplerStart:
        disk.make_dirs(self.spool.host(host_id()).root, durable=False)  # its lock is there
        return SamplerStart(**vars(self.spool.paths), settings=self.settings)

    def reap(self) -> bool:
        """Collect processes that were started here and ended, without waiting; whether one will end soon."""
        return (self.is_needed or bool(self._starter.children)) and super().reap()
