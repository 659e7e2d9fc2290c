"""What the scripts of this folder share: a directory to work in, and how they end."""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path


class TroubleError(Exception):
    """The tests could not be run, so nothing is known."""


def add_keep(parser: argparse.ArgumentParser) -> None:
    """Add --keep."""
    parser.add_argument(
        "--keep",
        type=lambda path: Path(path).absolute(),
        metavar="DIR",
        help="work in this directory, keep it, and use again what is in it",
    )


def run_session(keep: Path | None, work: Callable[[Path], list[str]]) -> int:
    """Do the work of a script, print what failed, and return the exit code."""
    directory = keep or Path(tempfile.mkdtemp(prefix="frameworks_"))
    directory.mkdir(parents=True, exist_ok=True)
    try:
        problems = work(directory)
    except TroubleError as trouble:
        print(f"{trouble}\nLogs: {directory}", file=sys.stderr)
        return 2
    print("", *problems, sep="\n")
    if problems:
        print(f"{len(problems)} problems; logs: {directory}")
        return 1
    if not keep:
        shutil.rmtree(directory)
    return 0
