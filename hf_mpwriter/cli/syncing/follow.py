"""`hf-mpwriter sync --follow`: beside training that cannot be changed, until its writers have gone.

    wait ROUND seconds, or until the writers have gone -> sync -> wait ... -> they had gone before this sync: done

When they have gone:

    a process of this host has an event file open for writing, as /proc tells    not yet, however long it is quiet
    those that had one have ended                                               after AFTER_CLOSE seconds of quiet
    one lives that had, or none was seen: on another host, of another user      after QUIET seconds of quiet

That one has no file open tells little: torch's writer, where TensorFlow is not installed, opens it for each record.

Quiet is that no event file appears or changes its size.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping

from hf_mpwriter.base.names import is_event_file
from hf_mpwriter.snapshot import event_files
from hf_mpwriter.supervisor.followed import ROUND
from hf_mpwriter.system.directory import Directory
from hf_mpwriter.system.process import Process

LOOK_EVERY = 5.0  # seconds between two looks at the writers
AFTER_CLOSE = 60.0  # seconds; ranks of other hosts end about then, too
QUIET = 600.0  # seconds; a validation or a checkpoint may take minutes


class Writers:
    """Who writes event files below a folder."""

    def __init__(self, folder: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._folder, self._clock = os.path.realpath(folder), clock
        self._sizes, self._quiet_since = self._all_sizes(), clock()
        self._seen: set[Process] = set()

    def have_gone(self) -> bool:
        """Look; whether nothing more is to be expected."""
        now, sizes = self._clock(), self._all_sizes()
        if sizes != self._sizes:
            self._sizes, self._quiet_since = sizes, now
        if writing := self._writing():
            self._seen |= set(map(Process.of, writing))
            return False
        have_ended = bool(self._seen) and not any(Process.of(one.pid) == one for one in self._seen)
        return now - self._quiet_since >= (AFTER_CLOSE if have_ended else QUIET)

    def _all_sizes(self) -> dict[str, int]:
        run = Directory(self._folder)
        found = event_files.sizes(run, lambda _: True)
        run.release()
        return found

    def _writing(self) -> set[int]:
        """The processes that have one of the files open for writing, as far as this user may see."""
        names = {os.path.join(self._folder, path) for path in self._sizes}
        return {pid for pid, target in _open_for_writing() if target in names}


def _open_for_writing() -> Iterator[tuple[int, str]]:
    """Processes of this host and the event files that they have open for writing, as far as this user may see."""
    for pid in filter(str.isdecimal, _listed("/proc")):
        for fd in _listed(f"/proc/{pid}/fd"):
            try:
                target = os.readlink(f"/proc/{pid}/fd/{fd}")
                if is_event_file(os.path.basename(target)) and _is_writable(f"/proc/{pid}/fdinfo/{fd}"):
                    yield int(pid), target
            except OSError:  # closed meanwhile
                continue


def _is_writable(info: str) -> bool:
    with open(info, encoding="ascii") as lines:
        flags = next((line.split()[1] for line in lines if line.startswith("flags:")), "0")
    return int(flags, 8) & os.O_ACCMODE != os.O_RDONLY


def _listed(path: str) -> list[str]:
    try:
        return os.listdir(path)
    except OSError:  # of another user, or gone
        return []


def follow(
    folders: Mapping[str, Writers],
    sync: Callable[[str, bool], bool],
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], object] = time.sleep,
) -> None:
    """Upload folders once in ROUND seconds until their writers have gone, and once more after that."""
    left, late, due = dict(folders), list[str](), clock() + ROUND
    while left:
        gone = [folder for folder, writers in left.items() if writers.have_gone()]
        is_due = clock() >= due
        due = clock() + ROUND if is_due else due
        for folder in list(left) if is_due else gone:
            is_whole = sync(folder, len(folders) == 1)
            if folder in gone:
                del left[folder]
                late += [folder] * (not is_whole and len(folders) > 1)
        if left and not gone:
            sleep(LOOK_EVERY)
    for folder in late:
        sync(folder, True)
