"""A state machine of hypothesis that drives real uploaders on a modelled disk against a modelled branch."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import itertools
import os
import random
import shutil
import sys
import tempfile
from collections import Counter
from types import SimpleNamespace
from typing import ClassVar
from unittest import mock

import hypothesis
import repeatable  # noqa: F401 - sets hypothesis up
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from modelled_branch import ARRIVAL, DESTINATION, Branch, Client, sha256
from modelled_disk import ERRORS, Dead, Disk
from support import scalar

from hf_mpwriter.base import state
from hf_mpwriter.base.files import digest
from hf_mpwriter.base.names import is_event_file
from hf_mpwriter.base.settings import Settings
from hf_mpwriter.base.verdicts import Verdict
from hf_mpwriter.daemon import loop as daemon_loop
from hf_mpwriter.daemon.starts import StartRecord
from hf_mpwriter.events import framing
from hf_mpwriter.push import commit, handle
from hf_mpwriter.push.job import Job
from hf_mpwriter.spool import ledger
from hf_mpwriter.spool.layout import Spool
from hf_mpwriter.spool.outbox import Batch, InFlightRecord
from hf_mpwriter.spool.workers import members, peers
from hf_mpwriter.spool.workers.members import MemberFile
from hf_mpwriter.system import disk, launch, locks
from hf_mpwriter.system.process import Process
from hf_mpwriter.uploader import loop, pacing
from hf_mpwriter.uploader.upload import HeldRun

SETTINGS = Settings(commit_every=0.1)
HOSTS = ("one", "two")
KILLS = ("kill", "power cut")
FAULTS = ["", *KILLS, "enospc", "eio"]
FATES = ["applied", "applied", "answer lost", "late", "never", "unavailable", "busy", "overtaken"]
DRAIN = 400  # rounds


class AtOnce(random.Random):
    """Randomness without jitter, so that nothing waits."""

    def uniform(self, *_: float) -> float:
        """Nothing."""
        return 0.0


class Push:
    """A push that runs when the machine lets it."""

    pid = 1
    lingers = False
    asked_at = 0.0
    is_answered = False
    quota = None

    def __init__(self, machine: Durability, job: Job) -> None:
        self._machine = machine
        self.job = state.load(Job, state.dump(job))
        self.verdict: Verdict | None = None  # on its only part
        machine.starts(self)

    def run(self, fate: str) -> None:
        """Send the batch."""
        client = Client(self._machine.branch, fate, self._machine.now)
        (self.verdict,) = commit.carry(self.job, [self._machine.spool], client, lambda _: None, AtOnce())

    def listen(self):
        """Yield nothing: the push prints only its verdict."""
        return [], [self.verdict] if self.verdict else []

    def wait(self, timeout: float, *_: int) -> None:
        """Return at once: the machine decides when a push ends."""


def raise_again(*_: object) -> None:
    """In the place of a line in the log: no exception ends the upload of a run without a word."""
    raise  # noqa: PLE0704 - what is handled


class Worker:
    """A process that logs."""

    def __init__(self, run: Spool, number: int) -> None:
        self._member = MemberFile(run, f"rank_{number % 3:05d}", Process.current(), SETTINGS)
        directory = os.path.join(run.run_dir, f"rank_{number % 3:05d}")
        os.makedirs(directory, exist_ok=True)
        name = f"events.out.tfevents.{1700000000 + number:010d}.here.1.{number:08x}"
        self._path = f"{os.path.basename(directory)}/{name}"
        self._member.write({"open": self._path})
        self.lock_fd = self._member._fd
        self._fd = os.open(os.path.join(directory, name), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self.log(framing.version_event(1.0))

    def log(self, payload: bytes, torn: int = 0) -> None:
        """Append a record; a torn one lacks its end."""
        data = framing.frame(payload)
        os.write(self._fd, data[: len(data) - torn])

    def want(self) -> None:
        """Ask for a push."""
        self._member.count(requests=1)

    def end(self, *, closes: bool) -> None:
        """Close, or be killed."""
        if closes:
            self._member.write({"seal": self._path})
            self._member.leave()
        self.vanish()

    def vanish(self) -> None:
        """Release the lock and close the file, without a line in the member file."""
        locks.release(self.lock_fd)
        os.close(self._fd)


class Durability(RuleBasedStateMachine):
    """Workers, an uploader, its pushes, a disk and a branch, with faults between any two steps."""

    made: ClassVar[Counter[str]] = Counter()  # what has happened, in all examples

    def __init__(self) -> None:
        super().__init__()
        self._folder = tempfile.mkdtemp()
        self.now, self.branch, self.workers, self.joined, self.temporaries = 1000.0, Branch(), [], 0, 0
        self.spool = Spool(os.path.join(self._folder, "run"))
        self.spool.create()
        self.spool.record_destination(DESTINATION)
        for host in map(self.spool.host, HOSTS):
            disk.make_dirs(host.outbox)
        self.disk = Disk(self.spool.run_dir, watch=self.goes)
        self.disk.mark_durable()
        self.uploader: loop.Uploader | None = None
        self.push, self.host, self.fault = None, HOSTS[0], ""
        self.rng, self.fates, self.faults = random.Random(0), ["applied"], [""]
        self.acknowledged: dict[str, int] = {}
        clock = SimpleNamespace(time=lambda: self.now, sleep=self._pass, monotonic=lambda: self.now)
        me = SimpleNamespace(current=lambda: dataclasses.replace(Process.current(), host=self.host))
        self._patches = contextlib.ExitStack()
        for change in (
            mock.patch.dict(os.environ, XDG_CACHE_HOME=os.path.join(self._folder, "cache")),  # the registry of folders
            mock.patch.object(loop, "time", clock),
            mock.patch.object(launch, "wait_for_input", lambda _, seconds: self._pass(seconds)),
            mock.patch.object(loop.logger, "exception", raise_again),
            mock.patch.object(daemon_loop, "Process", me),
            mock.patch.object(loop.RateLimit, "_update", return_value=0.0),
            mock.patch.object(handle, "PushHandle", lambda job, *_: Push(self, job)),
            mock.patch.object(peers, "OTHERS_SILENCE", 0.0),  # one uploader at a time, on whatever host
            mock.patch.object(pacing, "MOVED_LIMIT", 1),
            mock.patch.object(members, "_numbers", itertools.count(1)),  # these two: the same names in every run
            mock.patch.object(disk, "_temporary", self._temporary),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            self._patches.enter_context(change)

    def _temporary(self, place):
        self.temporaries += 1
        return place.parent / f".{place.basename}.{self.temporaries}.tmp"

    # what happens

    @initialize(seed=st.integers(0, 2**32))
    def begin(self, seed):
        """Each example has its own few fates and faults, so that they are frequent in it."""
        self.rng = random.Random(seed)
        self.fates = self.rng.choices(FATES, k=4)
        self.faults = self.rng.choices(FAULTS, k=3)

    @rule()
    def log(self):
        """Workers append, with or without a request for a push; the first one joins if there is none."""
        with self.disk.recorded():
            if not self.workers:
                self._join()
            for worker in self.workers:
                for _ in range(self.rng.randint(1, 3)):
                    worker.log(scalar(7))
                if self.rng.random() < 0.5:
                    worker.want()

    @rule()
    def join(self):
        """One more worker, or the next segment."""
        if len(self.workers) < 3:
            with self.disk.recorded():
                self._join()

    def _join(self):
        self.joined += 1
        self.workers.append(Worker(self.spool, self.joined))

    @rule()
    def one_ends(self):
        """A worker closes, or dies, perhaps in the middle of a record."""
        if not self.workers:
            return
        worker, closes = self.workers.pop(0), self.rng.random() < 0.5
        with self.disk.recorded():
            if not closes:
                worker.log(scalar(1), torn=self.rng.randint(0, 9))
            worker.end(closes=closes)

    @rule()
    def work(self):
        """The uploader runs a few rounds and its pushes run; a fault may hit any change on disk."""
        self.fault, host = self.rng.choice(self.faults), self.rng.choice(HOSTS)
        try:
            with self.disk.recorded("kill" if self.fault in KILLS else self.fault, self.rng.randint(0, 40)):
                for _ in range(self.rng.randint(1, 12)):
                    self._round(host, self.rng.choice(self.fates))
        except Dead:
            self._die(power_cut=self.fault == "power cut")
        except OSError:  # the disk lets no uploader start; what stops one that has started is a bug
            if self.uploader is not None or self.fault not in ERRORS:
                raise
            self._die(power_cut=False)

    @rule()
    def log_and_work(self):
        """Log, then work: the most frequent sequence."""
        self.log()
        self.work()

    def _round(self, host, fate):
        """Run one round of the uploader, and start one if there is none."""
        self._pass(1.0)
        if self.push and self.push.verdict is None:
            self.made[fate] += 1
            self.push.run(fate)
        if self.uploader is None:
            self._start(host)
        else:
            goes_on = self.uploader.tick()
            assert not self.uploader._refused, "what the disk refuses has stopped a step"
            if not goes_on:
                self.uploader = self.push = None

    def _start(self, host):
        self.host = host
        lock_fd = locks.try_exclusive(self.spool.uploader_lock)
        assert lock_fd is not None
        start = StartRecord(**vars(self.spool.paths), destination=DESTINATION)
        uploader = loop.Uploader(start, lambda: self.now, AtOnce())
        uploader.add(HeldRun(self.spool, start, lock_fd))
        self.uploader = uploader

    @rule()
    def dies(self):
        """The uploader is killed, its push with it; or the machine loses its power."""
        if self.uploader is not None:
            self._die(power_cut=self.rng.random() < 0.5)

    def _die(self, *, power_cut):
        self.made["power cut" if power_cut else "kill"] += 1
        if self.push and self.push.verdict is None:
            self.push.run(self.rng.choice(self.fates))
        for fd in locks._table.keys() - {worker.lock_fd for worker in self.workers}:
            locks.release(fd)
        self.uploader = self.push = None
        if power_cut:
            for worker in self.workers:
                worker.vanish()
            self.workers.clear()
            self.disk.power_cut(self.rng)
        self.disk.revive()

    @rule(seconds=st.sampled_from([10.0, 30.0, 130.0]))
    def wait(self, seconds):
        """Time passes."""
        self._pass(seconds)

    def _pass(self, seconds):
        self.now += seconds
        self.branch.arrive(self.now)

    @rule()
    def others_commit(self):
        """Another user commits to the branch."""
        self.branch.head += 1

    @rule(lost=st.booleans())
    def a_late_request(self, lost):
        """A late request arrives, or is lost for ever."""
        if self.branch.under_way:
            request = self.branch.under_way.pop(0)
            if not lost:
                self.branch.apply(request)

    # what must hold

    def starts(self, started):
        """A push starts: its record is durable (invariant 8) and names what the push carries."""
        self.push, host, (part,) = started, self.spool.host(self.host), started.job.parts
        content = self.disk.content(host.in_flight)
        assert content is not None, "a push starts, and there is no record of it"
        assert self.disk.durable(host.in_flight) == content, "a push starts, and its record is not durable"
        record = state.load(InFlightRecord, content)
        batch = self.disk.content(os.path.join(host.outbox, f"{record.batch:08d}.json"))
        carried = state.load(Batch, batch).files if batch else record.attachments or part.files
        assert carried == part.files, "the record is that of another push"
        assert started.job.fenced or not record.fenced, "the record says that commits name their parent"

    def goes(self, path):
        """A name is about to be removed (invariants 3 and 8)."""
        directory, name = os.path.split(path)
        if self.disk.dead or not name.endswith(".json") or name.startswith("."):
            return
        if name == "in_flight.json":
            risky = [request for request in self.branch.under_way if request.parent is None]
            assert not risky, "the record goes while a request without a parent is under way"
            if self.push and self.push.verdict and not self.fault:
                for file, sent in getattr(self.push.verdict, "files", {}).items():
                    assert self._lengths(durable=True).get(file, 0) >= sent.length, "the record goes before the ledger"
        elif os.path.basename(directory) == "outbox":
            self._batch_goes(path)

    def _batch_goes(self, path):
        there = [
            other for other in self.disk.paths() if other != path and os.path.dirname(other) == os.path.dirname(path)
        ]
        newer = [self._files(self.disk.durable(other)) for other in there]
        held = self._lengths(durable=False)
        for file, length in self._files(self.disk.content(path)).items():
            covered = any(one.sending.ledger.length(file) >= length for one in self._uploads())
            assert covered or held.get(file, 0) >= length or any(one.get(file, 0) >= length for one in newer), (
                "a batch goes, and neither a ledger nor a durable batch covers it"
            )

    def _uploads(self):
        return self.uploader.uploads if self.uploader else []

    @staticmethod
    def _files(data):
        """The lengths of a batch; empty for garbage."""
        try:
            return {file.path: file.length for file in state.load(Batch, data or b"").files}
        except state.DamagedError:
            return {}

    def _lengths(self, *, durable):
        """The lengths that the ledgers on disk claim, the largest of all hosts; or those after any power cut."""
        lengths = Counter()
        for host in map(self.spool.host, HOSTS):
            there = self.disk.possible(host.ledger) if durable else [self.disk.content(host.ledger)]
            least, *others = map(self._claims, there)
            for other in others:
                least &= other
            lengths |= least
        return lengths

    @staticmethod
    def _claims(data):
        """The lengths of a ledger; empty for garbage."""
        try:
            claimed = state.load(ledger.Ledger, data or b"")
        except state.DamagedError:
            return Counter()
        return Counter({path: held.length for path, held in claimed.files.items()})

    @invariant()
    def the_hub_has_a_beginning_of_each_file(self):
        """Promise 5: nothing has shrunk, and nothing is there that a power cut could take from this disk."""
        assert self.branch.problems == []
        for path, data in self.branch.files.items():
            here = self.disk.content(os.path.join(self.spool.run_dir, path))
            assert here is not None, f"{path} is on the Hub and not on this disk any more"
            assert here.startswith(data), f"{path} has {len(data)} bytes on the Hub, {len(here)} here"

    @invariant()
    def outbox_refers_to_what_is_durable(self):
        """Invariant 1."""
        for host in map(self.spool.host, HOSTS):
            for path in self.disk.paths():
                if os.path.dirname(path) == str(host.outbox):
                    for file, length in self._files(self.disk.content(path)).items():
                        durable = self.disk.durable(os.path.join(self.spool.run_dir, file)) or b""
                        assert len(durable) >= length, "a batch refers to what is not durable"

    @invariant()
    def ledgers_claim_what_the_hub_has(self):
        """Invariants 2 and 4: not more, and never less than before."""
        for path, length in self._lengths(durable=False).items():
            assert length <= len(self.branch.files.get(path, b"")), "a ledger claims more than the Hub has"
        durable = self._lengths(durable=True)
        for path, length in self.acknowledged.items():
            assert durable[path] >= length, "a ledger claims less than before"
        self.acknowledged = dict(durable)

    def teardown(self):
        """Faults stop and all workers have ended: all data arrives, and the uploader leaves."""
        try:
            self.branch.arrive(self.now + ARRIVAL)
            self._drain()
        finally:
            self.made.update({f"{fault} at a change": count for fault, count in self.disk.struck.items()})
            self._patches.close()
            for worker in self.workers:
                worker.end(closes=False)
            for upload in self._uploads():
                upload.release()
            shutil.rmtree(self._folder)

    def _drain(self):
        if self.branch.problems or sys.exc_info()[0]:  # a rule was broken already
            return
        with self.disk.recorded():
            while self.workers:
                self.workers.pop().end(closes=True)
            for _ in range(DRAIN):
                self._round(HOSTS[0], "applied")
                if self.uploader is None:
                    break
        assert self.uploader is None, "the uploader does not come to an end"
        for name, _, files in os.walk(self.spool.run_dir):
            for path in (os.path.join(name, one) for one in files if is_event_file(one)):
                relative = os.path.relpath(path, self.spool.run_dir)
                with open(path, "rb") as file:
                    length = framing.whole_length(file.fileno())
                there = self.branch.files.get(relative, b"")
                assert len(there) == length, f"{relative}: {len(there)} of {length} bytes have arrived"
                assert digest(path, length) == sha256(there)
        for check in (
            self.the_hub_has_a_beginning_of_each_file,
            self.outbox_refers_to_what_is_durable,
            self.ledgers_claim_what_the_hub_has,
        ):
            check()


QUICK = hypothesis.settings(
    max_examples=40,
    stateful_step_count=40,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(hypothesis.HealthCheck),
)
