"""Attachments of a run: written, copied, quarantined."""

from __future__ import annotations

from pathlib import Path

from hf_mpwriter.spool.progress import Progress
from hf_mpwriter.spool.layout import Spool


def quarantined(run_dir) -> dict[str, str]:
    """What the ledger says about refused paths."""
    book = Progress(Spool(str(run_dir))).ledger()
    return book.quarantined if book else {}


def copies(run_dir) -> list[Path]:
    """The copies in the spool."""
    return list(Path(run_dir).glob(".hf_mpwriter/hosts/*/outbox/copies/*"))


def write(run_dir, name: str, content: bytes) -> Path:
    """A file of the user's in the run directory."""
    path = Path(run_dir) / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path
