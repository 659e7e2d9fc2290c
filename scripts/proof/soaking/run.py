"""One run of the soak: a run directory with its ranks, Hub and journals; how it is drained and checked.

<place>/at<n>/run<number>/      the run directory; from at<n> to at<n + 1> when the run is continued elsewhere
<root>/hub<number>/             its Hub
<root>/control<number>/         journals, output of the ranks, control files of the processes, see inside.py
"""

from __future__ import annotations

import contextlib
import errno
import multiprocessing
import os
import random
import re
import shutil
import signal
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
from lib.prctl import die_with_parent
from lib.waiting import becomes_true

from hf_mpwriter.base.files import LocalFile
from hf_mpwriter.cli.output import DAMAGED
from hf_mpwriter.delivery.sinks import HubSink, LogdirSink
from hf_mpwriter.events.framing import whole_length
from hf_mpwriter.localhub import LocalHub, View
from hf_mpwriter.snapshot.event_files import EventFileScan
from hf_mpwriter.spool.layout import Spool
from hf_mpwriter.spool.storage import find
from hf_mpwriter.spool.workers.losses import losses
from hf_mpwriter.spool.workers.members import LOST
from hf_mpwriter.system.directory import Directory
from hf_mpwriter.system.process import host_id
from hf_mpwriter.testing import check, processes, read_journals
from hf_mpwriter.testing.oracle import keys
from soaking import inside
from soaking import rank as rank_of_soak
from soaking.rank import log_to

if TYPE_CHECKING:
    from fuse_models import Mounted
    from power_cut_disk import LoopDisk

RANKS = 8
PATIENCE = 240.0  # seconds for any process to end
CHECK = 0.02  # seconds between two checks of a condition
AWAY = (os.strerror(errno.ENOTCONN), "what was mounted there is away")  # why a disk refuses whose mount is dead
LOSS_SAID = re.compile(r"^(\d+): .*: (\d+) records were lost(.*)$", re.MULTILINE)  # a line of `inside.SAID`


def wait_for(condition: Callable[[], object], patience: float = PATIENCE) -> bool:
    """Return whether a condition becomes true in time."""
    return bool(becomes_true(condition, patience, CHECK))


@dataclass(frozen=True)
class Place:
    """Where runs are."""

    path: str  # of run directories and staging directories
    disk: LoopDisk | None = None  # whose directory that is, None if it is on none of its own
    mount: Mounted | None = None  # where run directories are, or beside a disk the logdirs of staged runs

    @property
    def kind(self) -> str:
        """How runs are kept."""
        return "in" if self.mount is None else "staged in" if self.path != str(self.mount.place) else "on a mount of"


