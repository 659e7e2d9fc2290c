"""A sweep: each trial is a run of its own in one repository, and one uploader sends them all.

    python sweep.py --repo-id me/sweep

A trial minimises a function by gradient descent, with a learning rate and a momentum. TensorBoard compares the trials
under HPARAMS.
"""

from __future__ import annotations

import argparse
import itertools
import math
from multiprocessing import Pool

from hf_mpwriter import HFSummaryWriter

RATES, MOMENTA, STEPS = (0.3, 0.1, 0.03, 0.01), (0.0, 0.9), 60


def trial(repo_id: str, rate: float, momentum: float) -> float:
    """Run one trial; its last loss."""
    with HFSummaryWriter(repo_id, logdir=f"runs/sweep/lr{rate}_momentum{momentum}") as writer:
        x, velocity, loss = 3.0, 0.0, math.inf
        for step in range(STEPS):
            loss = x * x + math.sin(5 * x) ** 2
            writer.add_scalar("loss", loss, step)
            velocity = momentum * velocity - rate * (2 * x + 5 * math.sin(10 * x))
            x += velocity / 10
        # in the directory of the trial, so that it has one row, and its curves
        writer.add_hparams({"lr": rate, "momentum": momentum}, {"last_loss": loss}, run_name=".")
    return loss


def main() -> None:
    """Run all trials, four at a time, and name the best one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repo-id", required=True, metavar="NAME", help="repository of all trials")
    repo_id = parser.parse_args().repo_id
    trials = [(repo_id, rate, momentum) for rate, momentum in itertools.product(RATES, MOMENTA)]
    with Pool(4) as pool:
        losses = pool.starmap(trial, trials, chunksize=1)
    loss, (_, rate, momentum) = min(zip(losses, trials, strict=True))
    print(f"best: lr {rate}, momentum {momentum}, last loss {loss:.3f}")


if __name__ == "__main__":
    main()
