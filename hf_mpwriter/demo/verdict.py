"""The verdict of the demo: it asks the oracle, and prints a table and commands to look at the run.

    worker  processes  events logged  events on the Hub
    rank 0          1            250                250
    ...
    In 9 commits. Calls that returned: 900. Lost: 0.

It knows the folder of the demo and the Hub of the run only, and asks that Hub with the real client. The exit code is 1
if anything is missing.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from urllib.parse import urlsplit

from hf_mpwriter.base.settings import Destination
from hf_mpwriter.base.words import as_path, typed
from hf_mpwriter.demo.stage import RANKS, Folder
from hf_mpwriter.push.client import Hub
from hf_mpwriter.spool.storage import find, spool_of
from hf_mpwriter.testing import Report, check, read_journals
from hf_mpwriter.testing.journal import Returned

NAMES = ("tensorboard", "hf-mpwriter", "hf")  # of commands


def table(report: Report, returned: list[Returned]) -> Iterator[str]:
    """The lines of the table. Rank 0 writes into the run directory itself."""
    yield "worker  processes  events logged  events on the Hub"
    for rank in range(RANKS):
        folder = f"rank_{rank:05d}" if rank else ""
        files = [file for path, file in report.files.items() if os.path.dirname(path) == folder]
        lives = len({note.pid for note in returned if os.path.dirname(note.path) == folder})
        here, there = sum(file.local_events for file in files), sum(file.hub_events for file in files)
        yield f"rank {rank}  {lives:>9,}  {here:>13,}  {there:>17,}"
    yield f"In {report.commits} commits. Calls that returned: {report.returned}. Lost: {report.lost}."


def commands(place: Folder, destination: Destination) -> str:
    """Commands with which the user looks at the run."""
    places = [os.path.relpath(os.path.join(os.path.dirname(sys.executable), name)) for name in NAMES]
    tensorboard, ours, hf = map(as_path, places)
    port, endpoint = urlsplit(destination.endpoint).port, f"HF_ENDPOINT={destination.endpoint}"
    return f"""Look at what the ranks wrote:
  {typed(tensorboard, "--logdir", as_path(place.run_dir))}
Start that Hub again, and download from it elsewhere:
  {typed(ours, "hub", "--root", as_path(place.hub), "--port", str(port))}
  {typed(endpoint, hf, "download", destination.repo_id, "--local-dir", "digits")}"""


def main() -> None:
    """Entry point of the process, see `system/launch`."""
    sys.exit(judge(sys.argv[1]))


def judge(directory: str) -> int:
    """Print the verdict; the exit code."""
    place = Folder(directory)
    destination = spool_of(find(place.run_dir)).destination()
    if destination is None:
        print("The run has no destination.", file=sys.stderr)
        return 1
    returned = list(read_journals(place.journals))
    report = check(place.run_dir, Hub(destination), returned)
    print("", *table(report, returned), "", sep="\n", flush=True)
    if report.problems:
        print("Problems:", *report.problems, sep="\n  ", file=sys.stderr)
    else:
        print("Every event that no disk took away is on the Hub, once. Nothing shrank on the way.")
    print(commands(place, destination))
    return 1 if report.problems else 0
