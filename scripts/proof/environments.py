#!/usr/bin/env python3
"""A property of environments: whatever surrounds a training, all that it logged is on the Hub, and it never notices.

Each example draws HOME, XDG_*, HF_*, TMPDIR, umask, working directory, closed descriptors, limits, the length of
arguments and import path, locale and the name of the run directory; then a real program logs and ends, with a real
uploader and a local Hub that wants a token.

    scripts/proof/environments.py --examples 40 --seed 1
    scripts/proof/environments.py --example 17 --seed 1         this one alone, again

What must hold:
- the exit code is 0, and every returned record is on the Hub once, as the oracle judges;
- nothing is printed but what is documented, and the token never;
- nothing is made outside the run directory, HOME and the caches that the variables name;
- no standard descriptor of the program leads into the run directory.

Where no process can be started (RLIMIT_NPROC), `hf-mpwriter sync` has to bring all there afterwards. A run directory
whose name is no UTF-8 may be refused, with one line. As root each example has a user of its own.

Exit code 0 if all held, 3 if something was found, 1 if the script itself failed.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import sabotage
from lib.arguments import add_seed, make_parser
from lib.paths import HELPERS, PACKAGE
from lib.waiting import becomes_true

sys.path.insert(0, str(HELPERS))
from surroundings.draw import Surroundings, draw
from waits import timing

from hf_mpwriter.localhub import LocalHub, View
from hf_mpwriter.testing import check, processes, read_journals
from hf_mpwriter.testing.oracle import keys

AT_ONCE = 4  # examples; most of the time they wait
DEADLINE = 300.0  # seconds that a program may take, an uploader may take to leave
EXIT_TIMEOUT = 120.0  # seconds
TOKEN = "hf_" + "TheTokenOfThisExample" * 2
FIRST_USER = 54400
PROGRAM = Path(__file__).resolve().parent / "surroundings" / "program.py"
CALLS = 400 + 4  # of the program
DOCUMENTED = (
    r"^hf_mpwriter: (uploading|not uploading|done: |.+ goes to http)",
    r"created ",
    r"is public|is PUBLIC|is private",
    r"waiting up to .* on the Hub",
    r"all of it is on the Hub now",
    r"refused: ",
    r"not uploaded|no uploader|cannot start an uploader|hf-mpwriter sync",
    r"descriptor|file size",
    r"^\s*$",
)


class Example:
    """One example."""

    def __init__(self, root: Path, seed: int, number: int) -> None:
        self.number, self.place = number, root / str(number)
        self.user = FIRST_USER + number % 500 if os.geteuid() == 0 else 0
        for name in ("cwd", "home", "closed", "runs", "journals", "tmp", "cwd/tmp", "cwd/secret", "without_torch"):
            (self.place / name).mkdir(parents=True)
        (self.place / "without_torch" / "torch.py").write_text("raise ImportError('hidden: it takes seconds')")
        (self.place / "file").touch()
        self.drawn: Surroundings = draw(random.Random(f"{seed} {number}"), self.place)
        self._hub = LocalHub(root / f"hub{number}", token=TOKEN)
        self.run_dir = os.path.join(os.fsencode(self.place), b"runs", self.drawn.run_name)
        if self.drawn.token_file:
            (self.place / "cwd" / self.drawn.token_file).write_text(TOKEN)
        for path in [self.place, *self.place.rglob("*")] if self.user else ():
            os.chown(path, self.user, self.user)
        (self.place / "closed").chmod(0o555)
        if self.user:
            os.chown(self.place / "closed", 0, 0)
        self.findings: list[str] = []

    def go(self) -> None:
        """Run it and judge."""
        with self._hub:
            before = self._elsewhere()
            code, out, errors = self._run(self._told())
            self._judge_output(code, out, errors)
            run_dir = os.fsdecode(self.run_dir)
            left = becomes_true(lambda: not processes.left_behind(run_dir), DEADLINE, 0.1)
            if not left:
                self.findings.append(f"processes stay behind: {processes.left_behind(run_dir)}")
            if code == 0:
                if not self.drawn.uploads:
                    self._sync()
                self._judge_records()
            made = sorted(self._elsewhere() - before)
            if made:
                self.findings.append(f"made elsewhere: {', '.join(made[:5])}")
            for pid in processes.left_behind(run_dir):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, 9)

    def _environment(self, changes: dict[str, str | None]) -> dict[str, str | None]:
        paths = [str(self.place / "without_torch"), str(HELPERS / "watch")]
        return {
            **changes,
            "HF_ENDPOINT": self._hub.endpoint,
            "HF_TOKEN": None if self.drawn.token_file else TOKEN,
            "OPENBLAS_NUM_THREADS": "1",  # it cannot do without processes
            "HF_MPWRITER_COMMITS_PER_HOUR": "1000000",
            "HF_MPWRITER_TIMING": timing(),
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "NO_PROXY": "127.0.0.1",
            "PYTHONPATH": ":".join([*paths, os.environ.get("PYTHONPATH", str(PACKAGE.parent))]),
            "PYTHONDONTWRITEBYTECODE": "1",
        }

    def _told(self) -> dict[str, Any]:
        """What the program has to know."""
        drawn = self.drawn
        return {
            "environment": self._environment(drawn.environment),
            "cwd": str(self.place / "cwd"),
            "user": self.user,
            "scripts": [str(PROGRAM.parents[1]), str(PROGRAM.parents[2])],
            "deleted_cwd": drawn.deleted_cwd,
            "umask": drawn.umask,
            "limits": drawn.limits,
            "closed": drawn.closed,
            "argument": drawn.argument,
            "import_path": drawn.import_path,
            "moves": drawn.moves,
            "run_dir": self.run_dir.hex(),
            "journals": str(self.place / "journals"),
            "exit_timeout": EXIT_TIMEOUT if drawn.uploads else 1.0,
            "sync": "",
        }

    def _run(self, told: dict[str, Any]) -> tuple[int, str, str]:
        """Run the program; return exit code, output and errors."""
        process = subprocess.Popen(
            [sys.executable, str(PROGRAM), "begin", json.dumps(told)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        try:
            out, errors = process.communicate(timeout=DEADLINE)
        except subprocess.TimeoutExpired:
            process.kill()
            out, errors = process.communicate()
            self.findings.append("the program did not end")
        return process.returncode, out.decode(errors="replace"), errors.decode(errors="replace")

    def _sync(self) -> None:
        """Bring to the Hub what could not go there, as the same user in usual surroundings."""
        usual = {"HF_HOME": str(self.place / "home" / "sync"), "HOME": str(self.place / "home")}
        told = self._told() | {
            "environment": self._environment(usual) | {"HF_TOKEN": TOKEN},
            "deleted_cwd": False,
            "closed": [],
            "sync": os.fsdecode(self.run_dir),
        }
        code, out, errors = self._run(told)
        if code:
            self.findings.append(f"sync ended with {code}: {out!r} {errors!r}")

    # the judgement

    def _judge_output(self, code: int, out: str, errors: str) -> None:
        refused = code == 4 and self.drawn.may_be_refused
        if code and not refused:
            self.findings.append(f"the exit code is {code}: {errors[-1500:]}")
        if out not in ("", "trained\n"):
            self.findings.append(f"printed: {out[:300]!r}")
        if refused and len(errors.splitlines()) > 1:
            self.findings.append(f"refused with more than a line: {errors}")
        strange = [line for line in errors.splitlines() if not any(re.search(known, line) for known in DOCUMENTED)]
        if strange:
            self.findings.append(f"printed what is not documented: {strange[:3]}")
        if TOKEN in out + errors:
            self.findings.append("the token was printed")

    def _judge_records(self) -> None:
        run_dir = os.fsdecode(self.run_dir)
        with open(os.path.join(self.run_dir, b".hf_mpwriter", b"run.json"), "rb") as file:
            folder = json.load(file)["destination"]["path_in_repo"]
        view = View(self._hub.store, "me/run", folder)
        report = check(run_dir, view, read_journals(str(self.place / "journals")))
        self.findings += report.problems
        count = sum(file.hub_events for file in report.files.values())
        if count != CALLS:
            self.findings.append(f"{count} of {CALLS} records are on the Hub")
        if not all(keys(os.path.join(run_dir, path)) for path in report.files):
            self.findings.append("an event file is empty")

    def _elsewhere(self) -> set[str]:
        """What is at places where nothing is to be made."""
        environment = self.drawn.environment
        named = [environment[name] for name in ("HOME", "XDG_CACHE_HOME", "HF_HOME", "HF_HUB_CACHE", "HF_XET_CACHE")]
        allowed = [os.path.normpath(os.path.join(self.place, "cwd", name)) for name in named if name]
        allowed += [str(self.place / name) for name in ("runs", "journals", "home", "sync")]
        found = set()
        for top in (str(self.place),):
            for directory, names, files in os.walk(top):
                names[:] = [name for name in names if os.path.normpath(os.path.join(directory, name)) not in allowed]
                found |= {os.path.join(directory, name) for name in [*names, *files]}
        return found | {f"/{name}" for name in os.listdir("/")}


def main() -> int:
    """Run the examples; print what was found."""
    parser = make_parser(__doc__)
    parser.add_argument("--examples", type=int, default=40, help="default: %(default)s")
    parser.add_argument("--example", type=int, help="this one alone")
    parser.add_argument("--show", action="store_true", help="print what is drawn")
    add_seed(parser)
    options = parser.parse_args()
    root = Path(tempfile.mkdtemp(prefix="environments_"))
    root.chmod(0o755)
    numbers = range(options.examples) if options.example is None else [options.example]
    print(f"seed {options.seed}, in {root}", flush=True)
    started_at, findings, troubles = time.monotonic(), [], []
    os.umask(0o022)

    def run(number: int) -> Example:
        example = Example(root, options.seed, number)
        example.go()
        return example

    with ThreadPoolExecutor(AT_ONCE) as pool:
        for future in [pool.submit(run, number) for number in numbers]:
            try:
                example = future.result()
            except Exception as error:  # noqa: BLE001 - reported as a trouble
                troubles.append(f"an example failed: {error!r}")
                continue
            if options.show or example.findings:
                print(f"example {example.number}: {example.drawn}", flush=True)
            print(*(f"  {finding}" for finding in example.findings), sep="\n", end="\n" * bool(example.findings))
            findings += example.findings
    print(f"{len(numbers)} examples, {time.monotonic() - started_at:.0f} s")
    success = "every record is on the Hub once, nothing was printed or made that should not be"
    return sabotage.conclude(findings, root, options.seed, success, troubles=troubles)


if __name__ == "__main__":
    sys.exit(main())
