"""Nodes with run directories of their own send to one repository of a Hub that takes few commits.

    python scripts/proof/many_nodes.py                            # 16 nodes, 40 commits in 180 s: three minutes
    python scripts/proof/many_nodes.py --nodes 4 --commits 12 --window 60 --seconds 12
    python scripts/proof/many_nodes.py --undivided                # no node knows of the others: most are refused

Each node is a real training process with a real uploader, with a cache folder and a run directory of its own, as on a
disk of its own; as root, also with a host name of its own, in a namespace. All start at the same moment, log for some
seconds, end at the same moment and wait for the Hub. It fails if a node is refused more than twice, or if anything is
unsent when all uploaders have left.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from lib.arguments import add_directory, make_parser
from lib.isolation import variables
from lib.waiting import becomes_true

from hf_mpwriter.localhub import LocalHub, View
from hf_mpwriter.spool.layout import Spool
from hf_mpwriter.spool.status import UploaderStatus
from hf_mpwriter.testing import oracle, processes
from hf_mpwriter.uploader.rate_limit import HOUR, LARGEST_BURST

MOST_REFUSALS = 2  # of one node
COMMIT_EVERY = 0.1  # minutes, so that the limit decides
EXIT_TIMEOUT = 20.0  # seconds that a training process waits for the Hub
PATIENCE = 300.0  # seconds after the end of training, and as many windows of the Hub as it needs

TRAINING = """
import os, sys, time
from hf_mpwriter import HFSummaryWriter
run_dir, commit_every, gate, seconds = sys.argv[1], float(sys.argv[2]), sys.argv[3], float(sys.argv[4])
with HFSummaryWriter("me/run", logdir=run_dir, path_in_repo="run", commit_every=commit_every) as writer:
    while not os.path.exists(gate):
        time.sleep(0.05)
    step, end = 0, time.monotonic() + seconds
    while time.monotonic() < end:
        writer.add_scalar("loss", 1 / (step + 1), step)
        step += 1
        time.sleep(0.2)
"""


def on_host(name: str, command: list[str]) -> list[str]:
    """A command as it runs on a host of that name; where namespaces need more rights, as it runs here."""
    if os.geteuid() or shutil.which("unshare") is None:
        return command
    return ["unshare", "--uts", "sh", "-c", 'hostname "$0" && exec "$@"', name, *command]


class Node:
    """One node: its training process, and what its uploader says."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self.run_dir = folder / "run"
        self._environment = environment
        self._spool = Spool(str(self.run_dir))
        self._refusals: set[float] = set()
        self._process: subprocess.Popen[str] | None = None
        self.said = ""

    def start(self, gate: Path, seconds: float) -> None:
        """Start training, which logs for so many seconds once a file is there."""
        command = [sys.executable, "-c", TRAINING, str(self.run_dir), str(COMMIT_EVERY), str(gate), str(seconds)]
        command = on_host(self.run_dir.parent.name, command)
        self._process = subprocess.Popen(command, env=self._environment, stderr=subprocess.PIPE, text=True)

    def is_ready(self) -> bool:
        """Whether its writer is there."""
        return (self.run_dir / ".hf_mpwriter" / "run.json").exists()

    def watch(self) -> UploaderStatus:
        """What the uploader says now; its refusals are counted."""
        status = UploaderStatus.newest(self._spool)
        if "rate limit" in status.reason:
            self._refusals.add(status.failed_at)
        return status

    @property
    def refusals(self) -> int:
        """Times that the Hub refused a commit of this node, as far as they were seen."""
        return len(self._refusals)

    def has_ended(self) -> bool:
        """Whether training has ended and the uploader has left."""
        return self._process is not None and self._process.poll() is not None and self.watch().is_over

    def finish(self) -> None:
        """Read what the process has told its user; end it if it still runs."""
        if self._process is None:
            return
        if self._process.poll() is None:
            self._process.kill()
        self.said = self._process.communicate()[1]
        if pid := processes.uploader(str(self.run_dir)):
            os.kill(pid, signal.SIGKILL)


def per_hour(commits: int, window: float) -> float:
    """The limit of which a burst, and what comes back in a window, are what the Hub takes in a window."""
    share = window / HOUR
    limit = commits / (0.2 + 0.8 * share)
    return limit if limit <= 5 * LARGEST_BURST else LARGEST_BURST + (commits - LARGEST_BURST) / share


