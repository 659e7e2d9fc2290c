"""The checkpoint: from where the inputs are read again, by the next uploader or after a purge.

    hosts/<host>/all_ranks.json      {"folder": "_all_ranks", "marks": [{"offsets": {...}, ...}, ...]}

    mark made, complete once nothing waits that was read before it ---> kept: the newest, and older ones, each about
                                                                        twice as old as the next

It saves reading only. Without it, all inputs are read again, and what the derived files hold is not derived again.

Invariants:
- Of what was read before a kept mark, nothing waits: it is settled, or was dropped.
- The derived files as of `ends` hold a point at the steps of `emitted`; what was derived after that is read from them.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field

from hf_mpwriter.base import state
from hf_mpwriter.spool.layout import HostSpool
from hf_mpwriter.system import disk
from hf_mpwriter.system.directory import Place

MOST_MARKS = 8  # with a mark a minute, the oldest one is about two hours old


@dataclass(frozen=True)
class Mark:
    """How far all inputs were read at one moment."""

    at: float  # unix time
    offsets: dict[str, int] = field(default_factory=dict)  # per path of an input, up to where it was read
    settled: dict[str, int] = field(default_factory=dict)  # the last settled step per tag
    emitted: dict[str, int] = field(default_factory=dict)  # the last step with a point per tag
    ends: dict[str, int] = field(default_factory=dict)  # lengths of the derived files, by name
    highest: int = 0  # step that was read


@dataclass(frozen=True)
class Checkpoint:
    """The marks of a view."""

    folder: str  # of the derived files
    marks: tuple[Mark, ...] = ()  # the oldest first

    @classmethod
    def load(cls, host: HostSpool, folder: str) -> Checkpoint:
        """That of a host; an empty one if there is none, or one of another folder."""
        with contextlib.suppress(state.DamagedError, OSError):
            loaded = state.load(Checkpoint, disk.read(place(host)) or b"")
            if loaded.folder == folder:
                return loaded
        return cls(folder)

    def save(self, host: HostSpool) -> None:
        """Write it, or remove it if there is no mark; OSError if the disk refuses."""
        if self.marks:
            disk.replace(place(host), state.dump(self), "all_ranks.checkpoint", durable=False)
        else:
            with contextlib.suppress(IsADirectoryError):  # it has no mark
                disk.remove(place(host), "all_ranks.checkpoint", durable=False)

    def with_mark(self, mark: Mark) -> Checkpoint:
        """The same with one more mark, and fewer old ones."""
        kept, age = [mark], 0.0
        for old in reversed(self.marks):
            if len(kept) < MOST_MARKS and (mark.at - old.at >= age or old is self.marks[-1]):
                kept.append(old)
                age = 2 * (mark.at - old.at)
        return Checkpoint(self.folder, tuple(reversed(kept)))

    def before(self, step: int) -> Checkpoint:
        """The same without marks that were made when this step, or a later one, had been read."""
        return Checkpoint(self.folder, tuple(mark for mark in self.marks if mark.highest < step))

    @property
    def at(self) -> float:
        """Unix time of the newest mark, 0.0 without one."""
        return self.marks[-1].at if self.marks else 0.0

    @property
    def offsets(self) -> dict[str, int]:
        """Those of the newest mark."""
        return self.marks[-1].offsets if self.marks else {}


def place(host: HostSpool) -> Place:
    """Where the checkpoint of a host is."""
    return host.root / "all_ranks.json"
