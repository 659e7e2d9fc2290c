"""Exit codes: the table of the documents has every command, and agrees with what each says in its help."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from hf_mpwriter.cli.main import main

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
    assert documented().keys() == set(main.commands)


@pytest.mark.parametrize("name", ["doctor", "pull", "status", "sync", "verify"])
def test_the_help_names_the_codes_of_the_table(name):
    """Those of commands that scripts ask."""
    shown = " ".join(CliRunner().invoke(main, [name, "--help"]).output.split())
    told = re.search(r"Exit code (0: .*?) Options:", shown)
    assert told is not None
    assert {int(code) for code in re.findall(r"(?:^|; )(\d): ", told[1])} == documented()[name]


@pytest.mark.parametrize("name", ["clean", "demo", "hub", "logs", "stop"])
def test_a_command_without_codes_of_its_own_succeeds_or_fails(name):
    """Then its help has none."""
    assert documented()[name] == {0, 1}
    assert "Exit code" not in CliRunner().invoke(main, [name, "--help"]).output