class Run:
    """One run, seen by the script."""

    def __init__(self, place: Place, root: Path, number: int, rng: random.Random) -> None:
        self.place, self.number, self._rng = place.path, number, rng
        self._mount = place.mount if place.kind.startswith("staged") else None
        self._starts = 0
        self.name, self._moves = f"run{number}", 0
        self.control = root / f"control{number}"
        self.journals, self._stop = str(self.control / "journals"), self.control / "stop"
        os.makedirs(self.journals)
        self.hub = LocalHub(root / f"hub{number}", xet=rng.random() < 0.6)
        self.ranks: dict[int, multiprocessing.process.BaseProcess] = {}
        self.findings: list[str] = []  # broken promises
        self.may_be_damaged = False  # a power cut leaves zero bytes in files
        # pids of processes that were killed or terminated, each with an exit code to expect
        self.struck: set[tuple[int, int]] = set()
        self.foreign: set[str] = set()  # paths that other users committed
        # what other users made of files of ours: per path, ids of their contents, None if they deleted it
        self.damage: dict[str, set[str | None]] = {}
        self.limits: dict[int, dict[str, int]] = {}  # of the next life of a rank, per rank: see `inside`
        self.uploader_terminated = False  # whether an uploader got SIGTERM since the last drain
        self.is_gentle = rng.random() < 0.5  # whether nothing is done after which a loss may be untold
        self.is_live = rng.random() < 0.5  # whether it asks for a bucket; it gets none where the Hub has no Xet
        self.records = self.lost = self._told = 0

    @property
    def is_staged(self) -> bool:
        """Whether it is brought to a logdir beside its run directory."""
        return self._mount is not None

    @property
    def logdir(self) -> str:
        """The path of the logdir now."""
        if self._mount is not None:
            return str(self._mount.place / self.name)
        return os.path.join(self.place, f"at{self._moves}", self.name)

    @property
    def run_dir(self) -> str:
        """The path of the run directory now."""
        return find(self.logdir).run_dir if self.is_staged else self.logdir

    @property
    def spool(self) -> Spool:
        """The spool in it."""
        return Spool(self.run_dir)

    def start(self) -> None:
        """Start the Hub and all ranks."""
        self.hub.start()
        os.environ |= {"HF_ENDPOINT": self.hub.endpoint, inside.CONTROL: str(self.control)}
        os.environ |= {inside.HUB: str(self.hub.root), "HF_MPWRITER_LIVE": str(int(self.is_live))}
        self._take_staging()
        self.revive()

    def _take_staging(self) -> None:
        """Stage the run in another directory from the next start on, if it is staged: TMPDIR is one of the job."""
        if self.is_staged:
            self._starts += 1
            os.environ["TMPDIR"] = os.path.join(self.place, f"{self.name}-tmp{self._starts}")

    # ranks

    def revive(self) -> None:
        """Start the ranks that do not live; check how they ended."""
        for rank in range(RANKS):
            process = self.ranks.get(rank)
            if process is None or not process.is_alive():
                if process is not None:
                    self._check_end(rank, process)
                self._start(rank)

    def _start(self, rank: int) -> None:
        purge_step = self._rng.choice([None, None, None, self._rng.randrange(10**6)])
        limits = self.limits.pop(rank, {})
        memory = inside.LITTLE_MEMORY if self.is_gentle else inside.MEMORY
        arguments = (rank, RANKS, self.logdir, self.journals, str(self._stop), purge_step, limits, memory)
        self.ranks[rank] = multiprocessing.get_context("fork").Process(target=rank_of_soak.live, args=arguments)
        self.ranks[rank].start()

    def have_begun(self) -> bool:
        """Whether all ranks that live have joined."""
        alive = {process.pid for process in self.ranks.values() if process.is_alive()}
        return alive <= set(processes.workers(self.run_dir))

    def _check_end(self, rank: int, process: multiprocessing.process.BaseProcess) -> None:
        """Report an exit code that the script did not cause."""
        failed = {(int(strike.split()[2]), -signal.SIGKILL) for strike in self.strikes() if strike.startswith("kill ")}
        expected = (process.pid, process.exitcode) in self.struck | failed
        if not expected and (process.exitcode or not self._stop.exists()):
            self.findings.append(f"rank {rank} ({process.pid}) ended by itself with {process.exitcode}")

    def strikes(self) -> list[str]:
        """Return the failpoints that failed in the processes: action, failpoint, pid."""
        with contextlib.suppress(FileNotFoundError):
            return (self.control / "struck").read_text().splitlines()
        return []

    def clock(self, seconds: float = 0.0) -> None:
        """Let the clock of every process jump, each by its own share of so many seconds."""
        (self.control / inside.CLOCK).write_text(str(seconds))

    def chance(self, probability: float = 0.0, action: str = "") -> None:
        """Let every failpoint fail with this probability from now on."""
        text, temporary = f"{probability} {action}" if probability else "", self.control / "chance.new"
        temporary.write_text(text)
        os.replace(temporary, self.control / "chance")

    # all processes

    def end_all(self) -> Counter[str]:
        """Send SIGKILL to all processes of the run; return how many there were, per kind."""
        killed: dict[int, str] = {}
        for process in self.ranks.values():
            if process.is_alive():
                process.kill()
                killed[process.pid or 0] = "worker"
        for process in self.ranks.values():
            process.join()
        if not wait_for(lambda: self._end_others(killed), 30.0):
            raise RuntimeError(f"processes of {self.run_dir} do not end")
        self.ranks.clear()
        self._take_staging()
        return Counter(killed.values())

    def _end_others(self, killed: dict[int, str]) -> bool:
        """Send SIGKILL to the processes that the run directory names; return whether none was left."""
        kinds = {
            "uploader": processes.left_behind(self.run_dir, "uploader"),
            "push": processes.left_behind(self.run_dir, "push"),
            "mirror": processes.left_behind(self.run_dir, "mirror"),
            "copy": processes.left_behind(self.run_dir, "copy"),
            "search": processes.left_behind(self.run_dir, "search"),
            "child": [pid for pid in processes.workers(self.run_dir) if pid != os.getpid()],
        }
        for kind, pids in kinds.items():
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                    killed[pid] = kind
        return not any(kinds.values()) and not HubSink(self.spool).is_alive()

    def move(self, *, from_another_machine: bool) -> None:
        """While no process runs, continue in a copy of the run directory."""
        old = self.run_dir
        self._moves += 1
        shutil.copytree(old, self.run_dir, symlinks=True)
        os.sync()  # a later power cut must not take what was copied
        shutil.rmtree(old)
        if from_another_machine:
            for host in self.spool.host_ids():
                if host == host_id():
                    os.rename(self.spool.host(host).root, self.spool.host(f"other{self._moves}-0123abcd").root)

    # the end

    def drain(self) -> None:
        """Let the ranks end and the uploader upload the rest; report processes that do not end.

        Half of the time the uploader is killed while it does so. A rank that waits replaces it; what no rank waits for
        is found by the next start. The same holds for an uploader that is leaving because of SIGTERM.
        """
        killed = self._end(kill=self._rng.random() < 0.5)
        interrupted, lacking = killed or self.uploader_terminated, self._bucket_faults()
        if not interrupted and not HubSink(self.spool).status().live.why:
            self.findings += [f"the uploader left, and {fault}" for fault in lacking]
        if (interrupted and self._is_missing()) or lacking:
            self._end(kill=False)
        self.uploader_terminated = False
        missing = self.missing()
        if missing and self._is_missing():
            self.findings.append(f"the uploader left before {len(missing)} files were on the Hub")
        elif missing or self.damage:
            self._sync()

    def _is_missing(self) -> bool:
        """Return whether the ledgers miss something that was not refused."""
        missing = self.missing()
        return len(HubSink(self.spool).refused(missing)) < len(missing)

    def _end(self, *, kill: bool) -> bool:
        """Start the ranks that do not live, end all; return whether the uploader was killed meanwhile."""
        self.revive()
        if not wait_for(lambda: HubSink(self.spool).is_alive()):
            self.findings.append("no uploader started")
        self._stop.touch()
        killed = kill and self._kill_uploader_at_work()
        self._end_of_ranks()
        if not wait_for(lambda: not processes.workers(self.run_dir)):
            self.findings.append("a child did not end")
        if not wait_for(lambda: not HubSink(self.spool).is_alive()):
            self.findings.append(f"the uploader did not leave: {HubSink(self.spool).status()}")
        if not wait_for(lambda: not LogdirSink(self.spool).is_alive()):
            self.findings.append(f"the mirror did not leave: {LogdirSink(self.spool).status()}")
        return killed

    def _kill_uploader_at_work(self) -> bool:
        wait_for(lambda: processes.push(self.run_dir), 5.0)
        return send(processes.uploader(self.run_dir), signal.SIGKILL)

    def _end_of_ranks(self) -> None:
        end = time.monotonic() + inside.ENDING + PATIENCE
        for rank, process in self.ranks.items():
            process.join(max(0.0, end - time.monotonic()))
            if process.is_alive():
                self.findings.append(f"rank {rank} ({process.pid}) did not end")
                process.kill()
                process.join()
            self._check_end(rank, process)
        self.ranks.clear()
        os.unlink(self._stop)

    def missing(self) -> dict[str, int]:
        """Return the bytes per path that the ledgers do not claim."""
        return HubSink(self.spool).missing({file.path: file.length for file in files_of(self.run_dir)})

    def _sync(self) -> None:
        """Upload what the Hub refused, and what was deleted there, by `hf-mpwriter sync`."""
        code = self._command("sync", self.logdir, "--again", "--timeout", "120")
        is_other = self.may_be_damaged or bool(losses(self.spool))
        if code not in ((0, DAMAGED) if is_other else (0,)):
            self.findings.append(f"sync ended with {code}")
        if not wait_for(lambda: not HubSink(self.spool).is_alive()):
            self.findings.append("the uploader that sync started did not leave")

    def _command(self, *words: str) -> int | None:
        """Run a command of `hf-mpwriter`; its exit code, None if it did not end."""
        process = multiprocessing.get_context("fork").Process(target=_command, args=words)
        process.start()
        process.join(PATIENCE)
        if process.is_alive():
            self.findings.append(f"{words[0]} did not end")
            process.kill()
            process.join()
            return None
        return process.exitcode

    # check

    def check(self) -> str:
        """Let the oracle judge; return a line that sums up the run."""
        report = check(self.run_dir, self._view(to_the_end=True), read_journals(self.journals))
        self.records += report.returned
        self.findings += [*report.problems, *self._own_findings()]
        self.findings += [f"in two files: {key}" for key in doubled(self.run_dir)]
        wait_for(lambda: not processes.left_behind(self.run_dir), 60.0)  # an uploader ends after it releases its lock
        self.findings += [f"left behind: process {pid}" for pid in processes.left_behind(self.run_dir)]
        self.findings += [f"left in the spool: {path}" for path in remnants(self.run_dir)]
        self.findings += self._bucket_faults()
        lost, counted = self._lost(), self._told_losses()
        told = counted | self._said_losses(lost)
        if self.is_gentle:
            differ = [pid for pid in {*lost, *told} if lost[pid] != told[pid]]
            self.findings += [f"process {pid} has lost {lost[pid]} records, {told[pid]} are told" for pid in differ]
        if (report.problems or counted.total()) and self._command("verify", self.logdir) == 0:
            self.findings.append("verify ended with 0")
        expected = (0, DAMAGED) if self.may_be_damaged else (DAMAGED if counted.total() else 0,)
        if self.is_staged and not self.damage and (code := self._command("verify", self.logdir)) not in expected:
            self.findings.append(f"verify of a staged run ended with {code}")
        self.lost = told.total()
        on_hub = set(self.hub.store.tree("model", inside.REPO, "main"))
        self.findings += [f"a commit of another user is gone: {path}" for path in sorted(self.foreign - on_hub)]
        return (
            f"{report.returned} returned, {lost.total()} lost, {told.total()} told, {report.duplicated} duplicated, "
            f"{len(report.files)} files, {report.commits} commits"
        )

    def _lost(self) -> Counter[int]:
        """How many records of returned calls are nowhere, also those that were never on disk, per process."""
        there: Counter[tuple[str, int]] = Counter()
        for file in files_of(self.run_dir):
            there += keys(os.path.join(self.run_dir, file.path), file.length)
        lost: Counter[int] = Counter()
        for pid, calls in self._calls().items():
            lost[pid] = (calls - there).total()
        return lost

    def _calls(self) -> dict[int, Counter[tuple[str, int]]]:
        """All calls that returned, per process."""
        found: dict[int, Counter[tuple[str, int]]] = {}
        for note in read_journals(rank_of_soak.calls(self.journals)):
            found.setdefault(note.pid, Counter())[note.tag, note.step] += 1
        return found

    def _told_losses(self) -> Counter[int]:
        """How many lost records the run tells, per process."""
        found: Counter[int] = Counter()
        for loss in losses(self.spool):
            found[loss.pid] += loss.records
        return found

    def _said_losses(self, lost: Counter[int]) -> Counter[int]:
        """How many lost records processes told at their end that no file could count, per process.

        The mount was dead, or all that the process has logged is lost, as there never was room for a file.
        """
        said, unheld = Counter[int](), set[int]()
        path = self.control / inside.SAID
        for pid, records, why in LOSS_SAID.findall(path.read_text() if path.exists() else ""):
            said[int(pid)] += int(records)
            if any(away in why for away in AWAY):
                unheld.add(int(pid))
        calls = self._calls()
        return Counter({pid: n for pid, n in said.items() if pid in unheld or n == lost[pid] == calls[pid].total()})

    def check_meanwhile(self) -> None:
        """Let the oracle judge what must hold at any time; no process may run."""
        report = check(self.run_dir, self._view(to_the_end=False), read_journals(self.journals), drained=False)
        found = [*report.problems, *self._own_findings(), *self._bucket_faults(drained=False)]
        self.findings += [f"before the end: {problem}" for problem in found]

    def _bucket_faults(self, *, drained: bool = True) -> list[str]:
        """Return where the bucket has no whole-record beginning of an event file; of a drained run all of each."""
        found = []
        for file in files_of(self.run_dir) if self.is_live and self.hub.config.xet else ():
            path, there = os.path.join(self.run_dir, file.path), self._in_bucket(file.path)
            with open(path, "rb") as local:
                here = local.read(file.length)
                is_whole = whole_length(local.fileno(), 0, len(there)) == len(there)
            is_right = there == here or (here.startswith(there) and is_whole and not drained)
            if not is_right and not (self.may_be_damaged and there.startswith(here)):  # the disk has lost the rest
                how = "a beginning" if here.startswith(there) else "no beginning"
                found.append(f"the bucket has {how} of {file.path}, {len(there)} of {len(here)} bytes")
        return found

    def _in_bucket(self, path: str) -> bytes:
        """Return a file of the bucket; no fault matches the path of the request."""
        folder, bucket = self._view(to_the_end=False).folder, inside.BUCKET.replace("live", "%6Cive")
        url = f"{self.hub.endpoint}/buckets/{bucket}/resolve/{folder}/{path}"
        try:
            with urllib.request.urlopen(url, timeout=PATIENCE) as answer:  # noqa: S310 - http, of the local Hub
                return answer.read()
        except urllib.error.HTTPError as error:
            if error.code != 404:
                raise
            return b""

    def _view(self, *, to_the_end: bool) -> View:
        from soaking.others import Forgiving

        return Forgiving(self, to_the_end=to_the_end)

    def _own_findings(self) -> list[str]:
        """Return what the ranks have found themselves since the last time."""
        with contextlib.suppress(FileNotFoundError):
            lines = (self.control / inside.FINDINGS).read_text().splitlines()
            new, self._told = lines[self._told :], len(lines)
            return new
        return []


