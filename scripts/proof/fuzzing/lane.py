"""A lane: cases one after another, each in a fresh copy of the corpus, and what is wrong with what they did.

    <root>/lane0/template/     the corpus, with the paths and the endpoint of this lane
    <root>/lane0/case/         the case that runs, at the same place each time
    <root>/lane0/hub/          its Hub, as it was after the corpus was made

| case      | what is struck                     | what runs                                                     |
|-----------|------------------------------------|---------------------------------------------------------------|
| readers   | one to three files of a run        | the functions of `readers.py`, in this process                |
| wire      | answers of the Hub                 | the questions of `wire.py`, in a fork                         |
| alone     | files of a run                     | training without uploads, in a fork                           |
| commands  | files of a run, answers            | commands that ask the Hub or end processes, each in a fork    |
| training  | files of a run, answers            | training with its uploader, then `sync` once all is undone    |
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

from lib.marked import kill, marked
from lib.paths import PACKAGE
from lib.waiting import becomes_true

from fuzzing import corpus, readers, wire
from fuzzing.corpus import MARK, PULLED, REPO, RUN, STAGED
from fuzzing.mutate import MIB, Mutator
from hf_mpwriter.base.names import SPOOL_NAME
from hf_mpwriter.cli.main import main
from hf_mpwriter.events import framing
from hf_mpwriter.localhub import LocalHub
from hf_mpwriter.testing.oracle import keys

MORE = 128 * MIB  # bytes that a process may need beyond a clean one: 64 MiB of a file, and what is made of them
DRIFT = 32 * MIB  # bytes by which a lane may grow from its first cases to its last
SHORT, LONG = 30.0, 120.0  # seconds of a reader, of a process
POLL = 0.03  # seconds
STEPS = 40  # that TRAINING logs of each tag
CYCLE = 400  # cases after which the kinds come again
TROUBLE = ("Traceback (most recent call last)", "should not happen", "Fatal Python error")
ASKING = (  # commands that are not run as readers
    ("verify",),
    ("verify", "--running"),
    ("pull",),
    ("doctor",),
    ("sync", "--timeout", "3"),
    ("stop",),
    ("status",),
    ("ranks",),
)
EXPECTED = ("cache", "logdir", "output", "home", "fresh")  # in a case, beside its runs
EVERYWHERE = (("status",), ("clean", "--dry-run"), ("sync", "--all", "--timeout", "3"))  # without a LOGDIR


class DeadlineError(BaseException):
    """A case takes longer than any case should."""


@dataclass
class Ended:
    """How a process has ended."""

    code: int | None  # of its exit, None if it did not end in time
    text: str  # what it printed
    peak: int  # bytes of memory, at most


@dataclass
class Outcome:
    """What a lane did and found."""

    tally: Counter[str] = field(default_factory=Counter)  # cases, per kind
    found: Counter[str] = field(default_factory=Counter)  # broken promises, each with its number
    seconds: Counter[str] = field(default_factory=Counter)  # per kind
    peak: Counter[str] = field(default_factory=Counter)  # bytes of memory at most, per kind of case
    drift: int = 0  # bytes by which the lane has grown


def kind_of(number: int) -> str:
    """Return what a case is, by its number; case 0 strikes nothing, and is each kind once."""
    at = number % CYCLE
    if at == CYCLE // 2:
        return "training"
    if at % 80 == 10:
        return "commands"
    return {0: "alone", 5: "wire", 15: "wire"}.get(at % 20, "readers")


class Lane:
    """One lane."""

    def __init__(self, root: Path, number: int, seed: int, report: Callable[[int, str], None]) -> None:
        self._source, self._root, self._seed, self._report = root, root / f"lane{number}", seed, report
        self.case, self.template = self._root / "case", self._root / "template"  # where it is, and what it was before
        self.hub, self.relay = LocalHub(self._root / "hub", xet=False), wire.Relay(self._root / "garbled")
        self._limit: dict[str, int] = {}  # bytes of memory, per kind
        self.outcome = Outcome()

    # life

    @contextlib.contextmanager
    def open(self, endpoint: str, place: str) -> Iterator[None]:
        """Make the lane ready; `endpoint`, `place`: what the files of the corpus name."""
        self._root.mkdir()
        shutil.copytree(self._source / "hub", self._root / "hub")
        self.hub.start()
        self.relay.start(self.hub.endpoint)
        os.environ.update(corpus.environment(self.case, self.relay.endpoint))
        names = {place: str(self.case), endpoint: self.relay.endpoint}
        corpus.copy(self._source / "corpus", self.template, names)
        signal.signal(signal.SIGALRM, _late)
        self._calibrate()
        try:
            yield
        finally:
            kill(f"{MARK}={self.case}")
            self.relay.stop()
            self.hub.stop()

    def _calibrate(self) -> None:
        """Run each kind of case with nothing struck: none may find anything; each shows how much memory it needs."""
        for kind in ("readers", "alone", "wire", "commands", "training"):
            self._limit[kind] = 1 << 62
            self._go(0, kind)
            self._limit[kind] = self.outcome.peak[kind] + MORE
        self._started_with = _memory("VmRSS")
        self.outcome.tally.clear()
        self.outcome.seconds.clear()

    def run(self, number: int) -> None:
        """Run a case."""
        self._go(number, kind_of(number))
        self.outcome.drift = _memory("VmRSS") - self._started_with

    def _go(self, number: int, kind: str) -> None:
        case = Case(self, number, kind, random.Random(f"{self._seed} {number}"))
        started_at = time.monotonic()
        self._fresh(case.runs)
        try:
            getattr(case, kind)()
        finally:
            self.relay.calm()
            if kind in ("commands", "training"):
                kill(f"{MARK}={self.case}")
        self.outcome.tally[kind] += 1
        self.outcome.seconds[kind] += time.monotonic() - started_at  # type: ignore[assignment] - of a Counter

    def _fresh(self, runs: Sequence[str]) -> None:
        """Make the case anew; only with these runs, as a copy takes longer than a reader."""
        remove(self.case)
        for name in (*runs, "cache", "logdir"):
            shutil.copytree(self.template / name, self.case / name, symlinks=True)
        corpus.settle(self.case)

    # what a case needs

    def restore_hub(self) -> None:
        """Let the Hub have what it had."""
        shutil.rmtree(self._root / "hub" / "repos")
        shutil.copytree(self._source / "hub" / "repos", self._root / "hub" / "repos")

    def note_peak(self, kind: str, peak: int) -> str:
        """Note how much memory a case took; what is wrong with it."""
        self.outcome.peak[kind] = max(self.outcome.peak[kind], peak)
        return (
            f"{peak >> 20} MiB of memory, at most {self._limit[kind] >> 20} are right"
            if peak > self._limit[kind]
            else ""
        )

    def find(self, number: int, what: str, how: str) -> None:
        """Note a broken promise; the first of its kind is printed and kept."""
        key = _without_numbers(what.split("\n", maxsplit=1)[0])
        self.outcome.found[key] += 1
        if self.outcome.found[key] == 1:
            kept = self._source / f"found-{number}"
            subprocess.run(["cp", "-a", "--", str(self.case), str(kept)], check=False, capture_output=True)  # noqa: S607
            self._report(number, f"{what}\n    struck: {how}\n    as it was then: {kept}")


class Case:
    """One case."""

    def __init__(self, lane: Lane, number: int, kind: str, rng: random.Random) -> None:
        self._lane, self._number, self._kind, self._rng = lane, number, kind, rng
        self._mutator, self._done = Mutator(rng), list[str]()
        self._struck: list[Path] = []  # relative to the case: what is to be undone
        self._run = rng.choice((RUN, RUN, RUN, PULLED, STAGED)) if kind in ("readers", "commands") else RUN
        self.runs = [self._run] if number and kind in ("readers", "alone", "wire") else readers.RUNS  # that are there

    def _find(self, what: str) -> None:
        self._lane.find(self._number, f"{self._kind}: {what}", "; ".join(self._done) or "nothing")

    # strikes

    def _strike(self, most: int = 3) -> None:
        """Change some files of the run, or put something beside them."""
        if not self._number:
            return
        top = self._lane.case
        places = [top / self._run, top / "cache"] + [top / "logdir"] * (self._run == STAGED)
        files = [path for place in places for path in corpus.files_of(place)]
        for _ in range(self._rng.randint(1, most)):
            path = self._chosen(files)
            if not path.is_file() or path.is_symlink():
                continue
            if self._rng.random() < 0.12:
                beside = self._rng.choice([path.parent, top / self._run])
                before = set(os.listdir(os.fsencode(beside)))
                did = self._mutator.crowd(beside, path)
                new = set(os.listdir(os.fsencode(beside))) - before
                self._struck += [Path(os.fsdecode(os.path.join(os.fsencode(beside), name))) for name in new]
                self._done.append(f"in {beside.relative_to(top)}: {did}")
            else:
                self._struck.append(path)
                self._done.append(f"{path.relative_to(top)}: {self._mutator.strike(path)}")

    def _chosen(self, files: list[Path]) -> Path:
        """Return one of some files: each kind is as likely as another, and half of the time it is JSON."""
        kinds: dict[str, list[Path]] = {}
        wants_json = self._rng.random() < 0.5
        for path in files:
            is_json = path.suffix == ".json" or path.parent.name == "members"
            if is_json == wants_json and (not corpus.is_lock(path) or self._rng.random() < 0.2):
                kinds.setdefault("events" if "tfevents" in path.name else _without_numbers(path.name), []).append(path)
        return self._rng.choice(kinds[self._rng.choice(sorted(kinds))])

    def _garble(self, chance: float) -> None:
        if self._number:
            probability = self._rng.choice((chance, 1.0))
            self._lane.relay.garble(f"{self._number}", probability)
            self._done.append(f"{probability:.0%} of the answers")

    # kinds

    def readers(self) -> None:
        """Read all that is read of a run in this process."""
        self._strike()
        _reset_peak()
        for run in self.runs:
            for name, read in readers.READERS.items():
                if not self._number or self._is_worth(name):
                    self._read(name, read, run)
        if wrong := self._lane.note_peak(self._kind, _memory("VmHWM")):
            self._find(wrong)

    def _is_worth(self, name: str) -> bool:
        """Whether a reader that takes long may notice something."""
        if name == "ranks":
            return self._rng.random() < 0.3 and any("tfevents" in what for what in self._done)
        if name == "logs":
            return any("log" in what for what in self._done)
        return not name.startswith("status ") or self._rng.random() < 0.3

    def _read(self, name: str, read: Callable[[readers.Spool], None], run: str) -> None:
        signal.setitimer(signal.ITIMER_REAL, SHORT)
        before = _memory("VmHWM")
        try:
            read(readers.spool_of(self._lane.case, run))
        except readers.EXPECTED as error:
            if not self._number:
                self._find(f"{name}: {error!r}")
        except DeadlineError as error:
            self._find(f"{name} takes more than {SHORT:.0f} s, {_place_of(error)}\n{_trace(error)}")
        except BaseException as error:  # noqa: BLE001 - whatever it is, it is the finding
            self._find(f"{name}: {type(error).__name__} {_place_of(error)}\n{_trace(error)}")
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
        if (after := _memory("VmHWM")) > before + MORE:
            self._find(f"{name}: {after - before >> 20} MiB of memory more")

    def wire(self) -> None:
        """Ask the Hub: by the functions that do, and by commands; no pause between two tries is kept."""
        self._garble(0.4)
        fresh = self._lane.case / "fresh" / "exp1"
        words = self._rng.choice(
            ((), (), ("pull", str(fresh), "--repo-id", REPO), ("verify", self._path), ("doctor", self._path))
        )
        if not words:
            self._fork("client", lambda: wire.ask(self._lane.case, self._rng), LONG)
            return
        self._command(*words, is_hurried=True)
        if made := {path.name for path in self._lane.case.iterdir()} - {*EXPECTED, *map(_top, self.runs)}:
            self._find(f"{words[0]} has made {sorted(made)}")
        if fresh.parent.exists() and os.listdir(fresh.parent) != [fresh.name]:
            self._find(f"{words[0]} has made something beside its run")

    @property
    def _path(self) -> str:
        return str(self._lane.case / self._run)

    def alone(self) -> None:
        """Train without uploads."""
        self._strike()
        os.environ["HF_MPWRITER_DISABLED"] = "1"
        try:
            words = ["-c", self._path, "alone", self._rng.choice(("hub", "local")), self._purge()]
            ended = self._fork("training", lambda: _train(words), LONG)
        finally:
            del os.environ["HF_MPWRITER_DISABLED"]
        self._judge_training(ended, "alone")

    def _purge(self) -> str:
        return self._rng.choice(("0", "0", "5"))

    def commands(self) -> None:
        """Run commands."""
        self._strike()
        if self._rng.random() < 0.5:
            self._garble(0.1)
        for words in self._rng.sample(ASKING, 3) if self._number else ASKING:
            self._command(*words, self._path)
        if self._rng.random() < 0.3:
            self._command(*self._rng.choice(EVERYWHERE))

    def _command(self, *words: str, is_hurried: bool = False) -> Ended:
        def run() -> None:
            os.chdir(self._lane.case)
            if is_hurried:
                wire.hurry()
            main.main(list(words), prog_name="hf-mpwriter")

        return self._fork(f"hf-mpwriter {words[0]}", run, LONG)

    def training(self) -> None:
        """Train, undo all, and see that all comes to the Hub."""
        self._strike(4)
        if self._rng.random() < 0.5:
            self._garble(0.2)
        words = [self._path, f"case{self._number}", "hub", self._purge()]
        self._judge_training(self._spawn([sys.executable, "-c", corpus.TRAINING, *words]), words[1])
        self._command("status", words[0])
        self._command("stop", words[0])
        self._undo()
        sync = self._command("sync", words[0], "--repo-id", REPO, "--timeout", "90")
        if sync.code:
            self._find(f"sync ends with {sync.code} once all is undone: {sync.text[-1500:]}")
        self._compare()
        if not becomes_true(lambda: not list(marked(f"{MARK}={self._lane.case}")), LONG, POLL):
            self._command("stop", words[0])
        if not becomes_true(lambda: not list(marked(f"{MARK}={self._lane.case}")), LONG, POLL):
            self._find(f"processes stay: {list(marked(f'{MARK}={self._lane.case}'))}")

    def _judge_training(self, ended: Ended, name: str) -> None:
        if ended.code or ended.code is None:
            self._find(f"training ends with {ended.code}: {ended.text[-1500:]}")
        elif "refused:" not in ended.text:
            logged = sum((keys(str(path)) for path in self._own()), Counter())
            if logged[f"{name}/loss", 1] != 1 or sum(logged[f"{name}/loss", step] for step in range(STEPS)) != STEPS:
                self._find("what training has logged is not in its file")
        elif not self._number:
            self._find(f"training is refused: {ended.text}")

    def _own(self) -> list[Path]:
        """Return the event files that this training has made."""
        known = {path.relative_to(self._lane.template) for path in _event_files(self._lane.template / self._run)}
        struck = set(self._struck)
        found = _event_files(self._lane.case / self._run)
        new = [path for path in found if path.relative_to(self._lane.case) not in known]
        return [path for path in new if struck.isdisjoint([path, *path.parents])]

    def _undo(self) -> None:
        """Put back what was there; the spool goes away with what was struck in it."""
        self._lane.relay.calm()
        for path in self._struck:
            before = self._lane.template / path.relative_to(self._lane.case)
            remove(path)
            if before.is_file():
                path.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(before, path)
        spool = self._lane.case / self._run / SPOOL_NAME
        with contextlib.suppress(OSError):
            self._look_into_logs(spool)
        os.rename(spool, self._lane.case / "spool-of-before")
        self._lane.restore_hub()

    def _look_into_logs(self, spool: Path) -> None:
        for log in spool.rglob("*.log*"):
            with contextlib.suppress(OSError):
                if log.is_file() and not log.is_symlink() and log not in self._struck:
                    text = log.read_text(errors="replace")
                    if TROUBLE[0] in text:
                        at = text.index(TROUBLE[0])
                        self._find(f"{log.name}: {_last_line(text[at:])}\n{text[at : at + 3000]}")

    def _compare(self) -> None:
        """See that the Hub has the whole records of each event file."""
        there = self._lane.hub.store.tree("model", REPO, "main")
        run = self._lane.case / self._run
        for path in _event_files(run):
            with path.open("rb") as file:
                size = framing.whole_length(file.fileno())
            entry = there.get(f"tensorboard/exp1/{path.relative_to(run)}")
            if size and (entry is None or entry.size != size):
                self._find(f"an event file is not on the Hub: {path.name}, {size} bytes: {entry}")

    # processes

    def _fork(self, name: str, action: Callable[[], object], seconds: float) -> Ended:
        """Do something in a fork of this process, as a process of its own would."""
        output = self._lane.case / "output"
        pid = os.fork()
        if pid == 0:
            _be_a_process(output, action)
        return self._watch(name, pid, output, seconds)

    def _spawn(self, command: list[str]) -> Ended:
        output = self._lane.case / "output"
        with output.open("wb") as file:
            pid = os.posix_spawn(
                command[0],
                command,
                os.environ,
                file_actions=[(os.POSIX_SPAWN_DUP2, file.fileno(), number) for number in (1, 2)],
            )
        return self._watch("training", pid, output, LONG)

    def _watch(self, name: str, pid: int, output: Path, seconds: float) -> Ended:
        """Wait for a process; note its memory, and that of all that it has started."""
        end, code, peak = time.monotonic() + seconds, None, 0
        while time.monotonic() < end:
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                code = os.waitstatus_to_exitcode(status)
                break
            for one in [pid, *marked(f"{MARK}={self._lane.case}")]:
                peak = max(peak, _memory("VmHWM", one))
            time.sleep(POLL)
        else:
            os.kill(pid, signal.SIGABRT)  # faulthandler says where it is
            os.waitpid(pid, 0)
        text = output.read_text(errors="replace")
        if (said := output.with_name("peak")).exists():
            peak = max(peak, int(said.read_text()))
            said.unlink()
        if code is None:
            self._find(f"{name} has not ended after {seconds:.0f} s: {_places_in(text)}\n{text[-3000:]}")
        elif trouble := next((trouble for trouble in TROUBLE if trouble in text), None):
            self._find(f"{name}: {_last_line(text[text.index(trouble) :])} {_places_in(text)}\n{text[-3000:]}")
        elif code < 0:
            self._find(f"{name} ends with {code}: {text[-1000:]}")
        if wrong := self._lane.note_peak(self._kind, peak):
            self._find(f"{name}: {wrong}")
        return Ended(code, text, peak)


def _top(run: str) -> str:
    return run.partition("/")[0]


def remove(path: Path) -> None:
    """Remove a file or a tree, which may be deeper than Python goes."""
    if path.is_dir() and not path.is_symlink():  # to open a pipe would wait for its writer
        shutil.rmtree(path, ignore_errors=True)
    if os.path.lexists(path):
        subprocess.run(["rm", "-rf", "--", os.fsencode(path)], check=True)  # noqa: S607 - found on PATH


def _event_files(top: Path) -> list[Path]:
    """Return the event files of a run; what is deeper than a path may be is none of training's."""
    found = (Path(folder, name) for folder, _, names in os.walk(top) for name in names if "tfevents" in name)
    return [path for path in found if path.is_file() and not path.is_symlink()]


