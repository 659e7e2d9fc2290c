"""The lines of a member file: what a worker writes, with its types.

    {"worker": ..., "process": {...}, "started_at": unix time, "settings": {...}}     first line: who it is
    {"open": "rank_00001/events.out..."}                                        before the file exists
    {"seal": "rank_00001/events.out..."}                                        complete, never grows again
    {"want": {"rank_00001/events.out...": 4711}}                                push up to here
    {"dropped": 3}                                                              records that the disk refused for good

Invariant: a damaged line counts as absent. A later line has one key, which is its kind.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

from hf_mpwriter.base import state
from hf_mpwriter.base.names import is_run_path
from hf_mpwriter.base.settings import Settings
from hf_mpwriter.system.process import Process


@dataclass(frozen=True)
class FirstLine:
    """The first line.

    Attributes:
        worker: its name.
        process: that writes.
        started_at: unix time when it joined.
        settings: how it wants to be uploaded.
    """

    worker: str
    process: Process
    started_at: float
    settings: Settings


@dataclass(frozen=True)
class Opened:
    """An event file is about to be made."""

    open: str

    def __post_init__(self) -> None:
        _check_path(self.open)


@dataclass(frozen=True)
class Sealed:
    """An event file is complete."""

    seal: str

    def __post_init__(self) -> None:
        _check_path(self.seal)


@dataclass(frozen=True)
class Wanted:
    """Lengths, per path, that should be pushed soon; it replaces the one before."""

    want: dict[str, int]

    def __post_init__(self) -> None:
        for path in self.want:
            _check_path(path)


@dataclass(frozen=True)
class Dropped:
    """So many records were refused by the disk for good, all in all."""

    dropped: int


LaterLine = Opened | Sealed | Wanted | Dropped
_KINDS: dict[bytes, type[LaterLine]] = {b"open": Opened, b"seal": Sealed, b"want": Wanted, b"dropped": Dropped}


def parse_first(data: bytes) -> FirstLine | None:
    """The first line, None if it is damaged."""
    with contextlib.suppress(state.DamagedError):
        return state.load(FirstLine, data)
    return None


def parse_later(data: bytes) -> LaterLine | None:
    """A later line, None if it is damaged."""
    kind = _KINDS.get(data[2 : data.find(b'"', 2)])
    with contextlib.suppress(state.DamagedError):
        return state.load(kind, data) if kind else None
    return None


def _check_path(path: str) -> None:
    if not is_run_path(path):
        raise ValueError(f"not a path of a run directory: {path!r:.200}")
