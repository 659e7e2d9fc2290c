"""What goes wrong on the disk of a run: a disk that refuses, is full, read-only or without power, a damaged spool."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import subprocess
import time
from collections import Counter
from collections.abc import Iterator

from hf_mpwriter.testing import processes
from hf_mpwriter.testing.losses import forget_lost
from soaking.deck import Card, Schedule
from soaking.run import Place, Run, wait_for
from soaking.victims import Victims
from soaking.wire import Wire

BEGINNING = 5.0  # seconds that all ranks have to join, before a mount dies
AWAY = (0.0, 3.0)  # seconds that a mount is away
CHANCES = (0.05, 0.4)  # probabilities that a failpoint fails
GARBAGE = (b"", b"\0" * 4096, b"[]", b"null", b'{"files": [{"path": "../x"}]}', b'{"files"', b"\xff\xfe\x00garbage\n")
DAMAGED = {  # in the table -> files
    "ledger": "ledger.json",
    "record in flight": "in_flight.json",
    "status": "uploader_status.json",
    "batch": "outbox",
    "member file": "members",
}


def fill(path: str) -> None:
    """Fill a disk to the last byte with a file."""
    with open(path, "wb", buffering=0) as file:
        size = 1 << 28
        while size >= 1 << 10:
            try:
                os.posix_fallocate(file.fileno(), file.seek(0, os.SEEK_END), size)
            except OSError:
                size //= 2


class Storage:
    """The disk and the spool of a run."""

    def __init__(
        self,
        run: Run,
        place: Place,
        rng: random.Random,
        tally: Counter[str],
        schedule: Schedule,
        victims: Victims,
        wire: Wire,
    ) -> None:
        self._run, self._rng, self._tally, self._schedule = run, rng, tally, schedule
        self._disk, self._mount = place.disk, place.mount
        self._victims, self._wire = victims, wire
        self._filler = ""
        self._counted = 0  # strikes of failpoints

    def cards(self) -> Iterator[Card]:
        """Yield all kinds of faults; some need a disk of their own."""
        for action in ("eio", "enospc", "estale", "kill"):
            yield Card(f"failpoints {action}", lambda action=action: self._failpoints(action))
        for what in DAMAGED:
            yield Card(f"damaged {what}", lambda what=what: self._damage(what))
        yield Card("spool removed", self._remove_spool)
        yield Card("ledger removed", self._remove_ledger)
        if not self._run.is_staged:
            yield Card("continued elsewhere", lambda: self._move(from_another_machine=False))
            yield Card("continued on another machine", lambda: self._move(from_another_machine=True))
        if self._disk is not None:
            yield Card("disk full", self._fill)
            yield Card("disk read-only", self._read_only)
            yield Card("power cut", self._cut)
        if self._mount is not None:
            yield Card("mount dies and returns", self._mount_anew)
            yield Card("open files become stale", self._mount.make_stale)

    def calm(self) -> None:
        """Undo everything that the schedule does not undo; count the strikes of failpoints."""
        self._run.chance()
        self._empty()
        strikes = self._run.strikes()
        for strike in strikes[self._counted :]:
            action, name, _ = strike.split()
            self._tally[f"failpoints {action}"] += 1
            self._tally[f"of these at {name.rpartition('.')[0]}"] += 1
        self._counted = len(strikes)

    # the disk

    def _failpoints(self, action: str) -> bool:
        chance = self._rng.uniform(*CHANCES)
        self._run.chance(chance / 8 if action == "kill" else chance, action)
        self._schedule.add(self._rng.uniform(1.0, 6.0), self._run.chance)
        return True

    def _fill(self) -> bool:
        """Fill the disk to the last byte, for a while."""
        if self._filler:
            return False
        self._make_writable()
        self._filler = os.path.join(self._run.place, "filler")
        fill(self._filler)
        self._schedule.add(self._rng.uniform(1.0, 3.0), self._empty)
        return True

    def _empty(self) -> None:
        if self._filler:
            self._make_writable()
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._filler)
            self._filler = ""

    def _read_only(self) -> bool:
        """Kill all processes; the next ones find the disk read-only, for a while."""
        assert self._disk is not None  # noqa: S101 - for the type checker; there is no such card without a disk
        self._victims.end_all()
        self._empty()
        _remount(self._disk.path, "ro")
        self._schedule.add(self._rng.uniform(0.5, 2.0), self._make_writable)
        return True

    def _make_writable(self) -> None:
        if self._disk is not None:
            _remount(self._disk.path, "rw")

    def _cut(self) -> bool:
        """Cut the power just after a commit: what the Hub has must be on the disk.

        All processes are killed, and what they did not sync is gone.
        """
        assert self._disk is not None  # noqa: S101 - as above
        self._schedule.run_all()
        self._wire.wait_for_next()
        self._victims.end_all()
        self._run.check_meanwhile()  # what is missing now, the cut did not take
        self._disk.cut()
        self._disk.restart()
        self._empty()
        self._run.may_be_damaged = True
        self._tally["records lost in power cuts"] += forget_lost(self._run.journals, self._run.run_dir)
        return True

    def _mount_anew(self) -> bool:
        """End the program behind the mount; until it is there again nothing else is done to the run.

        A rank that begins meanwhile would take the empty directory below the mount for its logdir.
        """
        assert self._mount is not None  # noqa: S101 - as above
        if not wait_for(self._run.have_begun, BEGINNING):
            return False
        self._mount.die()
        time.sleep(self._rng.uniform(*AWAY))
        self._mount.mount_anew()
        return True

    # the spool

    def _damage(self, what: str) -> bool:
        """Replace the content of a file by garbage; a new uploader reads it, or the old one overwrites it."""
        for path in list(self._files(what))[:1]:
            with contextlib.suppress(OSError), open(path, "wb") as file:
                file.write(self._rng.choice(GARBAGE))
            if what == "member file" or self._rng.random() < 0.5:
                self._victims.kill("uploader")
            return True
        return False

    def _files(self, what: str) -> Iterator[str]:
        """Yield the files of a kind, without member files of live workers: only their worker writes those."""
        name, spool = DAMAGED[what], self._run.spool
        if what == "member file":
            alive = [f".{pid}." for pid in processes.workers(self._run.run_dir)]
            files = _list(spool.members)
            yield from (path for path in files if not any(pid in os.path.basename(path) for pid in alive))
            return
        for host in spool.host_ids():
            path = os.path.join(spool.host(host).root, name)
            if what == "batch":
                yield from (batch for batch in _list(path) if batch.endswith(".json"))
            elif os.path.exists(path):
                yield path

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
            self._victims.kill("uploader")
        return removed

    def _move(self, *, from_another_machine: bool) -> bool:
        self._victims.end_all()
        self._empty()
        self._make_writable()
        self._run.move(from_another_machine=from_another_machine)
        return True


def _remount(path: str, mode: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{mode}", path], check=True)  # noqa: S607 - found on PATH


def _list(path: str) -> list[str]:
    with contextlib.suppress(OSError):
        return sorted(os.path.join(path, name) for name in os.listdir(path))
    return []
