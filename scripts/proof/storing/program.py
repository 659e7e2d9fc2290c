"""A training process of `storage.py`: it logs records of mixed size, notes which calls returned, and tells what it did.

    python program.py '{"logdir": ..., "journal": ..., "gates": ..., "first": 0, "last": 500, "half": 250,
                       "commit_every": 0.1, "pace": 0.002, "pause": 0}'

Each line of its output is JSON: {"built": seconds}, {"half": step}, {"pushed": true, "seconds": ...}, {"closed": ...}.
After "half" and "pushed" it waits for a file of that name among the gates; at the half it logs a scalar now and then.
`commit_every` is in minutes, `pace` seconds between two records after the half, `pause` after each hundredth.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import sys
import time
from pathlib import Path
from typing import Any

from hf_mpwriter import HFSummaryWriter
from hf_mpwriter.testing import Journal

PUSH_WAIT = 90.0  # seconds
PULSE = 0.1  # seconds between two at the half


def tell(**what: object) -> None:
    """Print a line of JSON."""
    print(json.dumps(what), flush=True)


def is_open(gates: Path, name: str) -> bool:
    """Whether what waits for a gate may go on."""
    return (gates / name).exists()


def log(writer: Any, rank: str, step: int, rng: random.Random) -> str:
    """Log one record; return its tag. Most are scalars; some have kilobytes, a few 100 kB."""
    if step % 50 == 7:
        writer.add_text(f"{rank}/long", rng.randbytes(50_000).hex(), step)
        return f"{rank}/long/text_summary"
    if step % 10 == 3:
        writer.add_text(f"{rank}/text", rng.randbytes(1_500).hex(), step)
        return f"{rank}/text/text_summary"
    if step % 10 == 5:
        writer.add_histogram(f"{rank}/histogram", [rng.gauss(0, 1) for _ in range(100)], step)
        return f"{rank}/histogram"
    writer.add_scalar(f"{rank}/loss", rng.random(), step)
    return f"{rank}/loss"


def main() -> None:
    """Log what the argument says."""
    told = json.loads(sys.argv[1])
    rank, gates = f"rank{os.environ['RANK']}", Path(told["gates"])
    rng = random.Random(f"{rank} {told['first']}")
    began = time.perf_counter()
    writer = HFSummaryWriter("me/run", logdir=told["logdir"], path_in_repo="run", commit_every=told["commit_every"])
    tell(built=time.perf_counter() - began)
    journal = Journal(told["journal"])
    for step in range(told["first"], told["last"]):
        if step == told["half"]:
            tell(half=step)
            for pulse in itertools.count():  # training goes on while it is looked at
                if is_open(gates, "half"):
                    break
                writer.add_scalar(f"{rank}/pulse", pulse, told["first"] * 10_000 + pulse)
                journal.note_at("", f"{rank}/pulse", told["first"] * 10_000 + pulse)
                time.sleep(PULSE)
        journal.note_at("", log(writer, rank, step, rng), step)
        if step > told["half"]:
            time.sleep(told["pause"] if told["pause"] and step % 100 == 99 else told["pace"])
    began = time.perf_counter()
    tell(pushed=writer.push(wait=PUSH_WAIT), seconds=time.perf_counter() - began)
    while not is_open(gates, "pushed"):
        time.sleep(0.02)
    began = time.perf_counter()
    writer.close(wait=True)
    tell(closed=time.perf_counter() - began)


if __name__ == "__main__":
    main()
