"""The frameworks' own tests of their TensorBoard loggers: with theirs, with ours in their place, with torch's patched.

Nothing of the frameworks' code is kept here: the sources are those of the tag that belongs to the installed version.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from frameworks_matrix import TroubleError
from frameworks_plugin import WORD

from hf_mpwriter.base.names import SPOOL_NAME
from hf_mpwriter.base.settings import Destination
from hf_mpwriter.localhub import LocalHub, View
from hf_mpwriter.localhub.storage.store import TreeEntry
from hf_mpwriter.spool.layout import Spool
from hf_mpwriter.spool.progress import Progress
from hf_mpwriter.testing import check

ROOT = Path(__file__).resolve().parent.parent
COLUMNS = ("theirs", "ours", "patched")
OURS = COLUMNS[1:]
WORST_LAST = ("passed", "skipped", "failed", "error")
DRAIN = 120.0  # seconds until what was logged has to be on the Hub
LIMIT = 3600  # seconds for the tests of one column


@dataclass(frozen=True)
class Suite:
    """The tests of a framework.

    Attributes:
        package: name on the package index.
        repository: on GitHub.
        tag: of a version.
        tests: folder with the tests.
    """

    package: str
    repository: str
    tag: str
    tests: str


LIGHTNING = "Lightning-AI/pytorch-lightning"
SUITES = {
    "lightning": Suite("lightning", LIGHTNING, "{}", "tests/tests_pytorch"),
    "fabric": Suite("lightning", LIGHTNING, "{}", "tests/tests_fabric"),
    "accelerate": Suite("accelerate", "huggingface/accelerate", "v{}", "tests"),
    "transformers": Suite("transformers", "huggingface/transformers", "v{}", "tests/trainer"),
}

MOCKED = "puts a mock in the place of torch's writer, which ours does not use"
EXPECTED = {  # (suite, column, end of the name of the test): why it need not pass
    ("lightning", "ours", "::test_tensorboard_finalize"): MOCKED,
    ("lightning", "ours", "::test_logger_with_prefix_all"): MOCKED,
    ("lightning", "ours", "::test_cli_distributed_save_config_callback[ddp_spawn-logger1]"): (
        "unpickles in a spawned process, in which nobody has put ours in the place of theirs"
    ),
    ("fabric", "ours", "::test_tensorboard_finalize"): MOCKED,
    ("fabric", "ours", "::test_tensorboard_expand_home"): (
        "the root_dir of the logger for the Trainer, theirs and ours, has the name of the experiment in it"
    ),
    ("transformers", "ours", "::test_push_to_hub_with_tensorboard_logs"): (
        "looks for runs/ in what the Trainer pushes; ours uploads by itself, to tensorboard/"
    ),
}


def sources(suite: Suite, given: Mapping[str, Path], directory: Path) -> Path:
    """The sources of the installed version of a framework, cloned if they are not given."""
    if suite.package in given:
        return given[suite.package]
    target = directory / suite.package
    if not target.is_dir():
        tag = suite.tag.format(version(suite.package))
        url = f"https://github.com/{suite.repository}"
        clone = ["git", "clone", "--quiet", "--depth", "1", "--branch", tag, url, str(target)]
        if subprocess.run(clone, check=False).returncode:
            raise TroubleError(f"{url} at {tag} is not to be had; --source {suite.package}=DIR names a copy.")
    return target


class Bench:
    """Runs the tests of one suite, each column in a process and a clean directory of its own.

    Args:
        name: of the suite.
        source: the sources of the framework.
        directory: where to work.
    """

    def __init__(self, name: str, source: Path, directory: Path) -> None:
        self._name, self._source, self._directory = name, source.absolute(), directory
        folder = self._source / SUITES[name].tests
        self._files = [str(path) for path in sorted(folder.rglob("test_*.py")) if WORD in path.read_text().lower()]
        if not self._files:
            raise TroubleError(f"There are no tests about TensorBoard in {folder}.")

    def run(self, column: str) -> tuple[dict[str, str], list[str]]:
        """Run the tests.

        Returns:
            What became of each, and which promises were broken in the run directories that are left.

        Raises:
            TroubleError: nothing was run, or not with the writers that it is about.
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
            problems = [problem for run in runs for problem in _judge(run, hub)]
        outcomes, written = _told(place)
        print(
            f"{self._name}, {column}: ours wrote {written} run directories, of which {len(runs)} are left", flush=True
        )
        if bool(written) != (column in OURS):
            raise TroubleError("That is not what was to be tested.")
        return outcomes, problems

    def _command(self, column: str, place: Path) -> list[str]:
        patched = [sys.executable, "-m", "hf_mpwriter", "run", "--patch", "--"] if column == "patched" else []
        options = ["--framework", self._name, "--outcomes", str(place / "outcomes")]
        options += ["--ours"] if column == "ours" else []
        config = ["--rootdir", str(self._source), "-c", str(self._source / "pyproject.toml")]
        plugins = ["-p", "frameworks_plugin", "-p", "no:cacheprovider", "-p", "no:xdist"]
        endurance = ["--continue-on-collection-errors", "--timeout", "300", "--basetemp", str(place / "tmp")]
        return [*patched, sys.executable, "-m", "pytest", *plugins, *config, *endurance, *options, *self._files]


