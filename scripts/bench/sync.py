"""Measure `hf-mpwriter sync` of a folder beside `hf upload` of the same, against a local Hub that discards content.

    python scripts/bench/sync.py
    python scripts/bench/sync.py --rounds 1 --only many

Both take turns, each time with a new Hub and caches of its own. The files were finished an hour ago, and are on the
disk. Processor is that of all processes of a command, uploader and pushes included, without the Hub. Memory is their
greatest sum; shared pages in proportion.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from lib.isolation import variables
from lib.marked import marked

from hf_mpwriter.events import framing
from hf_mpwriter.localhub import LocalHub

RECORD = 16 << 10  # bytes of noise in one record
SETS = {"one": (1, 600_000_000), "some": (100, 6_000_000), "many": (3000, 20_000)}  # files, bytes of each
SAMPLE = 0.1  # seconds between two samples of the memory
MARK = "HF_MPWRITER_BENCH_MARK"
HOUR = 3600.0  # seconds
PR_SET_CHILD_SUBREAPER = 36


@dataclass(frozen=True)
class Cost:
    """What a command took."""

    seconds: float  # until it ended
    processor: float  # seconds, of all its processes until the last one ended
    memory: float  # MB, of all its processes at a time


def make(folder: Path, files: int, size: int) -> None:
    """Write event files of another writer, each in a directory of its own."""
    for number in range(files):
        place = folder / f"run{number:04d}"
        place.mkdir(parents=True)
        path = place / "events.out.tfevents.1700000000.theirs"
        with path.open("wb") as file:
            file.write(framing.frame(framing.version_event(1.0)))
            while (left := size - file.tell()) > 0:
                file.write(framing.frame(os.urandom(min(RECORD, left))))
        then = time.time() - HOUR
        os.utime(path, (then, then))
    os.sync()


def measure(command: list[str], env: dict[str, str]) -> Cost:
    """Run a command to its end."""
    mark = uuid.uuid4().hex
    peak, over = [0.0], threading.Event()

    def sample() -> None:
        while not over.wait(SAMPLE):
            peak[0] = max(peak[0], sum(map(pss, marked(f"{MARK}={mark}"))))

    thread = threading.Thread(target=sample)
    thread.start()
    before, started = processor(), time.monotonic()
    try:
        done = subprocess.run(command, env=env | {MARK: mark}, capture_output=True, text=True, check=False)
    finally:
        seconds = time.monotonic() - started
        over.set()
        thread.join()
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}: {done.stderr}")
    while list(marked(f"{MARK}={mark}")):  # the uploader leaves
        time.sleep(SAMPLE)
    with contextlib.suppress(ChildProcessError):  # its orphans have become our children
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    return Cost(seconds, processor() - before, peak[0])


def processor() -> float:
    """Seconds of processor that the processes have used that were collected here, and those that they collected."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def pss(pid: int) -> float:
    """The memory of a process in MB, 0 if it has ended."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024 / 1e6
    return 0.0


def commands(folder: Path, repo: str) -> dict[str, list[str]]:
    """Both commands for one folder, by name."""
    hf = shutil.which("hf", path=os.path.dirname(sys.executable)) or "hf"
    ours = [sys.executable, "-m", "hf_mpwriter", "sync", str(folder), "--repo-id", f"{repo}-ours"]
    return {"hf upload": [hf, "upload", f"{repo}-hf", str(folder), "tensorboard/exp1"], "ours": ours}


def main() -> None:
    """Measure each set and print a row of it."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", choices=SETS, help="one of the sets")
    arguments = parser.parse_args()
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    print("| files | ours | hf upload | ratio | processor of ours | of hf upload | memory of ours | of hf upload |")
    print("|---" * 8 + "|")
    for name in [arguments.only] if arguments.only else SETS:
        files, size = SETS[name]
        costs: dict[str, list[Cost]] = {"hf upload": [], "ours": []}
        for number in range(arguments.rounds):
            with tempfile.TemporaryDirectory() as root:
                make(Path(root, "exp1"), files, size)
                turns = list(commands(Path(root, "exp1"), f"me/{name}").items())
                for who, command in turns if number % 2 else reversed(turns):
                    with LocalHub(Path(root, f"hub of {who}"), discard=True) as hub:  # none has the content already
                        where = {"HF_ENDPOINT": hub.endpoint, "HF_TOKEN": "hf_x"}
                        costs[who].append(measure(command, os.environ | variables(Path(root, who)) | where))
                    shutil.rmtree(Path(root, "exp1", ".hf_mpwriter"), ignore_errors=True)
        ours, theirs = (statistics.median(cost.seconds for cost in costs[who]) for who in ("ours", "hf upload"))
        busy = [statistics.median(cost.processor for cost in costs[who]) for who in ("ours", "hf upload")]
        memory = [statistics.median(cost.memory for cost in costs[who]) for who in ("ours", "hf upload")]
        what = f"{files} of {size / 1e6:g} MB"
        print(f"| {what} | {ours:.1f} s | {theirs:.1f} s | {ours / theirs:.2f} |", end=" ")
        print(f"{busy[0]:.1f} s | {busy[1]:.1f} s |", end=" ")
        print(f"{memory[0]:.0f} MB | {memory[1]:.0f} MB |", flush=True)


if __name__ == "__main__":
    main()
