"""The examples, of frameworks and of plain torch, on two ranks, killed and resumed, against a local Hub."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from frameworks import LIMIT, command, frameworks, kill, needs, running, shown, train
from programs import wait_for
from repository import EXAMPLES
from runs import check_oracle
from tensorboard_server import tensorboard

pytestmark = needs("accelerate", "lightning", "transformers")
__all__ = ["frameworks"]  # a fixture
RANKS = 2  # one rank is in the tests of each framework
BATCHES = -(-1500 // (16 * RANKS))  # per epoch and rank: 1500 digits, 16 at once


@dataclass(frozen=True)
class Example:
    """An example, and what its test needs of it."""

    framework: str  # names the script and the output directory
    runs: str  # pattern of the run directory
    folder: str  # where run directories are on the Hub
    checkpoints: str  # pattern of the files of a whole checkpoint; the last number is its step or epoch
    tag: str  # of the loss
    first: int  # step that is logged first
    every: int  # steps from one log to the next
    counts_epochs: bool = False  # whether that number is of epochs, not of steps
    by_torchrun: bool = True  # whether torchrun starts the ranks, not the script

    @property
    def script(self) -> Path:
        """Its path."""
        return EXAMPLES / f"train_{self.framework}.py"

    def arguments(self, epochs: int) -> list[object]:
        """Of the script."""
        options = {"transformers": ["--all-ranks"], "lightning": ["--devices", RANKS], "ddp_spawn": ["--ranks", RANKS]}
        more = options.get(self.framework, [])
        return ["--repo-id", "me/digits", "--output", "out", "--epochs", epochs, *more]

    @property
    def ranks(self) -> int:
        """How many ranks torchrun starts."""
        return RANKS if self.by_torchrun else 1

    def steps(self, end: int) -> list[int]:
        """The steps that are logged of so many; an example that counts from 1 logs the last one too."""
        return [step for step in range(self.first, end + 1, self.every) if step < end or self.first == self.every]

    def saved(self, output: Path) -> int:
        """The steps before the last whole checkpoint, 0 if there is none."""
        numbers = [int(re.findall(r"\d+", str(path.relative_to(output)))[-1]) for path in output.glob(self.checkpoints)]
        return max(numbers, default=0) * (BATCHES if self.counts_epochs else 1)


LIST = [
    Example("transformers", "_tensorboard/*", "tensorboard", "checkpoint-*/trainer_state.json", "train/loss", 5, 5),
    Example("accelerate", "run", "tensorboard", "after-*[0-9]", "loss", 0, 1, counts_epochs=True),
    Example("lightning", "runs/1", "tensorboard/runs", "checkpoints/epoch=*.ckpt", "loss", 4, 5, by_torchrun=False),
    Example("ddp_spawn", "run", "tensorboard", "after-*[0-9].pt", "loss", 0, 1, counts_epochs=True, by_torchrun=False),
]


def points(run_dir: Path, tag: str) -> dict[str, list[int]]:
    """The steps that TensorBoard's Python reader shows, per run."""
    return {run: [step for step, _ in tags[tag]] for run, tags in shown(run_dir).items() if tag in tags}


@contextmanager
def standing(process: subprocess.Popen) -> Iterator[None]:
    """Stop a launcher and its ranks for a moment."""
    parent = psutil.Process(process.pid)
    parent.suspend()
    family = [*parent.children(recursive=True), parent]
    try:
        for member in family:
            with suppress(psutil.NoSuchProcess):
                member.suspend()
        yield
    finally:
        for member in family:
            with suppress(psutil.NoSuchProcess):
                member.resume()


def kill_amid_training(process: subprocess.Popen, example: Example, output: Path) -> int:
    """Kill launcher and ranks when events follow a whole checkpoint; return the steps before it."""

    def killed() -> int:
        assert process.poll() is None, (output.parent / "log").read_text()[-3000:]
        if not example.saved(output):
            return 0
        with standing(process):
            saved = example.saved(output)
            runs = [points(run, example.tag) for run in output.glob(example.runs)]
            logged = max((steps[-1] for run in runs for steps in run.values()), default=0)
            if logged >= saved + example.every:
                kill(process)
                return saved
        return 0

    return wait_for(killed, "events after a checkpoint", LIMIT)


@pytest.mark.parametrize("example", LIST, ids=lambda example: example.framework)
def test_an_example_goes_on_after_a_kill(example, frameworks, monkeypatch, tmp_path):
    """Two ranks are killed during training and started again: all steps are shown once, and all is on the Hub."""
    if example.framework == "accelerate":
        monkeypatch.setenv("PYTHONPATH", str(EXAMPLES))  # with the digits of scikit-learn
    output = tmp_path / "out"
    first = command(example.script, *example.arguments(1000), ranks=example.ranks)
    with open(tmp_path / "log", "wb") as log, running(first, cwd=tmp_path, stdout=log, stderr=log) as process:
        saved = kill_amid_training(process, example, output)
    epochs = saved // BATCHES + 2
    train(example.script, *example.arguments(epochs), cwd=tmp_path, ranks=example.ranks)
    (run_dir,) = output.glob(example.runs)
    report = check_oracle(run_dir, frameworks, repo="me/digits", folder=f"{example.folder}/{run_dir.name}")
    assert len([path for path in report.files if "/" not in path]) >= 2, "one event file of each attempt"
    expected = example.steps(epochs * BATCHES)
    runs = {".", "rank_00001"} if example.framework in ("transformers", "ddp_spawn") else {"."}
    assert points(run_dir, example.tag) == dict.fromkeys(runs, expected)
    assert {path.name for path in run_dir.glob("*_0*")} == runs - {"."}, "no other process has left anything"
    with tensorboard(run_dir) as ask:
        for run in runs:
            shows = lambda run=run: ask("plugin/scalars/scalars", run=run, tag=example.tag) or []  # noqa: E731 - short
            wait_for(lambda shows=shows: [point[1] for point in shows()] == expected, f"TensorBoard shows {run}")