def _be_a_process(output: Path, action: Callable[[], object]) -> None:
    """Be a process that does one thing."""
    code = 1
    try:
        signal.setitimer(signal.ITIMER_REAL, 0)
        fd = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        for number in (1, 2):
            os.dup2(fd, number)
        sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115 - until it ends
        faulthandler.enable(file=2)
        _reset_peak()
        code = _code_of(action)
        output.with_name("peak").write_text(str(_memory("VmHWM")))
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)


def _code_of(action: Callable[[], object]) -> int:
    import atexit

    code: object = 0
    try:
        action()
    except SystemExit as ended:
        code = ended.code or 0
    except BaseException:  # noqa: BLE001 - as an interpreter does
        traceback.print_exc()
        code = 1
    atexit._run_exitfuncs()  # noqa: SLF001 - as an interpreter does
    return code if isinstance(code, int) else 1


def _train(words: list[str]) -> None:
    sys.argv = words
    exec(compile(corpus.TRAINING, "<training>", "exec"), {"__name__": "__main__"})  # noqa: S102 - as `python -c`


def _late(*_: object) -> None:
    raise DeadlineError


def _memory(name: str, pid: int | str = "self") -> int:
    """Return a value of /proc/<pid>/status in bytes, 0 if the process has gone."""
    with contextlib.suppress(OSError, StopIteration):
        with open(f"/proc/{pid}/status", encoding="utf-8", errors="replace") as file:
            line = next(line for line in file if line.startswith(name))
        return int(line.split()[1]) << 10
    return 0


