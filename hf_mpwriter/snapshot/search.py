"""The search for the files of a run. Others may put anything into a run directory, so it is bounded.

    named       the files that members and the ledger name, the folders of claims     always found
    the rest    the nearest first, up to PATHS paths, LEVELS levels and the seconds of the caller; no path that
                `is_run_path` refuses

Invariants:
- All that looks for files in a run directory goes through `RunSearch`. What that has left out, `status` tells.
- What is named counts for no limit. If the search is cut short, it is looked for where it is named to be.
- Symbolic links are not followed, and the spool is never read.
- A folder with a spool of its own is another run, which may go elsewhere or nowhere: nothing below it is part of this
  one. So is one with no more than its name, and one of another user that has its spool in our staging directory.
- A run has its spool before its first event file, and a folder is asked for one after it was listed: so no listing,
  however it falls, finds a file of another run.
- All that opens what was listed before asks `other_run_above`.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import NamedTuple, Self

from hf_mpwriter.base import names, storage
from hf_mpwriter.system import filesystem
from hf_mpwriter.system.directory import Directory, Place, at
from hf_mpwriter.system.interrupts import ours, suppress

PATHS = 100_000  # files, folders and links that nothing names
TOO_MANY = f"files and folders beside {PATHS:,} others"
NO_SPOOL = (errno.ENOENT, errno.ENOTDIR, errno.EACCES, errno.ELOOP, errno.ENAMETOOLONG)  # or nothing can be read there
LEVELS = 64  # folders one in another
LONGEST_NAME = 255  # bytes of a name, on any filesystem
SECONDS = 30.0  # of a search whose caller has no limit of its own
SECONDS_OF_A_WAIT = 5.0  # of one in training, or in a grace
SHOWN = 300  # characters of a path in what is told


class Named(NamedTuple):
    """What the spool of a run names, relative to the run directory."""

    files: frozenset[str] = frozenset()  # by members and the ledger
    folders: frozenset[str] = frozenset()  # of workers, by their claims

    def has(self, path: str) -> bool:
        """Whether a file or folder is named."""
        return path in self.files or path in self.folders


class RunSearch:
    """One search for all regular files of a run but ours, by relative paths."""

    def __init__(
        self,
        run: Directory,
        named: Named | None = None,
        until: float | None = None,
        top: str = "",
        enters: Callable[[str], bool] = lambda _: True,
    ) -> None:
        """`until`: monotonic seconds; `top`: the folder to begin with; `enters`: which folders are searched."""
        self.run, self._named = run, named or Named()
        self._until = time.monotonic() + SECONDS if until is None else until
        self._top, self._enters, self._left = top, enters, PATHS
        self._met, self._listed = set[str](), set[str]()  # files that are named, or in a folder that is; folders
        self.unread: list[OSError] = []  # folders that could not be listed
        self.other_runs: list[str] = []  # folders of other runs that were passed over
        self._left_out = dict[str, str]()  # what was left out, and an example

    def __iter__(self) -> Iterator[str]:
        """Search; each path comes once."""
        pending = deque([(self._top, 0)])
        while pending and self._left > 0 and self.has_time():
            folder, level = pending.popleft()
            folders, files = self._list(folder, self._left)
            yield from files
            if level < LEVELS:
                pending.extend((below, level + 1) for below in filter(self._enters, folders))
            elif folders:
                self._leave_out(f"folders more than {LEVELS} deep", folders[0])
        if pending and self._left <= 0:
            self._leave_out(TOO_MANY)
        if self._left_out:
            yield from self._named_ones()

    def _named_ones(self) -> Iterator[str]:
        """What is named and was not met, but for what is in another run."""
        other_run, met = functools.cache(functools.partial(other_run_above, self.run)), frozenset(self._met)
        yield from (path for path in self._named.files - met if not other_run(os.path.dirname(path)))
        for folder in self._named.folders - self._listed:
            files = self._list(folder, PATHS, names.is_ours)[1]
            yield from (path for path in files if path not in met and path not in self._named.files)

    def is_late(self) -> bool:
        """Whether its time is over."""
        return time.monotonic() >= self._until

    def has_time(self, path: str | None = None) -> bool:
        """Whether there is time for a path; for one that is named there always is."""
        if not self.is_late() or (path is not None and path in self._named.files):
            return True
        self._leave_out("what could not be looked at in time")
        return False

    @property
    def left_out(self) -> list[str]:
        """What was left out, for people."""
        return [f"{what}, such as {example[:SHOWN]}" if example else what for what, example in self._left_out.items()]

    def _leave_out(self, what: str, example: str = "") -> None:
        self._left_out.setdefault(what, example)

    def _list(self, folder: str, most: int, keep: Callable[[str], bool] | None = None) -> tuple[list[str], list[str]]:
        """The folders and files in a folder; none if it is another run, or cannot be listed."""
        most += len(self._named.files)
        try:
            found = Place(self.run, folder).scan(most=most + 1, keep=keep)
            if other := other_run_above(self.run, folder):
                self.other_runs.append(other)
                return [], []
        except ours(OSError) as error:
            self.unread.append(error)
            return [], []
        prefix = f"{folder}/" if folder else ""
        if len(os.fsencode(prefix)) + LONGEST_NAME > names.LONGEST_PATH:
            self._leave_out(f"paths of more than {names.LONGEST_PATH:,} bytes", folder)
            return [], []
        folders, files = ([prefix + name for name in some if not names.is_of_ours(name)] for some in found[:2])
        self._met.update(path for path in files if path in self._named.files or folder in self._named.folders)
        self._left -= sum(map(len, found)) - sum(map(self._named.has, (*folders, *files)))
        if sum(map(len, found)) > most:
            self._leave_out(TOO_MANY)
        else:
            self._listed.add(folder)
        return folders, files


def other_run_above(run: Directory, directory: str) -> str:
    """The topmost folder of another run that a folder of a run directory is or lies in, "" if it is of this one."""
    end, fd = 0, run.fd if directory else -1
    while directory and end >= 0:
        end = directory.find("/", end + 1)
        folder = directory if end < 0 else directory[:end]
        if _has_spool(fd, folder) or _has_spool_beside(fd, folder):
            return folder
    return ""


def _has_spool(run: int, folder: str) -> bool:
    try:
        os.stat(f"{folder}/{names.SPOOL_NAME}", dir_fd=run, follow_symlinks=False)
    except ours(OSError) as error:
        if error.errno not in NO_SPOOL:
            raise
        return False
    return True


def _has_spool_beside(run: int, folder: str) -> bool:
    """Whether a folder is another user's, for which this user has a spool in the staging directory."""
    try:
        owner = os.stat(folder, dir_fd=run, follow_symlinks=False).st_uid
        if owner == os.geteuid() or not (places := _places_beside(int(time.monotonic()))):
            return False
        name = storage.staged_name(os.path.join(os.readlink(f"/proc/self/fd/{run}"), folder))
    except ours(OSError):
        return False
    return any(at(os.path.join(place, name, names.SPOOL_NAME)).is_directory() for place in places)


