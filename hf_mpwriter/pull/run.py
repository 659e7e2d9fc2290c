"""A pull: a run comes back from the Hub into a run directory, at one commit of its branch.

    here                                        what happens
    nothing, or a beginning of the Hub's copy   fetched, see `fetch`
    the Hub's copy                              nothing
    the Hub's copy and more                     nothing: an uploader sends the rest
    something else                              nothing; it is named
    a worker that lives writes there            nothing; it is named

What the Hub has is then in the ledger, so that nothing of it is sent again. An attachment of which no push has made the
last commit is foreign there: it came, and is never replaced. The next segments of a worker sort behind
what was pulled: their names do, whatever the clocks say.

Invariants:
- Two pulls into one run directory come one after the other.
- The ledger is written under the uploader lock. If an uploader holds it, that one reads back what the Hub has.
- What an interrupted pull has brought is recorded.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from hf_mpwriter.base import names
from hf_mpwriter.base.files import digest, feed, git_hasher
from hf_mpwriter.base.settings import Destination
from hf_mpwriter.base.verdicts import Sent
from hf_mpwriter.pull.fetch import DIFFERS, PULLING, Fetcher, ask
from hf_mpwriter.pull.record import add_pulled
from hf_mpwriter.push.client import Hub, Remote
from hf_mpwriter.spool import ledger as ledgers
from hf_mpwriter.spool.layout import Spool
from hf_mpwriter.spool.workers.members import Members
from hf_mpwriter.system import disk, locks
from hf_mpwriter.system.process import host_id

WAIT = 0.2  # seconds between two tries to take the lock of the pulls
LONGEST_NAME = 255 - len(".metadata")  # bytes of a file name; the client appends that to it on the way
UNSAFE = "its name leads out of the run directory, or no file here can have it"
IN_USE = "a worker that lives writes beside it; pull before training starts"


@dataclass
class Pulled:
    """What a pull has found and done."""

    commit: str = ""  # of the Hub, "" if there is no such repository or branch
    sizes: dict[str, int] = field(default_factory=dict)  # bytes on the Hub, per path that was asked for
    fetched: dict[str, int] = field(default_factory=dict)  # bytes that came, per path
    left: dict[str, str] = field(default_factory=dict)  # the reason, per path that could not be had
    workers: list[str] = field(default_factory=list)  # of which the Hub has files, whether they were asked for or not
    beside: list[str] = field(default_factory=list)  # names of the other runs there, where it has nothing of this one


def everything(_: str) -> bool:
    """The workers of a pull of the whole run."""
    return True


def pull(
    spool: Spool,
    destination: Destination,
    hub: Hub,
    wanted: Callable[[str], bool] = everything,
    *,
    progress: Callable[[int, int], object] = lambda *_: None,
    longest_wait: float = math.inf,
) -> Pulled:
    """Bring a run back from the Hub; `longest_wait` in seconds is what it may ask to wait, else that ends the pull."""
    report = Pulled()
    head = ask(hub.head, longest_wait)
    if head is None:
        return report
    report.commit = head
    there = ask(lambda: hub.tree(head), longest_wait)
    tree = {path: remote for path, remote in sorted(there.items()) if _is_wanted(path, wanted)}
    report.sizes = {path: remote.size for path, remote in tree.items()}
    report.workers = sorted({names.worker_of(path) for path in there if _is_wanted(path, everything)})
    if not tree:
        return report
    attachments = list(filter(names.is_attachment, tree))
    pushed = ask(lambda: hub.pushed(attachments, head), longest_wait) if attachments else set[str]()
    spool.create()
    spool.record_destination(destination)
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # it warns of each connection that breaks
    with _locked(spool):
        disk.remove_tree(spool.directory / PULLING)
        _Pull(spool, hub, report, tree, pushed, progress, longest_wait).run()
    return report


def _is_wanted(path: str, wanted: Callable[[str], bool]) -> bool:
    """Whether to pull a file: never a spool, which others may have uploaded."""
    return names.SPOOL_NAME not in path.split("/") and wanted(names.worker_of(path))


def _can_be_here(path: str) -> bool:
    """Whether this is a path of a run directory that any kind of filesystem can have."""
    try:
        parts = os.fsencode(path).split(b"/")
    except UnicodeEncodeError:
        return False
    in_spool = names.SPOOL_NAME in path.lower().split("/")
    return names.is_run_path(path) and not in_spool and all(len(part) <= LONGEST_NAME for part in parts)


@contextlib.contextmanager
def _locked(spool: Spool) -> Iterator[None]:
    """Hold the lock of the pulls; another pull brings the same files."""
    while (fd := locks.try_exclusive(spool.directory / "pull.lock")) is None:
        time.sleep(WAIT)
    try:
        yield
    finally:
        locks.release(fd)


class _Pull:
    """One pull, under the lock."""

    def __init__(
        self,
        spool: Spool,
        hub: Hub,
        report: Pulled,
        tree: dict[str, Remote],
        pushed: set[str],
        progress: Callable[[int, int], object],
        longest_wait: float,
    ) -> None:
        self._spool, self._hub, self._report, self._tree, self._pushed = spool, hub, report, tree, pushed
        self._progress, self._total, self._settled = progress, sum(report.sizes.values()), 0
        self._fetcher = Fetcher(hub, report.commit, spool, longest_wait, self._came)
        self._here: set[str] = set()  # paths of which the Hub has a beginning, or all

    def run(self) -> None:
        """Compare all files, fetch what is not here, record what is."""
        report, tree = self._report, self._tree
        try:
            in_use = set(map(os.path.dirname, Members(self._spool).growing()))
            lacking = [path for path in tree if not self._is_settled(path, in_use)]
            add_pulled(self._spool, {path: tree[path].size for path in lacking})  # now: an interrupted pull did come
            for path in lacking:
                if reason := self._fetcher.fetch(path, tree[path]):
                    report.left[path] = reason
                else:
                    self._here.add(path)
                    report.fetched[path] = tree[path].size
                self._settle(path)
        finally:
            self._record()

    def _settle(self, path: str) -> None:
        self._settled += self._tree[path].size
        self._came(0)

    def _came(self, size: int) -> None:
        self._progress(self._total, self._total - self._settled - size)

    def _is_settled(self, path: str, in_use: set[str]) -> bool:
        """Whether nothing is to be fetched; `in_use` are the directories where members that live have a file open."""
        if not _can_be_here(path):
            self._report.left[path] = UNSAFE
        elif (is_copy := self._is_copy(path, self._tree[path])) is not None:
            if is_copy:
                self._here.add(path)
            else:
                self._report.left[path] = DIFFERS
        elif os.path.dirname(path) in in_use:
            self._report.left[path] = IN_USE
        else:
            return False
        self._settle(path)
        return True

    def _is_copy(self, path: str, remote: Remote) -> bool | None:
        """Whether the local file begins with the Hub's copy; None if it is shorter, or there is none."""
        try:
            fd = disk.open_beneath(self._spool.run / path)
        except OSError:  # `fetch` meets it again
            return None
        try:
            return remote.is_beginning_of(fd) if os.fstat(fd).st_size >= remote.size else None
        finally:
            os.close(fd)

    def _record(self) -> None:
        if (lock := locks.try_exclusive(self._spool.uploader_lock)) is None:
            return
        try:
            self._save_ledger()
        finally:
            locks.release(lock)

    def _save_ledger(self) -> None:
        destination = self._spool.destination()
        if destination is None:
            return
        ledger = ledgers.load(self._spool, destination)
        ledger.repo_id, ledger.private = self._hub.repo_id, self._hub.private
        news = {path: self._sent(path) for path in sorted(self._here) if not self._is_known(ledger, path)}
        if news:
            ledger.acknowledge(news, self._report.commit, time.time())
            host = self._spool.host(host_id())
            disk.make_dirs(host.root)
            ledger.save(host.ledger)

    def _is_known(self, ledger: ledgers.Ledger, path: str) -> bool:
        """Whether the ledger has it already: of an attachment only the push knows whether it may be replaced."""
        return ledger.length(path) >= self._tree[path].size or (path in ledger.files and names.is_attachment(path))

    def _sent(self, path: str) -> Sent:
        """The Hub's copy as the ledger knows it; the local file begins with it."""
        remote = self._tree[path]
        is_attachment = names.is_attachment(path)
        if remote.sha256 is not None and not is_attachment:
            return Sent(remote.size, remote.sha256)
        fd = disk.open_beneath(self._spool.run / path)
        try:
            sha256, blob = digest(fd, remote.size), feed(git_hasher(remote.size), fd, remote.size)
        finally:
            os.close(fd)
        return Sent(remote.size, sha256, blob if is_attachment else "", is_attachment and path not in self._pushed)
