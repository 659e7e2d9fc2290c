"""What a sampler does next: a pure function of its situation.

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
from dataclasses import dataclass

LINGER = 5.0  # seconds without a worker: a program may close its writer and build another one


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
