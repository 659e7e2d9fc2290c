"""What goes wrong between a push and the Hub: faults of requests, a Hub that is killed or stopped, other users."""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import http.client
import json
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator

from hf_mpwriter.localhub.errors import RepoNotFound
from hf_mpwriter.localhub.server import server as localhub
from hf_mpwriter.localhub.server.faults import Fault, Kind, When
from hf_mpwriter.testing import processes
from soaking.deck import Card, Schedule
from soaking.inside import REPO
from soaking.run import Run, send, wait_for
from soaking.victims import STOPPED

DOWN = (0.2, 2.0)  # seconds until a Hub that was killed is started again
LATEST = 8.0  # seconds that a commit is late, at most: with a Hub that is stopped, less than the settle time
STANDING = 20  # faults that wait for a request, at most
REQUESTS = {  # method and path; the requests of other users take another path, see `_request`
    "commit": ("POST", "/commit/main$"),
    "preupload": ("POST", "/preupload/"),
    "info": ("", "/revision/|/paths-info/"),
    "LFS": ("", "/objects/batch$|/objects/verify$|^/lfs/"),
    "Xet": ("", "^/xet/|/xet-write-token/"),
    "any": ("", "/(?!-)[^%]*$"),
}
STATUSES = (400, 401, 403, 404, 409, 412, 413, 429, 500, 502, 503, 504)
SECONDS = {"hang": (0.2, 3.0), "slow": (0.02, 0.2)}
BREAKS: tuple[Kind, ...] = ("close", "reset", "hang", "slow")


