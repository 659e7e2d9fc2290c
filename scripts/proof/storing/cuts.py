"""One round of `storage.py --rounds`: what carries the logdir is cut at random moments while processes log.

built     all processes have constructed their writers
cut       CUTS times: the ssh of sshfs is killed, or the program of the mount, which is mounted anew later
pushed    all is logged; half of the time it is cut once more while the processes end
synced    `verify` and `status` say that all is on the Hub, after a `sync` where the last cut has left something
judged    as in any other run, see `run`

Each second somebody asks `status`. It may find no run while nothing is mounted; it never says that all is on the Hub
while a record is not there whose call had returned before.
"""

from __future__ import annotations

import itertools
import json
import random
import threading
import time
import traceback
from pathlib import Path
from typing import ClassVar

from hf_mpwriter.localhub import LocalHub
from storing import commands
from storing.commands import Done
from storing.places import Place
from storing.run import Run

RECORDS = 700
CUTS = 5  # in a round
WITHIN = 15.0  # seconds after the start
AWAY = 4.0  # seconds that nothing is mounted, at most
ENDING = 0.5  # seconds that an end takes, about
EVERY = 1.0  # seconds between two questions
HANGS = 200.0  # seconds; no command takes so long, whatever else this machine does
SAYS = (0, 1, 3, 4)  # what `status` may end with
LAST = ("verify", "status")  # commands that have to say in the end that all is on the Hub


class Cuts(Run):
    """A run on a mount that is cut."""

    tempo: ClassVar[dict[str, float]] = {"commit_every": 0.02, "pace": 0.01, "pause": 2.0}

    def __init__(self, row: str, place: Place, top: Path, hub: LocalHub, ranks: int, rng: random.Random) -> None:
        super().__init__(row, place, top, hub, ranks)
        self._rng, self._is_over = rng, threading.Event()

    def _live(self) -> None:
        started, gates = self._start(range(self._ranks), 0, RECORDS, half=0)
        self._reached("built")
        questions = threading.Thread(target=self._ask)
        questions.start()
        try:
            (gates / "half").touch()
            for process in started:
                process.told("half")
            moments = sorted(self._rng.uniform(0.0, WITHIN) for _ in range(CUTS))
            for before, moment in itertools.pairwise([0.0, *moments]):
                time.sleep(moment - before)
                self._cut(self._rng.choice([0.0, self._rng.uniform(0.0, AWAY)]))
            self._end(started, gates)
            self._reached("pushed")
        finally:
            self._is_over.set()
            questions.join()
        if not self.found.asked:
            self.found.problems.append("nobody asked for the status")
        self._leave()
        self._reached("left")
        for command in LAST if self._command("status").code == 0 else ("sync", *LAST):
            done = self._command(command)
            if done.code:
                self.found.problems.append(f"{command} ended with {done.code}: {done.said}{done.errors}")
        self._reached("synced")

    def _cut(self, away: float) -> None:
        self.found.cuts += 1
        self._reached(f"cut {self.found.cuts} ({away:.1f} s)")
        self._place.cut(away)

    def _while_closing(self) -> None:
        if self._rng.random() < 0.5:
            time.sleep(self._rng.uniform(0.0, ENDING))
            self._cut(0.0)

    # status

    def _command(self, name: str, *options: str) -> Done:
        return commands.run(self._environment, HANGS, name, self._place.logdir, *options)

    def _ask(self) -> None:
        try:
            while not self._is_over.wait(EVERY):
                self._ask_once()
        except Exception:  # noqa: BLE001 - of a thread nobody else sees it
            self.found.problems.append(f"no more questions: {traceback.format_exc()}")

    def _ask_once(self) -> None:
        before = self._returned()
        done = self._command("status", "--json")
        self.found.asked += 1
        if done.code not in SAYS or "Traceback" in done.errors:
            self.found.problems.append(f"status ended with {done.code}: {done.errors[-800:]}")
        elif done.code == 0 and json.loads(done.said)["bytes"]["logged"]:
            self.found.complete += 1
            hub = self._on_hub()
            if missing := [record for record in before if not hub[record]]:
                at = round(time.monotonic() - self._began, 1)
                text = f"status said after {at} s that all is there, without {len(missing)} records"
                self.found.problems.append(f"{text}, such as {missing[0]}; the workers: {_workers(done.said)}")


def _workers(told: str) -> str:
    workers = json.loads(told)["workers"]
    return ", ".join(f"{one['name']} {one['state']} ({one['in_memory']} in memory)" for one in workers)
