"""A rank under attack: `rank.py RUN_DIR SECONDS JOURNAL`, a training that logs, again and again with a new writer.

It prints one line of JSON when it ends: how many calls, the longest of them, how many writers were built and refused.
Nothing but a constructor may raise.
"""

from __future__ import annotations

import json
import random
import sys
import time

from hf_mpwriter import HFSummaryWriter
from hf_mpwriter.base.errors import HfMpWriterError

PATTERNS = ["*.tfevents.*", "*.txt"]
PAUSE = 0.005  # seconds between two events
WRITER = (1.0, 4.0)  # seconds that a writer is used
REFUSED = 0.05  # seconds until a constructor is tried again


def main() -> None:
    """Log until the time is over."""
    run_dir, seconds, end_of_line = sys.argv[1], float(sys.argv[2]), sys.argv[3]
    rng, end = random.Random(end_of_line), time.monotonic() + seconds
    found = {"calls": 0, "longest": 0.0, "built": 0, "refused": 0}

    def timed(call: object, *arguments: object) -> object:
        before = time.monotonic()
        result = call(*arguments)  # type: ignore[operator]
        found["calls"] += 1
        found["longest"] = max(found["longest"], time.monotonic() - before)
        return result

    while time.monotonic() < end:
        try:
            writer = HFSummaryWriter(
                "me/run", logdir=run_dir, commit_every=0.005, exit_timeout=2, repo_allow_patterns=PATTERNS
            )
        except HfMpWriterError:
            found["refused"] += 1
            time.sleep(REFUSED)
            continue
        found["built"] += 1
        change = time.monotonic() + rng.uniform(*WRITER)
        step = 0
        while time.monotonic() < min(change, end):
            timed(writer.add_scalar, f"{end_of_line}/loss", rng.random(), step)
            if step % 50 == 1:
                timed(writer.add_text, f"{end_of_line}/text", "x" * 100, step)
                timed(writer.add_scalars, f"{end_of_line}/both", {"a": 1.0, "b": 2.0}, step)
                timed(writer.flush)
            if step % 70 == 2:
                timed(writer.push)
            step += 1
            time.sleep(PAUSE)
        timed(writer.close)
    print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
