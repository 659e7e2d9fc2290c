"""What the soak does to a run: every kind of fault, in seeded order, undone again before the run is judged.

All kinds are cards of one deck: it is dealt to its end and shuffled again, so each kind comes as often as any other of
its weight. What is counted: processes that were hit, requests that were struck (the Hub counts them), failpoints that
struck (the processes tell), disks that were filled, cut or read-only, files that were spoilt.
"""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import http.client
import json
import os
import random
import shutil
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable

from soak_inside import REPO
from soak_run import RANKS, Run, signal_to, wait_for

from hf_mpwriter.localhub.errors import RepoNotFound
from hf_mpwriter.localhub.server import server as localhub
from hf_mpwriter.localhub.server.faults import Fault, Kind, When
from hf_mpwriter.testing import LoopDisk, forget_lost, processes

BETWEEN = (0.05, 0.4)  # seconds between two cards
STOPPED = (0.3, 3.0)  # seconds that a process is stopped
LATEST = 8.0  # seconds that a commit is late, at most: with a Hub that is stopped, less than the settle time
STANDING = 20  # faults on the wire that wait for a request, at most
CHANCES = (0.05, 0.4)  # of a failpoint to strike
REQUESTS = {  # on the wire: which requests; those of the other users take another way, see `_commit_of_others`
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
GARBAGE = (b"", b"\0" * 4096, b"[]", b"null", b'{"files": [{"path": "../x"}]}', b'{"files"', b"\xff\xfe\x00garbage\n")
WEIGHTS = {  # of what is not 1; a late commit takes as long as ten other cards
    "SIGKILL worker": 4,
    "SIGKILL uploader": 2,
    "SIGKILL push": 3,
    "failpoints eio": 4,
    "failpoints enospc": 4,
    "power cut": 2,
    "wire late commit": 1,
}
WIRE_WEIGHT = 4  # a push that is killed meets nothing on the wire any more
COUNTED_BELOW = ("wire", "SIGKILL", "failpoints")  # where they strike, not where they are prepared
SPOILT = ("ledger.json", "in_flight.json", "status.json", "entry", "card")


@dataclasses.dataclass(frozen=True)
class Card:
    """One thing to do.

    Attributes:
        name: as it stands in the table.
        play: what to do; false if there was no opportunity.
    """

    name: str
    play: Callable[[], object]


class Chaos:
    """All that goes wrong with one run.

    Args:
        run: the run.
        disk: the disk that it is on, None if that is no disk of ours.
        rng: decides.
        deck: names of cards that are still to be dealt, from the run before.
        tally: counts what has happened, per kind.
    """

    def __init__(
        self, run: Run, disk: LoopDisk | None, rng: random.Random, deck: list[str], tally: Counter[str]
    ) -> None:
        self._run, self._disk, self._rng, self._deck, self.tally = run, disk, rng, deck, tally
        self._later: list[tuple[float, Callable[[], object]]] = []
        self._hub_stopped = False
        self._busy_until = 0.0
        self._filler = ""
        self._struck = 0
        self._cards = {card.name: card for card in self._all_cards()}

    def _all_cards(self) -> list[Card]:
        wire: list[tuple[str, Kind, int]] = [("status", "status", status) for status in STATUSES]
        wire += [(kind, kind, 0) for kind in BREAKS]
        cards = [Card(f"wire {status or kind}", self._wire(kind, status)) for _, kind, status in wire]
        for who in ("worker", "uploader", "push", "Hub"):
            cards.append(Card(f"SIGKILL {who}", lambda who=who: self._kill(who)))
            cards.append(Card(f"SIGSTOP {who}", lambda who=who: self._stop(who)))
        cards += [Card(f"SIGTERM {who}", lambda who=who: self._terminate(who)) for who in ("worker", "uploader")]
        cards += [Card(f"spoilt {what}", lambda what=what: self._spoil(what)) for what in SPOILT]
        cards += [
            Card("wire late commit", self._late_commit),
            Card("others commit", self._others),
            Card("others squash", self._squash),
            Card("failpoints eio", lambda: self._failpoints("eio")),
            Card("failpoints enospc", lambda: self._failpoints("enospc")),
            Card("failpoints kill", lambda: self._failpoints("kill")),
            Card("spool removed", self._remove_spool),
            Card("ledger removed", self._remove_ledger),
            Card("all killed, started again", self._restart),
            Card("continued elsewhere", lambda: self._move(from_another_machine=False)),
            Card("continued on another machine", lambda: self._move(from_another_machine=True)),
        ]
        if self._disk is not None:
            cards += [
                Card("disk full", self._fill),
                Card("disk read-only", self._read_only),
                Card("power cut", self._cut),
            ]
        return cards

    def kinds(self) -> list[str]:
        """The names of all cards."""
        return list(self._cards)

    # the course of a storm

    def storm(self, seconds: float) -> None:
        """Play cards for so long, then undo everything."""
        end = time.monotonic() + seconds
        next_card = 0.0
        while (now := time.monotonic()) < end:
            self._run.revive()
            self._do_what_is_due(now)
            if now < self._busy_until and not self._hub_stopped:
                self._commit_of_others()
            if now >= next_card:
                self._play()
                next_card = time.monotonic() + self._rng.uniform(*BETWEEN)
            time.sleep(0.03)
        self.calm()

    def _play(self) -> None:
        if not self._deck:
            self._deck += [name for name in self._cards for _ in range(_weight(name))]
            self._rng.shuffle(self._deck)
        name = self._deck.pop()
        if self._cards[name].play() and not name.startswith(COUNTED_BELOW):
            self.tally[name] += 1

    def _in(self, seconds: float, what: Callable[[], object]) -> None:
        self._later.append((time.monotonic() + seconds, what))

    def _do_what_is_due(self, now: float) -> None:
        due = [what for then, what in self._later if then <= now]
        self._later = [(then, what) for then, what in self._later if then > now]
        for what in due:
            what()

    def calm(self) -> None:
        """Undo what has been done; nothing goes wrong any more."""
        self._do_what_is_due(float("inf"))
        self._busy_until = 0.0
        self._run.chance()
        self._empty()
        self._clear_wire()
        self._count_strikes()

    # processes

    def _find(self, who: str) -> int:
        if who == "worker":
            return self._run.ranks[self._rng.randrange(RANKS)].pid or 0
        find = processes.uploader if who == "uploader" else processes.push
        wait_for(lambda: find(self._run.run_dir), 1.5)
        if who == "push":
            time.sleep(self._rng.uniform(0.0, 0.9))  # anywhere in its life
        return find(self._run.run_dir)

    def _kill(self, who: str) -> bool:
        if who == "Hub":
            return self._kill_hub()
        pid = self._find(who)
        if hit := signal_to(pid, signal.SIGKILL):
            self._run.harmed.add((pid, -signal.SIGKILL))
            self.tally[f"SIGKILL {who}"] += 1
        return hit

    def _kill_hub(self) -> bool:
        if self._hub_stopped or self._run.hub.pid is None:
            return False
        left = self._clear_wire()  # a Hub that is killed tells no more what it has struck
        self._run.hub.kill()
        self._in(self._rng.uniform(0.2, 2.0), lambda: self._start_hub(left))
        self.tally["SIGKILL Hub"] += 1
        return True

    def _start_hub(self, faults: list[Fault]) -> None:
        if self._run.hub.pid is None:
            self._run.hub.start()
            for fault in faults:
                self._run.hub.fault(fault)

    def _stop(self, who: str) -> bool:
        pid = (self._run.hub.pid or 0) if who == "Hub" else self._find(who)
        if not pid or (who == "Hub" and self._hub_stopped) or not signal_to(pid, signal.SIGSTOP):
            return False
        self._hub_stopped = self._hub_stopped or who == "Hub"
        self._in(self._rng.uniform(*STOPPED), lambda: self._go_on(who, pid))
        return True

    def _go_on(self, who: str, pid: int) -> None:
        signal_to(pid, signal.SIGCONT)
        if who == "Hub":
            self._hub_stopped = False

    def _terminate(self, who: str) -> bool:
        pid = self._find(who)
        if hit := signal_to(pid, signal.SIGTERM):
            self._run.harmed |= {(pid, -signal.SIGTERM), (pid, 0)}
            self._run.told_to_leave |= who == "uploader"
        return hit

    # the wire

    def _wire(self, kind: Kind, status: int) -> Callable[[], bool]:
        def play() -> bool:
            if not self._hub_answers() or self._standing() >= STANDING:
                return False
            when: list[When] = ["arrive", "before", "after"]
            if kind == "slow":
                when.remove("before")
            if status and status < 500:  # what was done is not refused afterwards
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

    def _hub_answers(self) -> bool:
        return self._run.hub.pid is not None and not self._hub_stopped

    def _standing(self) -> int:
        return sum(standing.hits < standing.fault.times for standing in self._run.hub.faults())

    def _clear_wire(self) -> list[Fault]:
        """Count what the wire has struck, and let go on what it holds; the faults that still waited for requests."""
        if not self._hub_answers():
            return []
        left = []
        for standing in self._run.hub.faults():
            fault = standing.fault
            what = next(name for name, (_, where) in REQUESTS.items() if where == fault.where)
            self.tally[f"wire {fault.status or fault.kind}"] += standing.hits
            self.tally[f"of these on {what}"] += standing.hits
            self.tally[f"of these {fault.when}"] += standing.hits
            if standing.hits < fault.times:
                left.append(dataclasses.replace(fault, times=fault.times - standing.hits))
        self._run.hub.clear_faults()
        return left

    def _late_commit(self) -> bool:
        """A commit is held, its push is killed, and it is let go when another one has come, if one may come."""
        if not self._hub_answers():
            return False
        method, where = REQUESTS["commit"]
        self._do_what_is_due(float("inf"))
        left = self._clear_wire()
        self._run.hub.fault(Fault(where, "hang", method, "before", seconds=LATEST))
        held = wait_for(self._holds_commit, LATEST)
        if held and signal_to(processes.push(self._run.run_dir), signal.SIGKILL):
            self.tally["SIGKILL push"] += 1
            self.tally["wire late commit"] += 1
            self._wait_for_commit()
        self._clear_wire()
        for fault in left:
            self._run.hub.fault(fault)
        return held

    def _wait_for_commit(self) -> None:
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

    # others

    def _others(self) -> bool:
        """Another user commits without a pause."""
        self._busy_until = time.monotonic() + self._rng.uniform(2.0, 8.0)
        return self._hub_answers()

    def _commit_of_others(self) -> None:
        path = f"others/{len(self._run.theirs)}"
        content = base64.b64encode(os.urandom(9)).decode()
        lines = [
            {"key": "header", "value": {"summary": "theirs"}},
            {"key": "file", "value": {"path": path, "content": content, "encoding": "base64"}},
        ]
        body = "\n".join(map(json.dumps, lines))
        if self._ask_hub("commit", body) == 200:
            self._run.theirs.add(path)
            self.tally["commits of others"] += 1

    def _squash(self) -> bool:
        return self._hub_answers() and self._ask_hub("super-squash", "{}") == 200

    def _ask_hub(self, what: str, body: str) -> int:
        """As another user; the way to the branch is written so that no fault of ours fits."""
        connection = http.client.HTTPConnection(localhub.HOST, self._run.hub.port, timeout=5.0)
        with contextlib.closing(connection), contextlib.suppress(OSError, http.client.HTTPException):
            connection.request("POST", f"/api/models/{REPO}/{what}/m%61in", body)
            return connection.getresponse().status
        return 0

    # the disk

    def _failpoints(self, action: str) -> bool:
        chance = self._rng.uniform(*CHANCES)
        self._run.chance(chance / 8 if action == "kill" else chance, action)
        self._in(self._rng.uniform(1.0, 6.0), self._run.chance)
        return True

    def _count_strikes(self) -> None:
        strikes = self._run.strikes()
        for strike in strikes[self._struck :]:
            action, name, _ = strike.split()
            self.tally[f"failpoints {action}"] += 1
            self.tally[f"of these at {name.rpartition('.')[0]}"] += 1
        self._struck = len(strikes)

    def _fill(self) -> bool:
        """No byte is left, for a while."""
        if self._filler:
            return False
        self._make_writable()
        self._filler = os.path.join(self._run.place, "filler")
        with open(self._filler, "wb", buffering=0) as file:
            size = 1 << 28
            while size >= 1 << 10:
                try:
                    os.posix_fallocate(file.fileno(), file.seek(0, os.SEEK_END), size)
                except OSError:
                    size //= 2
        self._in(self._rng.uniform(1.0, 3.0), self._empty)
        return True

    def _empty(self) -> None:
        if self._filler:
            self._make_writable()
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._filler)
            self._filler = ""

    def _end_all(self) -> None:
        for who, count in self._run.end_all().items():
            self.tally[f"SIGKILL {who}"] += count

    def _read_only(self) -> bool:
        """All die; the next start finds the disk read-only, for a while."""
        assert self._disk is not None  # noqa: S101 - for the type checker; else there is no such card
        self._end_all()
        self._empty()
        _remount(self._disk.path, "ro")
        self._in(self._rng.uniform(0.5, 2.0), self._make_writable)
        return True

    def _make_writable(self) -> None:
        if self._disk is not None:
            _remount(self._disk.path, "rw")

    def _cut(self) -> bool:
        """The power fails for all processes at once: they are killed, and what they have not synced is gone.

        Best just after a commit: what the Hub has must be on the disk.
        """
        assert self._disk is not None  # noqa: S101 - as above
        self._do_what_is_due(float("inf"))
        self._wait_for_commit()
        self._end_all()
        self._run.judge_meanwhile()  # what is not there now was not taken by the cut
        self._disk.cut()
        self._disk.restart()
        self._empty()
        self.tally["records that power cuts took"] += forget_lost(self._run.journals, self._run.run_dir)
        return True

    # the spool

    def _spoil(self, what: str) -> bool:
        """Put garbage in the place of a file; a new uploader has to read it, or the old one overwrites it."""
        places = [self._run.spool.host(host).root for host in self._run.spool.host_ids()]
        if what == "card":
            places, mine = [self._run.spool.members], self._is_dead_card
        elif what == "entry":
            places, mine = [os.path.join(place, "outbox") for place in places], lambda name: name.endswith(".json")
        else:
            mine = what.__eq__
        found = [os.path.join(place, name) for place in places for name in _listdir(place) if mine(name)]
        for path in found[:1]:
            with contextlib.suppress(OSError), open(path, "wb") as file:
                file.write(self._rng.choice(GARBAGE))
            if what == "card" or self._rng.random() < 0.5:
                self._kill("uploader")
        return bool(found)

    def _is_dead_card(self, name: str) -> bool:
        """A card of a live worker is written by that worker alone."""
        return not any(f".{pid}." in name for pid in processes.workers(self._run.run_dir))

    def _remove_spool(self) -> bool:
        shutil.rmtree(self._run.spool.root, ignore_errors=True)
        return True

    def _remove_ledger(self) -> bool:
        removed = False
        for host in self._run.spool.host_ids():
            with contextlib.suppress(OSError):
                os.unlink(self._run.spool.host(host).ledger)
                removed = True
        if removed and self._rng.random() < 0.5:
            self._kill("uploader")
        return removed

    # the run

    def _restart(self) -> bool:
        self._end_all()
        return True

    def _move(self, *, from_another_machine: bool) -> bool:
        self._end_all()
        self._empty()
        self._make_writable()
        self._run.move(from_another_machine=from_another_machine)
        return True


def _remount(path: str, mode: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{mode}", path], check=True)  # noqa: S607 - found on PATH


def _weight(name: str) -> int:
    return WEIGHTS.get(name, WIRE_WEIGHT if name.startswith("wire") else 1)


def _listdir(path: str) -> list[str]:
    with contextlib.suppress(OSError):
        return sorted(os.listdir(path))
    return []
