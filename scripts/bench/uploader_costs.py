"""What an uploader costs at rest, with many files and with many children, and what a push costs."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import processes
from lib.figures import MIB, show
from lib.waiting import wait_for
from processes import Bench, Run, stopped

from hf_mpwriter.base.files import LocalFile
from hf_mpwriter.base.settings import Destination, Settings
from hf_mpwriter.events import framing
from hf_mpwriter.push.handle import PushHandle
from hf_mpwriter.push.job import Job, Part, deadline
from hf_mpwriter.snapshot import event_files
from hf_mpwriter.snapshot.event_files import EventFileScan
from hf_mpwriter.spool.ledger import Ledger
from hf_mpwriter.spool.workers.members import Members
from hf_mpwriter.system.directory import Directory
from hf_mpwriter.system.process import host_id

FIVE_MINUTES = 300.0  # seconds
SAMPLE = 0.02  # seconds between two samples of the memory of a push
CROWD = 20.0  # seconds for which an uploader with member files of dead workers is watched


@dataclass(frozen=True)
class Memory:
    """Memory of a process, in bytes."""

    pss: int = 0  # shared pages count in proportion
    rss: int = 0  # shared pages count fully
    private: int = 0  # shared pages do not count

    @classmethod
    def of(cls, pid: int) -> Self:
        """Return the memory of a process, zeros if it has ended."""
        with contextlib.suppress(OSError):
            rows = (line.split() for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:])
            sizes = {name.rstrip(":"): int(size) << 10 for name, size, *_ in rows}
            if sizes:
                return cls(sizes["Pss"], sizes["Rss"], sizes["Private_Clean"] + sizes["Private_Dirty"])
        return cls()


def cpu(pid: int) -> float:
    """Return the CPU seconds of all threads of a process; the kernel counts nanoseconds."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9


