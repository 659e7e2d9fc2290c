"""The command line: every command is documented, errors say what to do."""

from __future__ import annotations

import errno
import os
import re
import shlex
from pathlib import Path

import click
import pytest
from programs import succeed
from runs import run

from hf_mpwriter.base.errors import HfMpWriterError
from hf_mpwriter.cli.main import COMMANDS, main
from hf_mpwriter.spool.layout import Spool


@pytest.mark.parametrize("name", sorted(COMMANDS))
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
        main.get_command(None, name).make_context(name, shlex.split(arguments.split("    ")[0]))


def test_the_list_of_commands_is_told_in_whole_lines(monkeypatch):
    """In 80 columns; click cuts a longer line."""
    monkeypatch.setenv("COLUMNS", "80")
    commands = run("--help").output.partition("Commands:")[2]
    assert commands.count("\n") == len(COMMANDS) + 1
    assert "..." not in commands


@pytest.mark.parametrize("name", ["status", "sync", "verify"])
def test_a_directory_that_is_no_run_is_refused(name, tmp_path):
    """One line, exit code 1, nothing made."""
    result = run(name, tmp_path)
    assert result.exit_code == 1
    assert "has no event files, and no run below it" in result.output
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("name", "option"), [("sync", "--path-in-repo"), ("pull", "--revision")])
def test_where_a_run_goes_is_not_changed_without_a_word(tmp_path, name, option):
    """It is recorded: an option that would have no effect is refused."""
    result = run(name, tmp_path, option, "x")
    assert (result.exit_code, f"{option} goes with --repo-id" in result.output) == (2, True)


def test_a_run_without_destination_asks_for_one(tmp_path):
    """The message names the option."""
    Spool(str(tmp_path)).create()
    assert "--repo-id NAME" in run("sync", tmp_path).output
    assert "is local only" in run("verify", tmp_path).output
    assert "local only" in run("status", tmp_path).output


LOADED = """
import sys
from hf_mpwriter.cli.main import COMMANDS, main
[main.get_command(None, name) for name in COMMANDS]
print(*{name.split(".")[1] for name in sys.modules if name.startswith("hf_mpwriter.")})
"""


def test_the_local_hub_the_demo_and_the_oracle_load_only_for_their_commands():
    """An installation without their extras has all other commands."""
    assert {"localhub", "demo", "testing", "push"} & {*succeed(LOADED, fresh=True).split()} == set()


ALONE = """
import sys
from hf_mpwriter.cli.main import main
main(["sync", "--help"], standalone_mode=False)
names = ("cli.doctor", "cli.verify", "cli.pull", "cli.run", "cli.status", "cli.clean")
print("loaded:", *(name for name in names if f"hf_mpwriter.{name}" in sys.modules))
"""


def test_a_command_is_imported_without_the_others():
    """They need a third of a second together, `psutil` and the mirror; most commands are over sooner."""
    assert succeed(ALONE, fresh=True).splitlines()[-1].split() == ["loaded:"]


@click.command("fails")
@click.argument("name")
def fails(name: str) -> None:
    """Raise an error of the system, one of ours, or a bug."""
    if name == "bug":
        raise KeyError(name)
    if name == "ours":
        raise HfMpWriterError("It is so.", hint="Do that.")
    raise OSError(getattr(errno, name), os.strerror(getattr(errno, name)), "/runs/exp1")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("ENOSPC", "No space left on device: /runs/exp1. Free space, then run the command again."),
        ("EACCES", "Permission denied: /runs/exp1."),
        ("ours", "Error: It is so. Do that."),
        ("bug", "This should not happen: KeyError: 'bug'. All of it: hf-mpwriter --debug"),
    ],
)
def test_every_error_is_one_line_and_debug_shows_the_traceback(monkeypatch, name, words):
    """A full disk, a permission, a bug: what helps, and no traceback, unless it is asked for."""
    monkeypatch.setitem(main.commands, "fails", fails)
    result = run("fails", name)
    assert (result.exit_code, result.output.count("\n")) == (1, 1), result.output
    assert words in result.output
    assert isinstance(run("--debug", "fails", name).exception, (OSError, KeyError, HfMpWriterError))


# exit codes

OPERATIONS = Path(__file__).parents[3] / "docs" / "operations.md"


def documented() -> dict[str, set[int]]:
    """The codes that the table has of each command, but for 2, which is wrong usage of any."""
    text = OPERATIONS.read_text()
    table = text.partition("The exit codes of all commands:")[2].strip().partition("\n\n")[0]
    head, _, *rows = (line.strip("|") for line in table.splitlines())
    codes = [int(cell) for cell in head.split("|")[1:]]
    found: dict[str, set[int]] = {}
    for row in rows:
        names, *cells = (cell.strip() for cell in row.split("|"))
        for name in re.findall(r"`([\w -]+)`", names):
            found[name] = {code for code, cell in zip(codes, cells, strict=True) if cell}
    return found


def test_the_table_has_every_command():
    """And no other."""
    assert documented().keys() == set(COMMANDS)


@pytest.mark.parametrize("name", ["doctor", "pull", "status", "sync", "verify"])
def test_the_help_names_the_codes_of_the_table(name):
    """Those of commands that scripts ask."""
    shown = " ".join(run(name, "--help").output.split())
    told = re.search(r"Exit code (0: .*?) Options:", shown)
    assert told is not None
    assert {int(code) for code in re.findall(r"(?:^|; )(\d): ", told[1])} == documented()[name]


@pytest.mark.parametrize("name", ["clean", "demo", "hub", "logs", "stop"])
def test_a_command_without_codes_of_its_own_succeeds_or_fails(name):
    """Then its help has none."""
    assert documented()[name] == {0, 1}
    assert "Exit code" not in run(name, "--help").output
