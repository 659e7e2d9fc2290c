"""Deaths: what is remembered of workers that died, when their member files go.

    hosts/<host>/died.json    {"last": ["rank_00001/events.out..."]}    the last event file of each, the newest KEPT

A worker that ends seals its files. One that left a file open has died, and its member file shows it until the uploader
removes that. A later life of the worker makes a later file: so a worker has died if its last file is remembered here.

Invariant: it is for display. It is not made durable, and where it cannot be read or written, nothing is remembered.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection
from dataclasses import dataclass

from hf_mpwriter.base import state
from hf_mpwriter.spool.layout import Spool
from hf_mpwriter.system import disk
from hf_mpwriter.system.directory import Place

KEPT = 1000


@dataclass(frozen=True)
class Deaths:
    """What `died.json` holds."""

    last: tuple[str, ...] = ()  # paths, the newest death last

    @classmethod
    def read(cls, place: Place) -> Deaths:
        """The record; an empty one if there is none, or if it cannot be read."""
        return state.read(cls, place)


def remember(place: Place, files: Collection[str]) -> None:
    """Remember a worker that died."""
    known, last = Deaths.read(place).last, last_of(files)
    if last not in known:
        with contextlib.suppress(OSError):
            disk.replace(place, state.dump(Deaths((*known, last)[-KEPT:])), "died.save", durable=False)


def remembered(spool: Spool) -> frozenset[str]:
    """The last event file of each worker that died, as the uploaders of all hosts remember it."""
    with contextlib.suppress(OSError):
        return frozenset(path for host in spool.host_ids() for path in Deaths.read(spool.host(host).died).last)
    return frozenset()


def last_of(files: Collection[str]) -> str:
    """The event file that was made last: their names sort in time order."""
    return max(files, key=lambda path: (os.path.basename(path), path))
