"""Our tests of the integrations with the oldest and with the newest versions of the frameworks, each in an environment.

The tests run the examples of scripts/examples on one and on two ranks, kill and resume them, against a local Hub, and
the oracle judges. torch is installed first and is the same in both environments: nothing else chooses its version.
"""

from __future__ import annotations

import subprocess
import venv
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from xml.etree import ElementTree as ET

from hf_mpwriter.integrations import MINIMUM

ROOT = Path(__file__).resolve().parent.parent
TORCH = "torch==2.13.0"
ENVIRONMENTS = {
    "oldest": [f"{package}=={version}" for package, version in MINIMUM.items()],
    "newest": [*MINIMUM],
}
TESTS = ("integration/frameworks", "unit/integrations")  # below tests/
LIMIT = 3600  # seconds for the tests in one environment
OUTCOMES = ("passed", "failed", "skipped")


class TroubleError(Exception):
    """The tests could not be run; nothing is known."""


@dataclass
class Findings:
    """What became of the tests in one environment.

    Attributes:
        versions: of torch and the frameworks.
        outcomes: how many, per module.
        failed: names of tests.
    """

    versions: str
    outcomes: dict[str, Counter[str]] = field(default_factory=dict)
    failed: list[str] = field(default_factory=list)


def make(name: str, directory: Path) -> Path:
    """Make an environment; its Python. One that is there already is used again.

    Raises:
        TroubleError: the versions do not go together, or there is no package index.
    """
    place = directory / name
    python = place / "bin" / "python"
    if not python.exists():
        venv.create(place, with_pip=True)
    wanted = [TORCH, *ENVIRONMENTS[name], "--editable", f"{ROOT}[test,frameworks]"]
    for packages in ([TORCH], wanted):
        command = [python, "-m", "pip", "install", "--quiet", "--upgrade", "--disable-pip-version-check", *packages]
        if subprocess.run(command, check=False).returncode:
            raise TroubleError(f"{name}: not installed: {' '.join(packages)}")
    return python


def run(python: Path, directory: Path) -> Findings:
    """Run the tests of the integrations in an environment."""
    asked = "import importlib.metadata as m, sys; print(*(f'{n} {m.version(n)}' for n in sys.argv[1:]), sep=', ')"
    versions = subprocess.check_output([python, "-c", asked, "torch", *MINIMUM], text=True).strip()
    print(f"{directory.name}: {versions}", flush=True)
    files = [ROOT / "tests" / name for name in TESTS]
    report = directory / "report.xml"
    options = ["--numprocesses", "2", "--dist", "worksteal", f"--junitxml={report}", "-p", "no:cacheprovider"]
    report.unlink(missing_ok=True)  # of an earlier run
    with open(directory / "log", "wb") as log:
        command = [python, "-m", "pytest", *options, *files]
        subprocess.run(command, cwd=ROOT, stdout=log, stderr=log, timeout=LIMIT, check=False)
    findings = _read(report, Findings(versions)) if report.exists() else Findings(versions)
    if not findings.outcomes:
        raise TroubleError(f"pytest has run nothing; see {log.name}")
    return findings


def _read(report: Path, findings: Findings) -> Findings:
    for case in ET.parse(report).iter("testcase"):  # noqa: S314 - pytest has just written it
        kinds = {child.tag for child in case}
        outcome = "failed" if kinds & {"failure", "error"} else "skipped" if "skipped" in kinds else "passed"
        module = case.get("classname", "").rpartition(".")[2] or case.get("name", "")
        findings.outcomes.setdefault(module, Counter())[outcome] += 1
        if outcome == "failed":
            findings.failed.append(f"{module}::{case.get('name')}")
    return findings


def matrix(directory: Path) -> list[str]:
    """Make the environments, run the tests, print the table; what failed, and modules of which nothing ran."""
    problems = list[str]()
    for name in ENVIRONMENTS:
        findings = run(make(name, directory), directory / name)
        print(f"{'':24}{''.join(f'{outcome:>9}' for outcome in OUTCOMES)}")
        for module, counts in sorted(findings.outcomes.items()):
            print(f"{module:24}{''.join(f'{counts[outcome]:9}' for outcome in OUTCOMES)}", flush=True)
        problems += [f"{name}: {test} failed" for test in findings.failed]
        idle = [module for module, counts in findings.outcomes.items() if not counts["passed"]]
        problems += [f"{name}: of {module} nothing has passed" for module in idle]
    return problems
