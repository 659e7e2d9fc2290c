"""The command line: every command is documented, errors say what to do."""

from __future__ import annotations

import json
import re

import pytest
from programs import succeed
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


def test_the_json_of_status_has_the_keys_that_are_documented(tmp_path):
    """Other programs read it."""
    Spool(str(tmp_path)).create()
    status = json.loads(run("status", tmp_path, "--json").output)
    assert list(status) == [
        "logdir",
        "destination",
        "visibility",
        "uploader",
        "mirror",
        "workers",
        "files",
        "quarantined",
        "dropped",
        "damaged",
    ]
    assert {"phase", "pid", "alive", "beat", "reason", "hint", "failures", "notices"} <= set(status["uploader"])


LOADED = """
import sys
import hf_mpwriter.cli.main
print(*{name.split(".")[1] for name in sys.modules if name.startswith("hf_mpwriter.")})
"""


def test_the_local_hub_the_demo_and_the_oracle_load_only_for_their_commands():
    """An installation without their extras has all other commands."""
    assert {"localhub", "demo", "testing", "push"} & {*succeed(LOADED).split()} == set()


def test_an_error_of_the_package_is_one_line(tmp_path):
    """No traceback, exit code 1."""
    Spool(str(tmp_path)).create()
    result = run("sync", tmp_path, "--repo-id", "not valid")
    assert result.exit_code == 1
    assert result.output.startswith("Error: repo_id 'not valid' is not valid.")
