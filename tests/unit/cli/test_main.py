"""The command line: every command is documented, errors say what to do."""

from __future__ import annotations

import errno
import json
import os
import re
import shlex

import click
import pytest
from programs import succeed
from repository import README
from runs import run

from hf_mpwriter.cli.main import main
from hf_mpwriter.spool.layout import Spool


@pytest.mark.parametrize("name", sorted(main.commands))
def test_a_help_text_fits_a_terminal_and_has_examples(monkeypatch, name):
    """80 columns; the examples are commands that exist, with options that exist; a logdir has one name."""
    monkeypatch.setenv("COLUMNS", "80")
    text = run(name, "--help").output
    assert max(map(len, text.splitlines())) <= 80
    assert not re.search(r"\b(DIR|RUN_DIR)\b", text)
    examples = re.findall(r"^ +hf-mpwriter (\w+)(.*)", text.partition("Examples:")[2], re.MULTILINE)
    assert examples
    for command, arguments in examples:
        assert command == name
        main.commands[name].make_context(name, shlex.split(arguments.split("    ")[0]))


def test_the_list_of_commands_is_told_in_whole_lines(monkeypatch):
    """In 80 columns; click cuts a longer line."""
    monkeypatch.setenv("COLUMNS", "80")
    commands = run("--help").output.partition("Commands:")[2]
    assert commands.count("\n") == len(main.commands) + 1
    assert "..." not in commands


def test_every_command_of_the_readme_exists():
    """No claim about a command that is not there."""
    for name in re.findall(r"hf-mpwriter ([a-z]+)", README.read_text()):
        assert name in main.commands


@pytest.mark.parametrize("name", ["status", "sync", "verify"])
def test_a_directory_that_is_no_run_is_refused(name, tmp_path):
    """One line, exit code 1, nothing made."""
    result = run(name, tmp_path)
    assert result.exit_code == 1
    assert "has no event files, and no run below it" in result.output
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("option", "value"), [("--path-in-repo", "x"), ("--revision", "main")])
def test_where_a_run_goes_is_not_changed_without_a_word(tmp_path, option, value):
    """It is recorded: an option that would have no effect is refused."""
    result = run("sync", tmp_path, option, value)
    assert (result.exit_code, f"{option} goes with --repo-id" in result.output) == (2, True)


def test_a_run_without_destination_asks_for_one(tmp_path):
    """The message names the option."""
    Spool(str(tmp_path)).create()
    assert "--repo-id NAME" in run("sync", tmp_path).output
    assert "is local only" in run("verify", tmp_path).output
    assert "local only" in run("status", tmp_path).output


def test_the_json_of_status_has_the_keys_that_are_documented(tmp_path):
    """Other programs read it."""
    Spool(str(tmp_path)).create()
    status = json.loads(run("status", tmp_path, "--json").output)
    assert list(status) == [
        *("version", "logdir", "run_dir", "state", "next", "destination", "visibility", "workers", "bytes", "lag"),
        *("last_commit", "uploader", "mirror", "error", "notices", "files", "quarantined", "damaged"),
    ]
    assert list(status["uploader"]) == ["alive", "phase", "pid", "host", "last_seen", "next_in"]


LOADED = """
import sys
from hf_mpwriter.cli.main import main
[*main.commands.values()]
print(*{name.split(".")[1] for name in sys.modules if name.startswith("hf_mpwriter.")})
"""


def test_the_local_hub_the_demo_and_the_oracle_load_only_for_their_commands():
    """An installation without their extras has all other commands."""
    assert {"localhub", "demo", "testing", "push"} & {*succeed(LOADED, fresh=True).split()} == set()


ALONE = """
import sys
from hf_mpwriter.cli.main import main
main(["sync", "--help"], standalone_mode=False)
names = ("cli.doctor", "cli.verify", "cli.pull", "cli.run", "cli.status.command", "cli.clean")
print("loaded:", *(name for name in names if f"hf_mpwriter.{name}" in sys.modules))
"""


def test_a_command_is_imported_without_the_others():
    """They need a third of a second together, `psutil` and the mirror; most commands are over sooner."""
    assert succeed(ALONE, fresh=True).splitlines()[-1].split() == ["loaded:"]


def test_an_error_of_the_package_is_one_line(tmp_path):
    """No traceback, exit code 1."""
    Spool(str(tmp_path)).create()
    result = run("sync", tmp_path, "--repo-id", "not valid")
    assert result.exit_code == 1
    assert result.output.startswith("Error: repo_id 'not valid' is not valid.")


def test_a_directory_that_is_not_there_is_said_to_be_so(tmp_path):
    """It was misspelt; the line names the command that lists the runs."""
    result = run("status", tmp_path / "none")
    assert (result.exit_code, result.output.count("\n")) == (1, 1)
    assert "does not exist. The runs" in result.output or "hf-mpwriter status" in result.output


@click.command("fails")
@click.argument("name")
def fails(name: str) -> None:
    """Raise an error of the system, or a bug."""
    if name == "bug":
        raise KeyError(name)
    raise OSError(getattr(errno, name), os.strerror(getattr(errno, name)), "/runs/exp1")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("ENOSPC", "No space left on device: /runs/exp1. Free space, then run the command again."),
        ("EACCES", "Permission denied: /runs/exp1."),
        ("bug", "This should not happen: KeyError: 'bug'. All of it: hf-mpwriter --debug"),
    ],
)
def test_every_error_is_one_line_and_debug_shows_the_traceback(monkeypatch, name, words):
    """A full disk, a permission, a bug: what helps, and no traceback, unless it is asked for."""
    monkeypatch.setitem(main.commands, "fails", fails)
    result = run("fails", name)
    assert (result.exit_code, result.output.count("\n")) == (1, 1), result.output
    assert words in result.output
    assert isinstance(run("--debug", "fails", name).exception, (OSError, KeyError))
