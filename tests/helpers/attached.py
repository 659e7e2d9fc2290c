"""Attachments of a run: written, copied, quarantined."""

from __future__ import annotations

from pathlib import Path

from hf_mpwriter.delivery.sinks import HubSink
from hf_mpwriter.spool.layout import Spool


def quarantined(run_dir) -> dict[str, str]:
    """The refused paths of the ledger, each with its reason."""
    ledger = HubSink(Spool(str(run_dir))).ledger()
    return ledger.reasons if ledger else {}


def copies(run_dir) -> list[Path]:
    """The copies of attachments in the spool."""
    return list(Path(run_dir).glob(".hf_mpwriter/hosts/*/outbox/copies/*"))


def write(run_dir, name: str, content: bytes) -> Path:
    """Write a file of the user into the run directory."""
    path = Path(run_dir) / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path
