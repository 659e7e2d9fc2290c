"""The restore: the event files of an earlier attempt come back from the logdir, in a process of its own with a timer.

    logdir --pieces--> .hf_mpwriter/restoring/<32 hex> --as long as it is listed--> renamed to its path

    here                                 what happens
    nothing, or a beginning of the file  it is brought, the newest first
    anything else                        nothing; the mirror reports it

What came is recorded as mirrored, so it does not go back.

Invariants:
- Nothing is written to the logdir.
- Only event files with names of ours come back, and nothing of a spool.
- Nothing stands at a path but what was there, or the whole file, durable.
- A file that came is as old as its name says: a purge does not take it for one of this attempt.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NoReturn

from hf_mpwriter.base import names, state
from hf_mpwriter.mirror import targets
from hf_mpwriter.mirror.copy import describe, open_target
from hf_mpwriter.mirror.targets import Target
from hf_mpwriter.spool.layout import Spool
from hf_mpwriter.spool.staging.record import Mirrored, MirrorRecord, mirror_lock
from hf_mpwriter.spool.staging.restoration import Restoration, RestoreJob
from hf_mpwriter.system import disk, launch, locks, redaction
from hf_mpwriter.system.directory import Place
from hf_mpwriter.system.process import fill_standard, host_id
from hf_mpwriter.system.supervision.kernel import die_with_parent

RESTORING = "restoring"  # directory of the temporary files, in the spool
TELL_EVERY = 0.5  # seconds between two lines while bytes come
SURELY_OLD = 3600.0  # seconds


def main() -> NoReturn:
    """Entry point of the process, see `system/launch`. The timer is set already."""
    fill_standard()
    die_with_parent(os.getppid())
    pipe = os.dup(1)
    os.dup2(2, 1)  # whatever libraries print goes to the log
    redaction.guard()

    def tell(report: Restoration) -> None:
        disk.write_all(pipe, b"\n" + report.line())

    try:
        job = state.load(RestoreJob, launch.read_record(launch.START_RECORD_FD))
        spool = Spool.adopt(job.run_dir, launch.RUN_DIR_FD, launch.SPOOL_FD, logdir=job.to)
    except (state.DamagedError, OSError) as error:
        tell(Restoration(failure=f"the job cannot be read: {error}"))
    else:
        do(spool, tell)
    os._exit(0)  # threads of a library may still hang


def do(spool: Spool, tell: Callable[[Restoration], object]) -> None:
    """Do a restore.

    Args:
        spool: of the run directory.
        tell: takes how far it has come.
    """
    try:
        record = MirrorRecord.read(spool)
        target = open_target(spool.logdir, "", "", record.mount if record else None)
    except (ImportError, ValueError) as error:
        tell(Restoration(failure=redaction.printable(str(error)), is_setting=True))
    else:
        _Restore(spool, target, tell).run()


class _Restore:
    """One restore.

    Args:
        spool: of the run directory.
        target: the logdir.
        tell: takes how far it has come.
    """

    def __init__(self, spool: Spool, target: Target, tell: Callable[[Restoration], object]) -> None:
        self._spool, self._target, self._tell = spool, target, tell
        self._report, self._told_at = Restoration(), 0.0
        self._brought: dict[str, int] = {}

    def run(self) -> None:
        """List, bring, record; tell of each."""
        try:
            self._bring_all(self._listed())
        except Exception as error:  # noqa: BLE001 - a filesystem of fsspec may raise anything
            self._say(failure=describe(error))
        else:
            self._say(is_over=True)
        finally:
            self._record()
            disk.remove_tree(self._spool.directory / RESTORING)

    def _say(self, **news: Any) -> None:
        self._report, self._told_at = replace(self._report, **news), time.monotonic()
        self._tell(self._report)

    def _listed(self) -> list[tuple[str, int]]:
        """What is to be brought, the newest first."""
        found = {path: size for path, size in self._target.files().items() if names.is_run_path(path)}
        seconds = [second for path in found if (second := names.event_second(os.path.basename(path)))]
        ours = {path: size for path, size in found.items() if names.is_ours(os.path.basename(path))}
        wanted = [(path, size) for path, size in ours.items() if size > max(0, _size(self._spool.run / path))]
        wanted.sort(key=lambda item: names.event_second(os.path.basename(item[0])), reverse=True)
        self._brought = {path: size for path, size in ours.items() if size == _size(self._spool.run / path)}
        first, last = min(seconds, default=0), max(seconds, default=0)
        self._say(files=len(wanted), size=sum(size for _, size in wanted), first=first, last=last)
        return wanted

    def _bring_all(self, wanted: list[tuple[str, int]]) -> None:
        before = 0
        for path, size in wanted:
            self._bring(path, size, before)
            before += size
            self._say(came=before)

    def _bring(self, path: str, size: int, before: int) -> None:
        temporary = self._spool.directory / RESTORING / os.urandom(16).hex()
        disk.make_dirs(temporary.parent, durable=False)
        fd = temporary.open(os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        try:
            came = 0
            for piece in self._target.pieces(path):
                disk.write_all(fd, piece)
                came += len(piece)
                if time.monotonic() > self._told_at + TELL_EVERY:
                    self._say(came=before + came)
            if came != size:
                raise OSError(f"{came} bytes of {path} came, and {size} are listed")
            place = self._spool.run / path
            if not _begins_with(fd, place):
                return
            old = min(names.event_second(os.path.basename(path)), time.time() - SURELY_OLD)
            os.utime(fd, (old, old))
            disk.fsync(fd, "restore.file")
            disk.make_dirs(place.parent, 0o777)
            disk.move(temporary, place, "restore.file")
            self._brought[path] = size
        finally:
            os.close(fd)

    def _record(self) -> None:
        """Record what is in the logdir; a mirror that lives compares for itself."""
        if self._brought and (lock := locks.try_exclusive(mirror_lock(self._spool))) is not None:
            try:
                host = self._spool.host(host_id())
                disk.make_dirs(host.root)
                before = Mirrored.read(host)
                replace(before, files=before.files | self._brought).save(host)
            finally:
                locks.release(lock)


def _size(place: Place) -> int:
    """Bytes of a file here; -1 if there is none."""
    try:
        return place.stat().st_size
    except FileNotFoundError:
        return -1


def _begins_with(fd: int, place: Place) -> bool:
    """Whether what came begins with what is here."""
    try:
        here = disk.open_beneath(place)
    except FileNotFoundError:
        return True
    try:
        position = 0
        while chunk := os.pread(here, targets.CHUNK, position):
            if os.pread(fd, len(chunk), position) != chunk:
                return False
            position += len(chunk)
        return True
    finally:
        os.close(here)
