#!/usr/bin/env python3
"""What the integrations are worth beside the frameworks' own loggers, and with which versions they work.

    scripts/frameworks.py --own-tests       the frameworks' own tests about TensorBoard, each run three times:
                                            with theirs; with ours in its place; with theirs under `run --patch`
    scripts/frameworks.py --matrix          our tests of the integrations, in an environment with the oldest and in
                                            one with the newest versions of the frameworks

    scripts/frameworks.py --own-tests lightning fabric                  some of them
    scripts/frameworks.py --own-tests accelerate --source accelerate=DIR    sources that are there already
    scripts/frameworks.py --matrix --keep DIR                           work there; environments are used again

--own-tests clones the tag of the installed version from github.com. What their tests need and is not installed fails
with theirs, too: `pip install 'jsonargparse[signatures]' omegaconf pandas` is for Lightning's. --matrix needs a package
index, and 2 GB of disk for each environment.

Exit code 0 if every test that passes with theirs passes with ours, but those in EXPECTED, everything that these tests
logged is on the (local) Hub, and the tests of the matrix pass; 1 if not: the logs are kept. 2: it could not be run.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from pathlib import Path

import frameworks_tests as tests
from frameworks_matrix import TroubleError, matrix
from frameworks_tests import COLUMNS, SUITES


def own_tests(names: list[str], given: dict[str, Path], directory: Path) -> list[str]:
    """Run the frameworks' own tests; what is worse with ours."""
    problems = list[str]()
    for name in names or [*SUITES]:
        bench = tests.Bench(name, tests.sources(SUITES[name], given, directory), directory)
        found = {}
        for column in COLUMNS:
            found[column], broken = bench.run(column)
            problems += broken
        problems += tests.show(name, found)
    return problems


def named_directory(text: str) -> tuple[str, Path]:
    """NAME=DIR."""
    name, _, directory = text.partition("=")
    if name not in {suite.package for suite in SUITES.values()} or not Path(directory).is_dir():
        raise argparse.ArgumentTypeError(f"{text} is not NAME=DIR with a framework and a directory that is there")
    return name, Path(directory)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kinds = parser.add_mutually_exclusive_group(required=True)
    kinds.add_argument("--own-tests", nargs="*", choices=SUITES, help="run the frameworks' own tests (of all)")
    kinds.add_argument("--matrix", action="store_true", help="run our tests with other versions")
    parser.add_argument(
        "--keep",
        type=lambda path: Path(path).absolute(),
        metavar="DIR",
        help="where to work; what is there is used again",
    )
    parser.add_argument("--source", type=named_directory, action="append", default=[], metavar="NAME=DIR")
    return parser.parse_args()


def main() -> int:
    """Run what was asked for, print the tables, tell what must not be."""
    options = parse()
    directory = options.keep or Path(tempfile.mkdtemp(prefix="frameworks_"))
    directory.mkdir(parents=True, exist_ok=True)
    try:
        if options.matrix:
            problems = matrix(directory)
        else:
            problems = own_tests(options.own_tests, dict(options.source), directory)
    except TroubleError as trouble:
        print(f"{trouble}\nLogs: {directory}", file=sys.stderr)
        return 2
    print("", *problems, sep="\n")
    if problems:
        print(f"{len(problems)} problems; logs: {directory}")
        return 1
    if not options.keep:
        shutil.rmtree(directory)
    return 0


if __name__ == "__main__":
    sys.exit(main())
