"""The restore: the event files of an earlier attempt come back from the logdir, in a process of its own with a timer.

    here                                 what happens
    nothing, or a beginning of the file  it is brought, the newest first, see `arrivals`
    anything else                        nothing; the mirror reports it

What came is recorded as mirrored, so it does not go back. What is listed and has not come yet is recorded before it is
brought, so an interrupted restore leaves no doubt: no uploader sends a later file of the same writer before it.

Invariants:
- Nothing is written to the logdir.
- Only event files with names of ours come back, and the list that `add_embedding` goes on with; nothing of a spool.
- A file that cannot be read ends nothing: it is counted, and brought by a later restore.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, NoReturn

from hf_mpwriter.base import names, state
from hf_mpwriter.mirror.copy import describe, open_target
from hf_mpwriter.mirror.restore.arrivals import RESTORING, SMALL_AT_ONCE, Arrivals, Listed
from hf_mpwriter.mirror.targets import Target
from hf_mpwriter.spool.layout import RunPaths, Spool
from hf_mpwriter.spool.staging.record import Mirrored, MirrorRecord, mirror_lock
from hf_mpwriter.spool.staging.restoration import Restoration, Unrestored
from hf_mpwriter.system import disk, launch, locks, redaction
from hf_mpwriter.system.directory import Place
from hf_mpwriter.system.process import host_id

TELL_EVERY = 0.5  # seconds between two lines while bytes come


def main() -> NoReturn:
    """Entry point of the process, see `system/launch`."""
    write = launch.answer()

    def tell(report: Restoration) -> None:
        write(state.to_line(report))

    try:
        paths = state.load(RunPaths, launch.read_record())
        spool = Spool.adopt(paths, launch.RUN_DIR_FD, launch.SPOOL_FD)
    except (state.DamagedError, OSError) as error:
        tell(Restoration(failure=f"the job cannot be read: {error}"))
    else:
        do(spool, tell)
    os._exit(0)  # threads of a library may still hang


def do(spool: Spool, tell: Callable[[Restoration], object]) -> None:
    """Do a restore."""
    try:
        record = MirrorRecord.read(spool)
        target = open_target(spool.logdir, "", "", record.mount if record else None)
    except (ImportError, ValueError) as error:
        tell(Restoration(failure=redaction.printable(str(error)), is_setting=True))
    else:
        _Restore(spool, target, tell).run()


class _Restore:
    """One restore."""

    def __init__(self, spool: Spool, target: Target, tell: Callable[[Restoration], object]) -> None:
        self._spool, self._target, self._tell = spool, target, tell
        self._arrivals = Arrivals(spool, target.of_this_thread)
        self._report, self._told_at = Restoration(), 0.0
        self._brought: dict[str, int] = {}
        self._missing: dict[str, int] | None = None  # None before all is listed

    def run(self) -> None:
        """List, bring, record; tell of each."""
        disk.remove_tree(self._spool.directory / RESTORING)  # of one that was killed
        try:
            self._bring(self._listed())
        except Exception as error:  # noqa: BLE001 - a filesystem of fsspec may raise anything
            self._say(came=self._arrivals.came, failure=describe(error))
        else:
            self._say(came=self._arrivals.came, is_over=True)
        finally:
            self._record()
            disk.remove_tree(self._spool.directory / RESTORING)

    def _say(self, **news: Any) -> None:
        self._report, self._told_at = replace(self._report, **news), time.monotonic()
        self._tell(self._report)

    def _listed(self) -> list[Listed]:
        """What is to be brought, the newest first."""
        with ThreadPoolExecutor(SMALL_AT_ONCE) as pool:
            listed = self._target.files(pool.map)
        found = {path: size for path, size in listed.items() if names.is_run_path(path)}
        seconds = [second for path in found if (second := _second(path))]
        ours = {path: size for path, size in found.items() if _comes_back(path)}
        here = {path: _size(self._spool.run / path) for path in ours}
        wanted = [Listed(path, size) for path, size in ours.items() if size > max(0, here[path])]
        wanted.sort(key=lambda file: (names.is_config(file.path), _second(file.path)), reverse=True)
        self._brought = {path: size for path, size in ours.items() if size == here[path]}
        self._missing = {path: size for path, size in wanted if not names.is_attachment(path)}
        Unrestored(self._missing).save(self._spool)
        first, last = min(seconds, default=0), max(seconds, default=0)
        self._say(files=len(wanted), size=sum(size for _, size in wanted), first=first, last=last)
        return wanted

    def _bring(self, wanted: list[Listed]) -> None:
        for outcome in self._arrivals.bring(wanted, self._tell_of_bytes, TELL_EVERY) if wanted else ():
            if outcome.error is not None:
                reason = self._report.reason or f"{outcome.file.path}: {outcome.error}"
                self._report = replace(self._report, unread=self._report.unread + 1, reason=reason)
                continue
            if outcome.is_here:
                self._brought[outcome.file.path] = outcome.file.size
            if self._missing is not None:  # what is here and differs is the mirror's to report
                self._missing.pop(outcome.file.path, None)

    def _tell_of_bytes(self) -> None:
        if self._arrivals.came != self._report.came and time.monotonic() > self._told_at + TELL_EVERY:
            self._say(came=self._arrivals.came)

    def _record(self) -> None:
        """Record what is in the logdir, and what of it is not here; a mirror that lives compares for itself."""
        if self._missing is not None:
            Unrestored(self._missing).save(self._spool)
        if self._brought and (lock := locks.try_exclusive(mirror_lock(self._spool))) is not None:
            try:
                host = self._spool.host(host_id())
                disk.make_dirs(host.root)
                before = Mirrored.read(host)
                replace(before, files=before.files | self._brought).save(host)
            finally:
                locks.release(lock)


def _comes_back(path: str) -> bool:
    return names.is_config(path) or names.is_ours(os.path.basename(path))


def _second(path: str) -> int:
    return names.event_second(os.path.basename(path))


def _size(place: Place) -> int:
    """Bytes of a file here; -1 if there is none."""
    try:
        return place.stat().st_size
    except (FileNotFoundError, NotADirectoryError):
        return -1
