"""A program that trains with Accelerate, for test_accelerate: `accelerate_program.py SCENARIO...`.

What a scenario finds out beside what it logs, it prints as lines of JSON: [its name, ...].
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.tracking import register_tracker_class
from accelerate.utils import set_seed
from digits import Network, digits
from torch.utils.data import DataLoader

from hf_mpwriter import SummaryWriter
from hf_mpwriter.base.errors import HfMpWriterError
from hf_mpwriter.integrations.accelerate import HubTensorBoardTracker

STEPS = 6


def train(log_with: Any, name: str, first: int = 0, **options: Any) -> Accelerator:
    """Some steps from a first one on, all that a tracker can log, and an evaluation after the end."""
    set_seed(1)
    accelerator = Accelerator(log_with=log_with, project_dir=name, cpu=True)
    network = Network()
    optimizer = torch.optim.SGD(network.parameters(), 0.1)
    rows, _ = digits()
    batches = DataLoader(rows[: 16 * STEPS * accelerator.num_processes], 16)
    network, optimizer, batches = accelerator.prepare(network, optimizer, batches)
    config = {"rate": 0.1, "layers": 2, "name": "digits", "nesterov": False, "decay": None}
    accelerator.init_trackers("group/run", config, {"hf_mpwriter": options})
    for step, batch in enumerate(batches, first):
        loss = network(**batch)["loss"]
        accelerator.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
        values = {"loss": loss.item(), "first": first, "tensor": torch.tensor(0.5), "note": f"**{step}**"}
        accelerator.log(values | {"pair": {"a": step, "b": float(first)}}, step=step)
    if accelerator.is_main_process:
        after(accelerator, network, first + STEPS)
    return accelerator


def after(accelerator: Accelerator, network: Any, step: int) -> None:
    """Log after the loop, and with the writer itself, as users do."""
    (tracker,) = accelerator.trackers
    pictures = np.random.default_rng(1).integers(0, 255, (2, 8, 8, 3), dtype=np.uint8)
    tracker.log_images({"digits": pictures}, step, dataformats="NHWC")
    writer = accelerator.get_tracker(tracker.name, unwrap=True)
    for name, parameter in accelerator.unwrap_model(network).named_parameters():
        writer.add_histogram(name, parameter, step)
    tracker.tracker.add_image("digit", pictures[0], step, dataformats="HWC")
    accelerator.end_training()
    writer.add_scalar("evaluation", 0.5, step)
    writer.close()


def equal() -> None:
    """Run the same training with their tracker and with ours, by its name."""
    train("tensorboard", "theirs")
    accelerator = train("hf_mpwriter", "ours", repo_id="me/equal", live="me/board")
    print(json.dumps(["equal", isinstance(accelerator.get_tracker("hf_mpwriter", unwrap=True), SummaryWriter)]))


def others() -> None:
    """Pass the tracker as an instance and register it once more; neither names the destination."""
    os.environ |= {"HF_MPWRITER_REPO_ID": "me/others", "HF_MPWRITER_DISABLED": "1"}
    train(HubTensorBoardTracker("run", "instance", path_in_repo="logs"), "unused")
    register_tracker_class(HubTensorBoardTracker)
    accelerator = train("hf_mpwriter", "registered")
    found = accelerator.get_tracker("hf_mpwriter", unwrap=True)._destination
    print(json.dumps(["others", found.repo_id, found.path_in_repo]))
    del os.environ["HF_MPWRITER_REPO_ID"], os.environ["HF_MPWRITER_DISABLED"]


def refusals() -> None:
    """Wrong settings raise when the trackers are constructed."""
    accelerator = Accelerator(log_with="hf_mpwriter", project_dir="refused", cpu=True)
    for options in ({}, {"repo_id": "me/run", "colour": "red"}):
        try:
            accelerator.init_trackers("run", {}, {"hf_mpwriter": options})
        except (HfMpWriterError, TypeError) as error:
            print(json.dumps(["refusals", type(error).__name__, str(error)]))


def first() -> None:
    """Train the first attempt, with a checkpoint in its middle."""
    os.environ["HF_MPWRITER_DISABLED"] = "1"
    train("hf_mpwriter", "resumed", repo_id="me/resumed")


def second() -> None:
    """Resume from that checkpoint and deliver what the first attempt has left."""
    train("hf_mpwriter", "resumed", STEPS // 2, repo_id="me/resumed", purge_step=STEPS // 2)


SCENARIOS = {equal, others, refusals, first, second}

if __name__ == "__main__":
    for argument in sys.argv[1:]:
        {scenario.__name__: scenario for scenario in SCENARIOS}[argument]()
