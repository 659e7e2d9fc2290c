"""A real uploader killed at any point, and successors that finish the upload.

A trial, made by a process that has loaded every module and used none (`serve`):

    story      of each run: two workers log, seal, die and close; each step when the Hub is known to have what was
               logged before
    life       fork -> take the uploader lock of a run -> work, pushes are forks of it, until it leaves or is struck
    usher      fork -> take the uploader lock of another run -> hand it over to the life; half of the runs come before
               the first tick, the others later
    harm       hits one life: a failpoint, or strace at the n-th system call of a name, of the uploader or
               of one of its pushes; or the n-th usher at a failpoint. The lives after it are unharmed
    checks     of each run the oracle finds no problem, and no temporary file, batch, member file or process is left

Nothing waits: the clock of an uploader runs while it sleeps, and each sleep asks for the next step of the story. So two
lives without harm make the same system calls in the same order, and the n-th call of one is the n-th of the other.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import functools
import gc
import json
import os
import random
import select
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

from hf_mpwriter import testing
from hf_mpwriter.base import state
from hf_mpwriter.base.files import LocalFile
from hf_mpwriter.base.settings import Destination, Settings
from hf_mpwriter.daemon.starts import StartRecord
from hf_mpwriter.events import framing
from hf_mpwriter.localhub import Store, View
from hf_mpwriter.spool import ledger
from hf_mpwriter.spool.layout import Spool
from hf_mpwriter.spool.outbox import Batch, InFlightRecord
from hf_mpwriter.spool.workers import members
from hf_mpwriter.system import disk, failpoints, launch, locks
from hf_mpwriter.system.process import Process, host_id

DEADLINE = 300.0  # seconds that a life may take on a busy machine
LIVES = 6  # until everything is on the Hub and no process is left
PR_SET_CHILD_SUBREAPER = 36
MESSAGE = 1 << 20  # bytes
KILLED = -signal.SIGKILL
FOLDER = "tensorboard"
EVENT_FILE = "events.out.tfevents.170000000{}.here.1.0123abcd"
ATTACHMENT = "notes.tsv"
LOG_LIMIT = 500  # bytes, so that the log is rotated
UPLOADER = 0  # in the place of the number of a push
ASKED = "meeting.asked"  # between two failpoints of an usher, where it waits: it can only be killed there
USHER = ("meeting.ask", ASKED, "meeting.answer")  # failpoints that each usher passes once
TRIES = 3  # of a run to be handed over to a life
RECORDING = ("-y", "-e", "trace=%file,%desc,%network,%process")


@dataclasses.dataclass(frozen=True)
class Harm:
    """What strikes one life."""

    point: str  # a failpoint such as `outbox.put.rename`, or the name of a system call
    action: str  # kill, eio or enospc
    passage: int  # at which passage, from 1 on
    push: int = UPLOADER  # which push is struck at a system call of its own, from 1 on; or UPLOADER

    @property
    def is_failpoint(self) -> bool:
        """Whether a failpoint strikes, not strace."""
        return "." in self.point

    @property
    def options(self) -> tuple[str, ...]:
        """Of strace."""
        what = "signal=KILL" if self.action == "kill" else f"error={self.action.upper()}"
        return "-e", f"trace={self.point}", "-e", f"inject={self.point}:{what}:when={self.passage}"


@dataclasses.dataclass
class Outcome:
    """What came of a trial."""

    ended: list[int] = dataclasses.field(default_factory=list)  # exit codes of the lives
    struck: list[bool] = dataclasses.field(default_factory=list)  # for each harm, whether it struck
    # how often the first life passed each failpoint, if it was not killed
    passed: dict[str, int] = dataclasses.field(default_factory=dict)
    problems: list[str] = dataclasses.field(default_factory=list)  # broken promises, and what kept us from finding any


# within a life


class Clock:
    """Replace the module `time` in an uploader: the clock runs while it sleeps, and each sleep calls back."""

    def __init__(self, on_sleep: Callable[[], object]) -> None:
        self._now, self._on_sleep, self.time, self.strftime = 0.0, on_sleep, time.time, time.strftime

    def monotonic(self) -> float:
        """Seconds."""
        return self._now

    def sleep(self, seconds: float) -> None:
        """Let the others act."""
        self._now += seconds
        self._on_sleep()


def fork_push(
    child: launch.Child, _kind: str, _record: bytes, _run_dir: str, given: dict[int, int], *, ask: Any, **_: object
) -> None:
    """Replace the start of a child of an uploader: the push is a fork of this process, which has loaded the client."""
    child._pipe, inner = os.pipe()
    os.set_blocking(child._pipe, False)
    waits, go_on = socket.socketpair()
    child.code, child._received, child._is_silent = None, b"", False
    child.pid = os.fork()
    if not child.pid:
        os.dup2(inner, 1)
        go_on.close()
        run_and_end(functools.partial(_push, os.getppid(), given, waits))
    os.close(inner)
    waits.close()
    ask(push=child.pid)
    go_on.close()


def _push(parent: int, given: dict[int, int], waits: socket.socket) -> None:
    from hf_mpwriter.push import process

    sleep = time.sleep
    time.sleep = lambda seconds: sleep(min(seconds, 0.01))  # the client's waits between its retries
    waits.recv(1)
    write = launch.answer(parent)
    with socket.socket(fileno=os.dup(given[launch.MORE_FD])) as jobs:
        process.serve(lambda message: write(state.to_line(message)), jobs)


def run_and_end(action: Callable[[], object]) -> NoReturn:
    """Run a fork to its end; no exception reaches the frames that it has copied."""
    code = 1
    try:
        action()
        code = 0
    except BaseException:  # noqa: BLE001 - the same
        traceback.print_exc()
    finally:
        os._exit(code)


def open_log(spool: Spool) -> int:
    """A descriptor of the log of an uploader."""
    return os.open(spool.host(host_id()).daemon("uploader").log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)


def live(spool: Spool, harm: Harm | None, theirs: socket.socket, cache: str) -> None:
    """Run one life, in a fork."""
    from hf_mpwriter.daemon import background
    from hf_mpwriter.uploader import branch, loop, meeting
    from hf_mpwriter.uploader.upload import HeldRun

    def ask(**message: Any) -> None:
        theirs.send(json.dumps(message).encode())
        theirs.recv(1)

    passed: Counter[str] = Counter()
    failpoint = failpoints.reach
    failpoints.reach = lambda name: (passed.update([name]), failpoint(name))
    if harm and harm.is_failpoint:
        failpoints.armed[harm.point] = harm.action, harm.passage
    os.environ["XDG_CACHE_HOME"] = cache
    log = open_log(spool)
    os.dup2(log, 1)
    os.dup2(log, 2)
    background.LOG_LIMIT = LOG_LIMIT
    background.lower_priority = lambda: None
    clock = loop.time = Clock(ask)
    loop.launch = SimpleNamespace(wait_for_input=lambda _, seconds: clock.sleep(seconds))
    branch.LINGER = 0  # a harm hits a push by its number
    loop.random = SimpleNamespace(Random=functools.partial(random.Random, 1))
    launch.Child.__init__ = functools.partialmethod(fork_push, ask=ask)
    start = StartRecord(spool.run_dir, destination=spool.destination())
    key = meeting.Key.of(state.dump(start), os.environ, meeting.surroundings(spool.run.fd))
    point = meeting.Meeting.open(meeting.folder_of(os.environ), key)
    ask(begins=True)
    try:
        loop.work(HeldRun(spool, start, locks.try_exclusive(spool.uploader_lock), log), point)
    finally:
        ask(passed=passed)


# beside it


def usher(spool: Spool, action: str, point: str, asked: int, cache: str) -> None:
    """Hand a run over to a life, in a fork; it fails if that did not take the run. `asked` is closed once it is."""
    from hf_mpwriter.uploader import meeting

    if action:
        failpoints.armed[point] = action, 1
    os.environ["XDG_CACHE_HOME"] = cache
    lock = locks.try_exclusive(spool.uploader_lock)
    own = meeting.Descriptors(lock, spool.run.fd, spool.directory.fd, open_log(spool))
    wait = launch.wait_for_input

    def asks(*arguments: Any) -> bool:
        failpoints.reach(ASKED)
        os.close(asked)
        return wait(*arguments)

    meeting.launch = SimpleNamespace(wait_for_input=asks)
    record = state.dump(StartRecord(spool.run_dir, destination=spool.destination()))
    key = meeting.Key.of(record, os.environ, meeting.surroundings(own.run_dir))
    if not meeting.hand_over(meeting.folder_of(os.environ), key, record, own, DEADLINE):
        os._exit(1)


class Story:
    """What two workers do in a run directory, and what an uploader before the first has left there."""

    def __init__(self, spool: Spool, destination: Destination, number: int) -> None:
        self.spool, self.destination = spool, destination
        self._steps_at_once = 5 + number % 3  # files of the same name differ in length
        self.returned: list[testing.journal.Returned] = []
        self.is_over = self.has_left = False  # left: an uploader has let the run go in good order since
        self._lengths: dict[str, int] = {}
        self._steps = self._step_through()
        next(self._steps)

    def go_on(self) -> None:
        """The next step, if the Hub is known to have all that was logged."""
        known = ledger.load(self.spool, self.destination)
        if all(known.length(path) >= length for path, length in self._lengths.items()):
            self.is_over = next(self._steps, True)

    def _step_through(self) -> Iterator[bool]:
        self.spool.create()
        self.spool.record_destination(self.destination)
        settings = Settings(commit_every=0.01, allow_patterns=("*.tfevents.*", ATTACHMENT))
        rank0, rank1 = (
            members.MemberFile(self.spool, name, Process.current(), settings) for name in ("main", "rank_00001")
        )
        first, second, other = EVENT_FILE.format(0), EVENT_FILE.format(1), f"rank_00001/{EVENT_FILE.format(0)}"
        rank0.write({"open": first})
        self._log(first)
        self._predecessor(first)
        self._log(first)
        rank0.write({"seal": first})
        rank1.write({"open": other})
        self._log(other)
        yield False
        rank0.write({"open": second})
        self._log(second)
        self._log(other)
        self._note("first")
        rank1.count(requests=1)
        yield False
        self._log(second)
        self._log(other)
        self._note("second, longer")
        rank0.leave()
        locks.release(rank1._fd)  # it dies
        yield True

    def _note(self, text: str) -> None:
        """Change the attachment."""
        self._lengths[ATTACHMENT] = Path(self.spool.run_dir, ATTACHMENT).write_text(f"{text} {self.destination}\n")

    def _log(self, path: str) -> None:
        where, tag = os.path.join(self.spool.run_dir, path), self.destination.path_in_repo
        begun = self._lengths.get(path, 0)
        first = sum(note.path == path for note in self.returned)
        encoder, steps = framing.ScalarEncoder(tag), range(first, first + self._steps_at_once)
        data = b"" if begun else framing.frame(framing.version_event(1.0))
        data += b"".join(encoder.record(1.0, step, 0.5) for step in steps)
        os.makedirs(os.path.dirname(where), exist_ok=True)
        with open(where, "ab") as file:
            file.write(data)
        self._lengths[path] = begun + len(data)
        self.returned += [testing.journal.Returned(0, path, tag, step) for step in steps]

    def _predecessor(self, path: str) -> None:
        """Leave the files of an uploader that was killed while it pushed, two of them overwritten with garbage."""
        host = self.spool.host(host_id())
        disk.make_dirs(host.outbox)
        batch = Batch(2, (LocalFile(path, self._lengths[path], growing=True),))
        Path(host.outbox, "00000001.json").write_text("garbage")
        Path(host.outbox, "00000002.json").write_bytes(state.dump(batch))
        Path(host.in_flight).write_bytes(state.dump(InFlightRecord(batch.number, fenced=True)))
        Path(host.ledger).write_text("garbage")


class Life:
    """A life, seen from beside it: it begins with the first of these runs, and is to serve all."""

    def __init__(self, stories: list[Story], harm: Harm | None, directory: str, *, record: bool) -> None:
        self._stories, self._harm, self._directory, self._record = stories, harm, directory, record
        self._straces: list[subprocess.Popen[bytes]] = []
        self._pushes, self._code = 0, 0
        self._cache = os.path.join(directory, "cache")
        self._ushers: dict[int, Story] = {}  # by process
        self._tries = Counter[Story]()
        self._served = {stories[0]}
        self._usher_code = 0  # of one that failed
        self.passed: dict[str, int] = {}
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._pid = os.fork()
        if not self._pid:
            self._socket.close()
            run_and_end(functools.partial(live, stories[0].spool, harm, theirs, self._cache))
        theirs.close()

    def end(self) -> int:
        """Go through the stories until the life ends; return its exit code."""
        deadline = time.monotonic() + DEADLINE
        with self._socket:
            while message := self._receive(deadline):
                self._answer(json.loads(message))
                with contextlib.suppress(BrokenPipeError):
                    self._socket.send(b".")
        self._code = os.waitstatus_to_exitcode(os.waitpid(self._pid, 0)[1])
        self._collect(0)
        self.passed |= {point: sum(self._tries.values()) for point in USHER if self._tries and self.passed}
        for story in self._served if self._code == 0 else ():
            story.has_left = story.is_over
        for strace in self._straces:
            strace.communicate()
        return self._code

    # other runs

    def _hand_over(self) -> None:
        """Let ushers ask for the runs that are not served yet, half of all at a time."""
        self._collect(os.WNOHANG)
        waiting = [one for one in self._stories if one not in self._served and one not in self._ushers.values()]
        waiting = [one for one in waiting if self._tries[one] < TRIES and not locks.is_held(one.spool.uploader_lock)]
        for story in waiting[: len(self._stories) // 2]:
            self._tries[story] += 1
            self._start_usher(story)

    def _start_usher(self, story: Story) -> None:
        """Start an usher, and wait until it has asked, or has ended."""
        harm, number = self._harm, sum(self._tries.values())
        action = harm.action if harm and harm.point in USHER and harm.passage == number else ""
        waits, asked = os.pipe()
        pid = os.fork()
        if not pid:
            os.close(waits)
            run_and_end(functools.partial(usher, story.spool, action, harm.point if harm else "", asked, self._cache))
        os.close(asked)
        os.read(waits, 1)
        os.close(waits)
        self._ushers[pid] = story

    def _collect(self, options: int) -> None:
        """Collect the ushers that have ended."""
        for pid in list(self._ushers):
            found, status = os.waitpid(pid, options)
            if found:
                code, story = os.waitstatus_to_exitcode(status), self._ushers.pop(pid)
                self._served |= {story} if code == 0 else set()
                self._usher_code = code or self._usher_code

    def was_struck(self) -> bool:
        """Whether the harm has struck."""
        if self._harm is None:
            return False
        if self._harm.is_failpoint:
            return (
                KILLED in (self._code, self._usher_code) or self.passed.get(self._harm.point, 0) >= self._harm.passage
            )
        with contextlib.suppress(FileNotFoundError):
            log = Path(self._log(self._harm.push)).read_text()
            return "killed by SIGKILL" in log or "(INJECTED)" in log
        return False

    def _receive(self, deadline: float) -> bytes:
        """The next message of the uploader; empty once it has ended."""
        if not select.select([self._socket], [], [], max(0.0, deadline - time.monotonic()))[0]:
            os.kill(self._pid, signal.SIGKILL)
            raise TimeoutError(f"a life took longer than {DEADLINE:.0f} s")
        with contextlib.suppress(ConnectionResetError):
            return self._socket.recv(MESSAGE)
        return b""

    def _answer(self, message: dict[str, Any]) -> None:
        if "begins" in message:
            self._attach(self._pid, UPLOADER)
            self._hand_over()
        elif "push" in message:
            self._pushes += 1
            self._attach(message["push"], self._pushes)
        elif "passed" in message:
            self.passed = message["passed"]
        else:
            for story in self._stories:
                story.go_on()
            self._hand_over()

    def _log(self, push: int) -> str:
        return os.path.join(self._directory, f"strace.{push}")

    def _attach(self, pid: int, push: int) -> None:
        """Let strace trace a process that waits for us, if this is the one."""
        harm = self._harm
        if not self._record and (harm is None or harm.is_failpoint or harm.push != push):
            return
        options = harm.options if harm else RECORDING
        command = ["strace", *options, "-o", self._log(push), "-p", str(pid)]
        strace = subprocess.Popen(command, stderr=subprocess.PIPE)
        self._straces.append(strace)
        answer = strace.stderr.readline() if strace.stderr else b""
        if b"attached" not in answer:
            raise OSError(f"strace: {answer.decode()}")


# all of it


def trial(
    directory: str, store: Store, destination: Destination, harms: list[Harm], *, record: bool, runs: int
) -> Outcome:
    """Run all lives of run directories of one repository, one harm for each of the first, and check what they left."""
    outcome, stories = Outcome(), list[Story]()
    for number in range(runs):
        spool = Spool(os.path.join(directory, "run", str(number)))
        stories.append(Story(spool, dataclasses.replace(destination, path_in_repo=f"{FOLDER}/{number}"), number))
    try:
        while not _is_over(outcome, stories, harms, directory):
            harm = harms[len(outcome.ended)] if len(outcome.ended) < len(harms) else None
            first = sorted(stories, key=lambda story: story.has_left)
            life = Life(first, harm, directory, record=record and harm is None)
            outcome.ended.append(life.end())
            outcome.struck += [life.was_struck()] if harm else []
            outcome.passed = outcome.passed or life.passed
    except (TimeoutError, OSError) as error:
        outcome.problems.append(str(error))
    outcome.problems += left_behind()
    for story in [] if outcome.problems else stories:
        outcome.problems += check_oracle(story.spool, store, story.destination, story.returned)
    outcome.problems += [] if outcome.problems else left_over(stories, directory)
    return outcome


def _is_over(outcome: Outcome, stories: list[Story], harms: list[Harm], directory: str) -> bool:
    """Whether all runs were left in good order. One more life removes or reads what the disk refused."""
    if not all(story.has_left for story in stories):
        if len(outcome.ended) == LIVES + len(stories):
            raise TimeoutError(f"{len(outcome.ended)} lives were not enough")
        return False
    refused = any(harm.action != "kill" for harm in harms) and len(outcome.ended) <= len(harms)
    left_out = any(ledger.load(story.spool, story.destination).quarantined for story in stories)
    return not (refused and (left_out or left_over(stories, directory)))


def check_oracle(
    spool: Spool, store: Store, destination: Destination, returned: list[testing.journal.Returned]
) -> list[str]:
    """The problems that the oracle finds."""
    view = View(store, destination.repo_id, destination.path_in_repo)
    return testing.check(spool.run_dir, view, returned, attachments=ATTACHMENT.__eq__).problems


def left_over(stories: list[Story], directory: str) -> list[str]:
    """Files that should be gone when no process is at work."""
    hosts = [story.spool.host(host_id()) for story in stories]
    ends, begins = (".tmp", "/taking"), tuple(str(host.outbox) for host in hosts)
    in_flight = {str(host.in_flight) for host in hosts}
    everything = sorted(str(path) for path in Path(directory).rglob("*") if path.is_file())
    found = (path for path in everything if path.endswith(ends) or path.startswith(begins) or path in in_flight)
    members = (path for path in everything if "/.hf_mpwriter/members/" in path)
    return [f"left over: {os.path.relpath(path, directory)}" for path in (*found, *members)]


def left_behind() -> list[str]:
    """Kill and name the processes that are still children of this one when all lives are over, orphaned pushes too."""
    deadline = time.monotonic() + DEADLINE
    with contextlib.suppress(ChildProcessError):
        while time.monotonic() < deadline:
            if os.waitpid(-1, os.WNOHANG)[0] == 0:
                time.sleep(0.001)
        pids = [int(pid) for pid in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()]
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        return [f"processes left behind: {pids}"]
    return []


def serve(hub_root: str) -> None:
    """Make the trials that standard input asks for, one a line."""
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)
    gc.freeze()  # else each fork copies what the collector touches
    store = Store(hub_root)
    for line in sys.stdin:
        order = json.loads(line)
        harms = [Harm(**harm) for harm in order.pop("harms")]
        destination = Destination(os.environ["HF_ENDPOINT"], order.pop("repo"))
        outcome = trial(store=store, destination=destination, harms=harms, **order)
        print(json.dumps(dataclasses.asdict(outcome)), flush=True)


if __name__ == "__main__":
    serve(sys.argv[1])