class Wire:
    """The Hub of a run and the way to it.

    Args:
        run: the run.
        rng: decides.
        tally: counts what happened, per kind; the Hub counts the requests that were struck.
        schedule: for what is to be undone.
    """

    def __init__(self, run: Run, rng: random.Random, tally: Counter[str], schedule: Schedule) -> None:
        self._run, self._rng, self._tally, self._schedule = run, rng, tally, schedule
        self._stopped = False
        self._busy_until = 0.0

    def cards(self) -> Iterator[Card]:
        """Yield all kinds of faults."""
        yield from (Card(f"wire {status}", self._fault("status", status)) for status in STATUSES)
        yield from (Card(f"wire {kind}", self._fault(kind)) for kind in BREAKS)
        yield Card("wire late commit", self._late_commit)
        yield Card("SIGKILL Hub", self._kill)
        yield Card("SIGSTOP Hub", self._stop)
        yield Card("others commit", self._others)
        yield Card("others squash", self._squash)

    def tick(self, now: float) -> None:
        """Let the other users work."""
        if now < self._busy_until and not self._stopped:
            self._commit_of_others()

    def calm(self) -> None:
        """Undo everything that the schedule does not undo."""
        self._busy_until = 0.0
        self._clear()

    def _answers(self) -> bool:
        return self._run.hub.pid is not None and not self._stopped

    # the Hub

    def _kill(self) -> bool:
        if self._stopped or self._run.hub.pid is None:
            return False
        left = self._clear()  # a Hub that was killed cannot say what it struck
        self._run.hub.kill()
        self._schedule.add(self._rng.uniform(*DOWN), lambda: self._start(left))
        self._tally["SIGKILL Hub"] += 1
        return True

    def _start(self, faults: list[Fault]) -> None:
        if self._run.hub.pid is None:
            self._run.hub.start()
            for fault in faults:
                self._run.hub.fault(fault)

    def _stop(self) -> bool:
        pid = self._run.hub.pid or 0
        if self._stopped or not send(pid, signal.SIGSTOP):
            return False
        self._stopped = True
        self._schedule.add(self._rng.uniform(*STOPPED), lambda: self._continue(pid))
        return True

    def _continue(self, pid: int) -> None:
        send(pid, signal.SIGCONT)
        self._stopped = False

    # requests

    def _fault(self, kind: Kind, status: int = 0) -> Callable[[], bool]:
        def play() -> bool:
            if not self._answers() or self._standing() >= STANDING:
                return False
            when: list[When] = ["arrive", "before", "after"]
            if kind == "slow":
                when.remove("before")
            if status and status < 500:  # a Hub does not refuse what it has done
                when.remove("after")
            unused = "LFS" if self._run.hub.xet else "Xet"
            method, where = REQUESTS[self._rng.choice([name for name in REQUESTS if name != unused])]
            self._run.hub.fault(
                Fault(
                    where,
                    kind,
                    method,
                    self._rng.choice(when),
                    times=self._rng.randint(10, 40) if kind == "slow" else self._rng.randint(1, 5),
                    seconds=round(self._rng.uniform(*SECONDS[kind]), 2) if kind in SECONDS else 0.0,
                    status=status,
                    headers=(("Retry-After", "1"),) if status == 429 else (),
                    code=self._rng.choice(["", "RepoNotFound"]) if status == 404 else "",
                )
            )
            return True

        return play

    def _standing(self) -> int:
        return sum(standing.hits < standing.fault.times for standing in self._run.hub.faults())

    def _clear(self) -> list[Fault]:
        """Count what was struck and release what is held; return the faults that were still waiting for requests."""
        if not self._answers():
            return []
        left = []
        for standing in self._run.hub.faults():
            fault = standing.fault
            request = next(name for name, (_, where) in REQUESTS.items() if where == fault.where)
            self._tally[f"wire {fault.status or fault.kind}"] += standing.hits
            self._tally[f"of these on {request}"] += standing.hits
            self._tally[f"of these {fault.when}"] += standing.hits
            if standing.hits < fault.times:
                left.append(dataclasses.replace(fault, times=fault.times - standing.hits))
        self._run.hub.clear_faults()
        return left

    def _late_commit(self) -> bool:
        """Hold a commit, kill its push, and release the commit after the next one, if there may be a next one."""
        if not self._answers():
            return False
        method, where = REQUESTS["commit"]
        self._schedule.run_all()
        left = self._clear()
        self._run.hub.fault(Fault(where, "hang", method, "before", seconds=LATEST))
        held = wait_for(self._holds_commit, LATEST)
        if held and send(processes.push(self._run.run_dir), signal.SIGKILL):
            self._tally["SIGKILL push"] += 1
            self._tally["wire late commit"] += 1
            self.wait_for_commit()
        self._clear()
        for fault in left:
            self._run.hub.fault(fault)
        return held

    def wait_for_commit(self) -> None:
        """Wait until the Hub has a new commit, but not for long."""
        before = self._head()
        wait_for(lambda: self._head() != before, LATEST)

    def _head(self) -> str:
        with contextlib.suppress(RepoNotFound):
            return self._run.hub.store.resolve("model", REPO, "main")
        return ""

    def _holds_commit(self) -> bool:
        return any(
            standing.held and standing.fault.where == REQUESTS["commit"][1] for standing in self._run.hub.faults()
        )

    # other users

    def _others(self) -> bool:
        """Let another user commit without a pause."""
        self._busy_until = time.monotonic() + self._rng.uniform(2.0, 8.0)
        return self._answers()

    def _commit_of_others(self) -> None:
        path = f"others/{len(self._run.foreign)}"
        content = base64.b64encode(os.urandom(9)).decode()
        lines = [
            {"key": "header", "value": {"summary": "another user"}},
            {"key": "file", "value": {"path": path, "content": content, "encoding": "base64"}},
        ]
        body = "\n".join(map(json.dumps, lines))
        if self._request("commit", body) == 200:
            self._run.foreign.add(path)
            self._tally["commits of others"] += 1

    def _squash(self) -> bool:
        return self._answers() and self._request("super-squash", "{}") == 200

    def _request(self, what: str, body: str) -> int:
        """Send a request as another user; the branch in its path is encoded so that no fault matches."""
        connection = http.client.HTTPConnection(localhub.HOST, self._run.hub.port, timeout=5.0)
        with contextlib.closing(connection), contextlib.suppress(OSError, http.client.HTTPException):
            connection.request("POST", f"/api/models/{REPO}/{what}/m%61in", body)
            return connection.getresponse().status
        return 0
