"""Where things are in the repository."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
PACKAGE = ROOT / "hf_mpwriter"
TESTS = ROOT / "tests"
HELPERS = TESTS / "helpers"
