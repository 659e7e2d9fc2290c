"""The verdict of the demo: it downloads the run, asks the oracle, and prints a table and commands to look at the run.

    python -m hf_mpwriter.demo.verdict DIRECTORY

    worker  processes  events logged  events on the Hub  bytes  commits  lost
    -------------------------------------------------------------------------
    rank 0          1            130                130 27,531        4     0

It knows the folder of the demo and the Hub of the run only, and asks that Hub with the real client. The exit code is 1
if anything is missing.
"""

from __future__ import annotations

import filecmp
import functools
import itertools
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from urllib.parse import urlsplit

from hf_mpwriter.base.settings import Destination
from hf_mpwriter.demo.stage import RANKS, Folder
from hf_mpwriter.push.client import Hub
from hf_mpwriter.spool.storage import find, spool_of
from hf_mpwriter.testing import check, read_journals

COLUMNS = ("worker", "processes", "events logged", "events on the Hub", "bytes", "commits", "lost")
DOWNLOAD_LIMIT = 40.0  # seconds for the download


class CachedView:
    """The oracle's view of the Hub, which asks once per commit. The oracle is called once for each rank."""

    def __init__(self, hub: Hub) -> None:
        self.commits = functools.cache(hub.commits)
        self.tree = functools.cache(hub.tree)

    def changes(self) -> list[set[str]]:
        """The paths that each commit changed, oldest commit first."""
        trees = [{}, *(self.tree(commit) for commit in reversed(self.commits()))]
        return [
            {path for path in {*old, *new} if old.get(path) != new.get(path)} for old, new in itertools.pairwise(trees)
        ]


def rank_of(path: str) -> int:
    """The rank of an event file. Rank 0 writes into the run directory itself."""
    match = re.match(r"rank_(\d+)", path)
    return int(match[1]) if match else 0


def examine(place: Folder, view: CachedView) -> tuple[list[tuple[str, list[int]]], list[str]]:
    """The rows of the table, each with the numbers for COLUMNS, and the problems, one sentence each."""
    returned = list(read_journals(place.journals))
    report = check(place.run_dir, view, returned)
    problems, rows = list(report.problems), []
    for name, ranks in [*((f"rank {rank}", {rank}) for rank in range(RANKS)), ("total", set(range(RANKS)))]:
        notes = [note for note in returned if rank_of(note.path) in ranks]
        files = {path: file for path, file in report.files.items() if rank_of(path) in ranks}
        numbers = [
            len({note.pid for note in notes}),
            sum(file.local_events for file in files.values()),
            sum(file.hub_events for file in files.values()),
            sum(file.hub_bytes for file in files.values()),
            sum(not changed.isdisjoint(files) for changed in view.changes()),
            check(place.run_dir, view, notes).lost,
        ]
        rows.append((name, numbers))
        if not notes:
            problems.append(f"{name} has logged nothing")
    return rows, problems


def table(rows: Sequence[tuple[str, Sequence[int]]]) -> str:
    """The table as text: names to the left, numbers to the right, the total below a line."""
    cells = [list(COLUMNS), *([name, *(f"{number:,}" for number in numbers)] for name, numbers in rows)]
    first, *others = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = []
    for name, *numbers in cells:
        aligned = [number.rjust(width) for number, width in zip(numbers, others, strict=True)]
        lines.append("  ".join([name.ljust(first), *aligned]))
    rule = "-" * len(lines[0])
    return "\n".join([lines[0], rule, *lines[1:-1], rule, lines[-1]])


def download(place: Folder, destination: Destination) -> list[str]:
    """Download the run with the real client; what differs from the local event files, one sentence each."""
    command = [sys.executable, "-m", "huggingface_hub.cli.hf", "download", destination.repo_id]
    done = subprocess.run(
        [*command, "--local-dir", place.from_hub], capture_output=True, text=True, timeout=DOWNLOAD_LIMIT, check=False
    )
    if done.returncode:
        return [f"the download from the Hub failed: {done.stderr.strip()}"]
    copy = os.path.join(place.from_hub, destination.path_in_repo)
    local = sorted(
        os.path.relpath(os.path.join(folder, name), place.run_dir)
        for folder, _, names in os.walk(place.run_dir)
        for name in names
        if "tfevents" in name
    )
    _, different, absent = filecmp.cmpfiles(place.run_dir, copy, local, shallow=False)
    return [f"{path}: the download from the Hub differs from the local file" for path in different + absent]


def commands(place: Folder, destination: Destination) -> str:
    """Commands with which the user looks at the run."""
    port = urlsplit(destination.endpoint).port
    returned = os.path.join(place.from_hub, os.path.dirname(destination.path_in_repo))
    return f"""Look at what the ranks wrote, or at the download from the Hub:
  {_command("tensorboard")} --logdir {shlex.quote(place.run_dir)}
  {_command("tensorboard")} --logdir {shlex.quote(returned)}
Start that Hub again, and download from it elsewhere:
  {_command("hf-mpwriter")} hub --root {shlex.quote(place.hub)} --port {port}
  HF_ENDPOINT={destination.endpoint} {_command("hf")} download {destination.repo_id} --local-dir digits"""


def _command(name: str) -> str:
    """A command of this environment: its name if PATH finds it, else its path."""
    ours = os.path.join(os.path.dirname(sys.executable), name)
    if shutil.which(name) == ours or not os.path.exists(ours):
        return name
    relative = os.path.relpath(ours)
    return shlex.quote(ours if relative.startswith("..") else relative)


def main(directory: str) -> int:
    """Print the verdict; the exit code."""
    place = Folder(directory)
    destination = spool_of(find(place.run_dir)).destination()
    if destination is None:
        print("The run has no destination.", file=sys.stderr)
        return 1
    rows, problems = examine(place, CachedView(Hub(destination)))
    problems += download(place, destination)
    print(f"\n{table(rows)}\n", flush=True)
    if problems:
        print("\n".join(["Problems:", *(f"  {problem}" for problem in problems)]), file=sys.stderr)
    else:
        print("Every event is on the Hub, once. Nothing shrank on the way. The download equals the local files.")
    print(commands(place, destination))
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
