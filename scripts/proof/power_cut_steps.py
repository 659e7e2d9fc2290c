"""Power cuts between any two steps of a write, in one process: see `power_cut.py`."""

from __future__ import annotations

import os
import random
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

from hf_mpwriter.base.files import LocalFile
from hf_mpwriter.base.settings import Destination
from hf_mpwriter.base.verdicts import Sent
from hf_mpwriter.events import framing
from hf_mpwriter.spool import ledger
from hf_mpwriter.spool.layout import Spool
from hf_mpwriter.spool.outbox import InFlightRecord, Outbox, interrupted
from hf_mpwriter.system import disk, failpoints
from hf_mpwriter.testing import LoopDisk

HERE = Destination("https://hub", "me/run")
NAMES = ("a.tfevents", "sub/b.tfevents")
LONGEST = 60  # steps of a trial, at most
GONE = b""  # content of a file that is not there


class PowerCutError(Exception):
    """The power is gone."""


class Trial:
    """One folder on the disk: seeded writes until the power is cut; then what must be there.

    What may be there afterwards stands in sets: one member after a call has returned, the old and the new one while
    it is under way.
    """

    def __init__(self, drive: LoopDisk, number: int, rng: random.Random) -> None:
        self.run_dir = os.path.join(drive.path, f"run{number}")
        self.drive, self.spool, self.rng = drive, Spool(self.run_dir), rng
        self.host = self.spool.host("h")
        self.files: dict[str, set[bytes]] = {name: {GONE} for name in ("published", "replaced")}
        self.lengths: set[int] = {0}  # of the first file, as the ledger has it
        self.in_flight: set[int] = {0}  # number of the entry, 0: none
        self.entries: set[tuple[tuple[LocalFile, ...], ...]] = {()}
        self.book = ledger.Ledger(HERE, "me/run")
        self.left, self.cut_at = rng.randrange(1, LONGEST), ""
        for name in NAMES:
            path = os.path.join(self.run_dir, name)
            disk.make_dirs(os.path.dirname(path))
            Path(path).write_bytes(framing.frame(framing.version_event(1.0)))
        self.spool.create()
        disk.make_dirs(self.host.root)
        self.queue = Outbox(self.host, self.run_dir)

    def work(self) -> None:
        """Write until the cut."""
        actions = (self.log, self.put, self.take_off, self.land, self.save, self.replace, self.remove, self.publish)
        with mock.patch.object(failpoints, "reach", self.pass_failpoint):
            try:
                while True:
                    self.rng.choice(actions)()
            except (PowerCutError, OSError):
                if not self.cut_at:
                    raise

    def pass_failpoint(self, name: str) -> None:
        """A failpoint is passed: the power is cut there when the trial's time has come."""
        self.left -= 1
        if self.left == 0:
            self.cut_at = name
            self.drive.cut()
            raise PowerCutError

    def log(self) -> None:
        """Events that nobody has synced."""
        for name in NAMES:
            with open(os.path.join(self.run_dir, name), "ab") as file:
                file.writelines(
                    framing.ScalarEncoder("loss").record(1.0, 1, 0.5) for _ in range(self.rng.randrange(1, 200))
                )

    def put(self) -> None:
        """An entry of what there is."""
        files = tuple(
            LocalFile(name, os.path.getsize(os.path.join(self.run_dir, name)), growing=True) for name in NAMES
        )
        groups = ((files[0],), (files[1],)) if self.rng.random() < 0.5 else (files,)
        self.entries |= {groups}
        self.queue.put(groups)
        self.check_trouble()
        self.entries = {groups}

    def check_trouble(self) -> None:
        """The queue goes on from memory where the disk refuses: here that is the cut."""
        if self.left <= 0:
            raise PowerCutError

    def mark_in_flight(self) -> None:
        """A push of the oldest entry starts."""
        if self.queue.entries:
            number = self.queue.entries[0].number
            self.in_flight |= {number}
            self.queue.mark_in_flight(self.queue.entries[0], {"files": []}, fenced=True)
            self.in_flight = {number}

    def land(self) -> None:
        """Its outcome is known, and the entry is dropped."""
        self.in_flight |= {0}
        self.queue.clear_in_flight()
        self.in_flight = {0}
        if self.queue.entries:
            (before,) = self.entries
            self.entries |= {before[1:]}
            self.queue.remove(self.queue.entries[0])
            self.check_trouble()
            self.entries = {before[1:]}

    def save(self) -> None:
        """The Hub has more."""
        length = max(self.lengths) + 1
        self.lengths |= {length}
        self.book.acknowledge({NAMES[0]: Sent(length, "0" * 64)}, "c" * 40, 1.0)
        self.book.save(self.host.ledger)
        self.lengths = {length}

    def _content(self) -> bytes:
        return self.rng.randbytes(self.rng.randrange(1, 20_000))

    def replace(self) -> None:
        """A new content in the place of another."""
        data = self._content()
        self.files["replaced"] |= {data}
        disk.replace(os.path.join(self.host.root, "replaced"), data, "trial")
        self.files["replaced"] = {data}

    def publish(self) -> None:
        """A file that is made once."""
        data, before = self._content(), self.files["published"]
        self.files["published"] = before | {data}
        made = disk.publish(os.path.join(self.host.root, "published"), data, "trial")
        self.files["published"] = {data} if made else before

    def remove(self) -> None:
        """And removed."""
        self.files["published"] |= {GONE}
        disk.remove(os.path.join(self.host.root, "published"), "trial")
        self.files["published"] = {GONE}

    def judge(self) -> Iterator[str]:
        """What is there after the cut and should not be, or the other way round."""
        for name, contents in self.files.items():
            if (disk.read(os.path.join(self.host.root, name)) or GONE) not in contents:
                yield f"the file that is {name} is neither the old nor the new one"
        if ledger.set_aside(self.spool, "h"):
            yield "the ledger is torn"
        if ledger.load(self.spool, HERE).length(NAMES[0]) not in self.lengths:
            yield "the ledger is neither the old nor the new one"
        if (interrupted(self.host) or InFlightRecord(0, fenced=True)) not in {
            InFlightRecord(n, fenced=True) for n in self.in_flight
        }:
            yield "the record in flight is neither the old nor the new one"
        yield from self._judge_queue()

    def _judge_queue(self) -> Iterator[str]:
        found = [entry.files for entry in Outbox(self.host, self.run_dir).entries]
        if not any(set(entries) <= set(found) for entries in self.entries):
            yield "the queue has neither all old entries nor all new ones"
        if not set(found) <= {entry for entries in self.entries for entry in entries}:
            yield "the queue has entries that were dropped"
        for file in {file for files in found for file in files}:
            with open(os.path.join(self.run_dir, file.path), "rb") as event_file:
                if framing.whole_length(event_file.fileno(), 0, file.length) != file.length:
                    yield f"an entry refers to bytes of {file.path} that are gone"


def cut_steps(root: Path, kind: str, count: int, seed: int, done: Counter[str]) -> Iterator[str]:
    """So many trials; yields problems."""
    with LoopDisk(str(root / f"{kind}-steps"), kind) as drive:
        for number in range(count):
            trial = Trial(drive, number, random.Random(f"{seed} {kind} {number}"))
            trial.work()
            drive.restart()
            done[f"{kind}: between two steps"] += 1
            for problem in trial.judge():
                yield f"{kind}, trial {number}, cut at {trial.cut_at}: {problem}"
            shutil.rmtree(trial.run_dir)
