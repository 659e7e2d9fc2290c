"""One rank of the demo: it trains a small network on scikit-learn's handwritten digits, and logs that.

    begins at step 0                        in its log: first step of this life
    step 1 loss 2.30 accuracy 0.11          and one line per step

Each rank has a learning rate of its own. It saves a checkpoint every CHECKPOINT_EVERY steps and resumes from it. The
steps between a checkpoint and a kill are logged twice; `purge_step` makes TensorBoard show the second time only. Each
call that returned is noted in a journal, so the oracle knows what has to be on the Hub.
"""

from __future__ import annotations

import os
import sys
import time
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_digits

from hf_mpwriter import HFSummaryWriter
from hf_mpwriter.demo.stage import PACE, REPO, STEPS, Folder
from hf_mpwriter.system import launch
from hf_mpwriter.testing import Journal

LEARNING_RATES = (0.02, 0.1, 0.5, 1.0)  # by rank
COMMIT_EVERY = 1.0  # minutes between two commits; what is live goes every few seconds
EXIT_TIMEOUT = 120.0  # seconds that the end of a rank may wait for the Hub
CHECKPOINT_EVERY = 25  # steps between two checkpoints
EVALUATE_EVERY = 20  # steps between two evaluations, with an image, a histogram and a text
BATCH = 64  # images of a step
HELD_OUT = 360  # images for the evaluation

Array = NDArray[Any]


class Network:
    """64 pixels -> 10 digits, trained by gradient descent."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.weights = rng.normal(0, 0.1, (65, 10))  # the last row is the bias

    def chances(self, images: Array) -> Array:
        """The probability of each digit."""
        powers: Array = np.exp(images @ self.weights[:-1] + self.weights[-1])
        powers /= powers.sum(axis=1, keepdims=True)
        return powers

    def train(self, images: Array, digits: Array, rate: float) -> tuple[float, float]:
        """Make one step; returns loss and accuracy on the batch."""
        chances = self.chances(images)
        error = (chances - np.eye(10)[digits]) / len(digits)
        self.weights -= rate * np.vstack([images.T @ error, error.sum(axis=0)])
        loss = -np.log(chances[np.arange(len(digits)), digits] + 1e-12).mean()
        return float(loss), float((chances.argmax(axis=1) == digits).mean())

    def save(self, path: str, step: int) -> None:
        """Save a checkpoint, whole or not at all."""
        with open(path + ".new", "wb") as file:
            np.savez(file, weights=self.weights, step=step)
        os.replace(path + ".new", path)

    def resume(self, path: str) -> int:
        """Load the checkpoint; returns the next step, 0 without a checkpoint."""
        if not os.path.exists(path):
            return 0
        with np.load(path) as saved:
            self.weights = saved["weights"]
            return int(saved["step"])


def evaluate(writer: HFSummaryWriter, journal: Journal, weights: Array, answers: Array, step: int) -> None:
    """Log the weights as an image and as a histogram, and the answers as a text."""
    tiles = (weights[:-1] - weights.min()) / (np.ptp(weights) + 1e-12)
    grid = tiles.T.reshape(2, 5, 8, 8).swapaxes(1, 2).reshape(16, 40)  # 2 x 5 digits of 8 x 8 pixels
    writer.add_image("weights_as_image", grid, step, dataformats="HW")
    writer.add_histogram("weights", weights, step)
    writer.add_text("answers", " ".join(map(str, answers[:20])), step)
    for tag in ("weights_as_image", "weights", "answers/text_summary"):
        journal.note(writer, tag, step)


def train(place: Folder, rank: int) -> None:
    """Train a rank to its last step; its end waits until all of it is on the Hub."""
    images, digits = load_digits(return_X_y=True)
    images = images / 16.0
    rate, network = LEARNING_RATES[rank], Network(np.random.default_rng(rank))
    first = network.resume(place.checkpoint(rank))
    print(f"begins at step {first}", flush=True)
    with HFSummaryWriter(
        REPO,
        logdir=place.run_dir,
        commit_every=COMMIT_EVERY,
        live=True,
        purge_step=first or None,
        exit_timeout=EXIT_TIMEOUT,
    ) as writer:
        journal = Journal(place.journals)
        for step in range(first, STEPS):
            batch = np.random.default_rng([rank, step]).integers(HELD_OUT, len(images), BATCH)
            loss, accuracy = network.train(images[batch], digits[batch], rate)
            metrics = {"train/loss": loss, "train/accuracy": accuracy}
            if step % EVALUATE_EVERY == 0:
                answers = network.chances(images[:HELD_OUT]).argmax(axis=1)
                metrics["test/accuracy"] = float((answers == digits[:HELD_OUT]).mean())
                evaluate(writer, journal, network.weights, answers, step)
            writer.log(metrics, step)
            journal.note_step(writer, metrics, step)
            if (step + 1) % CHECKPOINT_EVERY == 0:
                network.save(place.checkpoint(rank), step + 1)
            print(f"step {step + 1} loss {loss:.2f} accuracy {accuracy:.2f}", flush=True)
            time.sleep(PACE)


def main() -> None:
    """Entry point of the process, see `system/launch`; it ends with the demo."""
    launch.answer()
    launch.read_record()
    train(Folder(sys.argv[1]), int(os.environ["RANK"]))