class Costs(Bench):
    """The measurements of memory and CPU time."""

    def rest(self) -> None:
        """Watch an uploader with many idle workers."""
        with self._resting() as run:
            self._show_rest(run, self._watch([run], self.scale.watched)[0])

    def many_files(self) -> None:
        """Watch an uploader with many finished files."""
        with self._crowded() as run:
            self._show_many_files(run, self._watch([run], self.scale.watched)[0])

    def rest_and_many_files(self) -> None:
        """Watch both at once: they sleep nearly all the time."""
        with self._resting() as resting, self._crowded() as crowded:
            first, second = self._watch([resting, crowded], self.scale.watched)
            self._show_rest(resting, first)
            self._show_many_files(crowded, second)

    def _watch(self, runs: list[Run], seconds: float) -> list[float]:
        """Return the CPU seconds that each uploader would use in five minutes at its present rate."""
        pids = [run.uploader() for run in runs]
        before = [cpu(pid) for pid in pids]
        time.sleep(seconds)
        if [run.uploader() for run in runs] != pids:
            raise RuntimeError("an uploader ended while it was watched")
        return [(cpu(pid) - was) * FIVE_MINUTES / seconds for pid, was in zip(pids, before, strict=True)]

    @contextlib.contextmanager
    def _resting(self) -> Iterator[Run]:
        with self.run("rest") as run:
            for rank in range(self.scale.workers):
                run.start(rank, processes.log_once)
            wait_for(lambda: len(run.members()) == self.scale.workers and run.is_at_rest(), "the first commits")
            yield run

    def _show_rest(self, run: Run, seconds: float) -> None:
        what, memory = f"rest, {self.scale.workers} workers", Memory.of(run.uploader())
        show(f"{what}: CPU of the uploader in 5 min", seconds, "s", 0.6)
        show(f"{what}: memory of the uploader (pss)", memory.pss / MIB, "MiB", 25.0)
        show(f"{what}: its private part (rss {memory.rss / MIB:.1f})", memory.private / MIB, "MiB")

    @contextlib.contextmanager
    def _crowded(self) -> Iterator[Run]:
        with self.run("crowded") as run:
            run.writer().close()  # makes the spool; without an event no uploader starts
            self._upload_files(run)
            self.writing = run.start(0, processes.log_for_ever)
            wait_for(run.is_at_rest, "the first commit")
            yield run

    def _upload_files(self, run: Run) -> None:
        """Upload finished files in 100 directories, and write the ledger that says so."""
        from hf_mpwriter.push.client import Hub, Source

        payloads = [framing.version_event(1.0), *(framing.summary_event(1.0, step, b"") for step in range(20))]
        content = b"".join(map(framing.frame, payloads))
        for number in range(self.scale.files):
            name = f"events.out.tfevents.{1_700_000_000 + number:010d}.host.1.{number:08x}"
            path = run.path / f"earlier_{number % 100:05d}" / name
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(content)
        destination = run.spool.destination()
        if destination is None:
            raise RuntimeError("no destination is recorded")
        hub, files = Hub(destination), self._snapshots(run, Ledger(destination))[-1][1]
        hub.create(private=None)
        targets = {file.path: destination.path(file.path) for file in files}
        sources = [Source(file, str(run.path / file.path), targets[file.path]) for file in files]
        commit, sent = hub.commit(sources, hub.head() or "", fenced=True, tag_card=False)
        ledger, host = Ledger(destination), run.spool.host(host_id())
        ledger.acknowledge({path: sent[target] for path, target in targets.items()}, commit, time.time())
        os.makedirs(host.root, exist_ok=True)
        ledger.save(host.ledger)
        for what, (took, _) in zip(
            ("the first of an uploader", "a later one"), self._snapshots(run, ledger), strict=True
        ):
            show(f"many files, {len(files)}: a snapshot, {what}", took, "s", 1.0)

    def _snapshots(self, run: Run, ledger: Ledger) -> list[tuple[float, list[LocalFile]]]:
        """Scan all files twice, as an uploader does; return seconds and files of each scan."""
        survey, members, scans = EventFileScan(Directory(run.path)), Members(run.spool), []
        for _ in range(2):
            before = time.perf_counter()
            files = survey.files(Settings().allows, members.growing)
            event_files.bounded(event_files.pending(files, ledger.covers, ()))
            scans.append((time.perf_counter() - before, files))
        return scans

    def _show_many_files(self, run: Run, seconds: float) -> None:
        """Request a commit and add its cost: the time that was watched may lie between two commits."""
        pid, commits = run.uploader(), run.report().commits
        before = cpu(pid)
        self.writing.shared.asked.value = 1
        wait_for(lambda: run.report().commits > commits and run.is_at_rest(), "a commit")
        commit = cpu(pid) - before
        what = f"many files, {self.scale.files}"
        show(f"{what}: CPU of the uploader for a commit", commit, "s")
        show(f"{what}: CPU in 5 min, that commit included", seconds + commit, "s", 3.0)
        show(f"{what}: memory of the uploader (pss)", Memory.of(pid).pss / MIB, "MiB")

    def children(self) -> None:
        """Fork children while the Hub hangs; then let it answer."""
        count = self.scale.children
        what = f"children, {count}"
        with self.run("children") as run:
            with stopped(self.hub):
                parent = run.start(0, processes.fork_children, count)
                wait_for(lambda: parent.step == count, "all children have ended")
                wait_for(run.uploader, "an uploader")
                dead = sum(not member.alive for member in run.members())
                show(f"{what}: member files of dead workers while the Hub hangs", dead, "")
                seconds = self._watch([run], min(CROWD, self.scale.watched))[0]
                show(f"{what}: CPU of the uploader in 5 min of that", seconds, "s")
            resumed_at = time.monotonic()
            wait_for(lambda: len(run.members()) == 1 and run.is_at_rest(), "everything on the Hub")
            show(f"{what}: until everything is on the Hub", time.monotonic() - resumed_at, "s")
            show(f"{what}: commits for it", run.report().commits, "")
            walk = os.walk(run.spool.root)
            folders = [folder for folder, _, names in walk for name in names]
            claims = sum(Path(folder).name == "claims" for folder in folders)
            show(f"{what}: claims left, one per worker directory", claims, "")
            show(f"{what}: other files left in the spool", len(folders) - claims, "")
            show(f"{what}: memory of the uploader (pss)", Memory.of(run.uploader()).pss / MIB, "MiB")

    def push(self) -> None:
        """Push a file that may still grow, as an uploader does."""
        for way, environment in (("Xet", {}), ("LFS", {"HF_HUB_DISABLE_XET": "1"})):
            os.environ |= environment
            peak = self._push_once(way)
            for name in environment:
                del os.environ[name]
            size = self.scale.pushed / MIB
            show(f"push of {size:.0f} MiB that may grow, {way}: memory (pss)", peak.pss / MIB, "MiB", 300.0)

    def _push_once(self, way: str) -> Memory:
        """Return the largest memory seen of a push of one batch."""
        run_dir = self.directory / "runs" / f"push{way}"
        run_dir.mkdir(parents=True)
        file = LocalFile("events.out.tfevents.1700000000.host.1.0123abcd", self.scale.pushed, growing=True)
        (run_dir / file.path).write_bytes(self.rng.randbytes(file.length))
        destination = Destination(self.hub.endpoint, f"bench/push{way}")
        spool = Run(run_dir, "", None).spool
        spool.create()
        cache = spool.host("bench").cache.name
        part = Part(
            **vars(spool.paths),
            folder="tensorboard/push",
            copies="copies",
            cache=cache,
            private=None,
            files=(file,),
            known={},
            uncertain={},
            is_trusted=False,
        )
        job = Job(
            destination=destination, parts=(part,), private=None, squash=False, own_head=None, fenced=True, xet=True
        )
        push = PushHandle(job, deadline(job), [spool])
        peak, verdicts = Memory(), []
        while not verdicts:
            peak = max(peak, Memory.of(push.pid), key=lambda memory: memory.pss)
            push.wait(SAMPLE)
            _, verdicts = push.listen()
        if type(verdicts[0]).__name__ != "Done":
            raise RuntimeError(f"the push ended with {verdicts[0]}")
        shutil.rmtree(run_dir)
        return peak