def doubled(run_dir: str) -> list[tuple[str, int]]:
    """Return records that are in two files of a run: the oracle takes the second one for another record."""
    found: Counter[tuple[str, int]] = Counter()
    for file in files_of(run_dir):
        found += keys(os.path.join(run_dir, file.path), file.length)
    return [key for key, count in found.items() if count > (2 if key[0].endswith("-parts") else 1)]


def files_of(run_dir: str) -> Iterable[LocalFile]:
    """Return the event files of a run."""
    return EventFileScan(Directory(run_dir)).files(lambda _: True, tuple)


def remnants(run_dir: str) -> Iterable[str]:
    """Yield temporary files, batches, records in flight and member files: none may outlive a complete upload.

    Files of another machine are exempt: only that machine removes them. So are temporary files of FORMAT and
    run.json: a worker that is killed while it publishes one leaves it, and no other process may remove it. What was
    lost stays until a person has seen it.
    """
    root = Spool(run_dir).root
    for directory, _, names in os.walk(root):
        place, kind = os.path.relpath(directory, root), os.path.basename(directory)
        for name in names if place != "." and not place.startswith("hosts/other") else ():
            is_left = kind in ("outbox", "copies") or (kind == "members" and not name.endswith(LOST))
            if name.endswith(".tmp") or name == "in_flight.json" or is_left:
                yield os.path.relpath(os.path.join(directory, name), run_dir)


def _command(*words: str) -> None:
    from hf_mpwriter.cli import main

    die_with_parent()
    log_to("commands.log")
    inside.install("rank")
    main.main(list(words))


def send(pid: int, number: int) -> bool:
    """Send a signal; return whether the process was alive."""
    with contextlib.suppress(ProcessLookupError, psutil.Error):
        if pid and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
            os.kill(pid, number)
            return True
    return False