def _environment(place: Path, endpoint: str) -> dict[str, str]:
    """No variable of the user's shell or Hub account, and nothing is left in the sources."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "SLURM_", "PYTEST_"))}
    return clean | {
        "HF_ENDPOINT": endpoint,
        "HF_HOME": str(place / "hf"),
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_MPWRITER_COMMITS_PER_HOUR": "100000",
        "HF_MPWRITER_REPO_ID": "me/run",
        "HOME": str(place / "home"),
        "NO_PROXY": "127.0.0.1",
        "OMP_NUM_THREADS": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONPATH": os.pathsep.join([str(ROOT / "scripts"), str(ROOT)]),
        "TMPDIR": str(place),
    }


def _told(place: Path) -> tuple[dict[str, str], int]:
    """What became of each test, of whose phases the worst one counts, and how many run directories ours wrote."""
    outcomes, written = dict[str, str](), 0
    path = place / "outcomes"
    for line in map(json.loads, path.read_text().splitlines() if path.exists() else []):
        if test := line.get("test"):
            outcomes[test] = max(outcomes.get(test, "passed"), line["outcome"], key=WORST_LAST.index)
        written += line.get("runs", 0)
    if not outcomes:
        raise TroubleError(f"pytest has run nothing; see {place / 'log'}")
    return outcomes, written


class _Head(View):
    """Some files on the local Hub as they are in the end: here many runs share one folder and one history."""

    def __init__(self, hub: LocalHub, destination: Destination, names: Container[str]) -> None:
        super().__init__(hub.store, destination.repo_id, destination.path_in_repo)
        self._names = names

    def commits(self) -> list[str]:
        """The newest one."""
        return super().commits()[:1]

    def tree(self, revision: str) -> dict[str, TreeEntry]:
        """Files of one run."""
        return {path: entry for path, entry in super().tree(revision).items() if path in self._names}


def _judge(run: Path, hub: LocalHub) -> Iterator[str]:
    """What the oracle says of a run directory, when all is on the Hub or should be."""
    spool = Spool(str(run))
    destination = spool.destination()
    files = {str(path.relative_to(run)): path.stat().st_size for path in run.rglob("*tfevents*")}
    if destination is None or not files:
        return
    end = time.monotonic() + DRAIN
    while (missing := Progress(spool).missing(files)) and time.monotonic() < end:
        time.sleep(0.1)
    if missing:
        yield f"{run}: not on the Hub after {DRAIN:.0f} s: {missing}"
    yield from (f"{run}: {problem}" for problem in check(str(run), _Head(hub, destination, files)).problems)


def expected(suite: str, column: str, test: str) -> str:
    """Why this test need not pass with ours; empty if it has to."""
    return next(
        (why for (*where, ending), why in EXPECTED.items() if where == [suite, column] and test.endswith(ending)), ""
    )


def show(name: str, found: Mapping[str, Mapping[str, str]]) -> list[str]:
    """Print the table of a suite.

    Returns:
        The tests that pass with theirs, and have to with ours and do not.
    """
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
