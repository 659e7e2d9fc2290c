"""An uploader in the process of the test, which drives it, and pushes that say what the test wants."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from support import event_file

from hf_mpwriter.base.settings import Destination, Settings
from hf_mpwriter.base.verdicts import Done, Sent, Unknown, Verdict
from hf_mpwriter.daemon.starts import StartRecord
from hf_mpwriter.daemon.status_file import StatusFile
from hf_mpwriter.push import handle
from hf_mpwriter.push.job import Job, Notice
from hf_mpwriter.spool.layout import HostSpool, Spool
from hf_mpwriter.spool.workers.members import MemberFile
from hf_mpwriter.system import disk, locks
from hf_mpwriter.system.process import Process
from hf_mpwriter.uploader.loop import Uploader
from hf_mpwriter.uploader.sending import Sending
from hf_mpwriter.uploader.upload import HeldRun, RunUpload

EVENT_FILE = "events.out.tfevents.1700000000.here.1.0123abcd"


def uploader(
    spool: Spool, clock: Callable[[], float] = lambda: 1000.0, *, lock: int | None = None, seed: int = 1, **start: Any
) -> Driven:
    """One that holds this lock, or takes it; what its start record has beside the destination of the run."""
    lock = locks.try_exclusive(spool.uploader_lock) if lock is None else lock
    assert lock is not None
    record = StartRecord(**vars(spool.paths), **{"destination": spool.destination(), **start})
    driven = Driven(record, clock, random.Random(seed))
    driven.add(HeldRun(spool, record, lock))
    return driven


class Driven(Uploader):
    """An uploader with one run, in steps."""

    @property
    def upload(self) -> RunUpload:
        """Its run."""
        return self.uploads[0]

    @property
    def sending(self) -> Sending:
        """What it sends."""
        return self.upload.sending

    def push_events(self) -> None:
        """Push the oldest batch; if there is none, read back what the Hub has."""
        self.upload.requests.audit |= not self.sending.events.batches
        self._push([(self.upload, self.sending.events)])

    def attach(self) -> None:
        """Scan attachments, and push what was found."""
        self.sending.scan_attachments()
        self._push([(self.upload, self.sending.attachments)])

    def conclude(self, verdict: Verdict) -> None:
        """The push says this, and ends."""
        self._conclude(self.branch.end([verdict]))


class SilentPush:
    """A push that says nothing until it is killed."""

    pid, asked_at, is_answered, quota = 1, 0.0, False, None

    def __init__(self, linger: int, parts: int = 1) -> None:
        self.linger, self.parts = linger, parts
        self.taken: list[Job] = []  # after the first
        self.killed = self.ended = self.lingers = self.let_gone = False

    def listen(self) -> tuple[list[Notice], list[Verdict]]:
        """What it says."""
        return [], [Unknown("the push ended by signal 9")] * self.parts if self.killed else []

    def wait(self, timeout: float, *_others: int) -> None:
        """Nothing to wait for."""

    def take(self, job: Job, _limit: float, _spools: Sequence[Spool]) -> bool:
        """Take a job, if it lingers."""
        self.taken += [job] * self.lingers
        return self.lingers

    def has_ended(self) -> bool:
        """Whether the wait is over."""
        return self.ended

    def kill(self) -> None:
        """End it."""
        self.killed = True

    def end(self, _patience: float) -> bool:
        """End it, and wait for that."""
        self.killed = True
        return True

    def let_go(self) -> None:
        """End it while it waits."""
        self.let_gone = True


class Started:
    """The pushes that uploaders start."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        self.jobs: list[Job] = []
        self.pushes: list[SilentPush] = []
        monkeypatch.setattr(handle, "PushHandle", self._start)

    def _start(self, job: Job, _limit: float, _spools: Sequence[Spool], linger: int) -> SilentPush:
        self.jobs.append(job)
        self.pushes.append(SilentPush(linger, len(job.parts)))
        return self.pushes[-1]


class Site(Started):
    """A run directory, its uploaders of all files, and the pushes that they start."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__(monkeypatch)
        self.spool, self.root = Spool(str(root)), root
        self.spool.create()
        self.spool.record_destination(Destination("http://127.0.0.1:9", "me/run"))
        self.lock = locks.try_exclusive(self.spool.uploader_lock)

    def uploader(self) -> Driven:
        """An uploader, as of now."""
        made = uploader(self.spool, lambda: self.now, lock=self.lock)
        made.upload.sending.ledger.settings = Settings(allow_patterns=None)
        return made

    def host(self, name: str = "other-00000000") -> HostSpool:
        """Another host."""
        host = self.spool.host(name)
        disk.make_dirs(host.root)
        return host

    def hear(self, phase: str = "idle") -> None:
        """An uploader of another host says what it does."""
        status = StatusFile(self.host(), Process.current(), lambda: self.now, 0.0)
        status.publish(phase=phase, waiting=0, commits=0, blocked_until=0.0)


class Sweep(Started):
    """Runs of one branch, each with an event file that grows, and the uploader that serves them."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__(monkeypatch)
        self.root, self.where = root, Destination("http://127.0.0.1:9", "me/run")
        self.one = Uploader(StartRecord(str(root / "a"), destination=self.where), lambda: self.now, random.Random(1))
        self.branch, self._steps = self.one.branch, 1
        self.workers: dict[str, MemberFile] = {}
        monkeypatch.setattr(self.one, "_sleep", lambda: None)

    def add(self, name: str, *, log: int = -1) -> RunUpload:
        """Serve one more run; it has a worker, and an event file."""
        spool = Spool(str(self.root / name))
        spool.create()
        spool.record_destination(dataclasses.replace(self.where, path_in_repo=name))
        worker = MemberFile(spool, "main", Process.current(), Settings(allow_patterns=None))
        worker.write({"open": EVENT_FILE})
        self.workers[name] = worker
        lock = locks.try_exclusive(spool.uploader_lock)
        assert lock is not None
        start = StartRecord(**vars(spool.paths), destination=spool.destination())
        upload = self.one.add(HeldRun(spool, start, lock, log))
        upload.look()
        self.log(upload)
        return upload

    def log(self, *uploads: RunUpload) -> None:
        """Each has something new to send."""
        for upload in uploads:
            self._steps += 1
            event_file(Path(upload.run_dir, EVENT_FILE), self._steps)

    def push(self, *uploads: RunUpload) -> list[str]:
        """Scan and push; the folders of the runs that the push carries."""
        before = len(self.jobs)
        for upload in uploads:
            upload.sending.scan()
        self.one._push((upload, upload.sending.events) for upload in uploads)
        return [part.folder for job in self.jobs[before:] for part in job.parts]

    def conclude(self, *verdicts: Verdict) -> None:
        """The push says this, and ends."""
        self.one._conclude(self.branch.end(verdicts))

    def arrives(self, commit: str, parent: str | None) -> None:
        """The Hub has all that the push carries, by a commit with this parent."""
        sent = [{file.path: Sent(file.length, "0" * 64) for file in part.files} for part in self.jobs[-1].parts]
        self.conclude(
            *(Done(commit, own=True, repo_id="me/run", files=files, asked=True, parent=parent) for files in sent)
        )


def push_events(one: Driven) -> None:
    """Scan, and push the oldest batch."""
    one.sending.scan()
    one.push_events()


def has(commit: str = "c" * 40, own: bool = True, checked: bool = False, **files: Any) -> Done:
    """The Hub has these lengths, or contents."""
    sent = {path: Sent(held, "0" * 64) if isinstance(held, int) else held for path, held in files.items()}
    return Done(commit, own=own, repo_id="me/run", files=sent, checked=checked, asked=True)
