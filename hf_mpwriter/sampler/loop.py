"""The loop of a sampler, the process that holds the sampler lock of a host: it logs what the machine does.

    tick:  look for workers of this host -> decide -> SAMPLE   one record
                                                   -> SEAL     one more record, then no more
                                                   -> WAIT
                                                   -> LEAVE

It is started as an uploader is, by a worker that keeps house, and it ends by itself, soon after the last worker of its
host. A worker that comes later starts the next one, whose steps go on behind.

Invariants:
- It opens no event file unless a worker lives: an uploader may be gone, and nothing else would send it.
- It needs no token and gets none.

What a sampler does next: a pure function of its situation.

situation                                             action
SIGTERM                                               LEAVE
a worker of this host lives, the time has come        SAMPLE
a worker of this host lives                           WAIT
none lives, the event file is open                    SEAL
none has lived for LINGER                             LEAVE
any other: one may come back                          WAIT
"""

from __future__ import annotations

import enum
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

from hf_mpwriter.base.settings import Settings
from hf_mpwriter.base.timing import USUAL, Timing
from hf_mpwriter.sampler import gpus
from hf_mpwriter.sampler.machine import Machine
from hf_mpwriter.sampler.samples import Samples
from hf_mpwriter.sampler.sources import Sources
from hf_mpwriter.sampler.steps import Steps, created_at, last_step
from hf_mpwriter.spool.daemons import Daemon
from hf_mpwriter.spool.layout import Spool
from hf_mpwriter.spool.staging.record import MirrorRecord, least_age
from hf_mpwriter.spool.starts import inherited
from hf_mpwriter.spool.workers.samplers import SamplerStart, SamplerStatus, Workers
from hf_mpwriter.system import launch, locks
from hf_mpwriter.system.daemon import let_read, prepare_process, rotate_log

logger = logging.getLogger("hf_mpwriter")

LEAST_APART = 1.0  # seconds between the last sample and the one before
LINGER = 5.0  # seconds without a worker: a program may close its writer and build another one


class Sampler(Daemon):
    """The holder of the sampler lock."""

    def __init__(
        self,
        spool: Spool,
        settings: Settings,
        lock: int,
        sources: Sources,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
        timing: Timing = USUAL,
    ) -> None:
        super().__init__("sampler", spool, lock, clock)
        self._timing = timing
        self._settings, self._sources, self._wall_clock = settings, sources, wall_clock
        self._workers, self._is_ending = Workers(spool, self._process.host), False
        self.recover()

    def recover(self) -> None:
        """Join, and see how far the steps are."""
        now, wall = self._clock(), self._wall_clock()
        self._samples = Samples(self._spool, self._settings, self._clock)
        try:
            SamplerStatus(process=self._process).save(self.host)
            self._staged_at = record.made_at if (record := MirrorRecord.read(self._spool)) else None
            self._steps = Steps(wall - created_at(self._spool, wall), last_step(self._samples.directory()), now)
        except BaseException:
            self._samples.leave()  # of those that are started again and again, none leaves a member file
            raise
        self._worked_at, self._sampled_at, self._next_sample = now, now, now + self._timing.first_sample_after

    def tick(self) -> bool:
        """One round, and a pause."""
        goes_on = self.look()
        if goes_on:
            time.sleep(self._timing.sampler_tick)
        return goes_on

    def look(self) -> bool:
        """Look for workers, sample; False when it is time to end. OSError if the disk refuses."""
        if not self.is_in_place():
            return False
        has_workers, now = self._workers.any_alive(), self._clock()
        if has_workers:
            self._worked_at = now
        action = decide(
            SamplerSituation(
                has_workers=has_workers,
                idle_for=now - self._worked_at,
                is_due=now >= self._next_sample,
                is_open=self._samples.is_open,
                is_ending=self._is_ending,
            )
        )
        if action is SamplerAction.SAMPLE:
            self._sample()
        elif action in (SamplerAction.SEAL, SamplerAction.LEAVE):
            self._seal()
        if action is SamplerAction.LEAVE:
            return not self.leave()
        self.forget_starts(is_over=False)
        return True

    def close(self) -> None:
        """Leave no member file."""
        self._samples.leave()
        self.forget_starts(is_over=True)

    def is_in_place(self) -> bool:
        """Whether all that this process holds is where it was."""
        return super().is_in_place() and self._samples.are_there()

    def _sample(self) -> None:
        now = self._clock()
        self._sampled_at = now
        every = self._timing.sample_every
        self._next_sample += every * max(0.0, (now - self._next_sample) // every + 1)
        self._samples.add(self._steps.take(now), self._wall_clock(), self._sources.sample())
        if self._staged_at is not None:
            age = max(0.0, self._wall_clock() - self._staged_at)
            self._samples.seal_older(now - least_age(age, self._settings.commit_every))
        rotate_log(self.host.daemon("sampler").log)

    def _seal(self) -> None:
        """Log what the machine has done since the last sample, and seal."""
        if not self._samples.is_open:
            return
        if self._clock() - self._sampled_at >= LEAST_APART:
            self._sample()
        self._samples.seal()

    def terminate(self) -> None:
        """SIGTERM: one last sample, then leave."""
        self._is_ending = True
        super().terminate()


def main() -> None:
    """Entry point of the process; what it needs is on the descriptors that `system.launch` names."""
    (start, spool), timing = inherited(SamplerStart, "sampler"), Timing.of()
    prepare_process()
    let_read(spool.run.fd)
    locks.adopt(launch.LOCK_FD)
    sources = Sources(Machine(spool.run.fd).sources() | gpus.sources())
    sources.sample()  # rates begin here
    try:
        sampler = Sampler(spool, start.settings, launch.LOCK_FD, sources, timing=timing)
    except OSError as error:
        raise SystemExit(f"no sampler: {error}") from None
    sampler.serve(timing.sampler_tick)


class SamplerAction(enum.Enum):
    """What to do next."""

    SAMPLE = enum.auto()  #: log what the machine does
    SEAL = enum.auto()  #: log it once more, and seal the event file: the uploader waits for that
    WAIT = enum.auto()  #: nothing to do
    LEAVE = enum.auto()  #: seal, and give the sampler lock up


@dataclass(frozen=True)
class SamplerSituation:
    """All that `decide` may know."""

    has_workers: bool  # whether a worker of this host lives
    idle_for: float  # seconds since one was seen alive last
    is_due: bool  # whether it is time for a sample
    is_open: bool  # whether the event file is open
    is_ending: bool  # whether SIGTERM asks for the end


def decide(s: SamplerSituation) -> SamplerAction:
    """The next action."""
    if s.is_ending:
        return SamplerAction.LEAVE
    if s.has_workers:
        return SamplerAction.SAMPLE if s.is_due else SamplerAction.WAIT
    if s.is_open:
        return SamplerAction.SEAL
    return SamplerAction.LEAVE if s.idle_for > LINGER else SamplerAction.WAIT
