"""A second user of the group attacks a run: the script for a third of a minute, and what it must be able to find."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time

import pytest
from repository import PROOF, SCRIPTS

SCRIPT = PROOF / "hostile_user.py"


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become other users")
@pytest.mark.timeout(900)
@pytest.mark.parametrize("where", ["a run directory of the group", "a parent of the group"])
def test_a_hostile_user_gets_no_token_and_stops_no_training(where):
    """Renames, replacements, links and modes at seeded moments, above all when an uploader or a push starts."""
    command = [sys.executable, str(SCRIPT), "--minutes", "0.15", "--seed", "7", "--only", where]
    result = subprocess.run(command, capture_output=True, text=True, timeout=880, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files to a group")
def test_the_attacker_undoes_all_that_he_does(tmp_path, monkeypatch):
    """In whatever order his attacks overlap and end, the run directory is as it was."""
    monkeypatch.syspath_prepend(str(SCRIPTS))
    monkeypatch.syspath_prepend(str(PROOF))
    from hostile.attacker import Attacker
    from hostile.users import Place

    place = Place(tmp_path)
    place.make(only_parent=False)
    forged, spool = tmp_path / "forged", place.run_dir / ".hf_mpwriter"
    for path in (forged / "run.json", spool / "run.json", place.run_dir / "events.out.tfevents.1.a.1.0"):
        path.parent.mkdir(exist_ok=True)
        path.write_text(str(path))

    def content() -> dict[str, object]:
        paths = sorted(place.run_dir.rglob("*"))
        return {str(path): (path.lstat().st_ino, path.is_file() and path.read_text()) for path in paths}

    before, rng = content(), random.Random(7)
    attacker = Attacker(place, forged, "7", only_parent=False)
    for round_ in range(30):
        for _ in range(40):
            attacker._strike()
            attacker._undo_due(time.monotonic() + rng.choice([0.0, 0.1, 0.5, 2.0]))
        while attacker._undo:
            attacker._undo_due(float("inf"))
        assert content() == before, round_
