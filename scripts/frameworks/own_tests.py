#!/usr/bin/env python3
"""Run the frameworks' own tests about TensorBoard three times: with their logger, with ours, with torch's patched.

    scripts/frameworks/own_tests.py                           all suites
    scripts/frameworks/own_tests.py lightning fabric          some of them
    scripts/frameworks/own_tests.py accelerate --source accelerate=DIR      use sources that are there
    scripts/frameworks/own_tests.py --keep DIR                work there; sources in it are used again

The columns of the table: `theirs` is their logger, `ours` is ours in its place, `patched` is their logger under
`hf-mpwriter run --patch`. The script clones the tag of the installed version from github.com. A test that needs a
package that is not installed fails in all columns: Lightning's need `jsonargparse[signatures]`, omegaconf and pandas.

Exit code 0 if every test that passes with theirs passes with ours, except those in EXPECTED, and everything that these
tests logged is on the (local) Hub; 1 if not: the logs are kept. 2 if the tests could not be run.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Container, Iterator, Mapping
from importlib.metadata import version
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from lib.arguments import make_parser
from lib.isolation import variables
from lib.paths import ROOT
from plugin import WORD
from session import TroubleError, add_keep, run_session
from suites import SUITES, expected, sources

from hf_mpwriter.base.names import SPOOL_NAME
from hf_mpwriter.base.settings import Destination
from hf_mpwriter.delivery.sinks import HubSink
from hf_mpwriter.localhub import LocalHub, View
from hf_mpwriter.localhub.store import TreeEntry
from hf_mpwriter.spool.layout import Spool
from hf_mpwriter.testing import check

COLUMNS = ("theirs", "ours", "patched")
OURS = COLUMNS[1:]
WORST_LAST = ("passed", "skipped", "failed", "error")
DRAIN = 120.0  # seconds until everything must be on the Hub
LIMIT = 3600  # seconds for the tests of one column


class Bench:
    """Runs the tests of one suite, each column in its own process and clean directory."""

    def __init__(self, name: str, source: Path, directory: Path) -> None:
        self._name, self._source, self._directory = name, source.absolute(), directory
        folder = self._source / SUITES[name].tests
        self._files = [str(path) for path in sorted(folder.rglob("test_*.py")) if WORD in path.read_text().lower()]
        if not self._files:
            raise TroubleError(f"there are no tests about TensorBoard in {folder}")

    def run(self, column: str) -> tuple[dict[str, str], list[str]]:
        """Run the tests.

        The outcome of each test, and the promises that were broken in the run directories that are left.
        """
        place = self._directory / self._name / column
        shutil.rmtree(place, ignore_errors=True)
        (place / "home").mkdir(parents=True)
        with LocalHub(place / "hub") as hub, open(place / "log", "wb") as log:
            subprocess.run(
                self._command(column, place),
                cwd=place / "home",
                env=_environment(place, hub.endpoint),
                stdout=log,
                stderr=log,
                timeout=LIMIT,
                check=False,
            )
            runs = sorted(path.parent for path in place.rglob(SPOOL_NAME))
            problems = [problem for run in runs for problem in _check(run, hub)]
        outcomes, written = _read(place)
        print(f"{self._name}, {column}: ours wrote {written} run directories, {len(runs)} of them are left", flush=True)
        if bool(written) != (column in OURS):
            raise TroubleError(f"the tests did not use the writers of the column {column}")
        return outcomes, problems

    def _command(self, column: str, place: Path) -> list[str]:
        patched = [sys.executable, "-m", "hf_mpwriter", "run", "--patch", "--"] if column == "patched" else []
        options = ["--framework", self._name, "--outcomes", str(place / "outcomes")]
        options += ["--ours"] if column == "ours" else []
        config = ["--rootdir", str(self._source), "-c", str(self._source / "pyproject.toml")]
        plugins = ["-p", "plugin", "-p", "no:cacheprovider", "-p", "no:xdist"]
        limits = ["--continue-on-collection-errors", "--timeout", "300", "--basetemp", str(place / "tmp")]
        return [*patched, sys.executable, "-m", "pytest", *plugins, *config, *limits, *options, *self._files]


def _environment(place: Path, endpoint: str) -> dict[str, str]:
    """Return an environment without the user's account and settings, in which nothing writes into the sources."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "SLURM_", "PYTEST_"))}
    return (
        clean
        | variables(place / "hf")
        | {
            "HF_ENDPOINT": endpoint,
            "HF_MPWRITER_REPO_ID": "me/run",
            "HOME": str(place / "home"),
            "OMP_NUM_THREADS": "1",
            "PYTHONDONTWRITEBYTECODE": "1",
            "PYTHONPATH": os.pathsep.join([str(Path(__file__).resolve().parent), str(ROOT)]),
            "TMPDIR": str(place),
        }
    )


