"""Siblings: unfinished runs beside this one get an uploader too. A restart often has a new run directory.

    uploader --posix_spawn--> search: a process with a timer of its own
                                lists the directory that holds the run directory, or all staged runs
                                for each run that is this user's own, private, unfinished and on the same Hub,
                                and was neither copied nor unpacked from an archive:
                                    start its uploader, as a worker would

A directory beside a run may be a mount that hangs. Training never looks there.

Invariants:
- The uploader does not wait for the search, and starts none if its run directory is alone. The search ends after
  `Timing.sibling_search`, whatever it does then.
- Each directory is looked at in a thread of its own. One that hangs costs the others `Timing.sibling_look`.
- The token of the uploader goes only to the Hub that it belongs to, for runs into which no other user can write. What
  stands in an archive may name any repository in which the token may write, so a copy waits for its user.
- What was looked at is what is started: its directories are held from the first look on.
- The uploader of a sibling searches nothing: a folder with many unfinished runs gets SERVED uploaders at a time.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator
from dataclasses import replace

from hf_mpwriter.base import state
from hf_mpwriter.base.errors import HfMpWriterError
from hf_mpwriter.base.settings import Destination
from hf_mpwriter.base.storage import is_staged_path
from hf_mpwriter.base.timing import USUAL, Timing
from hf_mpwriter.daemon.background import start_logging
from hf_mpwriter.daemon.election import Election
from hf_mpwriter.daemon.starts import StartRecord
from hf_mpwriter.spool.layout import Spool
from hf_mpwriter.spool.staging import MirrorRecord
from hf_mpwriter.spool.storage import find, spool_of
from hf_mpwriter.system import launch, redaction
from hf_mpwriter.uploader.meeting import within

logger = logging.getLogger("hf_mpwriter")

EXAMINED = 200  # run directories beside this one, the last ones by name
SERVED = 4  # of these, so many get an uploader


class Search:
    """The search, seen from the uploader."""

    def __init__(self, start: StartRecord, limit: float = USUAL.sibling_search) -> None:
        self._pid = 0
        if start.seeks_siblings and not _is_alone(start.run_dir):
            try:
                self._pid = launch.start("search", state.dump(start), start.run_dir, {}, limit=limit)
            except OSError as error:
                logger.info("unfinished runs beside this one are not searched: %s", error)

    def reap(self) -> bool:
        """Collect the process if it has ended; whether none is left."""
        if self._pid and launch.has_ended(self._pid):
            self._pid = 0
        return not self._pid


def main() -> None:
    """Entry point of the search, see `system.launch`."""
    redaction.guard()
    start_logging()
    start = state.load(StartRecord, launch.read_record())
    for pid in search(start, Timing.of().sibling_look):
        os.waitpid(pid, 0)  # the first half of an uploader, which ends at once
    os._exit(0)  # some directory may still hang in its thread


def search(start: StartRecord, patience: float = USUAL.sibling_look) -> list[int]:
    """Start uploaders of unfinished runs beside a run; the processes that were started."""
    children: list[int] = []
    for spool, destination in unfinished(start.run_dir, start.destination.endpoint, patience):
        election = Election(spool, "uploader")
        record = replace(start, **vars(spool.paths), destination=destination, seeks_siblings=False)
        if election.ensure(record):
            logger.info("started an uploader for %s, which is unfinished", spool.run_dir)
        children += election.children
        if len(children) == SERVED:
            break
    return children


def unfinished(
    run_dir: str, endpoint: str, patience: float = USUAL.sibling_look
) -> Iterator[tuple[Spool, Destination]]:
    """Spools of runs beside one that have unsent data, and their destinations."""
    for other in _beside(run_dir):
        found = _look(other, endpoint, patience) if other != run_dir else None
        if found is not None:
            yield found


def _is_alone(run_dir: str) -> bool:
    """Whether nothing is beside a run directory; of a folder with a million names the first ones tell."""
    parent = os.path.dirname(run_dir)
    for place in [parent, os.path.dirname(parent)] if is_staged_path(run_dir, os.geteuid()) else [parent]:
        with contextlib.suppress(OSError), os.scandir(place) as entries:  # as in `_listed`
            if any(entry.path not in (run_dir, parent) for entry in entries):
                return False
    return True


def _beside(run_dir: str) -> list[str]:
    """The directories beside a run directory; beside that of a staged run, those of all staged runs."""
    parent = os.path.dirname(run_dir)
    if not is_staged_path(run_dir, os.geteuid()):
        return _listed(parent)
    return [path for place in _listed(os.path.dirname(parent)) for path in _listed(place)]


def _listed(parent: str) -> list[str]:
    try:
        return [os.path.join(parent, name) for name in sorted(os.listdir(parent))[-EXAMINED:]]
    except OSError:  # a directory that can be passed but not listed, as on scratch disks
        return []


def _spool_at(run_dir: str) -> Spool:
    """The spool of a run directory; OSError if there is none of its own.

    Among staged runs are spools of runs whose event files are in their logdirs. They are found beside those.
    """
    if not is_staged_path(run_dir, os.geteuid()):
        return spool_of(find(run_dir))
    record = MirrorRecord.read(Spool(run_dir))
    if record is None:
        raise FileNotFoundError(run_dir)
    return Spool.of(run_dir, "", record.to)


def _look(run_dir: str, endpoint: str, patience: float) -> tuple[Spool, Destination] | None:
    """Spool and destination of an unfinished run; None also if the disk does not answer within `patience` seconds."""

    def look() -> tuple[Spool, Destination] | None:
        with contextlib.suppress(OSError, HfMpWriterError):  # it was removed meanwhile
            if os.path.islink(run_dir):  # the run is found where it is
                return None
            spool = _spool_at(run_dir)
            if not (spool.is_private() and spool.is_unfinished(endpoint) and spool.is_original()):
                return None
            destination = spool.destination()
            if destination and destination.is_at(endpoint) and not os.path.islink(run_dir):
                return spool, destination
        return None

    return within(patience, look)
