"""Elsewhere: the other hosts that have a living uploader of their own, as far as this one can know.

Where locks reach from host to host, there is one uploader. Where they do not, each host has one, and the lock of a
worker of another host looks free here: it lives as long as its host has an uploader.

    the uploader of this host       hosts heard of since it took the lock; it publishes them in its status
    others of this host             what their uploader has published
    where this host has none        none if the uploader lock is held, as it reaches here; else all heard of lately

Invariant: hosts are compared by the clock of the filesystem, on which they agree.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Sequence

from hf_mpwriter.spool.layout import Spool
from hf_mpwriter.spool.status import SILENCE, UploaderStatus
from hf_mpwriter.system import disk, locks
from hf_mpwriter.system.directory import Place
from hf_mpwriter.system.process import host_id

GROWS_WITHIN = 15.0  # seconds; a worker of another host that wrote so lately lives, whatever its lock says
OTHERS_SILENCE = 300.0  # seconds without a heartbeat, after which the uploader of another host cannot send any more


def living_others(spool: Spool, host: str, since: float, now: Callable[[], float]) -> frozenset[str]:
    """Hosts whose uploader has been heard of lately.

    `since`: unix time of the filesystem; what was heard before does not count. Had another host held the lock that
    the uploader of this one took then, it would have said nothing since.
    """
    found, time_there = set(), 0.0
    for other in map(spool.host, spool.host_ids()):
        if other.root.basename == host:
            continue
        with contextlib.suppress(FileNotFoundError):
            beat = other.status.stat().st_mtime
            time_there = time_there or now()
            if since < beat and abs(time_there - beat) < OTHERS_SILENCE and not UploaderStatus.read(other).is_over:
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
    except OSError:
        return frozenset()


def was_written_lately(places: Sequence[Place]) -> bool:
    """Whether one of these files, the first of which is a member file, was written within GROWS_WITHIN."""
    newest = 0.0
    for place in places:
        with contextlib.suppress(OSError):
            newest = max(newest, place.stat().st_mtime)
    try:
        now = disk.time_of(Place(places[0].directory, os.path.dirname(places[0].name)))
    except OSError:  # who only reads
        now = time.time()
    return abs(now - newest) < GROWS_WITHIN


def _time(spool: Spool) -> float:
    try:
        return disk.time_of(spool.members)
    except OSError:  # who only reads
        return time.time()
