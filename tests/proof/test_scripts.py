"""Each script of `scripts/proof` in small: no promise is broken, and builds that are broken on purpose are found.

`scripts/proof` makes hundreds of kills, or runs for half an hour; `--help` says how. A failure shows its seed.
"""

from __future__ import annotations

import os
import subprocess
import sys
from typing import NamedTuple

import pytest
from loop_disks import KINDS
from repository import PROOF

ROOT_ONLY = [pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="only root can become other users")]


class Row(NamedTuple):
    """A script with its options, and what it prints if all is well."""

    command: str
    prints: str = ""


def on(kind, command: str, prints: str = ""):
    """A row on a kind of disk, which has the marks of that."""
    return pytest.param(Row(f"{command} --kind {kind.values[0]}", prints), marks=kind.marks)


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "row",
    [
        Row("soak.py --lanes 1 --minutes 0.2 --seed 7", "0 lost untold, 0 duplicated, 0 shrunk, 0 hung"),
        Row("environments.py --examples 6 --seed 20261122"),
        Row("crash_writer.py --writer ours --kills 12 --seed 7", "ours: 0 of "),
        Row("handlers.py --moments 60 --seed 7", "60 of 60 arrived, whole records only"),
        Row("sweep.py --runs 8 --kills 15 --seed 7", "0 lost, 0 doubled, every run complete, every failure told once"),
        Row("fuzz.py --minutes 0.1 --lanes 1 --seed 7", "no traceback, memory flat, all comes to the Hub"),
        *(on(kind, "power_cut.py --cuts 15 --seed 7") for kind in KINDS),
        pytest.param(Row("storage.py --rounds 1 --ranks 2 --seed 7", "every record is everywhere"), marks=ROOT_ONLY),
        pytest.param(Row("hostile_user.py --minutes 0.3 --seed 7"), marks=ROOT_ONLY),
    ],
    ids=lambda row: row.command,
)
def test_no_promise_is_broken(open_place, row):
    """Faults, surroundings and attacks are drawn; the oracle judges each, and nothing is left of them."""
    run(row, open_place)
    assert not list(open_place.iterdir())


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "row",
    [
        Row("crash_writer.py --writer ours --kills 100 --seed 7 --sabotage buffered", "events lost"),
        Row("crash_writer.py --writer ours --kills 100 --seed 7 --sabotage split", "there in part"),
        Row("crash_uploader.py --failpoints --seed 1 --sabotage early-ack"),
        Row("handlers.py --moments 60 --seed 7 --sabotage swallowed"),
        on(KINDS[0], "power_cut.py --cuts 100 --seed 1 --sabotage unsynced", "a batch refers to bytes"),
    ],
    ids=lambda row: row.command,
)
def test_a_sabotaged_build_is_found(open_place, row):
    """Calls that return too early, a step in two records, claims before the commit, batches before their bytes."""
    assert ": found" in run(row, open_place)


def run(row: Row, directory) -> str:
    """Run a script that must end well; what it prints."""
    script, *options = row.command.split()
    command, environ = [sys.executable, str(PROOF / script), *options], os.environ | {"TMPDIR": str(directory)}
    result = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=880, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    assert row.prints in result.stdout
    return result.stdout
