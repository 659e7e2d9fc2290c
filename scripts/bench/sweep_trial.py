"""The programs that `sweep.py` starts: each prints what it measured as a line of JSON.

    one RUN_DIR REPO                        a trial; the monotonic time after its last call
    pool FOLDER REPO TRIALS                 trials in a Pool of 4, spawned; the seconds of each end
    blocks RUN_DIR REPO EPOCHS              a `with` block per epoch; the seconds of each end
    long RUN_DIR REPO MINUTES SECONDS       logs for so many seconds, with a commit every so many minutes; [FILE]: 4 MB
                                            a second from when there is this file
    idle RUN_DIR REPO                       logs once, and lives until its input ends
    lightning SAVE_DIR REPO                 a trial with Lightning's own names of run directories; where it was

CLOCK_MONOTONIC is that of the machine, so the time after a call can be compared with the time of an end.
"""

from __future__ import annotations

import functools
import json
import multiprocessing
import os
import sys
import time
from typing import Any

from hf_mpwriter import HFSummaryWriter

SCALARS = 20
POOL = 4  # processes
PACE = 0.25  # seconds between two records of a long run
CHUNK = 1_000_000  # bytes of each that is heavy


def trial(run_dir: str, repo: str) -> float:
    """Log a trial; the monotonic time after its last call."""
    with HFSummaryWriter(repo, logdir=run_dir) as writer:
        return log(writer)


def log(writer: Any) -> float:
    """Log what a trial logs; the monotonic time afterwards."""
    for step in range(SCALARS):
        writer.add_scalar("loss", 1 / (step + 1), step)
    return time.monotonic()


def end_of(run_dir: str, repo: str) -> float:
    """Log a trial; seconds of its end."""
    last = trial(run_dir, repo)
    return time.monotonic() - last


def pool(folder: str, repo: str, trials: str) -> list[float]:
    """Log trials in a Pool; seconds of each end."""
    run_dirs = [os.path.join(folder, f"trial{number:04d}") for number in range(int(trials))]
    with multiprocessing.get_context("spawn").Pool(POOL) as workers:
        return workers.map(functools.partial(end_of, repo=repo), run_dirs, chunksize=1)


def blocks(run_dir: str, repo: str, epochs: str) -> list[float]:
    """Log epochs, each in a block of its own; seconds of each end."""
    return [end_of(run_dir, repo) for _ in range(int(epochs))]


def long(run_dir: str, repo: str, minutes: str, seconds: str, heavy: str = "") -> None:
    """Log all the time."""
    with HFSummaryWriter(repo, logdir=run_dir, commit_every=float(minutes)) as writer:
        until, step = time.monotonic() + float(seconds), 0
        while time.monotonic() < until:
            writer.add_scalar("loss", 0.5, step)
            if heavy and os.path.exists(heavy):
                writer.add_text("noise", os.urandom(CHUNK // 2).hex(), step)
            step += 1
            time.sleep(PACE)


def idle(run_dir: str, repo: str) -> None:
    """Log once, and live on."""
    writer = HFSummaryWriter(repo, logdir=run_dir)
    writer.add_scalar("loss", 0.5, 0)
    sys.stdin.read()
    writer.close(wait=False)


def lightning(save_dir: str, repo: str) -> str:
    """Log a trial of Lightning; its run directory."""
    from hf_mpwriter.integrations.lightning import HubTensorBoardLogger

    logger = HubTensorBoardLogger(save_dir, repo_id=repo)
    log(logger.experiment)
    logger.experiment.close()
    return logger.log_dir


PROGRAMS = {"one": trial, "pool": pool, "blocks": blocks, "long": long, "idle": idle, "lightning": lightning}

if __name__ == "__main__":
    print(json.dumps(PROGRAMS[sys.argv[1]](*sys.argv[2:])), flush=True)
