"""A pull: a run comes back from the Hub into a run directory, at one commit of its branch.

    here                                        what happens
    nothing, or a beginning of the Hub's copy   fetched
    the Hub's copy                              nothing
    the Hub's copy and more                     nothing: an uploader sends the rest
    something else                              nothing; it is named
    a worker that lives writes there            nothing; it is named
    the folder is that of another run           nothing; it is named

    Hub --the client's download--> .hf_mpwriter/pulling/... --digest fits--> synced, and renamed to its path
    bucket --ranges--> appended to that, or to what is here, record by record, see `pull/bucket`

The client continues a file whose connection broke. It never continues one that another process began, so what a pull
that was killed has left in `pulling/` is removed.

What the Hub has is then in the ledger, so that nothing of it is sent again. An attachment of which no push has made the
last commit is foreign there: it came, and is never replaced. The next segments of a worker sort behind
what was pulled: their names do, whatever the clocks say.

Invariants:
- Nothing stands at a path but what was there, or the whole content, durable, with the digest that the Hub tells; after
  that, and in what only the bucket has, records whose checksums hold.
- A file that is here is replaced only by one that begins with all of it.
- Two pulls into one run directory come one after the other.
- The ledger is written under the uploader lock. If an uploader holds it, that one reads back what the Hub has.
- What an interrupted pull has brought is recorded as pulled, and no file that is not the Hub's ever is.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import logging
import os
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TypeVar

from hf_mpwriter.base import names
from hf_mpwriter.base.errors import HfMpWriterError
from hf_mpwriter.base.files import continues, digest, feed, git_hasher
from hf_mpwriter.base.settings import Destination, full_bucket
from hf_mpwriter.base.verdicts import Refused, Sent, Split
from hf_mpwriter.pull.bucket import LONGEST, UnfitError, extend
from hf_mpwriter.push.classify import classify, status_of, text_of
from hf_mpwriter.push.client import Hub, Remote
from hf_mpwriter.push.clock import Clock
from hf_mpwriter.snapshot.search import other_run_above
from hf_mpwriter.spool import ledger as ledgers
from hf_mpwriter.spool.layout import Spool
from hf_mpwriter.spool.pulled import note_pulled
from hf_mpwriter.spool.workers.members import Members
from hf_mpwriter.system import disk, locks
from hf_mpwriter.system.directory import Place, at
from hf_mpwriter.system.process import host_id

PULLING = "pulling"  # directory in the spool of the file that is on its way
LOCK = "follow.lock"  # in the spool, of the one who brings a run back for as long as it goes on
LOCK_POLL = 0.2  # seconds between two tries to take the lock of the pulls
NO_BUCKET = (401, 403, 404, 501)  # statuses that tell that there is none for this token
TRIES = 3  # of a question; in each of them, the client takes up a broken connection five times
LONGEST_PAUSE = 16.0  # seconds between two of them; the first one is a second
LONGEST_NAME = 255 - len(".metadata")  # bytes of a file name; the client appends that to it on the way
CORRUPT = "what came does not have the digest that the Hub tells, and was thrown away; try again later"
DIFFERS = "it differs from the Hub's copy, and is left as it is; to have the Hub's, move it away"
UNSAFE = "its name leads out of the run directory, or no file here can have it"
OF_OTHER = "its folder is another run here, which goes elsewhere"
UNLIKE = "the bucket {} has another file of this name: the repository's stays, or what is here"
FOLLOWED = "A follower works in {}: nothing was pulled, as it brings the run by itself. To pull, end it first."
IN_USE = "a worker that lives writes beside it; pull before training starts"

Answer = TypeVar("Answer")
_IN_ITS_PLACE = (*disk.NOT_REGULAR, errno.ENOTDIR, errno.EACCES, errno.EPERM)  # something that is not ours


@dataclass
class Pulled:
    """What a pull has found and done."""

    commit: str = ""  # of the Hub, "" if there is no such repository or branch
    sizes: dict[str, int] = field(default_factory=dict)  # bytes on the Hub, per path that was asked for
    fetched: dict[str, int] = field(default_factory=dict)  # bytes that came, per path
    left: dict[str, str] = field(default_factory=dict)  # the reason, per path that could not be had
    workers: list[str] = field(default_factory=list)  # of which the Hub has files, whether they were asked for or not
    bucket: str = ""  # full name of the live bucket
    live: dict[str, int] = field(default_factory=dict)  # bytes that came from there, per path
    unlike: dict[str, str] = field(default_factory=dict)  # the reason, per path of which nothing came from there
    beside: list[str] = field(default_factory=list)  # names of the other runs there, where it has nothing of this one


def everything(_: str) -> bool:
    """The workers of a pull of the whole run."""
    return True


def pull(
    spool: Spool,
    destination: Destination,
    hub: Hub,
    wanted: Callable[[str], bool],
    live: str,
    *,
    asked: str | None = None,
    begins: Callable[[], object] = lambda: None,
    progress: Callable[[int, int], object] = lambda *_: None,
    follows: bool = False,
) -> Pulled:
    """Bring a run back from the Hub, by the clock of `hub`.

    `live`: the bucket that continues the repository, with or without a namespace. `asked`: the folder that its writers
    ask for, if it is another one. `begins` is called when it is known what comes. `follows`:
    whether this process holds the lock of followers; files that are here grow in their place.
    """
    report = Pulled()
    head = ask(hub.head, hub.clock)
    if head is None:
        return report
    report.commit = head
    there = ask(lambda: hub.tree(head), hub.clock)
    tree = {path: remote for path, remote in sorted(there.items()) if is_wanted(path, wanted)}
    report.sizes = {path: remote.size for path, remote in tree.items()}
    report.bucket = full_bucket(live, hub.repo_id)
    live_files = _live_files(hub, report, destination.path_in_repo)
    beyond = {path: size for path, size in live_files.items() if size > report.sizes.get(path, 0)}
    report.workers = sorted({names.worker_of(path) for path in (*there, *beyond) if is_wanted(path, everything)})
    beyond = {path: size for path, size in beyond.items() if is_wanted(path, wanted)}
    if not tree and not beyond:
        return report
    attachments = list(filter(names.is_attachment, tree))
    pushed = ask(lambda: hub.pushed(attachments, head), hub.clock) if attachments else set[str]()
    begins()
    spool.create()
    spool.record_destination(destination, asked)
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # it warns of each connection that breaks
    with locked(spool):
        if not follows and locks.is_held(spool.directory / LOCK):
            raise HfMpWriterError(FOLLOWED.format(spool.run_dir))
        disk.remove_tree(spool.directory / PULLING)
        _Pull(spool, hub, report, tree, pushed, progress, destination, follows=follows).run(beyond)
    return report


def _live_files(hub: Hub, report: Pulled, folder: str) -> dict[str, int]:
    """Bytes of the event files in the live bucket; {} if there is none, or it does not answer, which is noted."""
    try:
        found = hub.bucket_sizes(report.bucket, folder)
    except Exception as error:
        if is_of_disk(error):
            raise
        if status_of(error) not in NO_BUCKET:
            report.unlike[report.bucket] = f"the bucket refuses: {text_of(error)}"
        return {}
    return {path: size for path, size in sorted(found.items()) if names.is_event_file(os.path.basename(path))}


def is_wanted(path: str, wanted: Callable[[str], bool]) -> bool:
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


def unfit(spool: Spool, path: str) -> str:
    """Why nothing may stand at a path, "" if it may."""
    if not _can_be_here(path):
        return UNSAFE
    return OF_OTHER if other_run_above(spool.run, os.path.dirname(path)) else ""


def ask(question: Callable[[], Answer], clock: Clock) -> Answer:
    """The answer to a question, which is asked a few times, while the clock allows it."""
    for failures in range(1, TRIES + 1):
        try:
            return question()
        except Exception as error:
            verdict = classify(error)
            wished = getattr(verdict, "after", None) or 0.0
            is_final = isinstance(verdict, (Refused, Split)) or is_of_disk(error)
            is_over = clock.left <= (0.0 if clock.is_patient else wished)
            if is_final or is_over or failures == TRIES:
                raise
            pause = random.uniform(0.5, 1.0) * min(2**failures, LONGEST_PAUSE)  # noqa: S311 - jitter, no secret
            clock.pause(max(wished, pause), is_wished=wished > 0)
    raise AssertionError


def is_of_disk(error: Exception) -> bool:
    """Whether this disk has refused: the client's own errors are of other classes, or have no number."""
    return isinstance(error, OSError) and error.errno is not None and type(error).__module__ == "builtins"


