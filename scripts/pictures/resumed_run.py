#!/usr/bin/env python3
"""Take the picture of a run that was killed and resumed, as TensorBoard shows it on the Hub.

    scripts/pictures/resumed_run.py        half a minute; needs chromium, see ./scripts/packages

A process logs a loss to a local Hub and is killed at step KILLED_AT. Another one resumes at the checkpoint, with other
noise: where steps of both were shown, the curve would be double. Writes docs/images/resumed_run.png.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from lib.arguments import make_parser
from lib.isolation import variables
from lib.pictures import chart, charts, save
from lib.waiting import wait_for

from hf_mpwriter.localhub import LocalHub

RESUMED_AT, KILLED_AT, STEPS = 120, 170, 300
TRAIN = """
import math, os, random, signal, sys
from hf_mpwriter import HFSummaryWriter

first, killed_at, steps = map(int, sys.argv[1:])
noise = random.Random(first)
with HFSummaryWriter("me/run", logdir="runs/exp1", purge_step=first or None) as writer:
    for step in range(first, steps):
        writer.add_scalar("loss", 0.2 + 2 * math.exp(-step / 60) + noise.uniform(-0.05, 0.05), step)
        if step == killed_at:
            writer.push()
            os.kill(os.getpid(), signal.SIGKILL)
"""


def train(directory: Path, env: dict[str, str], first: int) -> int:
    """Run one life of the training; its exit code."""
    command = [sys.executable, "-c", TRAIN, *map(str, (first, 0 if first else KILLED_AT, STEPS))]
    return subprocess.run(command, cwd=directory, env=env, check=False).returncode


def main() -> None:
    """Train, kill, resume, and take the picture."""
    from browser import browser

    make_parser(__doc__).parse_args()
    with tempfile.TemporaryDirectory() as name, LocalHub(Path(name) / "hub") as hub:
        env = os.environ | variables(Path(name)) | {"HF_ENDPOINT": hub.endpoint}
        if train(Path(name), env, 0) != -signal.SIGKILL or train(Path(name), env, RESUMED_AT) != 0:
            raise SystemExit("training did not go as it should")
        with browser(1000, 800) as driver:
            driver.get(f"{hub.endpoint}/me/run/tensorboard/board/#scalars&_smoothingWeight=0")
            wait_for(lambda: charts(driver).get("loss"), "the chart")
            save(chart(driver), "resumed_run.png")


if __name__ == "__main__":
    main()
