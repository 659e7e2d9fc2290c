"""The recipes of docs/preemption.md, as they are to be copied."""

from __future__ import annotations

import dataclasses
import itertools
import re
import shlex
from dataclasses import dataclass

from repository import ROOT

TEXT = ROOT / "docs" / "preemption.md"


@dataclass(frozen=True)
class Recipe:
    """A program below a supervisor.

    Attributes:
        options: of `hf-mpwriter run`.
        command: the program.
    """

    options: tuple[str, ...]
    command: tuple[str, ...]

    @classmethod
    def of(cls, words: list[str]) -> Recipe:
        """The recipe in the words of a command line."""
        begin = next(at for at, pair in enumerate(itertools.pairwise(words)) if pair == ("hf-mpwriter", "run"))
        end = words.index("--", begin)
        return cls(tuple(words[begin + 2 : end]), tuple(words[end + 1 :]))

    @property
    def pulls(self) -> bool:
        """Whether the supervisor brings the run back from the Hub."""
        return "--pull" in self.options

    @property
    def grace(self) -> float:
        """Seconds."""
        return float(self.options[self.options.index("--grace") + 1])

    def with_grace(self, seconds: float) -> Recipe:
        """The same with another grace; the agent has half of it for its ranks."""
        options = list(self.options)
        options[options.index("--grace") + 1] = f"{seconds:g}"
        command = list(self.command)
        if "--shutdown-timeout" in command:
            command[command.index("--shutdown-timeout") + 1] = str(max(1, int(seconds / 2)))
        return dataclasses.replace(self, options=tuple(options), command=tuple(command))

    def torchrun(self, ranks: int, *arguments: object) -> list[str]:
        """The command of an agent with so many ranks: its options and its program are `arguments`."""
        words = list(self.command)
        assert words.pop() == "train.py"
        words[words.index("--nproc-per-node") + 1] = str(ranks)
        return [*words, *map(str, arguments)]


def section(title: str) -> str:
    """The text below a title of the documents."""
    return TEXT.read_text().split(f"\n## {title}\n")[1].split("\n## ")[0]


def on_spot_nodes() -> Recipe:
    """For torchrun."""
    (line,) = re.findall(r"^    (.*hf-mpwriter run.* torchrun .*)$", section("torchrun on spot nodes"), re.MULTILINE)
    return Recipe.of(shlex.split(line))


def of_kubernetes() -> Recipe:
    """For a container with one process."""
    command = re.findall(r"command: (\[hf-mpwriter, run,[^\]]*\])", section("Kubernetes"))[0]
    return Recipe.of([word.strip().strip('"') for word in command.strip("[]").split(",")])


def batch_script() -> str:
    """For SLURM."""
    (script,) = re.findall(r"```bash\n(#!/bin/bash.*?)```", section("SLURM"), re.DOTALL)
    return script
