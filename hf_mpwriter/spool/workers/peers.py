"""The share of this host in a run: all of it, but where each host has a spool of its own beside a common logdir.

    local spool: a file of the run directory, which is the logdir          its host
      event file of ours                                                   the one in its name
      any other file                                                       where a worker of its directory has lived;
                                                                           this one if no worker has ever lived here
      event file of ours of another host, unchanged for LEFT_ALONE seconds also where that worker, or the first, has

    staged: a file of the run directory, which each host has for itself    its host
      event file of ours                                                   the one in its name, and that of its worker
      any other file                                                       this one: nothing else has written it
      event file of ours that came here LEFT_ALONE seconds ago             also where the first worker has lived

Of a folder of another user, for which `sync` has made the spool, all is the share of the host that syncs it.

A worker has lived on a host if there is the lock file of its claim in that host's spool.

Invariants:
- This host waits for its own share only, and sends its own share, and what others seem to have left behind.
- So two hosts may send the same file at once. That is safe: where each host has a spool, each commit names its parent.
- The age of a file is that by the clock of the filesystem that it is on.

Elsewhere: the other hosts that have a living uploader of their own, as far as this one can know.

Where locks reach from host to host, there is one uploader. Where they do not, each host has one, and the lock of a
worker of another host looks free here: it lives as long as its host has an uploader.

    the uploader of this host       hosts heard of since it took the lock; it publishes them in its status
    others of this host             what their uploader has published
    where this host has none        none if the uploader lock is held, as it reaches here; else all heard of lately

Invariant: hosts are compared by the clock of the filesystem, on which they agree.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence

from hf_mpwriter.base.names import MAIN_WORKER, SPOOL_NAME, event_host, is_loss, is_ours, worker_of
from hf_mpwriter.base.storage import is_of_others
from hf_mpwriter.spool.layout import Spool
from hf_mpwriter.spool.staging import MirrorRecord
from hf_mpwriter.spool.status import SILENCE, UploaderStatus
from hf_mpwriter.system import disk, locks
from hf_mpwriter.system.directory import Place
from hf_mpwriter.system.interrupts import ours, suppress
from hf_mpwriter.system.process import host_id, host_name

LEFT_ALONE = 300.0  # seconds without a change, after which the file of another host may be sent from here
_LOOK_EVERY = 5.0  # seconds between two looks at who has lived here, and at the filesystem's clock
GROWS_WITHIN = 15.0  # seconds; a worker of another host that wrote so lately lives, whatever its lock says
OTHERS_SILENCE = 300.0  # seconds without a heartbeat, after which the uploader of another host cannot send any more


def is_apart(spool: Spool) -> bool:
    """Whether a spool is not in its logdir, so that other hosts have spools of their own."""
    return spool.root != os.path.join(spool.run_dir, SPOOL_NAME) or _is_staged(spool)


def _is_staged(spool: Spool) -> bool:
    return spool.logdir != spool.run_dir or MirrorRecord.place(spool).exists()


class Share:
    """The share of this host in a run."""

    def __init__(self, spool: Spool, clock: Callable[[], float] = time.monotonic) -> None:
        self._spool, self._clock, self._is_all = spool, clock, not is_apart(spool) or is_of_others(spool.root)
        self._is_staged = not self._is_all and _is_staged(spool)
        self._next_look, self._lived, self._now = -1.0, frozenset[str](), 0.0

    def has(self, path: str) -> bool:
        """Whether a file is of this host: it has written it, or answers for it."""
        if self._is_all:
            return True
        if is_loss(path):  # it is named after a member file
            return host_id() in path.split(".")
        if not is_ours(name := os.path.basename(path)):
            lived = self._lived_here()
            return self._is_staged or not lived or worker_of(path) in lived
        return event_host(name) == host_name() or (self._is_staged and worker_of(path) in self._lived_here())

    def of(self, allows: Callable[[str], bool]) -> Callable[[str], bool]:
        """What of the files that may be uploaded is of this host."""
        return allows if self._is_all else lambda path: allows(path) and self.has(path)

    def takes(self, path: str) -> bool:
        """Whether a file is sent from here: it is of this host, or another one seems to have left it behind."""
        if self.has(path):
            return True
        if not is_ours(os.path.basename(path)) or self._lived_here().isdisjoint((worker_of(path), MAIN_WORKER)):
            return False
        try:
            status = (self._spool.run / path).stat()
        except ours(OSError):
            return False
        changed = status.st_ctime if self._is_staged else status.st_mtime  # what came back is as old as its name
        return self._now - changed >= LEFT_ALONE

    def _lived_here(self) -> frozenset[str]:
        """The workers that have had a claim in this spool, as of the last look."""
        if self._clock() >= self._next_look:
            self._next_look = self._clock() + _LOOK_EVERY
            try:
                names = self._spool.claims.names()
                self._now = disk.time_of(Place(self._spool.run))
            except ours(OSError):  # what was known lasts
                return self._lived
            self._lived = frozenset(name.removesuffix(".lock") for name in names if name.endswith(".lock"))
        return self._lived


def living_others(spool: Spool, host: str, since: float, now: Callable[[], float]) -> frozenset[str]:
    """Hosts whose uploader has been heard of lately.

    `since`: unix time of the filesystem; what was heard before does not count. Had another host held the lock that
    the uploader of this one took then, it would have said nothing since.
    """
    found, time_there = set(), 0.0
    for other in map(spool.host, spool.host_ids()):
        if other.root.basename == host:
            continue
        with suppress(FileNotFoundError):
            beat = other.daemon("uploader").status.stat().st_mtime
            time_there = time_there or now()
            is_silent = bool(time_there) and abs(time_there - beat) >= OTHERS_SILENCE  # 0 if the disk refuses
            if since < beat and not is_silent and not UploaderStatus.read(other).is_over:
                found.add(other.root.basename)
    return frozenset(found)


def seen_from_here(spool: Spool) -> frozenset[str]:
    """The other hosts with a living uploader, for processes of this host that are no uploader; see above."""
    try:
        own, is_held = UploaderStatus.read(spool.host(host_id())), locks.is_held(spool.uploader_lock)
        if is_held and (own.is_over or time.time() - own.beat > SILENCE):  # there is none here
            return frozenset()
        if is_held and own.elsewhere is not None:
            return frozenset(own.elsewhere)
        return living_others(spool, host_id(), 0.0, lambda: _time(spool))
    except ours(OSError):
        return frozenset()


def was_written_lately(places: Sequence[Place]) -> bool:
    """Whether one of these files, the first of which is a member file, was written within GROWS_WITHIN."""
    newest = 0.0
    for place in places:
        with suppress(OSError):
            newest = max(newest, place.stat().st_mtime)
    try:
        now = disk.time_of(Place(places[0].directory, os.path.dirname(places[0].name)))
    except ours(OSError):  # who only reads
        now = time.time()
    return abs(now - newest) < GROWS_WITHIN


def _time(spool: Spool) -> float:
    try:
        return disk.time_of(spool.members)
    except ours(OSError):  # who only reads
        return time.time()
