"""One run of the soak: a run directory, its ranks, its Hub, its journals; how it comes to rest and is judged.

<place>/at<n>/run<number>/      the run directory; it moves from at<n> to at<n + 1> when a run is continued elsewhere
<root>/hub<number>/             its Hub
<root>/control<number>/         journals, the rank's output, the way into the processes, see soak_inside.py
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import random
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

import psutil
import soak_inside

from hf_mpwriter.base.files import LocalFile
from hf_mpwriter.localhub import LocalHub, View
from hf_mpwriter.snapshot.event_files import EventFileScan
from hf_mpwriter.spool.layout import Spool
from hf_mpwriter.spool.progress import Progress
from hf_mpwriter.system.process import host_id
from hf_mpwriter.testing import check, processes, read_journals
from hf_mpwriter.testing.oracle import keys

RANKS = 8
PATIENCE = 240.0  # seconds for anything to come to its end


def wait_for(condition: Callable[[], object], patience: float = PATIENCE) -> bool:
    """Whether a condition comes true in time."""
    end = time.monotonic() + patience
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


class Run:
    """What the harness knows of one run.

    Args:
        place: where the run directory is to be.
        root: where everything else is.
        number: of the run.
        rng: decides what is left open.

    Attributes:
        findings: broken promises.
        harmed: pids of ranks that were killed, or asked to end, each with the exit codes that are no wonder.
    """

    def __init__(self, place: str, root: Path, number: int, rng: random.Random) -> None:
        self.place, self.number, self._rng = place, number, rng
        self.name, self._moves = f"run{number}", 0
        self.control = root / f"control{number}"
        self.journals, self._stop = str(self.control / "journals"), self.control / "stop"
        os.makedirs(self.journals)
        self.hub = LocalHub(root / f"hub{number}", xet=rng.random() < 0.6)
        self.ranks: dict[int, multiprocessing.process.BaseProcess] = {}
        self.findings: list[str] = []
        self.harmed: set[tuple[int, int]] = set()
        self.theirs: set[str] = set()  # what other users have committed
        self.told_to_leave = False  # whether an uploader was, since the last drain
        self.records = 0

    @property
    def run_dir(self) -> str:
        """Where the run directory is now."""
        return os.path.join(self.place, f"at{self._moves}", self.name)

    @property
    def spool(self) -> Spool:
        """The spool there."""
        return Spool(self.run_dir)

    def start(self) -> None:
        """Start the Hub and all ranks."""
        self.hub.start()
        os.environ |= {"HF_ENDPOINT": self.hub.endpoint, soak_inside.CONTROL: str(self.control)}
        self.revive()

    # ranks

    def revive(self) -> None:
        """Start the ranks that are not there; judge how those have ended that were."""
        for rank in range(RANKS):
            process = self.ranks.get(rank)
            if process is None or not process.is_alive():
                if process is not None:
                    self._judge_end(rank, process)
                self._start(rank)

    def _start(self, rank: int) -> None:
        purge_step = self._rng.choice([None, None, None, self._rng.randrange(10**6)])
        arguments = (rank, RANKS, self.run_dir, self.journals, str(self._stop), purge_step)
        self.ranks[rank] = multiprocessing.get_context("fork").Process(target=soak_inside.live, args=arguments)
        self.ranks[rank].start()

    def _judge_end(self, rank: int, process: multiprocessing.process.BaseProcess) -> None:
        """An exit code that nobody has caused is a broken promise."""
        struck = {(int(strike.split()[2]), -signal.SIGKILL) for strike in self.strikes() if strike.startswith("kill ")}
        no_wonder = (process.pid, process.exitcode) in self.harmed | struck
        if not no_wonder and (process.exitcode or not self._stop.exists()):
            self.findings.append(f"rank {rank} ({process.pid}) ended by itself with {process.exitcode}")

    def strikes(self) -> list[str]:
        """What chance has done inside the processes: action, failpoint, pid."""
        with contextlib.suppress(FileNotFoundError):
            return (self.control / "struck").read_text().splitlines()
        return []

    def chance(self, probability: float = 0.0, action: str = "") -> None:
        """From now on, every failpoint strikes with this chance."""
        text, temporary = f"{probability} {action}" if probability else "", self.control / "chance.new"
        temporary.write_text(text)
        os.replace(temporary, self.control / "chance")

    # processes of ours

    def end_all(self) -> Counter[str]:
        """SIGKILL all processes of the run; how many there were, per kind."""
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
        return Counter(killed.values())

    def _end_others(self, killed: dict[int, str]) -> bool:
        """SIGKILL what the run directory names; whether nothing was left. Who dies slowly is met again."""
        kinds = {
            "uploader": processes.left_behind(self.run_dir, "uploader"),
            "push": processes.left_behind(self.run_dir, "push"),
            "child": [pid for pid in processes.workers(self.run_dir) if pid != os.getpid()],
        }
        for kind, pids in kinds.items():
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                    killed[pid] = kind
        return not any(kinds.values()) and not Progress(self.spool).uploader_is_alive()

    def move(self, *, from_another_machine: bool) -> None:
        """While nothing runs: copy the run directory, throw away the old one, go on in the copy."""
        old = self.run_dir
        self._moves += 1
        shutil.copytree(old, self.run_dir, symlinks=True)
        os.sync()  # what is on its way to the disk at a power cut is the copier's loss, not ours
        shutil.rmtree(old)
        if from_another_machine:
            for host in self.spool.host_ids():
                if host == host_id():
                    os.rename(self.spool.host(host).root, self.spool.host(f"other{self._moves}-0123abcd").root)

    # rest

    def drain(self) -> None:
        """Let the ranks end, and the uploader upload what is left; what does not come to an end is a finding.

        Half of the time the uploader is killed once more, on its last way: who waits replaces it, and what nobody waits
        for is found by the next start. So it is if the uploader is on its way out because it was told to leave.
        """
        killed = self._end(last_blow=self._rng.random() < 0.5)
        if (killed or self.told_to_leave) and self._is_missing():
            self._end(last_blow=False)
        self.told_to_leave = False
        missing = self.missing()
        if missing and self._is_missing():
            self.findings.append(f"the uploader left although {len(missing)} files are not known to be on the Hub")
        elif missing:
            self._sync()

    def _is_missing(self) -> bool:
        """Whether something is not known to be on the Hub that was not refused."""
        missing = self.missing()
        return len(Progress(self.spool).refused(missing)) < len(missing)

    def _end(self, *, last_blow: bool) -> bool:
        """All ranks begin if they are not there, and end; whether the uploader was killed meanwhile."""
        self.revive()
        if not wait_for(lambda: Progress(self.spool).uploader_is_alive()):
            self.findings.append("no uploader came")
        self._stop.touch()
        killed = last_blow and self._kill_uploader_at_work()
        self._end_of_ranks()
        if not wait_for(lambda: not processes.workers(self.run_dir)):
            self.findings.append("a child did not end")
        if not wait_for(lambda: not Progress(self.spool).uploader_is_alive()):
            self.findings.append(f"the uploader did not leave: {Progress(self.spool).uploader()}")
        return killed

    def _kill_uploader_at_work(self) -> bool:
        wait_for(lambda: processes.push(self.run_dir), 5.0)
        return signal_to(processes.uploader(self.run_dir), signal.SIGKILL)

    def _end_of_ranks(self) -> None:
        end = time.monotonic() + soak_inside.ENDING + PATIENCE
        for rank, process in self.ranks.items():
            process.join(max(0.0, end - time.monotonic()))
            if process.is_alive():
                self.findings.append(f"rank {rank} ({process.pid}) did not end")
                process.kill()
                process.join()
            self._judge_end(rank, process)
        self.ranks.clear()
        os.unlink(self._stop)

    def missing(self) -> dict[str, int]:
        """Bytes per path that the ledgers do not know on the Hub."""
        return Progress(self.spool).missing({file.path: file.length for file in self._files()})

    def _files(self) -> Iterable[LocalFile]:
        return EventFileScan(self.run_dir).files(lambda _: True, tuple)

    def _sync(self) -> None:
        """What the Hub has refused goes by command."""
        process = multiprocessing.get_context("fork").Process(target=_sync, args=(self.run_dir,))
        process.start()
        process.join(PATIENCE)
        if process.exitcode:
            self.findings.append(f"sync ended with {process.exitcode}")
        if process.is_alive():
            self.findings.append("sync did not end")
            process.kill()
            process.join()
        if not wait_for(lambda: not Progress(self.spool).uploader_is_alive()):
            self.findings.append("the uploader that sync has started did not leave")

    # judge

    def judge(self) -> str:
        """Let the oracle judge; a line for the table of runs."""
        report = check(self.run_dir, self._view(), read_journals(self.journals))
        self.records += report.returned
        self.findings += report.problems
        self.findings += [f"in two files: {key}" for key in self._doubled()]
        wait_for(
            lambda: not processes.left_behind(self.run_dir), 60.0
        )  # who has left the uploader lock is about to end
        self.findings += [f"left behind: process {pid}" for pid in processes.left_behind(self.run_dir)]
        self.findings += [f"left in the spool: {path}" for path in self._rests()]
        there = set(self.hub.store.tree("model", soak_inside.REPO, "main"))
        self.findings += [f"what others have committed is gone: {path}" for path in sorted(self.theirs - there)]
        return (
            f"{report.returned} returned, {report.lost} lost, {report.duplicated} duplicated, "
            f"{len(report.files)} files, {report.commits} commits"
        )

    def judge_meanwhile(self) -> None:
        """Let the oracle judge what must hold at any time; nobody is at work."""
        report = check(self.run_dir, self._view(), read_journals(self.journals), drained=False)
        self.findings += [f"before the end: {problem}" for problem in report.problems]

    def _view(self) -> View:
        return View(self.hub.store, soak_inside.REPO, f"tensorboard/{self.name}")

    def _doubled(self) -> Iterable[tuple[str, int]]:
        """Records that were written again into another file, which the oracle takes for another record."""
        found: Counter[tuple[str, int]] = Counter()
        for file in self._files():
            found += keys(os.path.join(self.run_dir, file.path), file.length)
        return [key for key, count in found.items() if count > (2 if key[0].endswith("-parts") else 1)]

    def _rests(self) -> Iterable[str]:
        """Temporary files, entries, records of pushes, cards: nothing of that outlives a run that is all on the Hub.

        What another machine has left is for that one to clear up. Of a worker that is killed in the milliseconds in
        which it publishes FORMAT or run.json a temporary file stays: nobody else may take it away.
        """
        for directory, _, names in os.walk(self.spool.root):
            place, kind = os.path.relpath(directory, self.spool.root), os.path.basename(directory)
            for name in names if place != "." and not place.startswith("hosts/other") else ():
                if name.endswith(".tmp") or name == "in_flight.json" or kind in ("outbox", "copies", "members"):
                    yield os.path.relpath(os.path.join(directory, name), self.run_dir)


def _sync(run_dir: str) -> None:
    from hf_mpwriter.cli import main

    soak_inside.die_with_parent()
    soak_inside.install("rank")
    main.main(["sync", run_dir, "--timeout", "120"])


def signal_to(pid: int, number: int) -> bool:
    """Send a signal; whether there was a process to hear it."""
    with contextlib.suppress(ProcessLookupError, psutil.Error):
        if pid and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
            os.kill(pid, number)
            return True
    return False