@contextlib.contextmanager
def locked(spool: Spool) -> Iterator[None]:
    """Hold the lock of the pulls; another pull brings the same files."""
    while (fd := locks.try_exclusive(spool.directory / "pull.lock")) is None:
        time.sleep(LOCK_POLL)
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
        destination: Destination,
        *,
        follows: bool,
    ) -> None:
        self._spool, self._hub, self._report, self._tree, self._pushed = spool, hub, report, tree, pushed
        self._progress, self._destination, self._follows = progress, destination, follows
        self._left = self._total = sum(report.sizes.values())  # bytes that are neither here nor given up
        self._here: set[str] = set()  # paths of which the Hub has a beginning, or all
        self._begun: set[str] = set()  # paths of which less than the Hub's copy is here, of the same file or another

    def run(self, beyond: dict[str, int]) -> None:
        """Compare all files, fetch what is not here, record what is; then take what the bucket has beyond that."""
        try:
            in_use = set(map(os.path.dirname, Members(self._spool).growing()))
            lacking = [path for path in self._tree if not self._settle(path, self._obstacle(path, in_use))]
            sizes = {path: self._tree[path].size for path in lacking}
            new = {path: size for path, size in sizes.items() if path not in self._begun}
            # now: an interrupted pull did come, and what is to stand where nothing stands is the Hub's
            note_pulled(self._spool, new, [path for path, why in self._report.left.items() if why == DIFFERS])
            for path, size in sizes.items():
                if self._settle(path, self._fetch(path)) and path in self._here:
                    self._report.fetched[path] = size
            for path, size in beyond.items():
                if path not in self._report.left:
                    self._read_on(path, size, in_use)
        finally:
            if (lock := locks.try_exclusive(self._spool.uploader_lock)) is not None:
                try:
                    self._save_ledger()
                finally:
                    locks.release(lock)

    def _settle(self, path: str, obstacle: str | None) -> bool:
        """Note that a file is here, "", or why it is not to be had; False if it is to be fetched, None."""
        if obstacle is None:
            return False
        if obstacle:
            self._report.left[path] = obstacle
        else:
            self._here.add(path)
        self._left -= self._tree[path].size
        self._came(0)
        return True

    def _came(self, size: int) -> None:
        self._progress(self._total, self._left - size)

    def _obstacle(self, path: str, in_use: set[str]) -> str | None:
        """What keeps a file from being fetched, "" if it is here; `in_use`: where living members have a file open."""
        if why := unfit(self._spool, path):
            return why
        remote = self._tree[path]
        try:
            fd = disk.open_beneath(self._spool.run / path)
        except FileNotFoundError:
            pass
        except OSError as error:
            if error.errno in (*disk.NOT_REGULAR, errno.ENOTDIR):
                return f"something that is no regular file is in its place: {error.strerror}"
            if not isinstance(error, PermissionError):
                raise
            return str(error)
        else:
            try:
                if os.fstat(fd).st_size >= remote.size:
                    return "" if remote.is_beginning_of(fd) else DIFFERS
                self._begun.add(path)
            finally:
                os.close(fd)
        return IN_USE if os.path.dirname(path) in in_use else None

    def _read_on(self, path: str, size: int, in_use: set[str]) -> None:
        """Append what the bucket has of a file in addition, if it continues what is here."""
        if why := unfit(self._spool, path) or (IN_USE if os.path.dirname(path) in in_use else ""):
            self._report.unlike[path] = why
            return
        place, bucket = self._spool.run / path, self._report.bucket
        before = place.stat().st_size if place.exists() else 0
        source = functools.partial(self._hub.read_bucket, bucket, self._destination.path(path))
        try:
            disk.make_dirs(place.parent, 0o777)
            if not before:
                note_pulled(self._spool, {path: size})
            end = extend(place, size, lambda *span: ask(lambda: source(*span), self._hub.clock))
        except (UnfitError, OSError) as error:
            if isinstance(error, OSError) and is_of_disk(error) and error.errno not in _IN_ITS_PLACE:
                raise
            self._report.unlike[path], end = f"not all that the bucket has came: {error}", 0
        if end is None:
            self._report.unlike[path] = UNLIKE.format(bucket)
        elif place.exists() and (came := place.stat().st_size - before) > 0:
            disk.fsync_path(place, "pull.file")
            disk.fsync_dir(place.parent, "pull.file")
            note_pulled(self._spool, {path: before + came})
            self._report.live[path] = came

    def _fetch(self, path: str) -> str:
        """Bring one file; the reason if it does not come, else ""."""
        try:
            reason = ask(lambda: self._bring(path), self._hub.clock)
            return ask(lambda: self._bring(path), self._hub.clock) if reason == CORRUPT else reason
        except PermissionError as error:
            return str(error)

    def _bring(self, path: str) -> str:
        """Download a file, and put it in place if it is the Hub's copy and begins with the local one."""
        remote, place, scratch = self._tree[path], self._spool.run / path, (self._spool.directory / PULLING).way
        with self._hub.copy(path, self._report.commit, remote.size, scratch, self._came) as name:
            copy = at(name)
            fd = disk.open_beneath(copy)
            try:
                if os.fstat(fd).st_size != remote.size or not remote.is_beginning_of(fd):
                    return CORRUPT
                if not continues(fd, place):
                    note_pulled(self._spool, {}, [path])
                    return DIFFERS
                if path in self._begun:  # only now it is known whose it is
                    note_pulled(self._spool, {path: remote.size})
                disk.fsync(fd, "pull.file")
            finally:
                os.close(fd)
            if other_run_above(self._spool.run, os.path.dirname(path)):  # since it was asked for
                return OF_OTHER
            disk.make_dirs(place.parent, 0o777)
            if not (self._follows and path in self._begun and self._continue(copy, place)):
                disk.move(copy, place, "pull.file")
        return ""

    @staticmethod
    def _continue(copy: Place, place: Place) -> bool:
        """Append what a copy has in addition: a reader keeps its place in an open file; False if not all is records."""
        fd = disk.open_beneath(copy)
        try:
            size = os.fstat(fd).st_size
            return extend(place, size, lambda start, length: os.pread(fd, min(length, LONGEST), start)) == size
        except UnfitError:
            return False
        finally:
            os.close(fd)

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
