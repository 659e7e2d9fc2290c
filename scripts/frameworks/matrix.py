#!/usr/bin/env python3
"""Run our tests of the integrations with the oldest and with the newest versions of the frameworks.

    scripts/frameworks/matrix.py
    scripts/frameworks/matrix.py --keep DIR      work there; environments in it are used again

The tests run the examples of scripts/examples on one and on two ranks, kill and resume them, against a local Hub, and
the oracle judges. torch is installed first, with the same version in both environments, so nothing else chooses it.

The script needs a package index, and 2 GB of disk for each environment. Exit code 0 if all tests passed, 1 if not: the
logs are kept. 2 if the tests could not be run.
"""

from __future__ import annotations

import subprocess
import sys
import venv
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from xml.etree import ElementTree as ET

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from lib.arguments import make_parser
from lib.paths import ROOT, TESTS
from session import TroubleError, add_keep, run_session

from hf_mpwriter.integrations import MINIMUM

TORCH = "torch==2.13.0"
ENVIRONMENTS = {
    "oldest": [f"{package}=={version}" for package, version in MINIMUM.items()],
    "newest": [*MINIMUM],
}
FOLDERS = ("integration/frameworks", "unit/integrations")  # below tests/
LIMIT = 3600  # seconds for the tests in one environment
OUTCOMES = ("passed", "failed", "skipped")


@dataclass
class Findings:
    """The outcomes of the tests in one environment."""

    versions: str  # of torch and the frameworks
    outcomes: dict[str, Counter[str]] = field(default_factory=dict)  # how many of each, per module
    failed: list[str] = field(default_factory=list)  # names of tests


def make(name: str, directory: Path) -> Path:
    """Make an environment, or update the one that is there; return its Python."""
    place = directory / name
    python = place / "bin" / "python"
    if not python.exists():
        venv.create(place, with_pip=True)
    wanted = [TORCH, *ENVIRONMENTS[name], "--editable", f"{ROOT}[test,frameworks]"]
    for packages in ([TORCH], wanted):
        command = [python, "-m", "pip", "install", "--quiet", "--upgrade", "--disable-pip-version-check", *packages]
        if subprocess.run(command, check=False).returncode:
            raise TroubleError(f"{name}: cannot install {' '.join(packages)}")
    return python


def run(python: Path, directory: Path) -> Findings:
    """Run the tests of the integrations in an environment."""
    program = "import importlib.metadata as m, sys; print(*(f'{n} {m.version(n)}' for n in sys.argv[1:]), sep=', ')"
    versions = subprocess.check_output([python, "-c", program, "torch", *MINIMUM], text=True).strip()
    print(f"{directory.name}: {versions}", flush=True)
    files = [TESTS / folder for folder in FOLDERS]
    report = directory / "report.xml"
    options = ["--numprocesses", "2", "--dist", "worksteal", f"--junitxml={report}", "-p", "no:cacheprovider"]
    report.unlink(missing_ok=True)  # of an earlier run
    with open(directory / "log", "wb") as log:
        command = [python, "-m", "pytest", *options, *files]
        subprocess.run(command, cwd=ROOT, stdout=log, stderr=log, timeout=LIMIT, check=False)
    findings = _read(report, Findings(versions)) if report.exists() else Findings(versions)
    if not findings.outcomes:
        raise TroubleError(f"pytest ran no test; see {log.name}")
    return findings


def _read(report: Path, findings: Findings) -> Findings:
    for case in ET.parse(report).iter("testcase"):  # noqa: S314 - pytest wrote it a moment ago
        kinds = {child.tag for child in case}
        outcome = "failed" if kinds & {"failure", "error"} else "skipped" if "skipped" in kinds else "passed"
        module = case.get("classname", "").rpartition(".")[2] or case.get("name", "")
        findings.outcomes.setdefault(module, Counter())[outcome] += 1
        if outcome == "failed":
            findings.failed.append(f"{module}::{case.get('name')}")
    return findings


def matrix(directory: Path) -> list[str]:
    """Run the tests in both environments and print the tables; return failures, and modules without a passed test."""
    problems = list[str]()
    for name in ENVIRONMENTS:
        findings = run(make(name, directory), directory / name)
        print(f"{'':24}{''.join(f'{outcome:>9}' for outcome in OUTCOMES)}")
        for module, counts in sorted(findings.outcomes.items()):
            print(f"{module:24}{''.join(f'{counts[outcome]:9}' for outcome in OUTCOMES)}", flush=True)
        problems += [f"{name}: {test} failed" for test in findings.failed]
        idle = [module for module, counts in findings.outcomes.items() if not counts["passed"]]
        problems += [f"{name}: no test of {module} passed" for module in idle]
    return problems


def main() -> int:
    """Run the tests; print the tables and what failed."""
    parser = make_parser(__doc__)
    add_keep(parser)
    return run_session(parser.parse_args().keep, matrix)


if __name__ == "__main__":
    sys.exit(main())