def _reset_peak() -> None:
    with contextlib.suppress(OSError), open("/proc/self/clear_refs", "w", encoding="ascii") as file:
        file.write("5")


def _frames(trace: TracebackType | None) -> list[str]:
    return [
        f"{os.path.relpath(frame.filename, PACKAGE)}:{frame.name}"
        for frame in traceback.extract_tb(trace)
        if frame.filename.startswith(str(PACKAGE))
    ]


def _place_of(error: BaseException) -> str:
    """Return the last function of the package that an exception came through."""
    frames = _frames(error.__traceback__) or _frames(error.__cause__.__traceback__ if error.__cause__ else None)
    return f"in {frames[-1]}" if frames else "outside"


def _places_in(text: str) -> str:
    """Return the same of a traceback that was printed."""
    found = re.findall(rf'File "{re.escape(str(PACKAGE))}/([^"]+)", line \d+,? in (\w+)', text)
    at = 0 if "Fatal Python error" in text else -1  # faulthandler begins with the last call
    return "in {}:{}".format(*found[at]) if found else ""


def _trace(error: BaseException) -> str:
    return "".join(traceback.format_exception(error))[-3000:]


def _last_line(text: str) -> str:
    lines = [line for line in text.splitlines() if line and not line.startswith(" ")]
    return next((line for line in lines[1:] if "Error" in line), lines[0] if lines else "")[:300]


def _without_numbers(text: str) -> str:
    return re.sub(r"\d+", "N", re.sub(r"'[^']*'|0x[0-9a-f]+", "'...'", text))[:300]
