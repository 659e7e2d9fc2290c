"""Whose an event file is: the record of what was pulled, which other machines have written.

    pulled.json    {"files": {"rank_00001/events.out...": 4711}}    bytes that came from the Hub

    file                       here                more of it elsewhere     is
    pulled                     does not grow       no, as far as is known   another machine's
    pulled                     does not grow       on the Hub, or there     the beginning of another machine's
    other, open by a process   grows               -                        ours, and growing
    other                      does not grow       -                        ours, and whole

A process never appends to an event file that it did not create. So a pulled file does not grow here. Where it grows on
the Hub or in the logdir, its writer goes on elsewhere, or has come back. So uploader and mirror let no file wait for
one of another machine (`snapshot/event_files.pending`), a mirror puts no beginning over more (`mirror/targets`), and a
beginning is never told to be complete.

Invariants:
- It is written under the lock of the pulls.
- It names no file that was not seen to be the Hub's, but where nothing stood before.
"""

from __future__ import annotations

import enum
from collections.abc import Collection, Container
from dataclasses import dataclass, field

from hf_mpwriter.base import state
from hf_mpwriter.base.names import is_run_path
from hf_mpwriter.spool.layout import Spool
from hf_mpwriter.system import disk


@dataclass
class PulledFiles:
    """What was pulled into a run directory."""

    files: dict[str, int] = field(default_factory=dict)  # bytes that came from the Hub, per path

    def __post_init__(self) -> None:
        if not all(is_run_path(path) and length >= 0 for path, length in self.files.items()):
            raise ValueError("not files of a run directory")


class Whose(enum.Enum):
    """Whose an event file is, and whether all of it is here."""

    OURS = enum.auto()  #: and whole
    GROWING = enum.auto()  #: ours
    PULLED = enum.auto()  #: another machine's, and as much of it as is known
    BEGINNING = enum.auto()  #: of another machine's, of which more is elsewhere


THEIRS = (Whose.PULLED, Whose.BEGINNING)


def whose(path: str, length: int, pulled: Container[str], elsewhere: int = 0, *, growing: bool = False) -> Whose:
    """Whose a file is of which so many bytes are here, and so many on the Hub or in the logdir, as far as is known."""
    if path not in pulled:
        return Whose.GROWING if growing else Whose.OURS
    return Whose.BEGINNING if elsewhere > length else Whose.PULLED


def pulled_files(spool: Spool) -> dict[str, int]:
    """Bytes that came from the Hub, per path; {} where nothing was pulled, or the record cannot be read."""
    return state.read(PulledFiles, spool.directory / "pulled.json").files


def note_pulled(spool: Spool, came: dict[str, int], others: Collection[str] = ()) -> None:
    """Add what has come, and take out what is another file than the Hub's."""
    before = pulled_files(spool)
    files = {path: length for path, length in (before | came).items() if path not in others}
    if files != before:
        disk.replace(spool.directory / "pulled.json", state.dump(PulledFiles(files)), "pull.record")
