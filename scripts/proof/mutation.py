#!/usr/bin/env python3
"""Mutation test: change the code in one place, and see whether a unit test notices.

The modules below decide what is lost and what is sent twice. cosmic-ray finds the places and makes the mutants; a
seeded sample of them is tested, each in a copy of the package, with the mirrored unit tests. A mutant that no test
notices is printed as a diff: either a test is missing, or the change makes no difference.

    pip install -e '.[dev]'
    scripts/proof/mutation.py --minutes 90 --seed 1
    scripts/proof/mutation.py --minutes 5 --seed 1 uploader/decision.py

Exit code 0 if every mutant was noticed, 3 if some survived, 1 if the script itself failed.
"""

from __future__ import annotations

import ast
import difflib
import os
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from lib.arguments import add_seed, make_parser
from lib.paths import PACKAGE, ROOT
from sabotage import FOUND, TROUBLE

MODULES = {  # module -> the unit tests that mirror it
    "push/commit.py": ("push/test_commit.py",),
    "spool/ledger.py": ("spool/test_ledger.py",),
    "spool/outbox.py": ("spool/test_outbox.py",),
    "uploader/decision.py": ("uploader/test_decision.py", "uploader/test_next_step.py"),
    "uploader/in_flight.py": ("uploader/test_in_flight.py",),
}
OPTIONS = (
    "-x",
    "-q",
    "--no-header",
    "--tb=no",
    "-p",
    "no:cacheprovider",
    "-p",
    "no:xdist",
    "-o",
    "addopts=--import-mode=importlib",
)
PATIENCE = 3.0  # times that a mutant's tests may take longer than the sound ones
SPARE = 30.0  # seconds in addition


@dataclass(frozen=True)
class Mutant:
    """One change of one module."""

    module: str  # path in the package
    operator: str  # of cosmic-ray
    occurrence: int  # which of the places where it applies

    def source(self) -> str:
        """The whole module, changed; "" if the change makes no difference, or none can be made."""
        from cosmic_ray.mutating import mutate_code
        from cosmic_ray.plugins import get_operator

        sound = (PACKAGE / self.module).read_text()
        try:
            source = mutate_code(sound, get_operator(self.operator)(), self.occurrence) or ""
        except AttributeError:  # cosmic-ray cannot replace an exception that has a dot in its name
            return ""
        return source if _code(source) not in ("", _code(sound)) else ""

    def diff(self) -> str:
        """What is changed."""
        lines = (PACKAGE / self.module).read_text().splitlines(), self.source().splitlines()
        return "\n".join(difflib.unified_diff(*lines, self.module, self.module, lineterm="", n=1))


def mutants(module: str) -> Iterator[Mutant]:
    """All mutants of a module."""
    from cosmic_ray.ast import ast_nodes, get_ast
    from cosmic_ray.plugins import get_operator, operator_names

    nodes = list(ast_nodes(get_ast((PACKAGE / module).read_text())))
    for name in operator_names():
        operator = get_operator(name)
        if not operator.arguments():
            count = sum(1 for node in nodes for _ in operator().mutation_positions(node))
            yield from (Mutant(module, name, occurrence) for occurrence in range(count))


def _code(source: str) -> str:
    """What a module does, without the annotations of functions; "" if it is no Python."""
    try:
        tree = ast.parse(source)
    except SyntaxError:
        return ""
    for node in ast.walk(tree):
        if isinstance(node, ast.arg):
            node.annotation = None
        elif isinstance(node, ast.FunctionDef):
            node.returns = None
    return ast.dump(tree)


class Laboratory:
    """A copy of the package in which one mutant at a time is tested."""

    def __init__(self, root: Path) -> None:
        self._root = root
        shutil.copytree(PACKAGE, root / "hf_mpwriter", ignore=shutil.ignore_patterns("__pycache__"))

    def notices(self, module: str, source: str, timeout: float) -> bool:
        """Whether a test fails, or does not end in time."""
        path = self._root / "hf_mpwriter" / module
        sound = path.read_text()
        path.write_text(source)
        try:
            return self._run(module, timeout) != 0
        finally:
            path.write_text(sound)

    def _run(self, module: str, timeout: float) -> int:
        tests = ROOT / "tests" / "unit"
        files = [str(tests / name) for name in MODULES[module]]
        command = [sys.executable, "-P", "-m", "pytest", *OPTIONS, *files]
        environment = os.environ | {"PYTHONPATH": str(self._root), "PYTHONDONTWRITEBYTECODE": "1"}
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            return process.wait(timeout)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, 9)
            process.wait()
            return 1


def main() -> int:
    """Test a sample until the time is over; print the survivors."""
    parser = make_parser(__doc__)
    parser.add_argument("modules", nargs="*", choices=[[], *MODULES], help="paths in the package (default: all)")
    parser.add_argument("--minutes", type=float, default=90.0, help="default: %(default)s")
    parser.add_argument("--at-once", type=int, default=2, help="mutants at the same time (default: %(default)s)")
    add_seed(parser)
    options = parser.parse_args()
    modules = options.modules or list(MODULES)
    sample = [mutant for module in modules for mutant in mutants(module)]
    random.Random(options.seed).shuffle(sample)
    print(f"seed {options.seed}: {len(sample)} mutants of {', '.join(modules)}", flush=True)
    with tempfile.TemporaryDirectory(prefix="mutation_") as root:
        laboratories = [Laboratory(Path(root) / str(number)) for number in range(options.at_once)]
        limits = {}
        for module in modules:
            before, sound = time.monotonic(), (PACKAGE / module).read_text()
            if laboratories[0].notices(module, sound, 600.0) or not laboratories[0].notices(
                module, "raise ImportError\n", 600.0
            ):
                print(f"the unit tests of {module} fail without a mutant, or do not import it")
                return TROUBLE
            limits[module] = PATIENCE * (time.monotonic() - before) + SPARE
        tested, survivors = _test(sample, laboratories, limits, time.monotonic() + 60 * options.minutes)
    killed = sum(tested.values()) - len(survivors)
    print(f"{killed} of {sum(tested.values())} mutants noticed, of {len(sample)} in all")
    for module in modules:
        alive = sum(mutant.module == module for mutant in survivors)
        print(f"{module:24}{tested[module] - alive:6} of {tested[module]:4} noticed")
    return FOUND if survivors else 0


def _test(
    sample: list[Mutant], laboratories: list[Laboratory], limits: dict[str, float], ends: float
) -> tuple[Counter[str], list[Mutant]]:
    """Test mutants in order; return how many of each module, and those that no test noticed."""
    tested: Counter[str] = Counter()
    survivors: list[Mutant] = []
    mutex, waiting = threading.Lock(), iter(sample)

    def work(laboratory: Laboratory) -> None:
        while time.monotonic() < ends:
            with mutex:
                mutant = next(waiting, None)
            if mutant is None:
                return
            if not (source := mutant.source()):
                continue
            noticed = laboratory.notices(mutant.module, source, limits[mutant.module])
            with mutex:
                tested[mutant.module] += 1
                if not noticed:
                    survivors.append(mutant)
                    print(f"survived: {mutant.operator}\n{mutant.diff()}\n", flush=True)

    with ThreadPoolExecutor(len(laboratories)) as pool:
        for future in [pool.submit(work, laboratory) for laboratory in laboratories]:
            future.result()
    return tested, survivors


if __name__ == "__main__":
    sys.exit(main())
