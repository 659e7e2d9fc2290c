"""Signals to workers, uploaders and pushes."""

from __future__ import annotations

import random
import signal
import time
from collections import Counter
from collections.abc import Iterator

from hf_mpwriter.testing import processes
from soaking.deck import Card, Schedule
from soaking.run import RANKS, Run, send, wait_for

STOPPED = (0.3, 3.0)  # seconds that a process is stopped
SEARCH = 1.5  # seconds to wait for an uploader or a push
DESCRIPTORS = (8, 40)  # that a rank may have beside those it starts with
FILE_SIZE = (30 << 10, 80 << 10)  # bytes, less than a segment of the soak
JUMPS = (30.0, 300.0, 7200.0, 86400.0, 1e7)  # seconds that the clock of a process is wrong, at most
PUSH = 0.9  # seconds of a push, in which it is struck


class Victims:
    """The processes of a run."""

    def __init__(self, run: Run, rng: random.Random, tally: Counter[str], schedule: Schedule) -> None:
        self._run, self._rng, self._tally, self._schedule = run, rng, tally, schedule

    def cards(self) -> Iterator[Card]:
        """Yield all kinds of faults."""
        for kind in ("worker", "uploader", "push", "live push"):
            yield Card(f"SIGKILL {kind}", lambda kind=kind: self.kill(kind))
            yield Card(f"SIGSTOP {kind}", lambda kind=kind: self._stop(kind))
        yield Card("SIGTERM worker", lambda: self._terminate("worker"))
        yield Card("SIGTERM uploader", lambda: self._terminate("uploader"))
        yield Card("all killed, started again", self._restart)
        yield Card("rank with few descriptors", lambda: self._limit("RLIMIT_NOFILE", DESCRIPTORS))
        yield Card("rank with small files", lambda: self._limit("RLIMIT_FSIZE", FILE_SIZE))
        yield Card("clocks jump", self._jump)

    def _find(self, kind: str) -> int:
        if kind == "worker":
            return self._run.ranks[self._rng.randrange(RANKS)].pid or 0
        find = {"uploader": processes.uploader, "push": processes.push, "live push": _live_push}[kind]
        wait_for(lambda: find(self._run.run_dir), SEARCH)
        if kind.endswith("push"):
            time.sleep(self._rng.uniform(0.0, PUSH))
        return find(self._run.run_dir)

    def kill(self, kind: str) -> bool:
        """Send SIGKILL to a process; return whether there was one."""
        pid = self._find(kind)
        if hit := send(pid, signal.SIGKILL):
            self._run.struck.add((pid, -signal.SIGKILL))
            self._tally[f"SIGKILL {kind}"] += 1
        return hit

    def _stop(self, kind: str) -> bool:
        pid = self._find(kind)
        if hit := send(pid, signal.SIGSTOP):
            self._schedule.add(self._rng.uniform(*STOPPED), lambda: send(pid, signal.SIGCONT))
        return hit

    def _terminate(self, kind: str) -> bool:
        pid = self._find(kind)
        if hit := send(pid, signal.SIGTERM):
            self._run.struck |= {(pid, -signal.SIGTERM), (pid, 0)}
            self._run.uploader_terminated |= kind == "uploader"
        return hit

    def _limit(self, name: str, between: tuple[int, int]) -> bool:
        """Kill a rank; the next one in its place has a lower limit."""
        rank = self._rng.randrange(RANKS)
        self._run.limits.setdefault(rank, {})[name] = self._rng.randint(*between)
        pid = self._run.ranks[rank].pid or 0
        if send(pid, signal.SIGKILL):
            self._run.struck.add((pid, -signal.SIGKILL))
            self._tally["SIGKILL worker"] += 1
        return True

    def _jump(self) -> bool:
        self._run.clock(self._rng.choice(JUMPS))
        self._schedule.add(self._rng.uniform(1.0, 10.0), self._run.clock)
        return True

    def end_all(self) -> None:
        """Send SIGKILL to all processes of the run."""
        for kind, count in self._run.end_all().items():
            self._tally[f"SIGKILL {kind}"] += count

    def _restart(self) -> bool:
        self.end_all()
        return True


def _live_push(run_dir: str) -> int:
    return next((pid for pid in processes.left_behind(run_dir, "push") if pid != processes.push(run_dir)), 0)
