"""One rank of the demo: it trains a small network on scikit-learn's handwritten digits, and logs that.

    RANK=2 LOCAL_RANK=2 WORLD_SIZE=4 python -m hf_mpwriter.demo.training DIRECTORY STEPS PACE PARENT

    begins at step 0                        on standard output: first step of this life
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
from hf_mpwriter.demo.stage import REPO, Folder
from hf_mpwriter.testing import Journal

LEARNING_RATES = (0.02, 0.1, 0.5, 1.0)  # by rank
COMMIT_EVERY = 0.1  # minutes between two commits
EXIT_TIMEOUT = 30.0  # seconds that the end of a rank may wait for the Hub
CHECKPOINT_EVERY = 25  # steps between two checkpoints
EVALUATE_EVERY = 10  # steps between two evaluations
PICTURE_EVERY = 40  # steps between two images, histograms and texts
HIDDEN = 32  # units of the hidden layer
BATCH = 64  # images of a step
HELD_OUT = 360  # images for the evaluation

Array = NDArray[Any]


class Network:
    """64 pixels -> 32 tanh units -> 10 digits, trained by gradient descent."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.weights = [
            rng.normal(0, 0.1, (64, HIDDEN)),
            np.zeros(HIDDEN),
            rng.normal(0, 0.1, (HIDDEN, 10)),
            np.zeros(10),
        ]

    def forward(self, images: Array) -> tuple[Array, Array]:
        """The activations of the hidden units, and the probability of each digit."""
        first, first_bias, second, second_bias = self.weights
        hidden = np.tanh(images @ first + first_bias)
        logits = hidden @ second + second_bias
        powers = np.exp(logits - logits.max(axis=1, keepdims=True))
        return hidden, powers / powers.sum(axis=1, keepdims=True)

    def train(self, images: Array, digits: Array, rate: float) -> tuple[float, float]:
        """Make one step; returns loss and accuracy on the batch."""
        hidden, chances = self.forward(images)
        rows = np.arange(len(digits))
        loss = float(-np.log(chances[rows, digits] + 1e-12).mean())
        accuracy = float((chances.argmax(axis=1) == digits).mean())
        error = chances.copy()
        error[rows, digits] -= 1
        error /= len(digits)
        back = (error @ self.weights[2].T) * (1 - hidden**2)
        gradients = [images.T @ back, back.sum(axis=0), hidden.T @ error, error.sum(axis=0)]
        self.weights = [weight - rate * gradient for weight, gradient in zip(self.weights, gradients, strict=True)]
        return loss, accuracy

    def save(self, path: str, step: int) -> None:
        """Save a checkpoint, whole or not at all."""
        with open(path + ".new", "wb") as file:
            np.savez(file, *self.weights, step=step)
        os.replace(path + ".new", path)

    def resume(self, path: str) -> int:
        """Load the checkpoint; returns the next step, 0 without a checkpoint."""
        if not os.path.exists(path):
            return 0
        with np.load(path) as saved:
            self.weights = [saved[f"arr_{index}"] for index in range(len(self.weights))]
            return int(saved["step"])


def log_weights(writer: HFSummaryWriter, journal: Journal, weights: Array, step: int) -> None:
    """Log the weights of the hidden units as an image and as a histogram."""
    tiles = (weights - weights.min()) / (np.ptp(weights) + 1e-12)
    grid = tiles.T.reshape(4, 8, 8, 8).swapaxes(1, 2).reshape(32, 64)  # 4 x 8 units of 8 x 8 pixels
    writer.add_image("hidden_units", grid, step, dataformats="HW")
    journal.note(writer, "hidden_units", step)
    writer.add_histogram("first_layer", weights, step)
    journal.note(writer, "first_layer", step)


def mistakes(answers: Array, digits: Array) -> str:
    """Describe wrong answers."""
    wrong = np.flatnonzero(answers != digits)
    examples = ", ".join(f"a {digits[i]} taken for a {answers[i]}" for i in wrong[:5])
    return f"{len(wrong)} of {len(digits)} wrong" + (f": {examples}" if examples else "")


def train(place: Folder, rank: int, steps: int, pace: float, parent: int) -> None:
    """Train from the checkpoint to the end, and wait until all is on the Hub."""
    images, digits = load_digits(return_X_y=True)
    images = images / 16.0
    rate, network = LEARNING_RATES[rank], Network(np.random.default_rng(rank))
    first = network.resume(place.checkpoint(rank))
    print(f"begins at step {first}", flush=True)
    with HFSummaryWriter(
        REPO, logdir=place.run_dir, commit_every=COMMIT_EVERY, purge_step=first or None, exit_timeout=EXIT_TIMEOUT
    ) as writer:
        journal = Journal(place.journals)
        for step in range(first, steps):
            if os.getppid() != parent:  # the demo was killed
                os._exit(1)
            batch = np.random.default_rng([rank, step]).integers(HELD_OUT, len(images), BATCH)
            loss, accuracy = network.train(images[batch], digits[batch], rate)
            metrics = {"train/loss": loss, "train/accuracy": accuracy}
            answers = network.forward(images[:HELD_OUT])[1].argmax(axis=1)
            if step % EVALUATE_EVERY == 0 or step == steps - 1:
                metrics["test/accuracy"] = float((answers == digits[:HELD_OUT]).mean())
            writer.log(metrics, step)
            journal.note_step(writer, metrics, step)
            if step % PICTURE_EVERY == 0:
                log_weights(writer, journal, network.weights[0], step)
                writer.add_text("mistakes", mistakes(answers, digits[:HELD_OUT]), step)
                journal.note(writer, "mistakes/text_summary", step)
            if (step + 1) % CHECKPOINT_EVERY == 0:
                network.save(place.checkpoint(rank), step + 1)
            print(f"step {step + 1} loss {loss:.2f} accuracy {accuracy:.2f}", flush=True)
            time.sleep(pace)


if __name__ == "__main__":
    train(Folder(sys.argv[1]), int(os.environ["RANK"]), int(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4]))
