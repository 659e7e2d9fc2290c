"""One rank of a run that `upload.py` measures: a fresh interpreter that runs the same lines with either library.

It imports nothing beside the library that is measured, so that what it costs is the cost of that library.
"""

from __future__ import annotations

import json
import logging
import math
import random
import sys
import time
from typing import Any

OURS = "ours"
REPO = "bench/upload"
SCALAR_BYTES = 49  # of the event of one scalar
NEVER = 1e6  # minutes between two commits: each is made on request


def work(library: str, logdir: str, unit: int, images: float, rank: int) -> None:
    """Execute the requests on standard input, then report the CPU seconds."""
    logging.getLogger("hf_mpwriter").setLevel(logging.ERROR)
    sys.modules["torch"] = None  # type: ignore[assignment]  # tensorboardX would spend a second or more on importing it
    import numpy as np

    if library == OURS:
        from hf_mpwriter import HFSummaryWriter
    else:
        from huggingface_hub import HFSummaryWriter
    start, logged = time.process_time(), 0.0
    rng, noise, side = random.Random(rank), np.random.default_rng(rank), int(math.sqrt(unit * images / 3))
    scalars, step = int(unit * (1 - images)) // SCALAR_BYTES, 0
    writer: Any
    with HFSummaryWriter(REPO, logdir=logdir, commit_every=NEVER, repo_private=True) as writer:
        _reply()
        for line in sys.stdin:
            before = time.process_time()
            if line == "log\n":
                for _ in range(scalars):
                    writer.add_scalar("train/loss", rng.random(), step)
                    step += 1
                if side:
                    writer.add_image("noise", noise.integers(0, 256, (3, side, side), dtype=np.uint8), step)
                writer.flush()
                logged += time.process_time() - before
            else:
                writer.scheduler.trigger().result()
            _reply()
    _reply({"start": start, "logging": logged})


def _reply(data: dict[str, float] | None = None) -> None:
    print(json.dumps(data or {}), flush=True)


if __name__ == "__main__":
    _library, _logdir, _unit, _images, _rank = sys.argv[1:]
    work(_library, _logdir, int(_unit), float(_images), int(_rank))
