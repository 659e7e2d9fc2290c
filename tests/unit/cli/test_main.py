"""The command line: every command is documented, errors say what to do."""

from __future__ import annotations

import re

import pytest
from repository import README
from runs import run

from hf_mpwriter.cli.main import main
from hf_mpwriter.spool.layout import Spool


@pytest.mark.parametrize("name", sorted(main.commands))
def test_every_command_is_documented(name):
    """It has help, and the README shows it."""
    assert main.commands[name].help
    assert f"hf-mpwriter {name}" in README.read_text() or f"scripts/{name}" in README.read_text()


def test_every_command_of_the_readme_exists():
    """No claim about a command that is not there."""
    for name in re.findall(r"hf-mpwriter ([a-z]+)", README.read_text()):
        assert name in main.commands


@pytest.mark.parametrize("name", ["status", "sync", "verify"])
def test_a_directory_that_is_no_run_is_refused(name, tmp_path):
    """One line, exit code 1, nothing made."""
    result = run(name, tmp_path)
    assert result.exit_code == 1
    assert "no run directory of hf_mpwriter" in result.output
    assert list(tmp_path.iterdir()) == []


def test_a_run_without_destination_asks_for_one(tmp_path):
    """The message names the option."""
    Spool(str(tmp_path)).create()
    assert "--repo-id NAME" in run("sync", tmp_path).output
    assert "no destination" in run("verify", tmp_path).output
    assert "local only" in run("status", tmp_path).output
