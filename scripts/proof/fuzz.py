#!/usr/bin/env python3
"""Fuzz: real files of run directories and real answers of the Hub, mutated; whoever reads them must live with it.

A real run is made: ranks, uploader, pull, a staged run with its mirror and sampler, the user's cache. Then case after
case strikes some of its files or some answers, and lets readers, commands, training and uploaders meet them.

    scripts/proof/fuzz.py --minutes 10 --seed 1
    scripts/proof/fuzz.py --seed 1 --case 4711 --corpus DIRECTORY     one case again; of a kept corpus, exactly

What must hold:
- training ends with 0, and what it logged is in its files;
- nobody prints a traceback, or what a terminal obeys; readers raise only what their callers expect;
- each process ends in time, and needs little more memory than without a mutation;
- when all is undone, `sync` brings every record to the Hub.

A finding is printed when it happens, the first of its kind in full. Exit code 0 if all held, 3 if something was found,
1 if the script itself failed.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import sabotage
from lib.arguments import add_seed, make_parser
from lib.isolation import isolate
from lib.prctl import die_with_parent

NAMES = "names"  # file in the root: the endpoint and the path that the files of the corpus name


class Work:
    """Cases in lanes."""

    def __init__(self, root: Path, seed: int, lanes: int, minutes: float, case: int | None) -> None:
        self._root, self._seed, self._lanes, self._minutes, self._case = root, seed, lanes, minutes, case

    def go(self) -> tuple[dict[str, Counter[str]], list[str]]:
        """Run the lanes; what they did, and what kept them from it."""
        lanes = [self._fork(number) for number in range(self._lanes)]
        total: dict[str, Counter[str]] = {name: Counter() for name in ("tally", "seconds", "found", "peak", "drift")}
        troubles = []
        for number, pid in enumerate(lanes):
            _, status = os.waitpid(pid, 0)
            try:
                outcome = json.loads((self._root / f"outcome{number}.json").read_text())
            except (OSError, ValueError) as error:
                code = os.waitstatus_to_exitcode(status)
                troubles.append(f"there is no outcome of lane {number}, which ended with {code}: {error}")
                continue
            troubles += outcome["troubles"]
            for name in ("tally", "seconds", "found"):
                total[name] += Counter(outcome[name])
            for name in ("peak", "drift"):
                total[name] |= Counter(outcome[name])
        return total, troubles

    def _fork(self, number: int) -> int:
        """Start a lane; to this package it is no child of another worker, as one of multiprocessing would be."""
        pid = os.fork()
        if pid == 0:
            try:
                self._live(number)
            finally:
                os._exit(0)
        return pid

    def _live(self, number: int) -> None:
        die_with_parent()
        from fuzzing import corpus

        os.environ.update(corpus.environment(self._root / f"lane{number}" / "case", ""))
        del os.environ[corpus.MARK]  # it is not for the Hub of the lane
        from fuzzing.lane import DRIFT, Lane  # the client reads its environment when it is imported

        lane, troubles = Lane(self._root, number, self._seed, self._report), []
        try:
            with lane.open(*(self._root / NAMES).read_text().split("\n")):
                end, case = time.monotonic() + 60 * self._minutes, self._case or number + 1
                while time.monotonic() < end or self._case is not None:
                    lane.run(case)
                    if self._case is not None:
                        break
                    case += self._lanes
            if lane.outcome.drift > DRIFT:
                lane.find(case, f"the lane has grown by {lane.outcome.drift >> 20} MiB", "all cases")
        except Exception:  # noqa: BLE001 - reported as a trouble
            troubles.append(f"lane {number}: {traceback.format_exc()}")
        outcome = vars(lane.outcome) | {"drift": {f"lane {number}": lane.outcome.drift}, "troubles": troubles}
        (self._root / f"outcome{number}.json").write_text(json.dumps(outcome))

    def _report(self, number: int, what: str) -> None:
        again = f"{sys.argv[0]} --seed {self._seed} --case {number} --corpus {shlex.quote(str(self._root))}"
        print(f"FOUND {what}\n    again: {again}", flush=True)


def main() -> int:
    """Make the corpus, run the cases; print what was done and what was found."""
    parser = make_parser(__doc__)
    parser.add_argument("--minutes", type=float, default=10.0, help="of cases (default: %(default)s)")
    parser.add_argument("--lanes", type=int, default=2, help="cases at the same time (default: %(default)s)")
    parser.add_argument("--case", type=int, help="run this one alone")
    parser.add_argument("--corpus", type=Path, help="the directory that an earlier fuzz has kept")
    add_seed(parser)
    options = parser.parse_args()
    root = Path(tempfile.mkdtemp(prefix="fuzz_"))
    isolate(root)
    print(f"seed {options.seed}, in {root}", flush=True)
    if options.corpus:
        for name in ("corpus", "hub"):
            shutil.copytree(options.corpus / name, root / name)
        shutil.copy(options.corpus / NAMES, root / NAMES)
    else:
        (root / NAMES).write_text(f"{_make(root)}\n{root / 'corpus'}")
    lanes = 1 if options.case is not None else options.lanes
    started_at = time.monotonic()
    total, troubles = Work(root, options.seed, lanes, options.minutes, options.case).go()
    for name, count in sorted(total["tally"].items()):
        print(f"{count:8}  {name}, {total['seconds'][name]:.0f} s, {total['peak'][name] >> 20} MiB at most")
    seconds, growth = time.monotonic() - started_at, max(total["drift"].values(), default=0) >> 20
    print(f"{total['tally'].total()} cases in {seconds:.0f} s, {growth} MiB of growth")
    findings = [f"{count:8}  {what}" for what, count in total["found"].most_common()]
    print(*findings, sep="\n", end="\n" * bool(findings))
    success = "training did not notice, no traceback, memory flat, all comes to the Hub"
    return sabotage.conclude(findings, root, options.seed, success, troubles=troubles)


def _make(root: Path) -> str:
    from fuzzing.corpus import Making

    return Making(root).make()


if __name__ == "__main__":
    sys.exit(main())
