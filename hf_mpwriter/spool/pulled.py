"""The record of what was pulled: the files here that other machines have written.

    pulled.json    {"files": {"rank_00001/events.out...": 4711}}    bytes that came from the Hub

A process never appends to an event file that it did not create. So a pulled file does not grow here. Where it grows on
the Hub, its writer goes on elsewhere.

Invariant: it is written under the lock of the pulls.
"""

from __future__ import annotations

from collections.abc import Collection
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


def pulled_files(spool: Spool) -> dict[str, int]:
    """Bytes that came from the Hub, per path; {} where nothing was pulled, or the record cannot be read."""
    return state.read(PulledFiles, spool.directory / "pulled.json").files


def note_pulled(spool: Spool, came: dict[str, int], others: Collection[str] = ()) -> None:
    """Add what has come, and take out what is another file than the Hub's."""
    before = pulled_files(spool)
    files = {path: length for path, length in (before | came).items() if path not in others}
    if files != before:
        disk.replace(spool.directory / "pulled.json", state.dump(PulledFiles(files)), "pull.record")
