"""Where a harm can hit an uploader, found by a life without any; and trials of such harms."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from crashing import UPLOADER, Harm, Outcome

# Calls that change the disk, the locks or the processes; the others read.
CHANGES = re.compile(
    r"(rename|link|symlink|unlink|mkdir|rmdir|fsync|fdatasync|p?write|ftruncate|f?chmod|clone|fork|exit)\w*\("
    r"|openat\(.*O_(CREAT|TRUNC)|flock\(.*LOCK_EX"
)
READS = re.compile(r"(openat|getdents64|p?read64|read|newfstatat)\(.*(/run/|/cache/)")
TALKS = re.compile(r"(connect|sendto|sendmsg|recvfrom|recvmsg|poll)\(")
NAME = re.compile(r"\w+(?=\()")


@dataclasses.dataclass(frozen=True)
class Call:
    """A system call of a life without harm."""

    name: str  # of the call
    passage: int  # which one of its name
    line: str  # as strace has written it
    push: int  # whose, UPLOADER or the number of a push

    @property
    def changes(self) -> bool:
        """Whether the state before it and the state after it differ, or, in a push, the one that the Hub sees."""
        return bool(CHANGES.match(self.line) or (self.push != UPLOADER and TALKS.match(self.line)))

    @property
    def reads(self) -> bool:
        """Whether it reads the run directory or the cache."""
        return bool(READS.match(self.line)) and not self.changes

    def harm(self, action: str) -> Harm:
        """The harm that hits this call."""
        return Harm(self.name, action, self.passage, self.push)


class UnharmedError(Exception):
    """A life without any harm has broken a promise: what strikes others shows nothing."""


def calls(directory: str) -> Iterator[Call]:
    """Yield the calls that a trial has recorded."""
    for path in sorted(Path(directory).glob("strace.*")):
        passages: Counter[str] = Counter()
        for line in path.read_text(errors="replace").splitlines():
            if name := NAME.match(line):
                passages[name[0]] += 1
                yield Call(name[0], passages[name[0]], line, int(path.suffix[1:]))


class Trials:
    """Makes trials of so many runs in one uploader, one after the other, in a process of its own."""

    def __init__(self, endpoint: str, hub_root: str, directory: str, runs: int = 1) -> None:
        self._directory, self._numbers, self._runs = directory, itertools.count(), runs
        self.last = ""  # the directory of the last trial
        env = {"HF_ENDPOINT": endpoint, "HF_HOME": os.path.join(directory, "home"), "HF_HUB_DISABLE_XET": "1"}
        env |= {"NO_PROXY": "127.0.0.1", "HF_HUB_DISABLE_TELEMETRY": "1", "HF_MPWRITER_COMMITS_PER_HOUR": "100000"}
        command = [sys.executable, os.path.join(os.path.dirname(__file__), "crashing.py"), hub_root]
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, env=os.environ | env, text=True)

    def make(self, *harms: Harm) -> Outcome:
        """Make one trial."""
        outcome = self._order(harms)
        if not outcome.problems:
            shutil.rmtree(self.last)
        return outcome

    def unharmed(self, *, record: bool = False) -> Outcome:
        """Make one trial without any harm."""
        outcome = self._order((), record=record)
        if outcome.problems or outcome.ended != [0]:
            raise UnharmedError(f"{outcome.problems or outcome.ended}; kept in {self.last}")
        return outcome

    def record(self) -> list[Call]:
        """Record the system calls of a life without harm."""
        self.unharmed(record=True)
        return list(calls(self.last))

    def _order(self, harms: tuple[Harm, ...], *, record: bool = False) -> Outcome:
        number = next(self._numbers)
        self.last = os.path.join(self._directory, str(number))
        os.makedirs(self.last)
        repo = f"crash/{os.path.basename(self._directory)}-{number}"
        order = {"directory": self.last, "repo": repo, "record": record, "runs": self._runs}
        order["harms"] = list(map(dataclasses.asdict, harms))
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        return Outcome(**json.loads(self._process.stdout.readline()))

    def end(self) -> None:
        """End the process of the trials."""
        self._process.stdin.close()
        self._process.wait()
