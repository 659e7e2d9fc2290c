"""Where things are in the repository."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "README.md"
SCRIPTS = ROOT / "scripts"
BENCH = SCRIPTS / "bench"
PROOF = SCRIPTS / "proof"  # crash tests, power cuts, the soak
EXAMPLES = SCRIPTS / "examples"
HELPERS = ROOT / "tests" / "helpers"
