"""One of the programs of `multiprocess.py` in a place of its own: what it prints, where its records are, and kills."""

from __future__ import annotations

import contextlib
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from launching.stage import free_port
from lib.waiting import becomes_true
from multiprocess_programs import PROGRAMS, Ordinary, begun, journals

from hf_mpwriter.localhub import LocalHub, View
from hf_mpwriter.testing import check, processes, read_journals

DOWN = "http://127.0.0.1:9"
LIMIT = 180.0  # seconds that a program may take
QUIET = 4.0  # seconds without a process that logs, after which a program that has lost one is ended
START, END, UNSENT, OUTAGE = "start", "end", "unsent", "outage"
LINES = {  # of what is counted; the run directory, or its folder on the Hub, is in each
    START: r"hf_mpwriter: uploading {run} to ",
    END: r"hf_mpwriter: done: .*/{folder}\b",
    UNSENT: r"hf_mpwriter: .* of {run} are not on the Hub yet",
    OUTAGE: r"hf_mpwriter: not uploading: .* log: {run}/",
}


def alive(pid: int, go: str = "") -> bool:
    """Whether a process lives; a zombie does not, nor does another one that has its id, as GO is not that of ours."""
    with contextlib.suppress(psutil.Error):
        process = psutil.Process(pid)
        return process.status() != psutil.STATUS_ZOMBIE and go in ("", process.environ().get("GO"))
    return False


