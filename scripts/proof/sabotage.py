"""Builds of the package that are broken on purpose in one place: a harness that does not find them proves nothing.

A script runs itself again with such a build first on its path; exit code FOUND says that it found a broken promise.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

FOUND = 3  # exit code of a script that has found a broken promise
ENVIRONMENT = "HF_MPWRITER_SABOTAGED"  # set in the environment of a sabotaged build: one finding is enough
PACKAGE = Path(__file__).resolve().parent.parent / "hf_mpwriter"


@dataclass(frozen=True)
class Sabotage:
    """What to break.

    Attributes:
        file: module of the package.
        sound: the piece of its source, there exactly once.
        broken: what to put in its place.
    """

    file: str
    sound: str
    broken: str


_APPEND = "                    written = os.write(segment.fd, record) == size\n"
_BUFFERED = """\
                    self._hoard = getattr(self, "_hoard", b"") + record
                    if len(self._hoard) < 8192:
                        segment.under_way = None
                        return
                    held = os.write(segment.fd, self._hoard[: -len(record)])
                    segment.committed, self._hoard = (segment.committed[0] + held, item), b""
"""
_START = "        self._entry = entry\n"
_EARLY = """\
        from hf_mpwriter.base.verdicts import Sent

        early = {file.path: Sent(file.length, "0" * 64) for file in entry.files}
        self._ledger.acknowledge(early, "early", 0.0)
        self._save_ledger()
"""
SABOTAGES = {
    "buffered": Sabotage("events/event_file.py", _APPEND, _BUFFERED + _APPEND),  # records wait in memory
    "early-ack": Sabotage("uploader/loop.py", _START, _EARLY + _START),  # acknowledged before the commit
    "unsynced": Sabotage(
        "spool/outbox.py", "            self._make_durable(group)\n", "            pass\n"
    ),  # no fsync before the entry
    "unfenced": Sabotage("push/client.py", "parent if fenced else None\n", "None\n"),  # no parent, and no settle rule
}


def is_sabotaged() -> bool:
    """Whether this process runs a sabotaged build."""
    return ENVIRONMENT in os.environ


def conclude(problems: list[str], root: Path, seed: int, well: str) -> int:
    """Say how it went, and throw away what nobody wants to see any more.

    Args:
        problems: what was found, told already.
        root: all that the script has made.
        seed: of the script.
        well: what to say if nothing was found.

    Returns:
        The exit code of the script.
    """
    kept = problems and not is_sabotaged()
    print(
        f"{len(problems)} problems; seed {seed}" if problems else well, f"; all is kept in {root}" * bool(kept), sep=""
    )
    if not kept:
        shutil.rmtree(root)
    return FOUND if problems else 0


def run(name: str) -> int:
    """Run this script again with a broken copy of the package; 0 if it found the sabotage."""
    sabotage = SABOTAGES[name]
    with tempfile.TemporaryDirectory() as directory:
        shutil.copytree(PACKAGE, Path(directory) / "hf_mpwriter", ignore=shutil.ignore_patterns("__pycache__"))
        path = Path(directory) / "hf_mpwriter" / sabotage.file
        source = path.read_text()
        if source.count(sabotage.sound) != 1:
            raise SystemExit(f"the sabotage {name!r} does not fit to {sabotage.file} any more")
        broken = source.replace(sabotage.sound, sabotage.broken)
        compile(broken, path, "exec")  # what cannot even start is found by everything
        path.write_text(broken)
        arguments = [argument for argument in sys.argv[1:] if argument not in ("--sabotage", name)]
        environment = os.environ | {"PYTHONPATH": directory, "HF_MPWRITER_EXIT_TIMEOUT": "5", ENVIRONMENT: "1"}
        command = [sys.executable, os.path.abspath(sys.argv[0]), *arguments]
        code = subprocess.run(command, env=environment, check=False).returncode
    print(f"sabotage {name}: {'found' if code == FOUND else 'NOT FOUND'}")
    return 0 if code == FOUND else 1
