"""Builds of the package that are broken on purpose in one place: a script that misses them proves nothing.

A script runs itself again with such a build first on its path, and must find a broken promise. The broken place leaves
a mark when it runs: a build that was not imported, or a place that was not reached, is the script's own failure. All
scripts of this folder that look for broken promises end with `conclude`, so they have the same exit codes.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lib.paths import PACKAGE

FOUND = 3  # exit code: a promise was broken
TROUBLE = 1  # exit code: the script itself failed, so nothing is known
CAUGHT = "found"
ENVIRONMENT = "HF_MPWRITER_SABOTAGED"  # set in the environment of a sabotaged build: one finding is enough


@dataclass(frozen=True)
class Sabotage:
    """A change of the source that breaks a promise."""

    file: str  # path of the module in the package
    sound: str  # a piece of its source that is there exactly once
    broken: str  # the replacement; it calls `STRIKE` when it runs


STRIKE = "__import__('hf_mpwriter.sabotaged').sabotaged.strike()"  # leaves the mark
_MARK = """\
import os


def strike():
    try:
        os.close(os.open({path!r}, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o666))
    except OSError:  # no descriptor is left
        pass
"""
_APPEND = "                        written = os.write(segment.fd, record) == size\n"
_BUFFERED = f"""\
                        {STRIKE}
                        self._hoard = getattr(self, "_hoard", b"") + record
                        if len(self._hoard) < 8192:
                            segment.under_way = None
                            return
                        held = os.write(segment.fd, self._hoard[: -len(record)])
                        segment.committed, self._hoard = (segment.committed[0] + held, item), b""
"""
_START = "            self.push = self._begin(self._job(self._sent, squash=squash))\n"
_EARLY = f"""\
            {STRIKE}
            from hf_mpwriter.base.verdicts import Sent

            for parcel in self._sent:
                early = {{file.path: Sent(file.length, "0" * 64) for file in parcel.batch.files}}
                parcel.run.ledger.acknowledge(early, "early", 0.0)
                parcel.run.save_ledger()
"""
_STEP = "            file_writer.file.append_record(encoder.record(time.time(), step, values))\n"
_SPLIT = f"""\
            {STRIKE}
            for part in (slice(None, 1), slice(1, None)) if len(names) > 1 else ():
                half = self._encoders[names[part]].record(time.time(), step, values[part])
                file_writer.file.append_record(half)
                time.sleep(0.001)
            if len(names) > 1:
                return
"""
SABOTAGES = {
    "buffered": Sabotage(
        "events/event_file.py", _APPEND, _BUFFERED + _APPEND
    ),  # calls return before their record is written
    "early-ack": Sabotage("uploader/branch.py", _START, _START + _EARLY),  # the ledger claims files before the commit
    "split": Sabotage("writer/scalars.py", _STEP, _SPLIT + _STEP),  # a step is written in two records
    "swallowed": Sabotage(
        "system/interrupts.py",
        "    return any(_is_handler(frame, interrupted) for interrupted, frame in _calls(error))\n",
        f"    {STRIKE}\n    return error is None\n",
    ),  # what a signal handler raises counts as ours
    "unsynced": Sabotage(
        "spool/outbox.py",
        "            self._make_durable([file for file in group if not is_synced or self._is_elsewhere(file)])\n",
        f"            {STRIKE}\n",
    ),  # a batch refers to bytes that are not durable
    "unfenced": Sabotage(
        "push/client.py", "parent if fenced else None\n", f"{STRIKE}\n"
    ),  # pushes name no parent, without the settle time
}


def is_sabotaged() -> bool:
    """Return whether this process runs a sabotaged build."""
    return ENVIRONMENT in os.environ


def add_option(parser: argparse.ArgumentParser, *names: str) -> None:
    """Add --sabotage."""
    parser.add_argument(
        "--sabotage", choices=sorted(names), help="run a build that is broken on purpose; it must be found"
    )


def conclude(findings: Sequence[str], root: Path, seed: int, success: str, *, troubles: Sequence[str] = ()) -> int:
    """Print the result of a script; keep its files if there is something to look at; the exit code of the script."""
    print(*troubles, sep="\n", end="\n" * bool(troubles))
    failed, kept = bool(findings or troubles), ""
    if failed and not is_sabotaged():
        kept = f"; kept in {root}"
    else:
        shutil.rmtree(root)
    print(f"broken promises: {len(findings)}; seed {seed}{kept}" if failed else success)
    return FOUND if findings else TROUBLE if troubles else 0


def build(name: str, directory: Path) -> Path:
    """Make a sabotaged copy of the package; the file that appears once the broken place has run."""
    sabotage = SABOTAGES[name]
    package, mark = directory / "hf_mpwriter", directory / "struck"
    shutil.copytree(PACKAGE, package, ignore=shutil.ignore_patterns("__pycache__"))
    path = package / sabotage.file
    source = path.read_text()
    if source.count(sabotage.sound) != 1:
        raise ValueError(f"the sabotage {name!r} does not match the source of {sabotage.file}")
    broken = source.replace(sabotage.sound, sabotage.broken)
    compile(broken, path, "exec")  # a build that cannot start would be found by any script
    path.write_text(broken)
    (package / "sabotaged.py").write_text(_MARK.format(path=str(mark)))
    return mark


def run(name: str) -> int:
    """Run this script again with a sabotaged copy of the package; return 0 if it found a broken promise."""
    with tempfile.TemporaryDirectory() as directory:
        mark = build(name, Path(directory))
        arguments = [argument for argument in sys.argv[1:] if argument not in ("--sabotage", name)]
        environment = os.environ | {"PYTHONPATH": directory, "HF_MPWRITER_EXIT_TIMEOUT": "5", ENVIRONMENT: "1"}
        command = [sys.executable, os.path.abspath(sys.argv[0]), *arguments]
        started_at = time.monotonic()
        code = subprocess.run(command, env=environment, check=False).returncode
        said = verdict(code, struck=mark.exists())
    print(f"sabotage {name}: {said}, {time.monotonic() - started_at:.0f} s")
    return 0 if said == CAUGHT else 1


def verdict(code: int, *, struck: bool) -> str:
    """What a script's run with a sabotaged build shows."""
    if not struck:
        return "NOTHING SHOWN: the broken place never ran"
    if code == FOUND:
        return CAUGHT
    return "NOT FOUND" if code == 0 else f"NOTHING SHOWN: the script itself failed with {code}"
