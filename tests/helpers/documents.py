"""The documents of the repository: their texts, their code blocks, the commands in these, their tables."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from repository import ROOT

import hf_mpwriter

PACKAGE = Path(hf_mpwriter.__file__).parent
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
TEXTS = {path.relative_to(ROOT).as_posix(): path.read_text() for path in DOCUMENTS}
DOCS = "\n".join(text for name, text in TEXTS.items() if name.startswith("docs/"))
DESIGN, SETTINGS = TEXTS["docs/design.md"], TEXTS["docs/settings.md"]


@dataclass(frozen=True)
class Block:
    """A code block: where it begins, its language ("shell" if it is indented), its text."""

    document: str
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        """As pytest shows it."""
        return f"{self.document}:{self.line}"


def blocks_of(document: str) -> Iterator[Block]:
    """The fenced blocks, and the indented ones that are in no list."""
    lines = [*TEXTS[document].splitlines(), ""]
    number, in_list = 0, False
    while number < len(lines):
        line, begin = lines[number], number + 1
        if line.startswith("```"):
            end = lines.index("```", begin)
            yield Block(document, begin + 1, line[3:], "\n".join(lines[begin:end]))
            number = end
        elif line.startswith("    ") and not in_list:
            end = next(n for n in range(begin, len(lines)) if not lines[n].startswith("    "))
            yield Block(document, begin, "shell", "\n".join(text[4:] for text in lines[number:end]))
            number = end - 1
        elif line and not line.startswith(" "):
            in_list = re.match(r"[-*] |\d+\. ", line) is not None
        number += 1


BLOCKS = [block for document in TEXTS for block in blocks_of(document)]
PYTHON = [block for block in BLOCKS if block.language == "python"]


@dataclass(frozen=True)
class Command:
    """One line of a shell block: its words, without variables that it sets and without the comment."""

    block: Block
    variables: tuple[str, ...]
    words: tuple[str, ...]

    def __str__(self) -> str:
        """As pytest shows it."""
        return f"{self.block.document}: {' '.join(self.words)}"


def commands_of(block: Block) -> Iterator[Command]:
    """The commands of a shell block."""
    for line in block.text.splitlines():
        words = shlex.split(line, comments=True)
        assignments = [word for word in words if re.fullmatch(r"[A-Z_]+=.*", word)]
        yield Command(block, tuple(word.split("=")[0] for word in assignments), tuple(words[len(assignments) :]))


COMMANDS = [command for block in BLOCKS if block.language == "shell" for command in commands_of(block)]
OURS = [command for command in COMMANDS if command.words[0] == "hf-mpwriter"]
CURLS = [command for command in COMMANDS if command.words[0] == "curl"]


def cells(row: str) -> list[str]:
    """The cells of a row of a table."""
    return [cell.strip() for cell in row.strip().strip("|").split("|")]


def rows(text: str) -> list[list[str]]:
    """The rows of all tables of a text."""
    return [cells(line) for line in text.splitlines() if line.startswith("| ") and not line.startswith("|---")]


def exists(path: str) -> bool:
    """Whether this is a path of the repository."""
    return (ROOT / path).exists()