def environment(options: argparse.Namespace, hub: LocalHub, folder: Path, rank: int) -> dict[str, str]:
    """The environment of the processes of one node."""
    launcher = {"RANK": str(rank), "LOCAL_RANK": "0", "WORLD_SIZE": str(options.nodes), "LOCAL_WORLD_SIZE": "1"}
    if options.undivided:
        launcher |= {"HF_MPWRITER_NODES": "1"}
    own = {
        "HF_ENDPOINT": hub.endpoint,
        "HF_TOKEN": "hf_test",
        "HF_MPWRITER_COMMITS_PER_HOUR": str(per_hour(options.commits, options.window)),
        "HF_MPWRITER_EXIT_TIMEOUT": str(EXIT_TIMEOUT),
    }
    hidden = folder.parent / "hidden"  # torch takes more than a second of each process, and nothing here uses it
    hidden.mkdir(exist_ok=True)
    (hidden / "torch.py").write_text("raise ImportError")
    return os.environ | variables(folder) | own | launcher | {"PYTHONPATH": str(hidden)}


def run(options: argparse.Namespace, folder: Path) -> list[str]:
    """Run the job; what is wrong afterwards."""
    with LocalHub(folder / "hub", commits_per_hour=options.commits, commit_window=options.window) as hub:
        nodes = []
        for rank in range(options.nodes):
            disk = folder / f"node-{rank:05d}"
            disk.mkdir()
            nodes.append(Node(disk, environment(options, hub, disk, rank)))
        gate = folder / "gate"
        try:
            for node in nodes:
                node.start(gate, options.seconds)
            becomes_true(lambda: all(map(Node.is_ready, nodes)), PATIENCE, every=0.5)
            gate.touch()
            began = time.monotonic()
            rounds = options.nodes / options.commits + 1
            patience = options.seconds + PATIENCE + options.window * rounds
            becomes_true(lambda: all(list(map(Node.has_ended, nodes))), patience, every=0.5)
            seconds = time.monotonic() - began
        finally:
            for node in nodes:
                node.finish()
        return report(nodes, hub, seconds)


def report(nodes: list[Node], hub: LocalHub, seconds: float) -> list[str]:
    """Print what has happened; what is wrong."""
    view, problems = View(hub.store, "me/run", "run/run"), []
    for node in nodes:
        found = oracle.check(str(node.run_dir), view)
        own = {str(path.relative_to(node.run_dir)) for path in node.run_dir.rglob("*tfevents*")}
        problems += [problem for problem in found.problems if any(path in problem for path in own)]
        if node.refusals > MOST_REFUSALS:
            problems.append(f"{node.run_dir.parent.name} was refused {node.refusals} times")
    statuses = [line["status"] for line in requests(hub) if "/commit/" in line["path"]]
    counts = {status: statuses.count(status) for status in (200, 412, 429)}
    print(f"{len(nodes)} nodes, {seconds:.0f} s; commits {counts[200]}, stale {counts[412]}, refused {counts[429]}")
    print(f"refusals of a node, at most: {max(node.refusals for node in nodes)}; problems: {len(problems)}", flush=True)
    return problems


def requests(hub: LocalHub) -> list[dict[str, object]]:
    """The request log of a Hub."""
    return [json.loads(line) for line in Path(hub.root, "requests.jsonl").read_text().splitlines()]


def main() -> int:
    """Run it; 1 if something is wrong."""
    parser = make_parser(__doc__)
    parser.add_argument("--nodes", type=int, default=16, help="(default: %(default)s)")
    parser.add_argument("--commits", type=int, default=40, help="that the Hub takes in a window (default: %(default)s)")
    parser.add_argument("--window", type=float, default=180.0, help="seconds (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=120.0, help="that the job trains (default: %(default)s)")
    parser.add_argument("--undivided", action="store_true", help="no node knows of the others")
    add_directory(parser)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="many-nodes-", dir=options.dir) as folder:
        problems = run(options, Path(folder))
    for problem in problems:
        print(problem)
    return bool(problems)


if __name__ == "__main__":
    sys.exit(main())