@functools.lru_cache(1)
def _places_beside(_: int) -> tuple[str, ...]:
    """Where such spools are, in this second; of staging directories only those on disks of this host, or named, are
    asked.
    """
    below, near = os.path.join(storage.staging_root(os.geteuid()), storage.OF_OTHERS), storage.near_directories
    places = (os.path.join(directory, below) for directory in near(os.environ, filesystem.table()))
    return tuple(place for place in places if at(place).is_directory())


def check_is_of_run(run: Directory, path: str) -> None:
    """Refuse a file that was listed before its folder became one of another run; FileNotFoundError."""
    if other := other_run_above(run, os.path.dirname(path)):
        raise FileNotFoundError(errno.ENOENT, f"{other} is another run now", path)


class Statuses:
    """Reaches file after file, and tells its status; it keeps the directory of the last one open."""

    def __init__(self, run: Directory) -> None:
        self._run = run
        self._name, self._directory, self._step = "", Place(run), contextlib.ExitStack()

    def __enter__(self) -> Self:
        """Return this object."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the last directory."""
        self._step.close()
        self._directory = Place(self._run)

    def place(self, relative: str) -> Place:
        """The place of a file, good until the next call; OSError if its directory is gone."""
        directory, _, name = relative.rpartition("/")
        if self._directory.directory is self._run or directory != self._name:
            self.__exit__()
            self._directory = self._step.enter_context(Place(self._run, directory).entered())
            self._name = directory
        return self._directory / name

    def of(self, relative: str) -> os.stat_result:
        """The status of a file, of a link its own; OSError if it is gone."""
        return self.place(relative).stat()


def sizes_of(search: RunSearch, paths: Iterable[str], without: Collection[tuple[int, int]] = ()) -> dict[str, int]:
    """Size in bytes of each file of a search that is there, but not `without`, by device and inode."""
    found = {}
    with Statuses(search.run) as statuses:
        for path in filter(search.has_time, paths):
            with suppress(OSError):
                status = statuses.of(path)
                if (status.st_dev, status.st_ino) not in without:
                    found[path] = status.st_size
    return found