def _read(place: Path) -> tuple[dict[str, str], int]:
    """Return the worst outcome of the phases of each test, and how many run directories ours wrote."""
    outcomes, written = dict[str, str](), 0
    path = place / "outcomes"
    for line in map(json.loads, path.read_text().splitlines() if path.exists() else []):
        if test := line.get("test"):
            outcomes[test] = max(outcomes.get(test, "passed"), line["outcome"], key=WORST_LAST.index)
        written += line.get("runs", 0)
    if not outcomes:
        raise TroubleError(f"pytest ran no test; see {place / 'log'}")
    return outcomes, written


class _Head(View):
    """The newest version of some files on the local Hub: here many runs share one folder and one history."""

    def __init__(self, hub: LocalHub, destination: Destination, names: Container[str]) -> None:
        super().__init__(hub.store, destination.repo_id, destination.path_in_repo)
        self._names = names

    def commits(self) -> list[str]:
        """Return the newest commit."""
        return super().commits()[:1]

    def tree(self, revision: str) -> dict[str, TreeEntry]:
        """Return the files of one run."""
        return {path: entry for path, entry in super().tree(revision).items() if path in self._names}


def _check(run: Path, hub: LocalHub) -> Iterator[str]:
    """Wait until a run directory is on the Hub; yield what the oracle finds."""
    spool = Spool(str(run))
    destination = spool.destination()
    files = {str(path.relative_to(run)): path.stat().st_size for path in run.rglob("*tfevents*")}
    if destination is None or not files:
        return
    end = time.monotonic() + DRAIN
    while (missing := HubSink(spool).missing(files)) and time.monotonic() < end:
        time.sleep(0.1)
    if missing:
        yield f"{run}: not on the Hub after {DRAIN:.0f} s: {missing}"
    yield from (f"{run}: {problem}" for problem in check(str(run), _Head(hub, destination, files)).problems)


def show(name: str, found: Mapping[str, Mapping[str, str]]) -> list[str]:
    """Print the table of a suite; the tests that pass with theirs, must pass with ours, and do not."""
    print(f"\n{name} {version(SUITES[name].package)}\n{''.join(f'{column:9}' for column in COLUMNS)}test")
    notes, problems = list[str](), list[str]()
    for test in sorted({test for outcomes in found.values() for test in outcomes}):
        row = {column: found[column].get(test, "missing") for column in COLUMNS}
        reasons = {column: expected(name, column, test) for column in OURS if _is_worse(row, column)}
        marks = {column: "*" if reasons.get(column) else "" for column in COLUMNS}
        print("".join(f"{row[column] + marks[column]:9}" for column in COLUMNS) + test.partition("/")[2])
        notes += [f"* {column}, {test.rpartition('::')[2]}: {why}" for column, why in reasons.items() if why]
        problems += [f"{test} is {row[column]} with {column}" for column, why in reasons.items() if not why]
    print(*notes, sep="\n")
    for column in COLUMNS:
        passed = sum(outcome == "passed" for outcome in found[column].values())
        print(f"{column}: {passed} of {len(found[column])} passed", end="; " if column != COLUMNS[-1] else "\n")
    return problems


def _is_worse(row: Mapping[str, str], column: str) -> bool:
    return row["theirs"] == "passed" and row[column] != "passed"


def own_tests(names: list[str], given: dict[str, Path], directory: Path) -> list[str]:
    """Run the suites and print their tables; return what is worse with ours."""
    problems = list[str]()
    for name in names or [*SUITES]:
        bench = Bench(name, sources(SUITES[name], given, directory), directory)
        found = {}
        for column in COLUMNS:
            found[column], broken = bench.run(column)
            problems += broken
        problems += show(name, found)
    return problems


def known_suite(name: str) -> str:
    """Check the name of a suite; `choices` would refuse an empty list."""
    if name not in SUITES:
        raise argparse.ArgumentTypeError(f"{name} is none of {', '.join(SUITES)}")
    return name


def named_directory(text: str) -> tuple[str, Path]:
    """Parse NAME=DIR."""
    name, _, directory = text.partition("=")
    if name not in {suite.package for suite in SUITES.values()} or not Path(directory).is_dir():
        raise argparse.ArgumentTypeError(f"{text} is not NAME=DIR with the name of a framework and a directory")
    return name, Path(directory)


def main() -> int:
    """Run the suites; print the tables and what is worse with ours."""
    parser = make_parser(__doc__)
    parser.add_argument("suites", nargs="*", type=known_suite, metavar="SUITE", help=f"{', '.join(SUITES)}")
    parser.add_argument(
        "--source", type=named_directory, action="append", default=[], metavar="NAME=DIR", help="sources of a framework"
    )
    add_keep(parser)
    options = parser.parse_args()
    return run_session(options.keep, functools.partial(own_tests, options.suites, dict(options.source)))


if __name__ == "__main__":
    sys.exit(main())
