"""A rank of the soak: logs events of its own, notes which calls returned, and checks a push that says all is done.

Some ranks have few descriptors or small files. The limits are not meant for journals, so they are lifted for those.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import random
import resource
import signal
import sys
import time
from collections.abc import Iterator
from types import FrameType
from typing import Any

from lib.prctl import die_with_parent

from soaking.inside import CONTROL, ENDING, FINDINGS, HUB, REPO, SAID, TOUCHED, install, right_time

WAIT = 6.0  # seconds that a rank waits for a push, when it does
PAUSE = 0.02  # seconds between two events of a rank
BEGINNING = 0.2  # seconds until a rank tries a directory again that it cannot write


class Warnings(logging.Handler):
    """Counts warnings that a flush did not reach the disk, and notes those that tell of lost records."""

    unsynced = 0  # flushes: what came before one is not noted as flushed

    def emit(self, record: logging.LogRecord) -> None:
        """Take in a warning."""
        text = record.getMessage()
        self.unsynced += "not safe against a power cut" in text
        if "records were lost" in text:
            with unlimited():
                note(SAID, f"{os.getpid()}: {text}")


def note(name: str, line: str) -> None:
    """Append a line to a control file."""
    with open(os.path.join(os.environ[CONTROL], name), "a", encoding="utf-8") as file:
        file.write(f"{line}\n")


def calls(journals: str) -> str:
    """The journals of all calls, also of those whose record was never on disk."""
    return f"{journals}-of-calls"


class Rank:
    """One rank or a child of it: logs events with its own tags and notes which calls returned.

    A record that waits in memory because the disk refuses it is noted when it is on disk. Until then it may be lost
    with its process: that is the contract.
    """

    def __init__(self, writer: Any, run_dir: str, journals: str, tag: str) -> None:
        from hf_mpwriter.testing import Journal

        self.writer, self.run_dir, self.tag = writer, run_dir, tag
        self._journals, self._journal, self._calls = journals, Journal(journals), Journal(calls(journals))
        self._dropped = 0  # records of its event file until now
        self._waiting: list[tuple[str, int]] = []
        self.returned: dict[tuple[str, int], str] = {}
        self._since = right_time() - 2
        self._rng = random.Random(tag)
        self._warnings = Warnings()
        logging.getLogger("hf_mpwriter").addHandler(self._warnings)

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
        elif kind < 0.998:
            self.writer.push(wait=0)
        elif self.writer.push(wait=WAIT):
            self._settle(waited=True)  # the disk may have accepted meanwhile what had waited in memory
            self._check_on_hub()

    def _check_on_hub(self) -> None:
        """A push has said that everything is there: every call of this process that had returned is."""
        from hf_mpwriter.localhub import Store, View
        from hf_mpwriter.spool.layout import Spool
        from hf_mpwriter.testing.oracle import keys

        store, destination = Store(os.environ[HUB]), Spool(self.run_dir).destination()
        folder = destination.path_in_repo if destination else ""
        view = View(store, REPO, folder)
        tree = view.tree("main") if view.commits() else {}  # a process that has logged nothing needs no repository
        with contextlib.suppress(FileNotFoundError), open(os.path.join(os.environ[CONTROL], TOUCHED)) as file:
            touched = {line.strip().removeprefix(f"{folder}/") for line in file}
            if touched & set(self.returned.values()):
                return
        lost = [f"{tag} at {step}, in memory" for tag, step in self._waiting]
        for path in set(self.returned.values()):
            there = keys(os.path.join(self.run_dir, path), tree[path].size) if path in tree else {}
            lost += [
                f"{key[0]} at {key[1]}" for key, where in self.returned.items() if where == path and key not in there
            ]
        if lost:
            self._find_fault(f"a push returned True, but {len(lost)} calls are not on the Hub: {', '.join(lost[:3])}")

    def _find_fault(self, text: str) -> None:
        note(FINDINGS, f"{self.tag}: {text}")

    def _note(self, path: str, tag: str, step: int) -> None:
        """Note that a record is in a file; the limit on the size of files is not meant for journals."""
        with unlimited():
            self._journal.note_at(path, tag, step)
        self.returned[tag, step] = path

    def _log_parts(self, tag: str, step: int) -> None:
        self.writer.add_scalars(tag, {"a": 1.0, "b": 2.0}, step)
        with unlimited():
            for _ in ("a", "b"):
                self._calls.note_at("", tag, step)
        for place, sub_writer in list(self.writer.all_writers.items()):
            file = sub_writer.event_writer.file
            if place.endswith((f"{tag}/a", f"{tag}/b")) and not file.waiting and not file.dropped:
                with unlimited():
                    self._journal.note_at(os.path.relpath(file.path, self.run_dir), tag, step)

    def _returned(self, tag: str, step: int) -> None:
        with unlimited():
            self._calls.note_at("", tag, step)
        waited = bool(self._waiting)
        self._waiting.append((tag, step))
        self._settle(waited=waited)

    def _settle(self, *, waited: bool) -> None:
        """Note what is on disk now; what has waited in memory may be in another file."""
        file = self.writer.file_writer.event_writer.file
        if self._waiting and not file.waiting:
            where = self._find() if waited else {}
            before, self._dropped = self._dropped, file.dropped
            dropped = [key for key in self._waiting if key not in where] if file.dropped > before else []
            if len(dropped) > file.dropped - before:  # more than it says: let the oracle find them
                dropped.clear()
            for key in self._waiting:
                if key in dropped:
                    continue
                self._note(os.path.relpath(where.get(key, file.path), self.run_dir), *key)
            self._waiting.clear()

    def _find(self) -> dict[tuple[str, int], str]:
        """Return the files of the records that waited."""
        from hf_mpwriter.testing.oracle import keys

        newest = [path for path in self.writer._worker.files.segments("") if os.path.getmtime(path) >= self._since]  # noqa: SLF001
        return {key: path for path in newest for key in keys(path)}

    def _flush(self) -> None:
        """Flush, and note it if the disk accepted everything."""
        before = self._warnings.unsynced
        self.writer.flush()
        if not self._waiting and self._warnings.unsynced == before:
            with unlimited():
                self._journal.flushed()

    def fork(self) -> int:
        """Fork a child that logs a little through the inherited writer; return its pid."""
        if pid := os.fork():
            return pid
        code = 1
        try:
            die_with_parent()
            logging.getLogger("hf_mpwriter").removeHandler(self._warnings)  # the child notes its own, once
            child = Rank(self.writer, self.run_dir, self._journals, f"{self.tag}-{os.getpid()}")
            for step in range(30):
                child.log(step)
                time.sleep(PAUSE)
            self.writer.close()
            code = 0
        finally:
            os._exit(code)


@contextlib.contextmanager
def unlimited() -> Iterator[None]:
    """Lift the limit on the size of files for a moment."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    if soft == hard:
        yield
        return
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def log_to(name: str) -> None:
    """Let the output of this process go to a control file."""
    log = os.open(os.path.join(os.environ[CONTROL], name), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(log, 1)
    os.dup2(log, 2)


def _limit(limits: dict[str, int]) -> None:
    """Lower the soft limits of this process: bytes of a file, descriptors beside those that are open."""
    for name, most in limits.items():
        which = getattr(resource, name)
        used = max(map(int, os.listdir("/proc/self/fd"))) if name == "RLIMIT_NOFILE" else 0
        resource.setrlimit(which, (used + most, resource.getrlimit(which)[1]))


def live(
    rank: int,
    ranks: int,
    logdir: str,
    journals: str,
    stop: str,
    purge_step: int | None,
    limits: dict[str, int],
    memory: int,
) -> None:
    """Be a rank, from the fork until the file `stop` appears."""
    from hf_mpwriter.spool.storage import find

    die_with_parent()
    log_to("ranks.log")
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(ranks), "HF_MPWRITER_EXIT_TIMEOUT": str(ENDING)}
    install("rank")
    _limit(limits)
    signal.signal(signal.SIGTERM, _leave if rank % 2 else signal.SIG_DFL)
    tag = f"rank{rank}-{os.getpid()}-{os.urandom(3).hex()}"
    with _begin(logdir, purge_step, memory) as writer:
        me, children = Rank(writer, find(logdir).run_dir, journals, tag), []
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


def _begin(logdir: str, purge_step: int | None, memory: int) -> Any:
    """Construct a writer; try again while the directory cannot be written."""
    from hf_mpwriter import HFSummaryWriter
    from hf_mpwriter.base.errors import LogdirError

    while True:
        try:
            return HFSummaryWriter(REPO, logdir=logdir, commit_every=0.02, purge_step=purge_step, memory_limit=memory)
        except LogdirError as error:
            print(f"the directory cannot be written: {error}", flush=True)
            time.sleep(BEGINNING)
