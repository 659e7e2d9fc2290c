"""Builds that are broken on purpose: each is really broken, and what shows nothing is not taken for a proof."""

from __future__ import annotations

import subprocess
import sys

import pytest
from repository import PROOF, SCRIPTS


@pytest.fixture
def sabotage(monkeypatch):
    """The module of the scripts."""
    monkeypatch.syspath_prepend(str(SCRIPTS))
    monkeypatch.syspath_prepend(str(PROOF))
    import sabotage

    return sabotage


@pytest.mark.parametrize("name", ["buffered", "early-ack", "split", "swallowed", "unfenced", "unsynced"])
def test_a_sabotage_matches_the_source_and_leaves_its_mark(sabotage, tmp_path, name):
    """A change of the source that takes the broken place away is seen at once, not after a long run."""
    assert name in sabotage.SABOTAGES
    mark = sabotage.build(name, tmp_path)
    assert not mark.exists()
    program = "import hf_mpwriter.sabotaged as s; s.strike(); print(s.__file__)"
    command = [sys.executable, "-P", "-c", program]
    done = subprocess.run(command, env={"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True, check=True)
    assert done.stdout.startswith(str(tmp_path)), "the copy comes first on the path"
    assert mark.exists()


def test_all_sabotages_are_tried(sabotage):
    """The list above is complete."""
    assert sorted(sabotage.SABOTAGES) == ["buffered", "early-ack", "split", "swallowed", "unfenced", "unsynced"]


def test_a_sabotage_that_no_longer_matches_is_an_error(sabotage, tmp_path, monkeypatch):
    """A build without the broken place would be a sound one."""
    gone = sabotage.Sabotage("spool/outbox.py", "no such text", "pass")
    monkeypatch.setitem(sabotage.SABOTAGES, "unsynced", gone)
    with pytest.raises(ValueError, match="does not match"):
        sabotage.build("unsynced", tmp_path)


@pytest.mark.parametrize(
    ("code", "struck", "said"),
    [
        (3, True, "found"),
        (3, False, "NOTHING SHOWN: the broken place never ran"),
        (0, True, "NOT FOUND"),
        (0, False, "NOTHING SHOWN: the broken place never ran"),
        (1, True, "NOTHING SHOWN: the script itself failed with 1"),
    ],
)
def test_only_a_sabotage_that_ran_and_was_found_counts(sabotage, code, struck, said):
    """A script that fails, or that tests another build, has found nothing."""
    assert sabotage.verdict(code, struck=struck) == said


def test_a_script_that_tests_another_build_says_so(sabotage, tmp_path, monkeypatch, capsys):
    """The exit code of a script that never ran the broken place is no success, whatever it found."""
    script = tmp_path / "script.py"
    script.write_text("raise SystemExit(3)")
    monkeypatch.setattr(sys, "argv", [str(script), "--sabotage", "unsynced"])
    assert sabotage.run("unsynced") == 1
    assert "never ran" in capsys.readouterr().out
