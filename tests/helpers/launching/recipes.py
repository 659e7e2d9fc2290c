"""The recipes of docs/resume.md, as they are to be copied: only the numbers of nodes and ranks are others here."""

from __future__ import annotations

import dataclasses
import itertools
import re
import shlex
from dataclasses import dataclass, field
from string import Template

import yaml
from repository import ROOT

TEXT = ROOT / "docs" / "resume.md"


@dataclass(frozen=True)
class Recipe:
    """A program below a supervisor."""

    options: tuple[str, ...]  # of `hf-mpwriter run`
    command: tuple[str, ...]  # the program
    environ: dict[str, str] = field(default_factory=dict)  # variables that it exports

    @classmethod
    def of(cls, words: list[str]) -> Recipe:
        """The recipe in the words of a shell script."""
        begin = next(at for at, pair in enumerate(itertools.pairwise(words)) if pair == ("hf-mpwriter", "run"))
        end = words.index("--", begin)
        exported = [word.split("=", 1) for word in words[:begin] if word != "export"]
        return cls(tuple(words[begin + 2 : end]), tuple(words[end + 1 :]), dict(exported))

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
        command = shlex.split(
            re.sub(r"(--shutdown-timeout[= ])\d+", rf"\g<1>{max(1, int(seconds / 2))}", shlex.join(self.command))
        )
        return dataclasses.replace(self, options=tuple(options), command=tuple(command))

    def with_program(self, *arguments: object) -> list[str]:
        """The command, with other words in the place of `train.py`: options of torchrun before the program."""
        *words, last = self.command
        assert last == "train.py"
        return [*words, *map(str, arguments)]


def section(title: str) -> str:
    """The text below a title of the documents."""
    return TEXT.read_text().split(f"\n## {title}\n")[1].split("\n## ")[0]


def _code(text: str) -> list[str]:
    """The scripts in a text, in the order of the text."""
    blocks = re.findall(r"```bash\n(.*?)```|^    (\S[^\n]*)$", text, re.DOTALL | re.MULTILINE)
    return [(block or line).replace("\\\n", " ") for block, line in blocks]


def on_spot_nodes(node: int, nodes: int, ranks: int, head: str) -> Recipe:
    """For torchrun, on nodes with disks of their own if there is such a recipe."""
    *_, script = (script for script in _code(section("torchrun on spot nodes")) if "torchrun" in script)
    for pattern, number in (
        (r"(--nnodes=|HF_MPWRITER_NODES=)\d+", nodes),
        (r"(--nproc-per-node[= ]|LOCAL_WORLD_SIZE=)\d+", ranks),
    ):
        script = re.sub(pattern, rf"\g<1>{number}", script)
    return Recipe.of(shlex.split(Template(script).substitute(NODE=node, HEAD=head), comments=True))


def of_kubernetes() -> Recipe:
    """For a container with one process."""
    job = yaml.safe_load(section("Kubernetes").split("```yaml\n")[1].split("```")[0])
    (container,) = job["spec"]["template"]["spec"]["containers"]
    variables = {one["name"]: str(one["value"]) for one in container.get("env", ())}
    return dataclasses.replace(Recipe.of(container["command"]), environ=variables)


def batch_script() -> str:
    """For SLURM."""
    (script,) = (script for script in _code(section("SLURM")) if script.startswith("#!/bin/bash"))
    return script
