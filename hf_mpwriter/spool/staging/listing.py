"""Listing: what of a staged run is in its logdir and not here, as it was known when an attempt began.

    listed.json    {"missing": {"rank_00001/events.out...": 4711}, "first": 1795233002, "last": 1795236610,
                    "at": 1795236615.2, "failure": ""}
    look.lock      held by the process that looks, and by the copy that lists for it; never unlinked
    arriving/<32 hex>    files on their way from the logdir

Only names and lengths are known then. A mirror lists for itself and brings the content, see `mirror/returning`.

Invariant: names of event files that are made after a look sort behind `last`, whether the files themselves are here or
not.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Self

from hf_mpwriter.base import names, state
from hf_mpwriter.spool.layout import Spool
from hf_mpwriter.system import disk
from hf_mpwriter.system.directory import Directory, Place

ARRIVING = "arriving"  # directory of the temporary files, in the spool


@dataclass(frozen=True)
class Listing:
    """What a look has found."""

    missing: dict[str, int] = field(default_factory=dict)  # bytes there, per path of an event file of ours
    first: int = 0  # the least second in the name of an event file there, 0 if there is none
    last: int = 0  # the greatest one
    at: float = 0.0  # unix time when it ended
    failure: str = ""  # why nothing is known, "" if it is

    def __post_init__(self) -> None:
        if not all(map(names.is_run_path, self.missing)):
            raise ValueError("not paths of a run directory")

    @classmethod
    def of(cls, spool: Spool, files: Mapping[str, int], at: float) -> Self:
        """What follows from the names and lengths in the logdir."""
        seconds = [second for path in files if (second := names.event_second(os.path.basename(path)))]
        missing = {path: size for path, size in lacking(spool.run, files).items() if not names.is_config(path)}
        return cls(missing, min(seconds, default=0), max(seconds, default=0), at)

    @classmethod
    def read(cls, spool: Spool) -> Self:
        """The record of the last look; an empty one if there is none, or if it cannot be read."""
        return state.read(cls, _place(spool))

    def save(self, spool: Spool) -> None:
        """Write the record; OSError if the disk refuses."""
        disk.replace(_place(spool), state.dump(self), "mirror.listed", durable=False)

    def still_missing(self, spool: Spool) -> dict[str, int]:
        """Bytes there, per path of a file that is not here, or not so long."""
        return lacking(spool.run, self.missing)


def lacking(run: Directory, files: Mapping[str, int]) -> dict[str, int]:
    """Of the files of a logdir, those that are to come here: event files of ours, and lists of embeddings."""
    return {
        path: size
        for path, size in files.items()
        if (names.is_config(path) or names.is_ours(os.path.basename(path))) and size > max(0, length(run / path))
    }


def length(place: Place) -> int:
    """Bytes of a file here; -1 if there is none."""
    try:
        return place.stat().st_size
    except OSError:
        return -1


def look_lock(spool: Spool) -> Place:
    """The lock of a look."""
    return spool.directory / "look.lock"


def _place(spool: Spool) -> Place:
    return spool.directory / "listed.json"
