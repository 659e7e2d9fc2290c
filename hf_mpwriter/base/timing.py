"""Timing: the waits that tests shorten, as one value that is handed down.

    a daemon's `main`, the registry of workers, a command  --Timing.of(environ)-->  the classes that wait

    HF_MPWRITER_TIMING="housekeeping_every=0.6 quiet_wait=1000"     of tests only; users have the defaults

Each field says what it limits. A wait that no test shortens is a constant of the module that waits.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Self

from hf_mpwriter.base.errors import SettingsError
from hf_mpwriter.system.interrupts import ours

VARIABLE = "HF_MPWRITER_TIMING"


@dataclass(frozen=True)
class Timing:
    """Waits, in seconds."""

    # a worker
    housekeeping_every: float = 3.0  # from one housekeeping to the next
    disk_retry_first: float = 1.0  # from a refused record to the next try; doubled with every further refusal
    disk_retry_longest: float = 16.0  # between two such tries
    quiet_wait: float = 5.0  # a longer wait at the end of a process is announced
    asked_within: float = 3.0  # the Hub was asked so lately: `push` without new data asks no further
    logdir_wait: float = 5.0  # for which training waits until the logdir of a staged run has answered

    # daemons
    heartbeat_every: float = 10.0  # from one heartbeat to the next, if nothing changes

    # an uploader
    uploader_tick: float = 1.0  # between two ticks, more of very large runs; the end of a push is noticed at once
    first_scan_after: float = 2.0  # from the start to the first scan, if nothing is asked for
    push_retry_first: float = 5.0  # the ceiling of the first wait after a failure; it doubles with every further one
    moved_retry: float = 3.0  # the ceiling of a wait after a 412
    refused_retry_first: float = 60.0  # between two tries of a refused path; doubles until the Hub is believed
    refused_retry: float = 600.0  # until the next try of a path of which the Hub is believed; it doubles
    sibling_look: float = 2.0  # for one directory beside a run
    sibling_search: float = 30.0  # for the search of all of them

    # a mirror
    mirror_tick: float = 1.0  # between two ticks; what a copy says is noticed at once
    copy_retry_first: float = 2.0  # the ceiling of the first pause after a copy that failed; it doubles
    copy_refused_retry_first: float = 60.0  # the same, after what a person has to fix
    copy_limit: float = 60.0  # for a copy, however small: a mount that hangs is given up after that

    # a sampler
    sampler_tick: float = 0.5  # between two looks at the workers
    sample_every: float = 15.0  # from one sample to the next
    first_sample_after: float = 1.0  # from the start to the first sample: rates need a while

    # a run of all ranks
    ranks_joining: float = 15.0  # after the last rank has joined, in which the next one may
    ranks_look_every: float = 5.0  # between two looks at the files
    ranks_tick: float = 0.5  # between two looks at who lives

    @classmethod
    def of(cls, environ: Mapping[str, str] = os.environ) -> Self:
        """The waits of a process; of several values of one name the last one counts."""
        known, found = {field.name for field in fields(cls)}, dict[str, float]()
        for part in environ.get(VARIABLE, "").split():
            name, _, value = part.partition("=")
            if name not in known:
                raise SettingsError(f"{VARIABLE} names {name!r}, which is not a wait.")
            try:
                found[name] = float(value)
            except ours(ValueError):
                raise SettingsError(f"{VARIABLE} has {part!r}.", hint="It is a number of seconds.") from None
        return cls(**found)


USUAL = Timing()  # what users have
