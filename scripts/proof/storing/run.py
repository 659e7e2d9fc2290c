"""One run of `storage.py`: processes log, one and the uploader are killed, all start again, and the disk changes.

built     four processes have constructed their writers
half      each has logged 250 of 500 records: what do others and TensorBoard see of open files?
struck    SIGKILL for the last process while it logs, for the uploader and the mirror
pushed    the others have logged all, and `push` has returned: is it true?
again     the same directory: four processes log 100 more
moved     what was on the local disk is gone, as on another machine: the first logs 20 more
judged    every returned record is once in the logdir as others see it, once on the Hub, and TensorBoard shows it once

Logdir and Hub have the same bytes, but for the beginning of a record in which SIGKILL struck: that is on no Hub.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, ClassVar

from lib.isolation import variables
from lib.paths import HELPERS, PACKAGE
from lib.waiting import becomes_true
from waits import timing

from hf_mpwriter.events import framing
from hf_mpwriter.localhub import LocalHub, View
from hf_mpwriter.spool import storage
from hf_mpwriter.system.launch import is_command_of
from hf_mpwriter.testing import read_journals
from hf_mpwriter.testing.oracle import keys
from storing.found import Found, Record
from storing.places import RUN, Place
from storing.process import DEADLINE, Process
from storing.shown import points

FOLDER = f"run/{os.path.basename(RUN)}"  # on the Hub
RECORDS, HALF, MORE, MOVED = 500, 250, 100, 20
STRUCK_AT = 300  # returned calls of the process that is killed
EXIT_TIMEOUT = 90.0  # seconds that a process waits for the Hub
HIDDEN = ("AWS_", "HF_", "SLURM_", "TENSORBOARD_")  # variables of the user
KINDS = ("uploader", "push", "search", "mirror", "copy")


class Run:
    """A run in one place."""

    tempo: ClassVar[dict[str, float]] = {"commit_every": 0.1, "pace": 0.002, "pause": 0.0}  # of its processes

    def __init__(self, row: str, place: Place, top: Path, hub: LocalHub, ranks: int) -> None:
        self.found = Found(row)
        self._place, self._top, self._hub, self._ranks = place, top, hub, ranks
        self._local, self._journals = top / "local", top / "journals"
        for directory in (self._local, self._journals, top / "without_torch"):
            directory.mkdir(parents=True)
        (top / "without_torch" / "torch.py").write_text("raise ImportError('hidden: it takes seconds')")
        paths = [top / "without_torch", HELPERS / "watch", PACKAGE.parent]
        usual = {name: value for name, value in os.environ.items() if not name.startswith(HIDDEN)}
        self._environment = {
            **usual,
            **variables(top),
            **place.variables,
            "HF_ENDPOINT": hub.endpoint,
            "HF_TOKEN": "hf_test",
            "HF_MPWRITER_EXIT_TIMEOUT": str(EXIT_TIMEOUT),
            "HF_MPWRITER_TIMING": timing(),
            "PYTHONPATH": ":".join(map(str, paths)),
            "TMPDIR": str(self._local),
            "XDG_STATE_HOME": str(self._local / "state"),  # on that disk, too: see `_move`
            "WORLD_SIZE": str(ranks),
            "LOCAL_WORLD_SIZE": str(ranks),
        }
        self._processes: list[Process] = []
        self._rounds = 0
        self._began = 0.0

    def go(self) -> Found:
        """Run it, and judge."""
        self._began = time.monotonic()
        try:
            self._live()
            self._judge()
            self._reached("judged")
        except (RuntimeError, OSError) as error:
            self.found.problems.append(str(error))
        finally:
            for process in self._processes:
                process.kill()
                self.found.said |= dict.fromkeys(process.errors().splitlines())
            for pid in self._alive():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        self.found.seconds = time.monotonic() - self._began
        return self.found

    def _reached(self, step: str) -> None:
        self.found.reached[step] = round(time.monotonic() - self._began, 1)

    # what happens

    def _live(self) -> None:
        self._first()
        self._round(range(self._ranks), RECORDS, MORE)
        self._leave()
        self._reached("again")
        self._move()
        self._round([0], RECORDS + MORE, MOVED)
        self._leave()
        self._reached("moved")

    def _start(self, ranks: Iterable[int], first: int, count: int, half: int) -> tuple[list[Process], Path]:
        self._rounds += 1
        gates = self._top / f"gates{self._rounds}"
        gates.mkdir()
        told = {
            "logdir": self._place.logdir,
            "journal": str(self._journals),
            "gates": str(gates),
            "first": first,
            "last": first + count,
            "half": half,
            **self.tempo,
        }
        started = [Process(rank, told, self._environment) for rank in ranks]
        self._processes += started
        self.found.built = max(self.found.built, *(process.told("built")["built"] for process in started))
        return started, gates

    def _first(self) -> None:
        started, gates = self._start(range(self._ranks), 0, RECORDS, HALF)
        self.found.way = storage.find(self._place.logdir, self._environment).layout.value
        self._reached("built")
        for process in started:
            process.told("half")
        self.found.half = self._ranks * HALF
        becomes_true(lambda: self._of_half(self._there()) == self.found.half, DEADLINE, 0.5)
        self.found.open_there = self._of_half(self._there())
        self.found.open_shown = self._of_half(self._shown("while the run goes on"))
        self._reached("half")
        (gates / "half").touch()
        victim = started[-1]
        self._await(lambda: self._noted(victim.rank) >= STRUCK_AT, "the calls of the process that is killed")
        os.kill(victim.process.pid, signal.SIGKILL)
        for kind in ("uploader", "mirror", "copy"):
            for pid in self._alive(kind):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        self._reached("struck")
        self._end(started[:-1], gates)
        self._reached("pushed")

    def _round(self, ranks: Iterable[int], first: int, count: int) -> None:
        started, gates = self._start(ranks, first, count, half=first)
        (gates / "half").touch()
        for process in started:
            process.told("half")
        self._end(started, gates)

    def _end(self, processes: list[Process], gates: Path) -> None:
        """Compare what `push` says with what is there, and let the processes end."""
        for process in processes:
            answer = process.told("pushed")["pushed"]
            self.found.pushed.append(answer)
            if answer:
                mine = {record for record in self._returned() if record[0].startswith(f"rank{process.rank}/")}
                missing = self._missing(mine)
                if missing and self._place.writes_back:
                    self.found.later += 1
                    becomes_true(lambda mine=mine: not self._missing(mine), DEADLINE, 0.2)
                    missing = self._missing(mine)
                if missing:
                    self.found.dishonest += 1
                    self.found.problems.append(f"push said True without {missing} records")
        (gates / "pushed").touch()
        self._while_closing()
        for process in processes:
            process.told("closed")
            if code := process.process.wait(DEADLINE):
                self.found.problems.append(f"rank {process.rank} ended with {code}")

    def _while_closing(self) -> None:
        """The processes end."""

    def _missing(self, records: set[Record]) -> int:
        there, hub = self._there(), self._on_hub()
        return sum(not there[record] or not hub[record] for record in records)

    def _move(self) -> None:
        """The next process is on another machine."""
        shutil.rmtree(self._local)
        self._local.mkdir()

    def _leave(self) -> None:
        if not becomes_true(lambda: not self._alive(), DEADLINE, 0.1):
            self.found.problems.append(f"processes stay: {self._alive()}")

    # what there is

    def _alive(self, *kinds: str) -> list[int]:
        """Uploaders, mirrors and what they started, of this run."""
        run_dir = storage.find(self._place.logdir, self._environment).run_dir
        found = []
        for pid in filter(str.isdecimal, os.listdir("/proc")):
            with contextlib.suppress(OSError):
                words = Path("/proc", pid, "cmdline").read_bytes().decode(errors="replace").split("\0")
                if any(is_command_of(kind, words, run_dir) for kind in kinds or KINDS):
                    found.append(int(pid))
        return found

    def _returned(self) -> Counter[Record]:
        return Counter((note.tag, note.step) for note in read_journals(str(self._journals)))

    def _noted(self, rank: int) -> int:
        return sum(tag.startswith(f"rank{rank}/") for tag, _ in self._returned())

    @staticmethod
    def _of_half(records: Counter[Record]) -> int:
        return sum(not tag.endswith("/pulse") for tag, _ in records)

    def _tally(self, files: dict[str, bytes], what: str) -> tuple[Counter[Record], list[str]]:
        """How often each record is in files; a record that is there twice is a problem."""
        found: Counter[Record] = Counter()
        names = sorted(path for path in files if "tfevents" in path)
        with tempfile.NamedTemporaryFile(dir=self._top) as file:
            for path in names:
                Path(file.name).write_bytes(files[path])
                found += keys(file.name)
        self._not_twice(found, what)
        return found, names

    def _not_twice(self, found: Counter[Record], what: str) -> None:
        if doubled := sum(count > 1 for count in found.values()):
            self.found.doubled += doubled
            self.found.problems.append(f"{doubled} records {what} are doubled")

    def _there(self) -> Counter[Record]:
        return self._tally(self._place.everything(), "in the logdir")[0]

    def _hub_files(self) -> dict[str, bytes]:
        view = View(self._hub.store, "me/run", FOLDER)
        if not (commits := view.commits()):
            return {}
        tree = view.tree(commits[0])
        return {
            path: self._hub.store.read_blob("model", "me/run", f"{FOLDER}/{path}")
            for path in tree
            if "tfevents" in path
        }

    def _on_hub(self) -> Counter[Record]:
        return self._tally(self._hub_files(), "on the Hub")[0]

    def _shown(self, what: str) -> Counter[Record]:
        """What TensorBoard shows of the logdir."""
        answer = points(self._place.shown, self._place.variables, DEADLINE)
        if isinstance(answer, str):
            self.found.problems.append(f"TensorBoard cannot read {what}: {answer}")
            return Counter()
        found = Counter(answer)
        self._not_twice(found, f"{what} that TensorBoard shows")
        return found

    def _await(self, condition: Any, what: str) -> None:
        if not becomes_true(condition, DEADLINE):
            raise RuntimeError(f"waited in vain for {what}")

    # the judgement

    def _is_same(self, there: bytes | None, hub: bytes | None) -> bool:
        """Whether the Hub has all of a file, up to an incomplete last record."""
        if there is None or hub is None or there == hub:
            return there == hub
        with tempfile.TemporaryFile(dir=self._top) as file:
            file.write(there)
            file.flush()
            end = framing.ending(file.fileno())
        return not end.is_damaged and there[: end.offset] == hub

    def _judge(self) -> None:
        returned = self._returned()
        files, hub_files = self._place.everything(), self._hub_files()
        (there, names), (hub, hub_names) = self._tally(files, "in the logdir"), self._tally(hub_files, "on the Hub")
        shown = self._shown("in the logdir")
        self.found.returned, self.found.shown = returned.total(), sum(bool(shown[record]) for record in returned)
        self.found.lost_there = sum(not there[record] for record in returned)
        self.found.lost_on_hub = sum(not hub[record] for record in returned)
        for count, where in (
            (self.found.lost_there, "are not in the logdir"),
            (self.found.lost_on_hub, "are not on the Hub"),
            (len(returned) - self.found.shown, "are not shown by TensorBoard"),
        ):
            if count:
                self.found.problems.append(f"{count} returned records {where}")
        different = [path for path in {*names, *hub_names} if not self._is_same(files.get(path), hub_files.get(path))]
        if different and not self.found.problems:
            self.found.problems.append(f"logdir and Hub differ in {', '.join(sorted(different)[:3])}")


@contextlib.contextmanager
def on_a_hub(top: Path) -> Iterator[LocalHub]:
    """A Hub of its own."""
    with LocalHub(top / "hub") as hub:
        yield hub