def end(pid: int, number: signal.Signals = signal.SIGKILL) -> None:
    """Send a signal to a process that may have ended."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


class Place:
    """A program with a folder of its own."""

    def __init__(self, folder: Path, name: str, environ: dict[str, str], repo: str) -> None:
        self.folder, self.name, self.repo = folder, name, repo
        self.program: Ordinary = PROGRAMS[name]
        (folder / "without_torch").mkdir(parents=True)
        (folder / "without_torch" / "torch.py").write_text("raise ImportError('hidden: it takes seconds')")
        (folder / "program.py").write_text(self.program.source)
        paths = ([] if self.program.has_torch else [str(folder / "without_torch")]) + [os.environ.get("PYTHONPATH", "")]
        own = {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "RAY_PLACE": str(folder / "ray")}
        self._environ, self._started = os.environ | environ | own, 0
        self.output = folder / "output"
        self.running: list[subprocess.Popen[bytes]] = []

    @property
    def runs(self) -> list[Path]:
        """What each node has as the logdir of its program."""
        nodes = self.program.nodes
        return [self.folder / (f"node{node}" if nodes > 1 else "runs") / "exp1" for node in range(nodes)]

    @property
    def run_dirs(self) -> list[Path]:
        """All run directories."""
        return [run_dir for run in self.runs for run_dir in self.program.run_dirs(run)]

    def start(self, **environ: str) -> None:
        """Start it in a session of its own; what it prints is in a file of its own."""
        self._started += 1
        self.output, self.running = self.folder / f"output{self._started}", []
        port = str(free_port())
        more = [[]] if self.program.nodes == 1 else [[str(rank), port] for rank in range(self.program.nodes)]
        for run, arguments in zip(self.runs, more, strict=True):
            command = [sys.executable, *self.program.launcher, str(self.folder / "program.py"), str(run), self.repo]
            with self.output.open("ab") as file:
                process = subprocess.Popen(
                    [*command, *arguments],
                    env=self._environ | environ,
                    stdin=subprocess.DEVNULL,
                    stdout=file,
                    stderr=file,
                    start_new_session=True,
                )
            self.running.append(process)

    def finish(self) -> list[int]:
        """Wait for the end; the exit codes."""
        deadline = time.monotonic() + LIMIT
        with contextlib.suppress(subprocess.TimeoutExpired):
            return [process.wait(max(0.1, deadline - time.monotonic())) for process in self.running]
        self.kill()
        return [-signal.SIGKILL]

    def members(self) -> set[int]:
        """The living processes that it has started, without uploaders; ranks of torchrun have sessions of their own."""
        sessions = {process.pid for process in self.running}
        found = self.loggers(and_ended=True) if "GO" in self._environ else set()
        for pid in psutil.pids():
            with contextlib.suppress(OSError):
                if os.getsid(pid) in sessions and alive(pid):
                    found.add(pid)
        return found

    def loggers(self, *, and_ended: bool = False) -> set[int]:
        """The living processes that log, of a program with GO."""
        found = set()
        for run_dir in self.run_dirs:
            left = set() if and_ended else {pid for pid, _ in journals(run_dir, "ended")}
            found |= {pid for pid, _ in journals(run_dir) if pid not in left}
        return {pid for pid in found if alive(pid, self._environ["GO"])}

    def kill(self) -> None:
        """End all of its processes."""
        while members := self.members():
            for pid in members:
                end(pid)
        for process in self.running:
            process.wait()

    def close(self) -> None:
        """End what is left, uploaders included."""
        self.kill()
        for run_dir in self.run_dirs:
            for pid in processes.left_behind(str(run_dir)):
                end(pid)

    def lines(self) -> list[str]:
        """What was printed of ours since the last start."""
        return [line for line in self.output.read_text(errors="replace").splitlines() if "hf_mpwriter: " in line]

    def told(self, *run_dirs: Path) -> Counter[str]:
        """How often each line was printed of these run directories."""
        found: Counter[str] = Counter()
        for kind, text in LINES.items():
            words = [{"run": re.escape(str(run_dir)), "folder": run_dir.name} for run_dir in run_dirs]
            pattern = re.compile("|".join(text.format(**word) for word in words))
            found[kind] = sum(bool(pattern.search(line)) for line in self.lines())
        return found


# kills


@dataclass
class Tally:
    """What the kills of a program showed."""

    kills: Counter[str] = field(default_factory=Counter)  # processes killed, by their kind
    returned: int = 0  # records whose calls had returned
    lost: int = 0  # of these, those that are not on the Hub
    doubled: int = 0  # of these, those that are there twice
    once: int = 0  # run directories with a failing Hub whose end told once what is missing
    never: int = 0  # those whose end did not tell it
    twice: int = 0  # messages that were told more than once
    findings: list[str] = field(default_factory=list)  # broken promises

    def add(self, other: Tally) -> None:
        """Add what another one showed."""
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)


CHILD, PARENT, UPLOADER = "child", "parent", "uploader"
FAULTS = ("", "", "/api/ 503 times=0", "/api/ close times=0")  # of the Hub, while the program runs
ENDINGS = ("let", "let", "term", "kill")  # the others go on to their end, or are ended
HEAVY = {"lightning-ddp": 0, "ray-tune": 0, "nested": 1, "debug-launcher": 1, "nodes": 1, "ddp-by-spawn": 2}
LIGHT = 4  # the weight of the other programs, which begin in a second


def weights() -> dict[str, int]:
    """How often each program is drawn; what cannot run here is not."""
    return {name: 0 if program.missing else HEAVY.get(name, LIGHT) for name, program in PROGRAMS.items()}


class Trial:
    """One kill: a program, a process of it, a moment, and what comes then are drawn."""

    def __init__(self, folder: Path, hub: LocalHub, seed: int, number: int, only: list[str]) -> None:
        self._rng, self._hub = random.Random(f"{seed} {number}"), hub
        drawn = weights()
        name = self._rng.choices(only, [drawn[name] or len(only) == 1 for name in only])[0]
        self._fault, self._ending = self._rng.choice(FAULTS), self._rng.choice(ENDINGS)
        self._next, self._delay = self._rng.choice(("sync", "start")), self._rng.uniform(0.0, 1.2)
        self._go = folder / f"{number}" / "go"
        environ = {"HF_ENDPOINT": hub.endpoint, "GO": str(self._go), "HF_MPWRITER_EXIT_TIMEOUT": "4"}
        self.place = Place(folder / f"{number}", name, environ, f"me/trial{number}")
        self._tally, self._victim, self._number = Tally(), "", number

    def __str__(self) -> str:
        ways = f"{self._victim or 'nothing'} killed, then {self._ending}, {self._next}"
        return f"trial {self._number}: {self.place.name}, Hub {self._fault or 'up'}, {ways}"

    def run(self) -> Tally:
        """Run it and judge."""
        try:
            if self._fault:
                self._hub.fault(self._fault)
            self.place.start()
            self._kill_one()
            self._end_the_rest()
            self._judge_messages()
            self._hub.clear_faults()
            self._go_on()
            self._judge_records()
        finally:
            self._hub.clear_faults()
            self.place.close()
        if not self._tally.findings:
            shutil.rmtree(self.place.folder)
        return self._tally

    def _find(self, what: str) -> None:
        self._tally.findings.append(f"{self}: {what}")

    # the kill

    def _have_begun(self) -> bool:
        return begun(self.place.run_dirs) >= self.place.program.logs

    def _kill_one(self) -> None:
        becomes_true(lambda: self._have_begun() or not self.place.members(), LIMIT, 0.05)
        if not self._have_begun():
            self._find(f"it does not log: {self.place.output.read_text()[-2000:]}")
        time.sleep(self._delay)
        parents = {process.pid for process in self.place.running}
        found: dict[str, Callable[[], list[int]]] = {
            CHILD: lambda: sorted(self.place.loggers() - parents),
            PARENT: lambda: sorted(parents),
            UPLOADER: lambda: [pid for run_dir in self.place.run_dirs if (pid := processes.uploader(str(run_dir)))],
        }
        for kind in self._rng.sample(sorted(found), len(found)):
            if pids := found[kind]():
                end(self._rng.choice(pids))
                self._victim = kind
                self._tally.kills[kind] += 1
                return

    def _end_the_rest(self) -> None:
        """Let the others go on to their end, or end them; a pool that has lost a worker may wait for it for ever."""
        if self._ending == "kill":
            self.place.kill()
        elif self._ending == "term":
            end(self._rng.choice(self.place.running).pid, signal.SIGTERM)
        self._go.touch()
        deadline = quiet_since = time.monotonic()
        deadline += LIMIT
        seen = -1
        while self.place.members():
            now, found = time.monotonic(), sum(len(journals(run_dir, "*")) for run_dir in self.place.run_dirs)
            if found != seen or self.place.loggers():
                seen, quiet_since = found, now
            if now > deadline:
                self._find(f"processes do not end: {self.place.loggers()}")
            if now - quiet_since > QUIET or now > deadline:
                break
            time.sleep(0.1)
        self.place.kill()

    # what was told

    def _judge_messages(self) -> None:
        for run_dir in self.place.run_dirs:
            told, name = self.place.told(run_dir), run_dir.name
            for kind in (START, UNSENT, OUTAGE):
                if told[kind] > 1:
                    self._tally.twice += 1
                    self._find(f"{name}: {kind} was told {told[kind]} times")
            if not self._fault or not journals(run_dir, "ended"):
                continue
            self._tally.once += told[UNSENT] == 1
            self._tally.never += told[UNSENT] == 0
            if not told[UNSENT]:
                self._find(f"{name}: its end was never told")

    # the records

    def _go_on(self) -> None:
        if self._next == "sync":
            for run in self.place.runs:  # each on its node
                self._sync([run_dir for run_dir in self.place.program.run_dirs(run) if run_dir.exists()])
            return
        self.place.start(HF_MPWRITER_EXIT_TIMEOUT="60")
        codes = self.place.finish()
        if any(codes):
            self._find(f"the next start ended with {codes}: {self.place.output.read_text()[-2000:]}")
        for run_dir in self.place.run_dirs:
            told = self.place.told(run_dir)
            if told[END] and (problems := self._report(run_dir).problems):
                self._find(f"{run_dir.name}: the end was told, but {problems}")
            is_there = (told[END], told[UNSENT]) == (self.place.program.nodes, 0)  # one folder for all nodes
            is_late = self._fault and (told[END], told[UNSENT]) == (0, 1)  # the uploader tries again later
            if told[START] != 1 or not (is_there or is_late):
                self._find(f"{run_dir.name}: the next start told {dict(told)}")

    def _sync(self, run_dirs: list[Path]) -> None:
        command = [sys.executable, "-m", "hf_mpwriter", "sync", *map(str, run_dirs)]
        environ = os.environ | {"HF_ENDPOINT": self._hub.endpoint}
        done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=LIMIT, check=False)
        if done.returncode:
            self._find(f"sync ended with {done.returncode}: {done.stdout}{done.stderr}")

    def _report(self, run_dir: Path):  # noqa: ANN202 - the oracle's
        others = lambda path, _size: self.place.program.nodes > 1 and not (run_dir / path).exists()  # noqa: E731
        view = View(self._hub.store, self.place.repo, f"tensorboard/{run_dir.name}")
        return check(str(run_dir), view, read_journals(f"{run_dir}.journals"), elsewhere=others)

    def _judge_records(self) -> None:
        for run_dir in self.place.run_dirs:
            if not Path(f"{run_dir}.journals").exists():
                continue
            becomes_true(lambda: not self._report(run_dir).problems, 60.0, 0.5)  # noqa: B023 - called here
            report = self._report(run_dir)
            self._tally.returned += report.returned
            self._tally.lost += report.lost
            self._tally.doubled += report.duplicated
            for problem in report.problems:
                self._find(f"{run_dir.name}: {problem}")
