"""What the soak puts into the processes under test: a rank that logs, shorter waits, a disk that fails at random.

    rank (forked by soak.py)  --posix_spawn-->  uploader  --subprocess-->  push

Each of them calls `install`. Waits of seconds or minutes become tenths or seconds, in the same proportions, so that
half an hour of soak is like a day of trouble.

    <control>/chance      "0.05 eio": each failpoint fails with this probability; no file: none does
    <control>/struck      one line per failure: action, failpoint, pid
"""

from __future__ import annotations

import contextlib
import importlib
import itertools
import logging
import os
import random
import signal
import sys
import time
from types import FrameType
from typing import Any

from lib.prctl import die_with_parent

CONTROL = "HF_MPWRITER_SOAK"  # names the directory with the control files
REPO = "soak/run"
PAUSE = 0.02  # seconds between two events of a rank
ENDING = 20.0  # seconds that a rank may wait for the Hub at its end
BEGINNING = 0.2  # seconds until a rank tries a directory again that it cannot write

# Constants per process and module; the tests of each module use the real values.
HASTE: dict[str, dict[str, dict[str, float]]] = {
    "rank": {
        "worker.worker": {"HOUSEKEEPING_EVERY": 0.6},
        "worker.membership": {"REQUEST_EVERY": 0.3},
        "worker.election": {"FIRST_BACKOFF": 0.5, "LONGEST_BACKOFF": 3.0, "STARTS_LIMIT": 1000},
        "events.series": {"SEGMENT_MIN": 24 << 10, "SEGMENT_MAX": 96 << 10},
        "events.backlog": {"RETRY_FIRST": 0.1, "RETRY_LAST": 1.0},
    },
    "uploader": {
        "uploader.pacing": {
            "FIRST_WAIT": 0.6,
            "LONGEST_WAIT": 3.0,
            "REFUSED_WAIT": 1.5,
            "LONGEST_REFUSED_WAIT": 4.0,
            "XET_PAUSE": 10.0,
            "MOVED_LIMIT": 2,
        },
        "uploader.loop": {"TICK": 0.3, "FIRST_DELAY": 1.0},
        "uploader.in_flight": {"SETTLE_TIME": 20.0},
        "spool.status": {"BEAT_EVERY": 2.0},
    },
    "push": {
        "push.commit": {"MOVED_TRIES": 1},
        "push.classify": {"BUSY_WAIT": 0.5, "RATE_WAIT": 1.0, "QUOTA_WAIT": 1.0},
    },
}


