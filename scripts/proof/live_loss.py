#!/usr/bin/env python3
"""A machine that is lost while its run is live: what another one can pull.

At a random moment after the first round, all processes of a run are killed, ranks, uploader and pushes, and its
directory is removed. Then another machine pulls, with commits an hour apart, so what is new comes from its bucket.

    scripts/proof/live_loss.py --kills 100 --ranks 4 --seed 1

What must hold: every record that returned more than LIMIT seconds before the kill is there. How many seconds of records
were lost is told.

Exit code 0 if all held, 3 if something was found.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import sabotage
from lib.arguments import add_directory, add_seed, make_parser
from lib.isolation import variables
from lib.marked import by_kind
from lib.waiting import wait_for

from hf_mpwriter.delivery.sinks import HubSink
from hf_mpwriter.events import framing
from hf_mpwriter.localhub import LocalHub
from hf_mpwriter.spool.layout import Spool

LIMIT = 10.0  # seconds before the kill until which nothing may be lost
LONGEST = 20.0  # seconds from the first round to the kill
RANKS = """
import os, sys, time
from hf_mpwriter import HFSummaryWriter
run_dir, name, *returned = sys.argv[1:]
for rank, path in enumerate(returned):  # each is forked, so that all of them import once
    if os.fork() == 0:
        os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(len(returned))}
        os.environ |= {"LOCAL_" + variable: os.environ[variable] for variable in ("RANK", "WORLD_SIZE")}
        writer, lines = HFSummaryWriter("me/" + name, logdir=run_dir, commit_every=60, live=True), open(path, "w", 1)
        for step in range(1_000_000):
            writer.log({f"metric{number}": step / 7 for number in range(20)}, step=step)
            print(step, time.time(), file=lines)
            time.sleep(0.1)
os.wait()
"""


class Machine:
    """One run with its processes, and the disk that they are on."""

    def __init__(self, root: Path, number: int, ranks: int, hub: LocalHub) -> None:
        self.root, self.name = root / f"machine{number}", f"run{number}"
        self.run_dir = self.root / "runs" / self.name
        self.root.mkdir()
        self._env = {**os.environ, **variables(self.root), "HF_ENDPOINT": hub.endpoint, "HF_TOKEN": "hf_live"}
        self._returned = [root / f"returned{number}.{rank}" for rank in range(ranks)]
        self._ranks = subprocess.Popen(
            [sys.executable, "-c", RANKS, str(self.run_dir), self.name, *map(str, self._returned)],
            env=self._env,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def is_live(self) -> bool:
        """Whether the first round was told."""
        return self.run_dir.exists() and HubSink(Spool(str(self.run_dir))).status().live.at > 0

    def lose(self) -> float:
        """Kill all, remove the disk; the unix time."""
        at = time.time()
        mark = f"HF_HOME={self.root / 'home'}"
        os.killpg(self._ranks.pid, signal.SIGKILL)
        self._ranks.wait()
        while pids := [pid for kind in by_kind(mark).values() for pid in kind]:
            for pid in pids:
                os.kill(pid, signal.SIGKILL)
        shutil.rmtree(self.root)
        return at

    def pulled(self) -> list[set[int]]:
        """The steps of each rank that another machine gets."""
        place = self.root / "pulled" / self.name
        command = [sys.executable, "-m", "hf_mpwriter", "pull", str(place), "--repo-id", f"me/{self.name}"]
        subprocess.run(command, env=self._env, check=True, capture_output=True)
        folders = [place if not rank else place / f"rank_{rank:05d}" for rank in range(len(self._returned))]
        found = [
            {
                step
                for path in folder.glob("events*")
                for one in framing.payloads(str(path))
                if (step := framing.step_of(one)) is not None
            }
            for folder in folders
        ]
        shutil.rmtree(self.root)
        return found

    def returned(self) -> list[dict[int, float]]:
        """When the call of each step returned, per rank; the last line may be torn."""
        lines = [path.read_text().split("\n")[:-1] for path in self._returned]
        return [{int(step): float(at) for step, at in map(str.split, one)} for one in lines]


def kill_one(root: Path, number: int, ranks: int, seed: int, hub: LocalHub) -> tuple[float, list[str]]:
    """Lose one machine: seconds of records that are lost, and what broke."""
    machine = Machine(root, number, ranks, hub)
    wait_for(machine.is_live, "a first round")
    time.sleep(random.Random(f"{seed}.{number}").uniform(0.0, LONGEST))
    at = machine.lose()
    lost, findings = 0.0, list[str]()
    for rank, (returned, there) in enumerate(zip(machine.returned(), machine.pulled(), strict=True)):
        missing = [when for step, when in returned.items() if step not in there]
        lost = max(lost, at - min(missing, default=at))
        if late := [when for when in missing if when < at - LIMIT]:
            findings.append(
                f"{machine.name}: {len(late)} records of rank {rank}, {at - min(late):.1f} s before the kill"
            )
    return lost, findings


def main() -> int:
    """Lose machines, and judge what others can pull."""
    parser = make_parser(__doc__)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--ranks", type=int, default=4)
    parser.add_argument("--lanes", type=int, default=2, help="machines at once (default: 2)")
    add_seed(parser)
    add_directory(parser)
    options: argparse.Namespace = parser.parse_args()
    print(f"seed {options.seed}", flush=True)
    root = Path(tempfile.mkdtemp(prefix="live-loss-", dir=options.dir))
    with LocalHub(root / "hub") as hub, ThreadPoolExecutor(options.lanes) as lanes:
        one = lambda number: kill_one(root, number, options.ranks, options.seed, hub)  # noqa: E731
        results = list(lanes.map(one, range(options.kills)))
    lost, findings = sorted(seconds for seconds, _ in results), [line for _, lines in results for line in lines]
    p95 = lost[int(0.95 * (len(lost) - 1))]
    print(f"lost: median {statistics.median(lost):.1f} s, p95 {p95:.1f} s, most {lost[-1]:.1f} s")
    print(*findings, sep="\n", end="\n" * bool(findings))
    held = f"{options.kills} of {options.kills}: all that returned {LIMIT:.0f} s before the kill is there"
    return sabotage.conclude(findings, root, options.seed, held)


if __name__ == "__main__":
    sys.exit(main())
