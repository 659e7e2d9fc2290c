"""What goes wrong between a push and the Hub: faults of requests, answers that are wrong, a Hub that is killed."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import random
import signal
from collections import Counter
from collections.abc import Callable, Iterator

from hf_mpwriter.localhub import buckets
from hf_mpwriter.localhub.endpoints.api import file_json
from hf_mpwriter.localhub.errors import Refusal, RepoNotFound
from hf_mpwriter.localhub.faults import Fault, Kind, When
from hf_mpwriter.testing import processes
from soaking.deck import Card, Schedule
from soaking.inside import BUCKET, REPO
from soaking.others import Others
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
    "batch": ("POST", "/batch$"),
    "bucket": ("", "^/api/buckets/"),
    "any": ("", "/(?!-)[^%]*$"),
}
STATUSES = (400, 401, 403, 404, 409, 412, 413, 429, 500, 502, 503, 504)
HTML = "<!DOCTYPE html><html><body>Please sign in to use this network.</body></html>"
HTML_STATUSES = (200, 200, 403, 502)  # of a captive portal, of a proxy
TREES = "/paths-info/"  # requests whose answers may be old
SECONDS = {"hang": (0.2, 3.0), "slow": (0.02, 0.2)}
BREAKS: tuple[Kind, ...] = ("close", "reset", "hang", "slow")


class Wire:
    """The Hub of a run and the way to it."""

    def __init__(self, run: Run, rng: random.Random, tally: Counter[str], schedule: Schedule) -> None:
        self._run, self._rng, self._tally, self._schedule = run, rng, tally, schedule
        self._stopped = False
        self._others = Others(run, rng, tally, self._answers)

    def cards(self) -> Iterator[Card]:
        """Yield all kinds of faults."""
        yield from (Card(f"wire {status}", self._fault("status", status)) for status in STATUSES)
        yield from (Card(f"wire {kind}", self._fault(kind)) for kind in BREAKS)
        yield Card("wire late commit", lambda: self._late("commit"))
        yield Card("wire late batch", lambda: self._run.is_live and self._late("batch"))
        yield Card("SIGKILL Hub", self._kill)
        yield Card("SIGSTOP Hub", self._stop)
        yield Card("wire HTML", self._html)
        yield Card("wire old tree", lambda: self._tree("old"))
        yield Card("wire contradicting tree", lambda: self._tree("contradicting"))
        yield from self._others.cards()

    def tick(self, now: float) -> None:
        """Let the other users work."""
        self._others.tick(now)

    def calm(self) -> None:
        """Undo everything that the schedule does not undo."""
        self._clear()
        self._others.calm()

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

    def _some(self) -> tuple[str, str]:
        """Some of the requests that there are: method and path."""
        unused = {"LFS" if self._run.hub.config.xet else "Xet", *(("batch", "bucket") if not self._run.is_live else ())}
        return REQUESTS[self._rng.choice([name for name in REQUESTS if name not in unused])]

    def _fault(self, kind: Kind, status: int = 0) -> Callable[[], bool]:
        def play() -> bool:
            if not self._answers() or self._standing() >= STANDING:
                return False
            when: list[When] = ["arrive", "before", "after"]
            if kind == "slow":
                when.remove("before")
            if status and status < 500:  # a Hub does not refuse what it has done
                when.remove("after")
            method, where = self._some()
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

    def _html(self) -> bool:
        """Let something on the way answer in the Hub's place, or after it, with a page."""
        if not self._answers() or self._standing() >= STANDING:
            return False
        method, where = self._some()
        status = self._rng.choice(HTML_STATUSES)
        when: When = "after" if status == 200 and self._rng.random() < 0.5 else "before"
        headers = (("Content-Type", "text/html"),)
        times = self._rng.randint(1, 3)
        self._run.hub.fault(Fault(where, "status", method, when, times, status=status, headers=headers, body=HTML))
        return True

    def _tree(self, how: str) -> bool:
        """Let the Hub answer what it holds as it was some commits ago, or as it never was."""
        if not self._answers() or self._standing() >= STANDING:
            return False
        with contextlib.suppress(Refusal, OSError):
            older = self._run.hub.store.commits("model", REPO, "main")[1:]
            if older:
                items = [file_json(path, entry) for path, entry in self._rng.choice(older).tree.items()]
                for item in self._rng.sample(items, min(len(items), 2)) if how == "contradicting" else ():
                    item["oid"] = f"{self._rng.randrange(16**40):040x}"
                    if "lfs" in item:
                        item["lfs"]["oid"] = f"{self._rng.randrange(16**64):064x}"
                headers = (("Content-Type", "application/json"), ("X-Soak", how))
                times, body = self._rng.randint(1, 3), json.dumps(items)
                self._run.hub.fault(
                    Fault(TREES, "status", "POST", "before", times, status=200, headers=headers, body=body)
                )
                return True
        return False

    def _standing(self) -> int:
        return sum(standing.hits < standing.fault.times for standing in self._run.hub.faults())

    def _clear(self) -> list[Fault]:
        """Count what was struck and release what is held; return the faults that were still waiting for requests."""
        if not self._answers():
            return []
        left = []
        for standing in self._run.hub.faults():
            fault = standing.fault
            request = next((name for name, (_, where) in REQUESTS.items() if where == fault.where), "trees")
            self._tally[f"wire {_kind(fault)}"] += standing.hits
            self._tally[f"of these on {request}"] += standing.hits
            self._tally[f"of these {fault.when}"] += standing.hits
            if standing.hits < fault.times:
                left.append(dataclasses.replace(fault, times=fault.times - standing.hits))
        self._run.hub.clear_faults()
        return left

    def _late(self, what: str) -> bool:
        """Hold a commit or batch, kill its push, and release it after the next one, if there may be a next one."""
        if not self._answers():
            return False
        method, where = REQUESTS[what]
        self._schedule.run_all()
        left = self._clear()
        self._run.hub.fault(Fault(where, "hang", method, "before", seconds=LATEST))
        held = wait_for(lambda: self._holds(where), LATEST)
        if held and sum([send(pid, signal.SIGKILL) for pid in processes.left_behind(self._run.run_dir, "push")]):
            self._tally["SIGKILL push"] += 1
            self._tally[f"wire late {what}"] += 1
            self.wait_for_next(what)
        self._clear()
        for fault in left:
            self._run.hub.fault(fault)
        return held

    def wait_for_next(self, what: str = "commit") -> None:
        """Wait until the Hub has a new commit or batch, but not for long."""
        before = self._newest(what)
        wait_for(lambda: self._newest(what) != before, LATEST)

    def _newest(self, what: str) -> str | int:
        with contextlib.suppress(RepoNotFound):
            store = self._run.hub.store
            return store.resolve("model", REPO, "main") if what == "commit" else buckets.read(store, BUCKET).updated
        return ""

    def _holds(self, where: str) -> bool:
        return any(standing.held and standing.fault.where == where for standing in self._run.hub.faults())


def _kind(fault: Fault) -> str:
    """Return the name of a fault in the table."""
    if fault.kind != "status":
        return fault.kind
    told = dict(fault.headers).get("X-Soak")
    return f"{told} tree" if told else "HTML" if fault.body else str(fault.status)
