"""A program that trains with Lightning, for test_lightning: `lightning_program.py SCENARIO...`.

What a scenario finds out beside what it logs, it prints as lines of JSON: [its name, ...].
"""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning as L  # noqa: N812 - as its documentation does
import pytorch_lightning
import torch
from digits import Network, digits
from lightning.fabric.loggers import CSVLogger
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from torch.utils.data import DataLoader

from hf_mpwriter.base.errors import HfMpWriterError
from hf_mpwriter.integrations.lightning import HubTensorBoardLogger

EPOCH = 6  # batches
QUIET = {"accelerator": "cpu", "log_every_n_steps": 1, "enable_progress_bar": False, "enable_model_summary": False}


class Steps:
    """What is trained, logged and tested, for a LightningModule of either package."""

    def __init__(self, optimizers: int, attempt: int) -> None:
        super().__init__()
        self.save_hyperparameters({"rate": 0.1, "layers": {"hidden": 32}})
        self.network = Network()
        self.example_input_array = torch.zeros(1, 64)
        self.attempt, self.optimizers_count = float(attempt), optimizers
        self.automatic_optimization = optimizers == 1

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """The logits."""
        return self.network.body(pixels)

    def loss(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """Of a batch."""
        return Network.loss(self(batch["pixels"]), batch["labels"])

    def training_step(self, batch: dict[str, torch.Tensor], _: int) -> torch.Tensor:
        """The loss, logged for each step and for each epoch, and a plot of two lines."""
        loss = self.loss(batch)
        self.log("loss", loss, on_step=True, on_epoch=True)
        self.log("attempt", self.attempt)
        pair = {"a": loss.item(), "b": self.attempt}
        self.logger.log_metrics({"pair": pair}, self.global_step // self.optimizers_count)
        if not self.automatic_optimization:
            self.manual_backward(loss)
            for optimizer in self.optimizers():
                optimizer.step()
                optimizer.zero_grad()
        return loss

    def validation_step(self, batch: dict[str, torch.Tensor], _: int) -> None:
        """The loss on the validation data."""
        self.log("validation", self.loss(batch))

    def test_step(self, batch: dict[str, torch.Tensor], _: int) -> None:  # noqa: PT019 - it is no fixture
        """The loss on the test data."""
        self.log("test", self.loss(batch))

    def on_validation_epoch_end(self) -> None:
        """Use the writer as people do."""
        writer = self.logger.experiment
        writer.add_histogram("weights", self.network.body[0].weight, self.current_epoch)
        writer.add_image("digit", torch.rand(1, 8, 8), self.current_epoch)

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        """Plain gradient descent; several optimizers share the parameters."""
        parameters, count = list(self.parameters()), self.optimizers_count
        return [torch.optim.SGD(parameters[part::count], 0.1) for part in range(count)]


class Digits(Steps, L.LightningModule):
    """Of `lightning`."""


class OtherDigits(Steps, pytorch_lightning.LightningModule):
    """Of `pytorch_lightning`."""


def loaders() -> tuple[DataLoader, DataLoader]:
    """Data to train on, and to validate on."""
    rows, others = digits()
    return DataLoader(rows[: 16 * EPOCH], 16), DataLoader(others, 64)


@contextlib.contextmanager
def without_hub() -> Iterator[None]:
    """Loggers constructed here keep what they log on disk."""
    os.environ["HF_MPWRITER_DISABLED"] = "1"
    yield
    del os.environ["HF_MPWRITER_DISABLED"]


def fit(logger: Any, package: Any = L, optimizers: int = 1, attempt: int = 1, **options: Any) -> Any:
    """Train for two epochs; return the trainer."""
    ckpt_path = options.pop("ckpt_path", None)
    package.seed_everything(1, verbose=False)
    trainer = package.Trainer(logger=logger, **{"max_epochs": 2, "enable_checkpointing": False} | QUIET | options)
    module = (Digits if package is L else OtherDigits)(optimizers, attempt)
    trainer.fit(module, *loaders(), ckpt_path=ckpt_path)
    return trainer


def whole(logger: Any, package: Any = L) -> None:
    """Use a logger as people do: fit, test, histograms of everything, metrics of hyper-parameters."""
    writer = logger.experiment
    writer.add_text("notes", "before", 0)
    trainer = fit(logger, package)
    trainer.test(trainer.lightning_module, loaders()[1], verbose=False)
    for name, parameter in trainer.lightning_module.named_parameters():
        writer.add_histogram(name, parameter, trainer.global_step)
    logger.log_hyperparams({"rate": 0.1, "shape": torch.ones(2, 2)}, {"accuracy": 0.5}, 3)
    logger.log_metrics({"tensor": torch.tensor(0.25), "integer": 3})
    logger.finalize("success")


def equal() -> None:
    """The same use with their logger, with ours, and with ours under the Trainer of the other package."""
    same: dict[str, Any] = {"name": "digits", "log_graph": True, "prefix": "p"}
    whole(TensorBoardLogger("theirs", **same))
    whole(HubTensorBoardLogger("ours", repo_id="me/equal", **same))
    with without_hub():
        whole(HubTensorBoardLogger("other", repo_id="me/other", **same), pytorch_lightning)


def elsewhere() -> None:
    """Go on with that run, on another machine."""
    logger = HubTensorBoardLogger("ours", "digits", 0, repo_id="me/equal")
    logger.log_metrics({"more": 1.0}, 100)
    logger.finalize("success")


def fabric() -> None:
    """Two loggers beside each other, a resume, whose step Fabric's user knows, and graphs of two kinds of modules."""
    for first in (0, 3):
        beside = CSVLogger("csv", "digits", first, flush_logs_every_n_steps=1)
        options: dict[str, Any] = {"sub_dir": "a/b", "purge_step": first or None, "repo_id": "me/fabric"}
        options["live"] = "me/board"
        ours = HubTensorBoardLogger("fabric", "digits", 0, **options)
        using = L.Fabric(accelerator="cpu", loggers=[ours, beside])
        for step in range(first, 6):
            using.log("loss", torch.tensor(0.5 + step), step)
            using.log_dict({"first": first, "half": 0.5}, step)
        for logger in using.loggers:
            logger.finalize("success")
    with without_hub():
        for model in (Digits(1, 1), Network().body):
            HubTensorBoardLogger("graphs", repo_id="me/graphs").log_graph(model, torch.zeros(1, 64))


def folders() -> None:
    """Every way to name a run: its directory with theirs and with ours, and its destination."""
    home = Path.cwd()
    os.environ |= {"HOME": str(home), "RUNS": str(home / "named"), "HF_MPWRITER_REPO_ID": "me/folders"}
    ways: list[dict[str, Any]] = [
        {"save_dir": home / "runs"},
        {"save_dir": str(home / "runs")},
        {"save_dir": "runs", "version": 7},
        {"save_dir": "runs"},
        {"save_dir": "runs", "version": "best"},
        {"save_dir": "runs", "version": "best", "sub_dir": "a/b"},
        {"save_dir": "runs", "name": "", "version": "nameless"},
        {"save_dir": "runs", "name": None},
        {"save_dir": "runs", "name": "group/digits"},
        {"save_dir": "~/at_home"},
        {"save_dir": "$RUNS"},
        {"save_dir": "runs", "repo_id": "me/named", "path_in_repo": "logs"},
    ]
    with without_hub():
        for way in ways:
            theirs = TensorBoardLogger(**{name: way[name] for name in way if "repo" not in name}).log_dir
            ours = HubTensorBoardLogger(**way)
            ours.log_metrics({"loss": 0.5}, 1)
            found = ours.experiment._destination
            assert found is not None
            places = [os.path.relpath(place, home) for place in (theirs, ours.experiment.log_dir)]
            print(json.dumps(["folders", *places, found.repo_id, found.path_in_repo]))
    del os.environ["HF_MPWRITER_REPO_ID"]


def refusals() -> None:
    """Wrong settings raise when the logger is constructed."""
    for save_dir, options in (
        ("runs", {}),
        ("runs", {"repo_id": "me/run", "colour": "red"}),
        ("hf://me/runs", {"repo_id": "me/run"}),
    ):
        try:
            HubTensorBoardLogger(save_dir, **options)
        except (HfMpWriterError, TypeError) as error:
            print(json.dumps(["refusals", type(error).__name__, str(error)]))


def pickled() -> None:
    """Pickle a logger that has a token."""
    logger = HubTensorBoardLogger("runs", repo_id="me/run", token="hf_secret", commit_every=2.0)
    kept = pickle.dumps(logger)
    print(json.dumps(["pickled", b"hf_secret" in kept, pickle.loads(kept)._kwargs]))  # noqa: S301 - our own


class Started(Callback):
    """Log when a fit starts."""

    def __init__(self) -> None:
        self.calls = 0

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Log at the step of the checkpoint; a request for a graph does not call this hook again."""
        self.calls += 1
        assert self.calls == 1
        trainer.logger.log_graph(pl_module)
        if pl_module.automatic_optimization:
            trainer.logger.experiment.add_scalar("started", trainer.global_step, trainer.global_step)


RESUMED: dict[str, tuple[Any, int, dict[str, int]]] = {  # run -> package, optimizers, when a checkpoint is written
    "middle": (L, 1, {"every_n_train_steps": 4}),
    "epoch": (L, 1, {}),
    "between": (pytorch_lightning, 1, {"every_n_train_steps": EPOCH}),
    "two": (L, 2, {"every_n_train_steps": 8}),
}


def attempt(number: int, run: str) -> None:
    """Train a run from its start, or in another process from its first checkpoint."""
    package, optimizers, when = RESUMED[run]
    checkpoints = Path("checkpoints", run)
    found = sorted(checkpoints.glob("*.ckpt"), key=lambda path: path.stat().st_mtime)
    kind = ModelCheckpoint if package is L else pytorch_lightning.callbacks.ModelCheckpoint
    fit(
        HubTensorBoardLogger("resumed", "", run, repo_id="me/resumed"),
        package,
        optimizers,
        number,
        callbacks=[kind(checkpoints, filename="{epoch}-{step}", save_top_k=-1, **when), Started()],
        enable_checkpointing=True,
        ckpt_path=found[0] if found else None,
    )


def first() -> None:
    """Train the first attempts."""
    with without_hub():
        for run in RESUMED:
            attempt(1, run)


def second() -> None:
    """Train the second attempts; one of them delivers what the first has left."""
    attempt(2, "middle")
    with without_hub():
        for run in ("epoch", "between", "two"):
            attempt(2, run)


def without_checkpoint() -> None:
    """A trainer that has resumed before and fits again, and two that start afresh in one version."""
    with without_hub():
        logger = HubTensorBoardLogger("resumed", "", "again", repo_id="me/resumed")
        trainer = fit(logger, max_epochs=1, callbacks=[ModelCheckpoint("checkpoints/again")], enable_checkpointing=True)
        for epochs, path in ((2, "checkpoints/again/epoch=0-step=6.ckpt"), (3, None)):
            trainer.fit_loop.max_epochs = epochs
            trainer.fit(trainer.lightning_module, *loaders(), ckpt_path=path)
            logger.log_metrics({"later": epochs}, 100)
        for number in (1, 2):
            fit(HubTensorBoardLogger("resumed", "", "anew", repo_id="me/resumed"), attempt=number, max_epochs=1)


def ddp_fork() -> None:
    """Train in two forked processes, and test in two others."""
    with without_hub():
        logger = HubTensorBoardLogger("ranks", "", "ddp_fork", repo_id="me/ddp_fork")
        trainer = fit(logger, strategy="ddp_fork", devices=2)
        trainer.test(trainer.lightning_module, loaders()[1], verbose=False)


def ddp_spawn() -> None:
    """Train in a spawned process; the logger that was used before is pickled for it, and used again afterwards."""
    logger = HubTensorBoardLogger("ranks", "", "ddp_spawn", repo_id="me/ddp_spawn")
    logger.log_hyperparams({"rate": 0.1})
    fit(logger, strategy="ddp_spawn", devices=1)
    logger.log_metrics({"later": 1.0}, 100)


SCENARIOS = {equal, elsewhere, fabric, folders, refusals, pickled, first, second}
SCENARIOS |= {without_checkpoint, ddp_fork, ddp_spawn}

if __name__ == "__main__":
    for argument in sys.argv[1:]:
        {scenario.__name__: scenario for scenario in SCENARIOS}[argument]()