class Chance:
    """Takes the place of `failpoints.reach`."""

    def __init__(self, control: str) -> None:
        self._chance, self._struck = os.path.join(control, "chance"), os.path.join(control, "struck")
        self._rng = random.Random()

    def __call__(self, name: str) -> None:
        """Fail or die here, by chance."""
        from hf_mpwriter.system import failpoints

        try:
            with open(self._chance, encoding="ascii") as file:
                chance, action = file.read().split()
        except (OSError, ValueError):
            return
        if self._rng.random() < float(chance):
            fd = os.open(self._struck, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
            os.write(fd, f"{action} {name} {os.getpid()}\n".encode())
            os.close(fd)
            failpoints.strike(name, action)


def install(kind: str) -> None:
    """Prepare this process and the processes that it starts."""
    from hf_mpwriter.system import failpoints, launch

    failpoints.reach = Chance(os.environ[CONTROL])  # type: ignore[assignment]
    if kind == "push":
        _hurry_with_the_environment()
        return
    _hurry(kind)
    if kind == "rank":
        launch.UPLOADER_BOOT = _with_install(launch.UPLOADER_BOOT, "uploader")
    else:
        importlib.import_module("hf_mpwriter.uploader.loop").lower = _be_busy
        launch.PUSH_BOOT = _with_install(launch.PUSH_BOOT, "push")


def _hurry(kind: str) -> None:
    for module, constants in HASTE[kind].items():
        loaded = importlib.import_module(f"hf_mpwriter.{module}")
        for name, value in constants.items():
            if not hasattr(loaded, name):
                raise AttributeError(f"there is no {module}.{name}")
            setattr(loaded, name, value)


def _hurry_with_the_environment() -> None:
    """Import the client only when its environment is complete: it reads HF_HUB_DISABLE_XET at that moment."""
    from hf_mpwriter.push import process

    set_environment = process._set_environment  # noqa: SLF001 - the last step before the client is imported

    def set_and_hurry(job: Any) -> None:
        set_environment(job)
        _hurry("push")

    process._set_environment = set_and_hurry  # noqa: SLF001 - as above


def _with_install(boot: str, kind: str) -> str:
    if boot.count(f" as {kind};") != 1:
        raise AttributeError(f"cannot find where the program of the {kind} imports it")
    return boot.replace(f" as {kind};", f" as {kind};from soaking import inside;inside.install({kind!r});")


def _be_busy() -> None:
    """Keep the normal priority: beside eight ranks and a soak, a low one gets no CPU time."""


class Unsynced(logging.Handler):
    """Counts warnings that a flush did not reach the disk: what came before it is not noted as flushed."""

    count = 0

    def emit(self, record: logging.LogRecord) -> None:
        """Count the warning."""
        self.count += "not safe against a power cut" in record.getMessage()


class Rank:
    """One rank or a child of it: logs events with its own tags and notes which calls returned.

    A record that waits in memory because the disk refuses it is noted when it is on disk. Until then it may be lost
    with its process: that is the contract.
    """

    def __init__(self, writer: Any, run_dir: str, journals: str, tag: str) -> None:
        from hf_mpwriter.testing import Journal

        self.writer, self.run_dir, self.tag = writer, run_dir, tag
        self._journals, self._journal = journals, Journal(journals)
        self._waiting: list[tuple[str, int]] = []
        self._since = time.time() - 2
        self._rng = random.Random(tag)
        self._unsynced = Unsynced()
        logging.getLogger("hf_mpwriter").addHandler(self._unsynced)

    def log(self, step: int) -> None:
        """Log one event of a random kind."""
        kind = self._rng.random()
        if kind < 0.9:
            self.writer.add_scalar(self.tag, kind, step)
            self._returned(self.tag, step)
        elif kind < 0.94:
            self.writer.add_histogram(f"{self.tag}-histogram", [kind, 1.0, 2.0, step], step)
            self._returned(f"{self.tag}-histogram", step)
        elif kind < 0.97:
            self.writer.add_text(f"{self.tag}-text", f"step {step}", step)
            self._returned(f"{self.tag}-text/text_summary", step)
        elif kind < 0.985:
            self._log_parts(f"{self.tag}-parts", step)
        elif kind < 0.987:  # rare: a power cut takes only what was not flushed
            self._flush()
        else:
            self.writer.push(wait=0)

    def _log_parts(self, tag: str, step: int) -> None:
        self.writer.add_scalars(tag, {"a": 1.0, "b": 2.0}, step)
        for place, sub_writer in list(self.writer.all_writers.items()):
            file = sub_writer.event_writer.file
            if place.endswith((f"{tag}/a", f"{tag}/b")) and not file.waiting:
                self._journal.note_at(os.path.relpath(file.path, self.run_dir), tag, step)

    def _returned(self, tag: str, step: int) -> None:
        file = self.writer.file_writer.event_writer.file
        self._waiting.append((tag, step))
        if not file.waiting:
            where = self._find() if len(self._waiting) > 1 else {}
            for key in self._waiting:
                self._journal.note_at(os.path.relpath(where.get(key, file.path), self.run_dir), *key)
            self._waiting.clear()

    def _find(self) -> dict[tuple[str, int], str]:
        """Return the files of the records that waited."""
        from hf_mpwriter.testing.oracle import keys

        newest = [path for path in self.writer._worker.files.segments("") if os.path.getmtime(path) >= self._since]  # noqa: SLF001
        return {key: path for path in newest for key in keys(path)}

    def _flush(self) -> None:
        """Flush, and note it if the disk accepted everything."""
        before = self._unsynced.count
        self.writer.flush()
        if not self._waiting and self._unsynced.count == before:
            self._journal.flushed()

    def fork(self) -> int:
        """Fork a child that logs a little through the inherited writer; return its pid."""
        if pid := os.fork():
            return pid
        code = 1
        try:
            die_with_parent()
            child = Rank(self.writer, self.run_dir, self._journals, f"{self.tag}-{os.getpid()}")
            for step in range(30):
                child.log(step)
                time.sleep(PAUSE)
            self.writer.close()
            code = 0
        finally:
            os._exit(code)


def live(rank: int, ranks: int, run_dir: str, journals: str, stop: str, purge_step: int | None) -> None:
    """Be a rank, from the fork until the file `stop` appears."""
    die_with_parent()
    log = os.open(os.path.join(os.environ[CONTROL], "ranks.log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(ranks), "HF_MPWRITER_EXIT_TIMEOUT": str(ENDING)}
    install("rank")
    signal.signal(signal.SIGTERM, _leave if rank % 2 else signal.SIG_DFL)
    tag = f"rank{rank}-{os.getpid()}-{os.urandom(3).hex()}"
    with _begin(run_dir, purge_step) as writer:
        me, children = Rank(writer, run_dir, journals, tag), []
        for step in itertools.count():
            if os.path.exists(stop):
                break
            me.log(step)
            if step % 300 == 50 + 20 * rank:
                children.append(me.fork())
            time.sleep(PAUSE)
    for pid in children:
        with contextlib.suppress(ChildProcessError):
            code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            if code not in (0, -signal.SIGKILL):
                raise RuntimeError(f"a forked child ended with {code}")


def _leave(_: int, __: FrameType | None) -> None:
    sys.exit(0)


def _begin(run_dir: str, purge_step: int | None) -> Any:
    """Construct a writer; try again while the directory cannot be written."""
    from hf_mpwriter import HFSummaryWriter
    from hf_mpwriter.base.errors import LogdirError

    while True:
        try:
            return HFSummaryWriter(REPO, logdir=run_dir, commit_every=0.02, purge_step=purge_step)
        except LogdirError as error:
            print(f"the directory cannot be written: {error}", flush=True)
            time.sleep(BEGINNING)
