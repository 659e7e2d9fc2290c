#!/usr/bin/env python3
"""Cut the power of a disk between any two steps of a write: what had returned is there, and nothing is torn.

One process writes event files, outbox, ledger and other files in seeded order, on a real file system, and the power is
cut at a failpoint (`power_cut_disk.py`). `soak.py` cuts the power under whole runs, `crash_states.py` on a modelled
disk.

    scripts/proof/power_cut.py --cuts 300 --seed 1       on ext4 and on xfs, so many each
    scripts/proof/power_cut.py --sabotage unsynced       a build that is broken on purpose: it must be found

The script needs root, mkfs.ext4 and mkfs.xfs. Exit code 0 if all promises held (with --sabotage: if the sabotage was
found), 3 if one was broken, 1 if the script itself failed.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import random
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import sabotage
from lib.arguments import add_seed, make_parser
from lib.isolation import own_mounts
from power_cut_disk import LoopDisk

from hf_mpwriter.base.files import LocalFile
from hf_mpwriter.base.settings import Destination
from hf_mpwriter.base.verdicts import Sent
from hf_mpwriter.events import framing
from hf_mpwriter.spool import ledger
from hf_mpwriter.spool.layout import Spool
from hf_mpwriter.spool.outbox import InFlightRecord, Outbox, interrupted
from hf_mpwriter.system import disk, failpoints

KINDS = ("ext4", "xfs")
HERE = Destination("https://hub", "me/run")
NAMES = ("a.tfevents", "sub/b.tfevents")
LONGEST = 60  # failpoints of a trial, at most
GONE = b""  # the content of a file that does not exist


class PowerCutError(Exception):
    """The power was cut."""


class Trial:
    """One folder on the disk: seeded writes until the power is cut, then a check of what is left.

    Sets hold what may be left: one member after a call has returned, the old and the new one during the call.
    """

    def __init__(self, drive: LoopDisk, number: int, rng: random.Random) -> None:
        self.run_dir = os.path.join(drive.path, f"run{number}")
        self.drive, self.spool, self.rng = drive, Spool(self.run_dir), rng
        self.host = self.spool.host("h")
        self.files: dict[str, set[bytes]] = {name: {GONE} for name in ("published", "replaced")}
        self.lengths: set[int] = {0}  # of the first file, in the ledger
        self.in_flight: set[int] = {0}  # number of the batch, 0: none
        self.batches: set[tuple[tuple[LocalFile, ...], ...]] = {()}
        self.ledger = ledger.Ledger(HERE, "me/run")
        self.left, self.cut_at = rng.randrange(1, LONGEST), ""
        for name in NAMES:
            path = os.path.join(self.run_dir, name)
            disk.make_dirs((self.spool.run / name).parent)
            Path(path).write_bytes(framing.frame(framing.version_event(1.0)))
        self.spool.create()
        disk.make_dirs(self.host.root)
        self.queue = Outbox(self.host, self.spool.run)

    def work(self) -> None:
        """Write until the cut."""
        actions = (
            self.log,
            self.put,
            self.mark_in_flight,
            self.clear_in_flight,
            self.save,
            self.replace,
            self.remove,
            self.publish,
        )
        with mock.patch.object(failpoints, "reach", self.pass_failpoint):
            try:
                while True:
                    self.rng.choice(actions)()
            except (PowerCutError, OSError):
                if not self.cut_at:
                    raise

    def pass_failpoint(self, name: str) -> None:
        """Cut the power at the last failpoint of the trial."""
        self.left -= 1
        if self.left == 0:
            self.cut_at = name
            self.drive.cut()
            raise PowerCutError

    def log(self) -> None:
        """Log events and do not sync them."""
        for name in NAMES:
            with open(os.path.join(self.run_dir, name), "ab") as file:
                file.writelines(
                    framing.ScalarEncoder("loss").record(1.0, 1, 0.5) for _ in range(self.rng.randrange(1, 200))
                )

    def put(self) -> None:
        """Put all files into the queue, as one batch or as two."""
        files = tuple(
            LocalFile(name, os.path.getsize(os.path.join(self.run_dir, name)), growing=True) for name in NAMES
        )
        groups = ((files[0],), (files[1],)) if self.rng.random() < 0.5 else (files,)
        self.batches |= {groups}
        self.queue.put(groups)
        self.check_trouble()
        self.batches = {groups}

    def check_trouble(self) -> None:
        """Raise if the power was cut: the queue itself goes on from memory when the disk refuses."""
        if self.left <= 0:
            raise PowerCutError

    def mark_in_flight(self) -> None:
        """Start a push of the oldest batch."""
        if self.queue.batches:
            number = self.queue.batches[0].number
            self.in_flight |= {number}
            self.queue.mark_in_flight(self.queue.batches[0], fenced=True)
            self.in_flight = {number}

    def clear_in_flight(self) -> None:
        """End the push and drop its batch."""
        self.in_flight |= {0}
        self.queue.clear_in_flight()
        self.in_flight = {0}
        if self.queue.batches:
            (before,) = self.batches
            self.batches |= {before[1:]}
            self.queue.remove(self.queue.batches[0])
            self.check_trouble()
            self.batches = {before[1:]}

    def save(self) -> None:
        """Save a ledger with a greater length."""
        length = max(self.lengths) + 1
        self.lengths |= {length}
        self.ledger.acknowledge({NAMES[0]: Sent(length, "0" * 64)}, "c" * 40, 1.0)
        self.ledger.save(self.host.ledger)
        self.lengths = {length}

    def _content(self) -> bytes:
        return self.rng.randbytes(self.rng.randrange(1, 20_000))

    def replace(self) -> None:
        """Replace the content of a file."""
        data = self._content()
        self.files["replaced"] |= {data}
        disk.replace(self.host.root / "replaced", data, "trial")
        self.files["replaced"] = {data}

    def publish(self) -> None:
        """Make a file that only one caller can make."""
        data, before = self._content(), self.files["published"]
        self.files["published"] = before | {data}
        made = disk.publish(self.host.root / "published", data, "trial")
        self.files["published"] = {data} if made else before

    def remove(self) -> None:
        """Remove that file."""
        self.files["published"] |= {GONE}
        disk.remove(self.host.root / "published", "trial")
        self.files["published"] = {GONE}

    def check(self) -> Iterator[str]:
        """Yield what is left after the cut and should not be, and the other way round."""
        for name, contents in self.files.items():
            if (disk.read(self.host.root / name) or GONE) not in contents:
                yield f"the file that is {name} is neither the old nor the new one"
        if ledger.set_aside(self.spool, "h"):
            yield "the ledger is torn"
        if ledger.load(self.spool, HERE).length(NAMES[0]) not in self.lengths:
            yield "the ledger is neither the old nor the new one"
        if (interrupted(self.host) or InFlightRecord(0, fenced=True)) not in {
            InFlightRecord(n, fenced=True) for n in self.in_flight
        }:
            yield "the record in flight is neither the old nor the new one"
        yield from self._check_queue()

    def _check_queue(self) -> Iterator[str]:
        found = [entry.files for entry in Outbox(self.host, self.spool.run).batches]
        if not any(set(batches) <= set(found) for batches in self.batches):
            yield "the queue has neither all old batches nor all new ones"
        if not set(found) <= {batch for batches in self.batches for batch in batches}:
            yield "the queue has batches that were dropped"
        for file in {file for files in found for file in files}:
            with open(os.path.join(self.run_dir, file.path), "rb") as event_file:
                if framing.whole_length(event_file.fileno(), 0, file.length) != file.length:
                    yield f"a batch refers to bytes of {file.path} that are gone"


def cut_all(root: Path, kinds: Sequence[str], count: int, seed: int, done: Counter[str]) -> Iterator[str]:
    """Make so many trials on each kind of disk; yield what is wrong after each cut."""
    for kind in kinds:
        with LoopDisk(str(root / kind), kind) as drive:
            for number in range(count):
                trial = Trial(drive, number, random.Random(f"{seed} {kind} {number}"))
                trial.work()
                trial.spool.release()
                drive.restart()
                done[kind] += 1
                for finding in trial.check():
                    yield f"{kind}, trial {number}, cut at {trial.cut_at}: {finding}"
                trial.spool.release()
                shutil.rmtree(trial.run_dir)


def main() -> int:
    """Cut the power; print what was done and what was found."""
    parser = make_parser(__doc__)
    parser.add_argument("--cuts", type=int, default=300, help="on each kind of disk (default: %(default)s)")
    parser.add_argument("--kind", choices=(*KINDS, "both"), default="both", help="file system (default: both)")
    add_seed(parser)
    sabotage.add_option(parser, "unsynced")
    options = parser.parse_args()
    if options.sabotage:
        return sabotage.run(options.sabotage)
    root = Path(tempfile.mkdtemp(prefix="power_cut_"))
    own_mounts()
    logging.getLogger("hf_mpwriter").setLevel(logging.ERROR)
    print(f"seed {options.seed}", flush=True)
    done: Counter[str] = Counter()
    findings: list[str] = []
    kinds = KINDS if options.kind == "both" else (options.kind,)
    with contextlib.closing(cut_all(root, kinds, options.cuts, options.seed, done)) as found:
        for finding in itertools.islice(found, 1 if sabotage.is_sabotaged() else None):
            print(finding, flush=True)
            findings.append(finding)
    print(f"cuts: {dict(done)}")
    return sabotage.conclude(findings, root, options.seed, "no promise was broken")


if __name__ == "__main__":
    sys.exit(main())
